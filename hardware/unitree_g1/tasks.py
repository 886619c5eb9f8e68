"""Tasks for the G1's two palms; `make_task` finds one by name. Positions are in the pelvis frame: x forward, z up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware.sim.mjcf import SCENE_CONTACT, Primitive, Rgba, add_primitive
from hardware.sim.rendering import mujoco
from hardware.sim.world import yaw_of
from hardware.unitree_g1.model import PAD_FACE_M, PAD_X_M, PALM_SITES, PALM_X_M, PELVIS_HEIGHT_M
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Features, TaskStatus

FloatVector = NDArray[np.float64]

_TABLE: Rgba = (0.60, 0.47, 0.34, 1.0)
_BOX: Rgba = (0.82, 0.64, 0.36, 1.0)
_BAND: Rgba = (0.15, 0.35, 0.8, 1.0)
_PELVIS_M = np.array([0.0, 0.0, PELVIS_HEIGHT_M])
_BODY = "box"

PAD_IN_HAND_M = np.array([[PAD_X_M - PALM_X_M, side * PAD_FACE_M, 0.0] for side in (-1, 1)])
"""(2, 3): where each palm presses, from the palm site, hand frame."""


@dataclass(frozen=True, slots=True)
class PalmMotion:
    """How a policy may move the palms.

    Attributes:
        max_step_m: largest command per axis in one control step.
        lower_m, upper_m: box that the left palm's commanded position stays in, pelvis frame; the right's mirrors it.
    """

    max_step_m: float
    lower_m: tuple[float, float, float]
    upper_m: tuple[float, float, float]


class PalmTask(Protocol):
    """One task of both palms. The robot owns the order of calls:

    `add_scene` -> compile -> (`reset` -> physics -> `status`, `environment_state`, `ground_truth`)*.
    """

    name: str
    motion: PalmMotion
    max_episode_steps: int
    environment_names: tuple[str, ...]

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        """Add tables and objects to a world whose floor lies `PELVIS_HEIGHT_M` below the pelvis."""

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> FloatVector:
        """Draw a scene, put it into a freshly reset state, and return where the palms begin (2, 3)."""

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """The verdict on the present state."""

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """What the robot is told about the scene, one value per `environment_names`."""

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """What is really there; for experts and tests."""


@dataclass(frozen=True, slots=True)
class BimanualLiftConfig:
    """Difficulty and geometry. Lengths in metres, angles in radians; `*_range` are half widths of uniform draws."""

    box_half_m: tuple[float, float, float] = (0.10, 0.19, 0.075)
    box_mass_kg: float = 0.8
    table_height_m: float = 0.03
    centre_m: tuple[float, float] = (0.30, 0.0)
    xy_range_m: float = 0.04
    yaw_range_rad: float = 0.2
    observation_bias_range_m: float = 0.03
    start_m: tuple[float, float, float] = (0.27, 0.325, 0.14)
    start_range_m: float = 0.01
    lift_m: float = 0.10
    max_tilt_rad: float = 0.12
    max_speed_m_s: float = 0.15
    max_gap_m: float = 0.025
    max_step_m: float = 0.010
    max_episode_steps: int = 80


class G1BimanualLift:
    """Squeeze a box between both palms, lift it off the table and hold it level.

    The observed position of the box is biased, constant within an episode. Whoever squeezes it off its centre of mass
    lifts it askew or loses it, so imitating what is observed alone is not enough.
    """

    name = "g1_bimanual_lift"
    environment_names: tuple[str, ...] = (
        *(f"box_minus_palms_{axis}_m" for axis in "xyz"),
        *("box_yaw_rad", "box_tilt_x", "box_tilt_y"),
    )

    def __init__(self, config: BimanualLiftConfig | None = None) -> None:
        self.config = config = config or BimanualLiftConfig()
        self.max_episode_steps = config.max_episode_steps
        table_m = config.table_height_m
        self.motion = PalmMotion(config.max_step_m, (0.20, 0.14, table_m + 0.06), (0.36, 0.36, table_m + 0.23))
        self._bias_m = np.zeros(2)

    # ---- model ------------------------------------------------------------------------------------------------

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        config = self.config
        # what is held by friction alone would creep out of softer contacts
        spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        spec.option.impratio = 20.0
        top_m = PELVIS_HEIGHT_M + config.table_height_m
        table = Primitive("world", "box", (0.30, 0.55, 0.02), (0.43, 0, top_m - 0.02))
        add_primitive(spec.worldbody, table, _TABLE, SCENE_CONTACT, name="table").friction = (0.5, 0.005, 0.0001)
        for x_m in (0.20, 0.70):
            for y_m in (-0.5, 0.5):
                leg = Primitive("world", "box", (0.02, 0.02, top_m / 2 - 0.02), (x_m, y_m, top_m / 2 - 0.02))
                add_primitive(spec.worldbody, leg, _TABLE, SCENE_CONTACT)
        x_m, y_m, z_m = config.box_half_m
        third = config.box_mass_kg / 3
        inertia = (third * (y_m**2 + z_m**2), third * (x_m**2 + z_m**2), third * (x_m**2 + y_m**2))
        box = spec.worldbody.add_body(
            name=_BODY, mass=config.box_mass_kg, ipos=(0, 0, 0), inertia=inertia, explicitinertial=True
        )
        box.add_freejoint(name=f"{_BODY}_joint")
        shape = add_primitive(box, Primitive(_BODY, "box", config.box_half_m), _BOX, SCENE_CONTACT)
        shape.friction = (0.5, 0.005, 0.0001)
        band = Primitive(_BODY, "box", (x_m + 0.001, 0.02, z_m + 0.001))
        add_primitive(box, band, _BAND, (0, 0))

    # ---- episode ----------------------------------------------------------------------------------------------

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> FloatVector:
        config = self.config
        shift = rng.uniform(-config.xy_range_m, config.xy_range_m, 2)
        yaw = rng.uniform(-config.yaw_range_rad, config.yaw_range_rad)
        self._bias_m = rng.uniform(-config.observation_bias_range_m, config.observation_bias_range_m, 2)
        joint = data.joint(f"{_BODY}_joint")
        position = [*(np.asarray(config.centre_m) + shift), config.table_height_m + config.box_half_m[2]]
        joint.qpos[:3] = np.asarray(position) + _PELVIS_M
        joint.qpos[3:] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        start = np.array([config.start_m, config.start_m]) * [[1, 1, 1], [1, -1, 1]]
        return start + rng.uniform(-config.start_range_m, config.start_range_m, (2, 3))

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """Success: the box is `lift_m` above the table, level, nearly at rest, and between both palms."""
        config = self.config
        body = data.body(_BODY)
        lifted = body.xpos[2] - PELVIS_HEIGHT_M - config.table_height_m - config.box_half_m[2] >= config.lift_m
        level = self._tilt_rad(data) <= config.max_tilt_rad
        slow = np.linalg.norm(data.joint(f"{_BODY}_joint").qvel[:3]) <= config.max_speed_m_s
        success = bool(lifted and level and slow and self._is_held(data))
        return TaskStatus(reward=float(success), success=success, terminated=success)

    def _is_held(self, data: mujoco.MjData) -> bool:
        pads = self._pads_in_box(data)
        half_x, half_y, half_z = self.config.box_half_m
        near = np.abs(np.abs(pads[:, 1]) - half_y) <= self.config.max_gap_m
        on_face = (np.abs(pads[:, 0]) <= half_x) & (np.abs(pads[:, 2]) <= half_z)
        return bool(near.all() and on_face.all() and pads[0, 1] > 0 > pads[1, 1])

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """Observed (biased) centre of the box minus the middle between the palms, its heading, and the horizontal part
        of its z axis."""
        palms = np.array([data.site(site).xpos for site in PALM_SITES])
        difference = data.body(_BODY).xpos - palms.mean(axis=0)
        difference[:2] += self._bias_m
        rotation = data.body(_BODY).xmat.reshape(3, 3)
        return np.array([*difference, yaw_of(rotation), *rotation[:2, 2]])

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """True centre of the box (3,) m in the pelvis frame, heading (1,) rad, tilt (1,) rad, centres of the palms'
        inner faces in the box's frame (2, 3) m, bias (2,) m."""
        return {
            "box_position_m": data.body(_BODY).xpos - _PELVIS_M,
            "box_yaw_rad": np.array([yaw_of(data.body(_BODY).xmat.reshape(3, 3))]),
            "box_tilt_rad": np.array([self._tilt_rad(data)]),
            "pads_in_box_m": self._pads_in_box(data),
            "observation_bias_m": self._bias_m.copy(),
        }

    def _tilt_rad(self, data: mujoco.MjData) -> float:
        return float(np.arccos(np.clip(data.body(_BODY).xmat[8], -1.0, 1.0)))

    def _pads_in_box(self, data: mujoco.MjData) -> FloatVector:
        box = data.body(_BODY)
        rotation = box.xmat.reshape(3, 3)
        pads = np.empty((2, 3))
        for index, name in enumerate(PALM_SITES):
            palm = data.site(name)
            pad = palm.xpos + palm.xmat.reshape(3, 3) @ PAD_IN_HAND_M[index]
            pads[index] = rotation.T @ (pad - box.xpos)
        return pads


_TASKS: dict[str, Callable[[], PalmTask]] = {G1BimanualLift.name: G1BimanualLift}


def make_task(name: str) -> PalmTask:
    """The task with its default difficulty; ConfigError for an unknown name."""
    if name not in _TASKS:
        raise ConfigError(f"the G1 has no task '{name}'; choose one of {', '.join(_TASKS)}")
    return _TASKS[name]()
