"""Episodes of a policy through a robot server of their own: the safety filter is always in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from policies.generative.policy import GenerativePolicy
from robot_stack.apps.connections import remote_robot
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.local_robot import local_robot_server
from robot_stack.apps.seeds import validation_seed
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import PolicySpec, check_policy_fits_robot
from robot_stack.edge.control_loop import ControlLoop, Corrector, EpisodeId, NoCorrection, StepObserver
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.edge.scheduler import ChunkScheduler
from robot_stack.evaluation.results import EpisodeOutcome


@contextmanager
def rollout_robot(config: StackConfig, overrides: Sequence[str], name: str, reads: PolicySpec) -> Iterator[RemoteRobot]:
    """An armed robot with a server of its own, checked against the policy that reads its observations."""
    if config.cameras:
        raise ConfigError(
            "evaluation starts simulated robots of its own, which camera processes do not see; in simulation let the "
            "robot server render them: robot.cameras=[NAME] instead of cameras.NAME"
        )
    keys = ensure_keys(RunLayout.of(config))
    with local_robot_server(config, overrides, name=name) as network, remote_robot(network, keys) as robot:
        robot.connect(config.edge.patience_s)
        check_policy_fits_robot(reads, robot.spec)
        robot.arm(config.edge.patience_s)
        yield robot


class RemoteRunner:
    """Runs single episodes of a policy through the robot server."""

    def __init__(
        self,
        robot: RemoteRobot,
        policy: Policy,
        execute_steps: int,
        corrector: Corrector,
        config: StackConfig,
    ) -> None:
        self.observers: list[StepObserver] = []
        self._loop = ControlLoop(
            robot,
            ChunkScheduler(policy, execute_steps),
            corrector,
            self.observers,
            config.edge.max_state_age_s,
            reads=policy.spec,
            state_latency_s=config.edge.state_latency_s,
            instruction=config.policy.instruction,
        )

    def run(self, seed: int) -> EpisodeOutcome:
        started_s = time.monotonic()
        summary = self._loop.run_episode(EpisodeId(seed, seed))
        return EpisodeOutcome(
            seed=seed,
            success=summary.success,
            steps=summary.steps,
            return_=summary.return_,
            duration_s=time.monotonic() - started_s,
        )


@contextmanager
def training_rollout(
    config: StackConfig, overrides: Sequence[str], spec: PolicySpec
) -> Iterator[Callable[[GenerativePolicy], float]]:
    """What measures a policy while it is trained: its share of successes, or its mean return where the task keeps
    demonstrations by their return. Always the same episodes, on seeds that nothing else uses."""
    seeds = [validation_seed(config.seed, episode) for episode in range(config.policy.rollout_episodes)]
    with rollout_robot(config, overrides, "robot-server-training", spec) as robot:

        def measure(policy: GenerativePolicy) -> float:
            runner = RemoteRunner(robot, policy, config.policy.execute_steps, NoCorrection(), config)
            outcomes = [runner.run(seed) for seed in seeds]
            by_success = config.task.keep == "success"
            return sum(one.success if by_success else one.return_ for one in outcomes) / len(outcomes)

        yield measure
