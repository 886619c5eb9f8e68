"""From published weights to what acts on the robot: at every step, or as chunks in the place of the base policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from policies.gaussian.runtime import GaussianRuntime
from policies.generative.policy import GenerativePolicy
from policies.residual.runtime import ResidualRuntime
from robot_stack.apps.build import step_spec
from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.protocols import Policy, ResidualPolicy
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.control_loop import Corrector, NoCorrection
from robot_stack.learner.algorithms.base import build_chunk_policy
from robot_stack.learner.algorithms.settings import AlgorithmSettings, ChunkPolicySettings, ResidualSettings
from robot_stack.learner.algorithms.settings.gaussian import GaussianSettings
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.trainer import TrainerMeta, published_tensors

BuildStep = Callable[[int, Mapping[str, Array]], ResidualPolicy]
BuildChunks = Callable[[int, Mapping[str, Array]], Policy]


def step_builder(settings: AlgorithmSettings, spec: PolicySpec) -> BuildStep | None:
    """Makes what acts at every step from (version, tensors); None if the algorithm's weights act as chunks.

    `spec`: as of `step_spec`.
    """
    if isinstance(settings, ResidualSettings):
        residual, vision = settings.residual, settings.vision if settings.images else None
        return lambda version, tensors: ResidualRuntime(tensors, residual, spec, version, vision)
    if isinstance(settings, GaussianSettings):
        actor, vision = settings.actor, settings.vision if settings.images else None
        return lambda version, tensors: GaussianRuntime(tensors, actor, spec, version, vision)
    return None


def allowed_change(settings: AlgorithmSettings, configured: float) -> float:
    """How much new weights may change the actions at once, as a share of their range: for the canary.

    No limit but the bounds where the algorithm's weights do not stay near the base policy.
    """
    return configured if settings.near_base else math.inf


def chunk_builder(settings: AlgorithmSettings, base: GenerativePolicy) -> BuildChunks | None:
    """Makes what predicts chunks from (version, tensors); None if the algorithm's weights act at every step."""
    if isinstance(settings, ChunkPolicySettings):
        return lambda version, tensors: build_chunk_policy(settings, base, version, tensors)
    return None


class FixedCorrector:
    """A step policy whose weights stay as they are."""

    def __init__(self, policy: ResidualPolicy) -> None:
        self._policy = policy
        self.version = policy.version

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        return self._policy.correct(observation, action_base)

    def refresh(self) -> None:
        """There are no weights to exchange."""


@dataclass(frozen=True, slots=True)
class Improved:
    """What practice has made of the base policy: what predicts chunks, and what acts at every step upon them."""

    version: int
    policy: Policy
    corrector: Corrector


def load_improved(config: StackConfig, base: GenerativePolicy) -> Improved | None:
    """What the learner published last, from its newest checkpoint; None before there is one."""
    layout = RunLayout.of(config)
    if not layout.checkpoints.exists():
        return None
    checkpoint = CheckpointStore(layout.checkpoints).latest()
    if checkpoint is None:
        return None
    version = msgspec.json.decode(checkpoint.meta, type=TrainerMeta).version
    spec, tensors = step_spec(config, layout.robot_spec()), published_tensors(checkpoint.tensors)
    return improved(config.algorithm, base, spec, version, tensors)


def improved(
    settings: AlgorithmSettings,
    base: GenerativePolicy,
    spec: PolicySpec,
    version: int,
    tensors: Mapping[str, Array],
) -> Improved:
    """The policy of published weights, as it stays; ConfigError if nothing acts on the algorithm's weights."""
    build_step, build_chunks = step_builder(settings, spec), chunk_builder(settings, base)
    if build_step is not None:
        return Improved(version, base, FixedCorrector(build_step(version, tensors)))
    if build_chunks is not None:
        return Improved(version, build_chunks(version, tensors), NoCorrection())
    raise no_actor(settings)


def no_actor(settings: AlgorithmSettings) -> ConfigError:
    """What to say where neither `step_builder` nor `chunk_builder` makes anything."""
    return ConfigError(f"nothing acts on the weights of algorithm '{settings.module}'; see docs/add-an-algorithm.md")
