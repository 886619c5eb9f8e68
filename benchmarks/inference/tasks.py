"""The tasks on which policies are compared: a simulated robot, an expert, and how a policy is run on it."""

from __future__ import annotations

from msgspec import Struct

from hardware.sim.experts import Expert
from robot_stack.config.robots import ROBOT_PRESETS, RobotConfig, Setting
from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, PolicySpec, RobotSpec


class BenchmarkTask(Struct, frozen=True, kw_only=True):
    """One task.

    Attributes:
        preset, task: choices of `robot=` and `task=` of the stack.
        demonstrations, noise: episodes of the expert, and the noise on its actions as a share of their range.
        horizon, history: of the policies. execute_steps: actions run of each chunk.
    """

    preset: str
    task: str
    demonstrations: int
    noise: float
    horizon: int = 16
    history: int = 1
    execute_steps: int = 8
    features: tuple[str, ...] = (STATE, ENVIRONMENT_STATE)

    @property
    def robot_config(self) -> RobotConfig:
        return ROBOT_PRESETS[self.preset]

    def make_robot(self) -> SimulatedRobot:
        """Not connected yet."""
        return self.robot_config.simulated(Setting(self.task))

    def make_expert(self, robot: RobotSpec) -> Expert:
        return self.robot_config.expert(robot)

    def policy_spec(self, robot: RobotSpec, family: str) -> PolicySpec:
        """What a policy of that family reads and writes."""
        return PolicySpec(
            name=f"{family}-{self.task}",
            task=self.task,
            horizon=self.horizon,
            action=robot.action,
            observation={name: robot.observation[name] for name in self.features},
            history=self.history,
        )


TASKS = {
    task.task: task
    for task in (
        BenchmarkTask(preset="franka", task="pick_cube", demonstrations=300, noise=0.05),
        BenchmarkTask(preset="gym_pusht", task="pusht", demonstrations=500, noise=0.02, horizon=8, execute_steps=2),
        BenchmarkTask(
            preset="franka",
            task="peg_insertion",
            demonstrations=300,
            noise=0.1,
            features=(STATE, ENVIRONMENT_STATE, "observation.external_wrench"),
        ),
        BenchmarkTask(preset="stretch", task="stretch_reach_grasp", demonstrations=300, noise=0.05),
        BenchmarkTask(preset="g1", task="g1_bimanual_lift", demonstrations=300, noise=0.05),
    )
}
DEFAULT_TASKS = ("pick_cube", "pusht")
QUICK_TASK = BenchmarkTask(preset="franka", task="pick_cube", demonstrations=6, noise=0.05)


def task_of(name: str) -> BenchmarkTask:
    """The task of that name; ConfigError for an unknown one."""
    if name not in TASKS:
        raise ConfigError(f"there is no benchmark task '{name}'; choose from {', '.join(TASKS)}")
    return TASKS[name]
