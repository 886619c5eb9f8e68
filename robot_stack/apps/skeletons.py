"""How the robots are drawn on the operator's page: frames and joints, from the models that they are simulated with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from robot_stack.config.robots import RobotConfig
from robot_stack.config.robots.franka import FrankaConfig
from robot_stack.config.robots.g1 import G1Config
from robot_stack.config.robots.stretch import StretchConfig
from robot_stack.config.schema import StackConfig
from robot_stack.teleop.config import Skeleton, SkeletonLink

if TYPE_CHECKING:
    import mujoco


def skeleton_of(config: StackConfig) -> Skeleton | None:
    """The configured robot's; None for one without a model, or where MuJoCo is not installed."""
    builder = _BUILDERS.get(type(config.robot))
    if builder is None or importlib.util.find_spec("mujoco") is None:
        return None
    return builder()


def _franka() -> Skeleton:
    from hardware.franka.model import FrankaModel, build_franka

    return _skeleton(build_franka(FrankaModel(finger_width_m=0.0)).compile(), lambda joint: f"{joint}_rad")


def _g1() -> Skeleton:
    from hardware.unitree_g1.model import G1Model, build_g1

    return _skeleton(build_g1(G1Model(pelvis_height_m=0.0)).compile(), lambda joint: joint.replace("_joint", "_rad"))


def _stretch() -> Skeleton:
    from hardware.stretch.model import StretchModel, build_stretch

    names = {"joint_lift": "lift_m"} | {f"joint_{name}": f"{name}_rad" for name in _STRETCH_TURNS}
    return _skeleton(build_stretch(StretchModel(free_base=False)).compile(), lambda joint: names.get(joint, ""))


_STRETCH_TURNS = ("wrist_yaw", "wrist_pitch", "wrist_roll", "head_pan", "head_tilt")
_BUILDERS: Mapping[type[RobotConfig], Callable[[], Skeleton]] = {
    FrankaConfig: _franka,
    G1Config: _g1,
    StretchConfig: _stretch,
}


def _skeleton(model: mujoco.MjModel, state_name: Callable[[str], str]) -> Skeleton:
    """All bodies of a model; `state_name`: what the robot's state calls a joint, '' for one that it does not tell."""
    import mujoco

    links = []
    for index in range(1, model.nbody):
        body = model.body(index)
        joint = model.joint(int(model.body_jntadr[index])) if model.body_jntnum[index] else None
        links.append(
            SkeletonLink(
                name=body.name or f"body{index}",
                parent="" if body.parentid[0] == 0 else model.body(int(body.parentid[0])).name,
                joint="" if joint is None else state_name(joint.name),
                origin_m=_triple(body.pos),
                origin_rpy_rad=_rpy_rad(body.quat),
                axis=(0.0, 0.0, 1.0) if joint is None else _triple(joint.axis),
                slides=joint is not None and int(joint.type[0]) == int(mujoco.mjtJoint.mjJNT_SLIDE),
            )
        )
    return Skeleton(links=tuple(links))


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z


def _rpy_rad(quaternion: np.ndarray) -> tuple[float, float, float]:
    """Fixed-axis roll, pitch and yaw of a unit quaternion (w, x, y, z)."""
    w, x, y, z = map(float, quaternion)
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1.0, 1.0))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return float(roll), float(pitch), float(yaw)
