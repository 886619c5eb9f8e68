"""What acts in a run: live during practice, with the newest weights at chunk boundaries, and fixed when evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from policies.generative.policy import GenerativePolicy
from robot_stack.apps.actors import Improved, chunk_builder, improved, no_actor, step_builder
from robot_stack.apps.build import step_spec
from robot_stack.apps.edge import Exploring
from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import StackConfig
from robot_stack.core.messages import ActionChunk, Array, FloatArray, Observation
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.canary import Canary
from robot_stack.edge.control_loop import Corrector, NoCorrection
from robot_stack.edge.live_policy import LivePolicy, PolicyCanary
from robot_stack.edge.weights import LiveResidual, WeightInbox
from robot_stack.learner.algorithms.settings.gaussian import GaussianSettings

# Two publications may differ by anything inside the bounds: there is nobody here who could be hurt, and what a canary
# remembers is not in a checkpoint.
_ANY_CHANGE = 1.0


class Idle:
    """Proposes what is nearest to zero, a `Policy`: for actors that act by themselves and need no base policy."""

    version = 0

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        zero = np.clip(np.zeros(spec.action.shape, np.float32), spec.action.lower_array(), spec.action.upper_array())
        self._actions: FloatArray = np.tile(zero, (spec.horizon, 1))

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def predict(self, observation: Observation) -> ActionChunk:
        return ActionChunk(
            observation_id=observation.id, index=observation.index, weights_version=0, actions=self._actions
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        return np.stack([self._actions] * len(observations))


def live(config: StackConfig, base: GenerativePolicy, inbox: WeightInbox) -> tuple[Policy, Corrector]:
    """What proposes chunks and what acts at every step in practice, as the edge process makes them."""
    settings, spec = config.algorithm, step_spec(config, RunLayout.of(config).robot_spec())
    build_step, build_chunks = step_builder(settings, spec), chunk_builder(settings, base)
    if build_step is not None:
        steps = LiveResidual(NoCorrection(), inbox, build_step, Canary(spec.action, _ANY_CHANGE, spec.observation))
        exploring = Exploring(steps, settings.exploration, spec.action, config.seed)
        alone = isinstance(settings, GaussianSettings) and settings.exploration.warmup == "uniform"
        return (Idle(base.spec) if alone else base), exploring
    if build_chunks is not None:
        return LivePolicy(base, inbox, build_chunks, PolicyCanary(_ANY_CHANGE)), NoCorrection()
    raise no_actor(settings)


def acting_now(config: StackConfig, base: GenerativePolicy, version: int, tensors: Mapping[str, Array]) -> Improved:
    """The deterministic policy of published tensors. For Gaussian actors no base policy computes."""
    settings, spec = config.algorithm, step_spec(config, RunLayout.of(config).robot_spec())
    acting = improved(settings, base, spec, version, tensors)
    return replace(acting, policy=Idle(base.spec)) if isinstance(settings, GaussianSettings) else acting
