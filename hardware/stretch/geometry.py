"""Where the Stretch's arm may be, and how near its hand may come to the rest of the robot."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from hardware.sim.collision import ModelGeometry, SelfDistance, round_boxes
from hardware.stretch.kinematics import JointMap
from hardware.stretch.model import (
    BASE,
    ELBOW_SITE,
    FINGER_TIPS,
    GRASP_SITE,
    GRIPPER_BODY,
    WRIST_SITE,
    StretchModel,
    build_stretch,
)
from robot_stack.core.protocols import RobotGeometry, Setpoint

# Base frame. Not behind the base (its rear is at x = -0.28), not under the floor's 2 cm, not beyond the arm's reach.
BOX_LOWER_M = (-0.45, -1.25, 0.02)
BOX_UPPER_M = (0.45, 0.35, 1.75)

# The shapes miss the vendor's shell by up to 2 cm at the base, and by 1 cm at the hand.
MIN_SELF_DISTANCE_M = 0.015
_CUTOFF_M = 0.06

_HAND = (
    GRIPPER_BODY,
    "link_d405",
    "link_gripper_finger_left",
    "link_gripper_finger_right",
    *FINGER_TIPS,
)
_WRIST = ("link_wrist_yaw", "link_DW3_wrist_pitch")
_STANDING = (BASE, "link_mast", "link_head", "laser", "link_right_wheel")
# Turned back beside the arm, the hand may meet the carriage and the arm's fixed segment.
_CARRIAGE = ("link_lift", "link_arm_l4")


def stretch_geometry() -> RobotGeometry:
    """Guarded points: grasp point, wrist, outer end of the arm's fixed segment. One thread."""
    spec = build_stretch(StretchModel(free_base=False))
    round_boxes(spec, _WRIST + _HAND)
    model = spec.compile()
    joints = JointMap(model)

    def to_qpos(setpoint: Setpoint) -> NDArray[np.float64]:
        qpos: NDArray[np.float64] = np.zeros(model.nq)
        joints.fill(setpoint, qpos)
        return qpos

    return ModelGeometry(
        SelfDistance(model, [*product(_WRIST + _HAND, _STANDING), *product(_HAND, _CARRIAGE)], _CUTOFF_M),
        to_qpos,
        sites=(GRASP_SITE, WRIST_SITE, ELBOW_SITE),
        box_lower_m=BOX_LOWER_M,
        box_upper_m=BOX_UPPER_M,
        min_self_distance_m=MIN_SELF_DISTANCE_M,
    )
