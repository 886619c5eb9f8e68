"""Gymnasium environments in the place of robot and task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from msgspec import field

from robot_stack.config.robots.base import RobotConfig, Setting, expert_of
from robot_stack.config.task import TaskConfig
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, RobotSpec

if TYPE_CHECKING:
    from hardware.gymnasium.robot import GymnasiumRobot
    from hardware.sim.experts import Expert

_STATE_AND_SCENE = {STATE: "agent_pos", ENVIRONMENT_STATE: "environment_state"}


class GymnasiumConfig(RobotConfig, frozen=True, kw_only=True, tag_field="kind", tag="gymnasium"):
    """Any Gymnasium environment with a Box action space, in the place of robot and task.

    env_id: `module:Id` or `module/Id` as gymnasium.make takes it. observation_keys: feature name -> path of the
    environment's observation ('' is the whole, 'a.b' goes into dictionaries). env_kwargs: passed to gymnasium.make.
    success_key: key of the info dictionary that says success. relative_to, reach: actions are offsets of at most
    `reach` from that feature; '' for the environment's own.
    """

    takes_any_task: ClassVar[bool] = True

    name: str = "gymnasium_0"
    env_id: str = "gym_pusht/PushT-v0"
    observation_keys: dict[str, str] = field(default_factory=lambda: {STATE: ""})
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    success_key: str = "is_success"
    max_episode_steps: int = 300
    relative_to: str = ""
    reach: float = 0.0

    def positive(self) -> tuple[str, ...]:
        return ("control_rate_hz", "max_episode_steps")

    @classmethod
    def presets(cls) -> Mapping[str, RobotConfig]:
        return {"gymnasium": cls(), "gym_pusht": _pusht(), "gym_hil": _gym_hil()}

    @classmethod
    def tasks(cls) -> tuple[TaskConfig, ...]:
        features = (STATE, ENVIRONMENT_STATE)
        return (
            TaskConfig(name="pusht", features=features, demonstration_noise=0.01),
            TaskConfig(name="panda_pick_cube", features=features, demonstrations=40, demonstration_noise=0.05),
        )

    @property
    def default_task(self) -> str:
        return "panda_pick_cube" if "PandaPickCube" in self.env_id else "pusht"

    def simulated(self, setting: Setting) -> GymnasiumRobot:
        from hardware.gymnasium.robot import GymnasiumRobot

        return GymnasiumRobot(
            self.name,
            self.env_id,
            task=setting.task,
            observation_keys=tuple(self.observation_keys.items()),
            control_rate_hz=self.control_rate_hz,
            max_episode_steps=self.max_episode_steps,
            env_kwargs=self.env_kwargs,
            success_key=self.success_key,
            relative_to=self.relative_to,
            reach=self.reach,
        )

    def expert(self, spec: RobotSpec) -> Expert:
        from hardware.gymnasium.experts import PandaPickCubeExpert, PushTExpert

        experts: dict[str, Callable[[RobotSpec], Expert]] = {
            "pusht": lambda _: PushTExpert(self.reach),
            "panda_pick_cube": lambda _: PandaPickCubeExpert(),
        }
        return expert_of(experts, spec)


def _pusht() -> GymnasiumConfig:
    return GymnasiumConfig(
        name="pusht_0",
        env_id="gym_pusht/PushT-v0",
        env_kwargs={
            "obs_type": "environment_state_agent_pos",
            "visualization_width": 256,
            "visualization_height": 256,
        },
        observation_keys=_STATE_AND_SCENE,
        max_episode_steps=300,
        relative_to=STATE,
        reach=100.0,
    )


def _gym_hil() -> GymnasiumConfig:
    return GymnasiumConfig(
        name="gym_hil_0",
        env_id="gym_hil/PandaPickCube-v0",
        env_kwargs={"random_block_position": True, "reset_delay_seconds": 0.0},
        observation_keys=_STATE_AND_SCENE,
        success_key="succeed",
        max_episode_steps=100,
    )
