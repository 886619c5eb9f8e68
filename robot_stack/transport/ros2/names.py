"""How joints, frames and poses of the stack are named in ROS 2.

Names follow a convention, so a new robot needs nothing here: a joint is its element without the unit, and elements
`<part>_x_m, <part>_y_m, <part>_z_m` of `observation.state` with an orientation make the pose of that part. The table
`MODELS` holds what the vendors' robot descriptions call otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_UNIT_SUFFIXES = ("_rad_s", "_m_s", "_rad", "_nm", "_m", "_n")
_ORIENTATIONS = (
    ("_yaw_rad", "_tilt_x", "_tilt_y"),
    ("_turn_x_rad", "_turn_y_rad", "_turn_z_rad"),
    ("_quat_w", "_quat_x", "_quat_y", "_quat_z"),
    ("_yaw_rad",),
    ("_heading_rad",),
)


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Names in one vendor's robot description.

    Attributes:
        base_frame: frame of poses and wrench.
        joint_suffix: of every joint.
        joints: our joint -> theirs; several, separated by commas, share its position equally.
    """

    base_frame: str = "base_link"
    joint_suffix: str = ""
    joints: Mapping[str, str] = field(default_factory=dict)


MODELS: Mapping[str, ModelNames] = {
    "franka_fr3": ModelNames(base_frame="fr3_link0"),
    "unitree_g1": ModelNames(base_frame="pelvis", joint_suffix="_joint"),
    "stretch_3": ModelNames(
        joints={
            "lift": "joint_lift",
            "arm": "joint_arm_l0,joint_arm_l1,joint_arm_l2,joint_arm_l3",
            "wrist_yaw": "joint_wrist_yaw",
            "wrist_pitch": "joint_wrist_pitch",
            "wrist_roll": "joint_wrist_roll",
            "head_pan": "joint_head_pan",
            "head_tilt": "joint_head_tilt",
        }
    ),
}


def without_unit(name: str) -> str:
    """`fr3_joint1_rad` -> `fr3_joint1`."""
    for suffix in _UNIT_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def ros_joints(model: str, joint: str, renamed: Mapping[str, str]) -> list[str]:
    """The joints of the robot description that share this joint's position."""
    names = MODELS.get(model, ModelNames())
    return (renamed.get(joint) or names.joints.get(joint) or joint + names.joint_suffix).split(",")


def poses_in(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Topic -> elements of every pose that these names of a state make: `tool_pose`, `left_palm_pose`, ..."""
    parts = [name.removesuffix("_x_m") for name in names if name.endswith("_x_m") and not name.startswith("goal_")]
    found: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for orientation in _ORIENTATIONS:
            elements = tuple(part + end for end in ("_x_m", "_y_m", "_z_m", *orientation))
            if set(elements) <= set(names):
                found.setdefault(f"{part}_pose", elements)
    return found
