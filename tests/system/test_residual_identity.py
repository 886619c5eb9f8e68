"""Before learning, and with scale zero for ever, the improved policy is the base policy bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from policies.common.normalization import Standardizer
from policies.generative.policy import GenerativePolicy
from policies.residual.actor import ResidualActor, actor_shapes, actor_tensors
from policies.residual.config import ResidualConfig
from policies.residual.runtime import ResidualRuntime
from robot_stack.apps.actors import FixedCorrector
from robot_stack.apps.build import step_spec
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.rollouts import rollout_robot
from robot_stack.config.compose import compose_config
from robot_stack.core.messages import Array
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.control_loop import ControlLoop, Corrector, EpisodeId, LoopStep, NoCorrection
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.edge.scheduler import ChunkScheduler
from tests.system.conftest import SmallRun


class Trace:
    """Every byte that an episode's policy, robot and task produced."""

    def __init__(self) -> None:
        self.bytes: list[bytes] = []

    def on_step(self, step: LoopStep) -> None:
        features = step.following.features
        self.bytes.append(step.action_asked.tobytes() + b"".join(features[name].tobytes() for name in sorted(features)))


@pytest.fixture
def rollouts(small_run: SmallRun) -> Iterator[tuple[RemoteRobot, GenerativePolicy, PolicySpec]]:
    overrides = small_run.overrides()
    config = compose_config(overrides)
    layout = RunLayout.of(config)
    base = GenerativePolicy.load(layout.policy)
    with rollout_robot(config, overrides, "robot-server", base.spec) as robot:
        yield robot, base, step_spec(config, layout.robot_spec())


def trace(robot: RemoteRobot, base: GenerativePolicy, corrector: Corrector, seed: int) -> list[bytes]:
    seen = Trace()
    ControlLoop(robot, ChunkScheduler(base, 8), corrector, [seen], 1.0).run_episode(EpisodeId(0, seed))
    return seen.bytes


def zero_initialised(spec: PolicySpec) -> ResidualRuntime:
    config = ResidualConfig(hidden=(16, 16), action_scale=0.5)
    sizes = sum(feature.shape[0] for feature in spec.observation.values())
    actor = ResidualActor(config, sizes, spec.action.shape[0], seed=5)
    return ResidualRuntime(actor_tensors(actor, Standardizer(mean=(0.0,) * sizes, std=(1.0,) * sizes)), config, spec, 0)


def random_weights(spec: PolicySpec, action_scale: float) -> ResidualRuntime:
    config = ResidualConfig(hidden=(16, 16), action_scale=action_scale)
    sizes = sum(feature.shape[0] for feature in spec.observation.values())
    rng = np.random.default_rng(1)
    shapes = actor_shapes(config, sizes, spec.action.shape[0])
    tensors: dict[str, Array] = {
        name: rng.uniform(0.1, 1.0, shape).astype(np.float32) for name, shape in shapes.items()
    }
    return ResidualRuntime(tensors, config, spec, 1)


def test_zero_initialised_and_zero_scale_equal_the_base_bit_for_bit(
    rollouts: tuple[RemoteRobot, GenerativePolicy, PolicySpec],
) -> None:
    robot, base, spec = rollouts
    for seed in (3, 4):
        alone = trace(robot, base, NoCorrection(), seed)
        assert trace(robot, base, FixedCorrector(zero_initialised(spec)), seed) == alone
        assert trace(robot, base, FixedCorrector(random_weights(spec, 0.0)), seed) == alone
        assert trace(robot, base, FixedCorrector(random_weights(spec, 0.5)), seed) != alone
