"""Practice without resets at the edge: what `practice.mode=reset_free` puts around the control loop."""

from __future__ import annotations

from pathlib import Path

from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.edge.control_loop import Corrector, LoopRobot, StepObserver
from robot_stack.edge.judged_robot import JudgedRobot
from robot_stack.edge.perturbation import Perturbing
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.edge.reset_free import Call, Episodes, Episodic, ResetFree, read_practice
from robot_stack.learner.rewards.build import build_reward_model
from robot_stack.learner.rewards.settings import MedalSettings


class PracticeMode:
    """The configured mode. With `episodic` nothing of the control loop changes."""

    def __init__(self, config: StackConfig, folder: Path) -> None:
        practice = config.practice
        if practice.mode == "episodic" and practice.judge != "task":
            raise ConfigError("practice.judge=reward says when a direction is over: it needs practice.mode=reset_free")
        if practice.judge == "reward" and isinstance(config.reward, MedalSettings):
            raise ConfigError("reward=medal says no success; with it say practice.judge=task")
        self._config = config
        self._is_on = practice.mode == "reset_free"
        self._patience_s = config.edge.patience_s
        self._robot: RemoteRobot | None = None
        self.episodes: Episodes = ResetFree(practice, folder, self._answer) if self._is_on else Episodic()

    def around(
        self, robot: RemoteRobot, corrector: Corrector, observers: list[StepObserver]
    ) -> tuple[LoopRobot, Corrector, list[StepObserver]]:
        """What the control loop is made of, for a connected and armed robot."""
        self._robot = robot
        if not self._is_on:
            return robot, corrector, observers
        config = self._config
        perturbing = Perturbing(corrector, config.practice, robot.spec, config.seed)
        driven: LoopRobot = robot
        if config.practice.judge == "reward":
            driven = JudgedRobot(robot, build_reward_model(config.reward), config.run, config.reward.consecutive)
        return driven, perturbing, [*observers, self.episodes]

    def _answer(self, call: Call) -> None:
        """A simulated scene is set up by the reset that follows. A real robot is made inactive first, for whoever
        reaches into its workspace, and practice goes on once they have activated it again."""
        if self._robot is None or self._robot.spec.simulated:
            return
        self._robot.hand_over(f"a person is needed: {call.reason}")
        self._robot.arm(self._patience_s)


def describe_practice(folder: Path) -> str:
    """One line of a status, '' where there was no practice without resets."""
    record = read_practice(folder)
    if record is None:
        return ""
    forward, backward = record.forward, record.backward
    words = (
        f"\n  practice without resets: forward reached {forward.reached} of {forward.attempts}, backward "
        f"{backward.reached} of {backward.attempts}; {record.calls} calls of a person"
    )
    return words + (f"; A PERSON IS NEEDED: {record.call_for}" if record.call_for else "")
