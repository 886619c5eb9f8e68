"""Tasks of the Stretch: what may move, a scene per seed, what is observed of it, and the task's own verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware.sim.mjcf import SCENE_CONTACT, Primitive, Rgba, add_primitive
from hardware.sim.rendering import mujoco
from hardware.sim.world import yaw_of
from hardware.stretch.joints import ARM, GRIPPER, HEAD_PAN, HEAD_TILT, LIFT, SETPOINT_NAMES, WRIST_PITCH
from hardware.stretch.limits import GRIPPER_MAX_APERTURE_M
from hardware.stretch.model import BASE, GRASP_SITE
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Features, TaskStatus
from robot_stack.core.protocols import Setpoint

FloatVector = NDArray[np.float64]

GRIPPER_ACTION = "gripper"
FRONT_CAMERA = "front"

_GREEN: Rgba = (0.2, 0.65, 0.3, 1.0)
_STAND: Rgba = (0.55, 0.5, 0.42, 1.0)
_OBJECT = "object"
_FRONT_QUAT = (0.73901, 0.52846, 0.24306, 0.33989)


class StretchTask(Protocol):
    """One task of one Stretch. The robot owns the order of calls:

    `add_scene` -> compile -> (`reset` -> physics -> `status`, `environment_state`, `ground_truth`)*.

    Attributes:
        max_step: axes that are commanded, and the largest change of each in one control step.
        max_lead: how far the goal of each may lead what is measured.
    """

    name: str
    max_step: Mapping[str, float]
    max_lead: Mapping[str, float]
    max_episode_steps: int
    environment_names: tuple[str, ...]

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        """Add stands and objects."""

    def reset(self, data: mujoco.MjData, rng: np.random.Generator) -> Setpoint:
        """Draw a scene, put it into a freshly reset state, and return the robot's start setpoint (10,)."""

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """The verdict on the present state."""

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """What the robot is told about the scene, one value per `environment_names`."""

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """What is really there; for experts and tests."""


@dataclass(frozen=True, slots=True)
class ReachGraspConfig:
    """Difficulty and geometry. Lengths in metres, angles in radians; `*_range` are half widths of uniform draws."""

    object_width_m: float = 0.060
    object_mass_kg: float = 0.1
    centre_m: tuple[float, float] = (-0.02, -0.70)
    object_x_range_m: float = 0.08
    object_y_range_m: float = 0.06
    object_yaw_range_rad: float = 0.3
    observation_bias_range_m: float = 0.025
    stand_height_m: float = 0.40
    start_lift_m: float = 0.42
    start_arm_m: float = 0.10
    start_range_m: float = 0.02
    wrist_pitch_rad: float = -0.2
    lift_height_m: float = 0.10
    slow_m_s: float = 0.05
    grasp_distance_m: float = 0.035
    max_episode_steps: int = 100
    friction: float = 1.0


class StretchReachGrasp:
    """Grasp a cube on a stand to the robot's right, between the finger tips, and lift it.

    The observed place of the cube is off by a bias that is constant within an episode and larger than the room
    between the open fingers: who trusts it alone often pushes the cube instead of grasping it.
    """

    name = "stretch_reach_grasp"
    max_step: Mapping[str, float] = {
        "base_translation_m": 0.010,
        "lift_m": 0.011,
        "arm_m": 0.014,
        "wrist_yaw_rad": 0.15,
    }
    max_lead: Mapping[str, float] = {
        "base_translation_m": 0.03,
        "lift_m": 0.03,
        "arm_m": 0.04,
        "wrist_yaw_rad": 0.3,
    }
    environment_names: tuple[str, ...] = (
        *("object_minus_gripper_x_m", "object_minus_gripper_y_m", "object_minus_gripper_z_m"),
        *("object_minus_gripper_heading_rad", "object_height_m"),
    )

    def __init__(self, config: ReachGraspConfig | None = None) -> None:
        self.config = config = config or ReachGraspConfig()
        self.max_episode_steps = config.max_episode_steps
        self._bias_m = np.zeros(2)

    # ---- model ------------------------------------------------------------------------------------------------

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        config = self.config
        half_height_m = config.stand_height_m / 2
        size = (config.object_x_range_m + 0.06, config.object_y_range_m + 0.06, half_height_m)
        stand = Primitive("world", "box", size, (*config.centre_m, half_height_m))
        add_primitive(spec.worldbody, stand, _STAND, SCENE_CONTACT, name="stand")
        inertia = config.object_mass_kg / 6 * config.object_width_m**2
        body = spec.worldbody.add_body(
            name=_OBJECT, mass=config.object_mass_kg, inertia=(inertia,) * 3, explicitinertial=True
        )
        body.add_freejoint(name=_OBJECT)
        shape = Primitive(_OBJECT, "box", (config.object_width_m / 2,) * 3)
        geom = add_primitive(body, shape, _GREEN, SCENE_CONTACT)
        geom.friction = (config.friction, 0.01, 0.001)
        geom.condim = 4
        # Beside the stand, looking at it and at the robot behind it.
        spec.worldbody.add_camera(name=FRONT_CAMERA, pos=(1.35, -1.55, 1.25), quat=_FRONT_QUAT, fovy=50)

    # ---- episode ----------------------------------------------------------------------------------------------

    def reset(self, data: mujoco.MjData, rng: np.random.Generator) -> Setpoint:
        config = self.config
        reach = np.array([config.object_x_range_m, config.object_y_range_m])
        place = np.asarray(config.centre_m) + rng.uniform(-reach, reach)
        yaw = rng.uniform(-config.object_yaw_range_rad, config.object_yaw_range_rad)
        self._bias_m = rng.uniform(-config.observation_bias_range_m, config.observation_bias_range_m, 2)
        height_m = config.stand_height_m + config.object_width_m / 2
        data.joint(_OBJECT).qpos = (*place, height_m, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        start: Setpoint = np.zeros(len(SETPOINT_NAMES))
        start[LIFT] = config.start_lift_m + rng.uniform(-config.start_range_m, config.start_range_m)
        start[ARM] = config.start_arm_m + rng.uniform(-config.start_range_m, config.start_range_m)
        start[WRIST_PITCH] = config.wrist_pitch_rad
        start[GRIPPER] = GRIPPER_MAX_APERTURE_M
        start[[HEAD_PAN, HEAD_TILT]] = (-1.57, -0.5)
        return start

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """Success: the cube hangs `lift_height_m` above the stand, between the finger tips, hardly moving."""
        config = self.config
        lifted = self._height_m(data) >= config.lift_height_m
        held = np.linalg.norm(self._object_minus_gripper(data)) < config.grasp_distance_m
        slow = np.linalg.norm(data.joint(_OBJECT).qvel[:3]) < config.slow_m_s
        success = bool(lifted and held and slow)
        return TaskStatus(reward=float(success), success=success, terminated=success)

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """Observed (biased) cube centre minus grasp point, base frame; the smallest turn that squares the gripper to
        the cube; height of the cube above the stand."""
        difference = self._object_minus_gripper(data)
        difference[:2] += self._bias_m
        return np.array([*difference, self._turn_rad(data), self._height_m(data)])

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """True cube centre minus grasp point (3,) m in the base frame, smallest turn (1,) rad that squares the gripper
        to the cube, its height (1,) m above the stand, bias (2,) m, base (3,) x m, y m, yaw rad in the world."""
        base = data.body(BASE)
        return {
            "object_minus_gripper_m": self._object_minus_gripper(data),
            "object_turn_rad": np.array([self._turn_rad(data)]),
            "object_height_m": np.array([self._height_m(data)]),
            "observation_bias_m": self._bias_m.copy(),
            "base_pose_xyyaw": np.array([*base.xpos[:2], yaw_of(base.xmat.reshape(3, 3))]),
        }

    def _object_minus_gripper(self, data: mujoco.MjData) -> FloatVector:
        difference: FloatVector = data.body(_OBJECT).xpos - data.site(GRASP_SITE).xpos
        return data.body(BASE).xmat.reshape(3, 3).T @ difference

    def _turn_rad(self, data: mujoco.MjData) -> float:
        turn = yaw_of(data.body(_OBJECT).xmat.reshape(3, 3)) - yaw_of(data.site(GRASP_SITE).xmat.reshape(3, 3))
        return float((turn + np.pi / 4) % (np.pi / 2) - np.pi / 4)  # a quarter turn of a cube is no turn

    def _height_m(self, data: mujoco.MjData) -> float:
        return float(data.body(_OBJECT).xpos[2] - self.config.object_width_m / 2 - self.config.stand_height_m)


_TASKS: dict[str, Callable[[], StretchTask]] = {StretchReachGrasp.name: StretchReachGrasp}


def make_task(name: str) -> StretchTask:
    """The task with its default difficulty; ConfigError for an unknown name."""
    if name not in _TASKS:
        raise ConfigError(f"the Stretch has no task '{name}'; choose one of {', '.join(_TASKS)}")
    return _TASKS[name]()
