"""Axes of the Stretch 3 (dexterous wrist 3, SG3 gripper): names, order, and how they relate to the vendor's joints.

Our setpoint is (10,), in the order of `SETPOINT_NAMES`. The two base axes are virtual joints: the distance driven
along the heading (forward positive) and the heading turned (counter-clockwise positive), both accumulated since
`connect`, or since `reset` in simulation. They never wrap. `arm_m` is the whole extension, the sum of four equal
segments. `gripper_aperture_m` is the gap between the rubber tips, 0 where they touch.
"""

from __future__ import annotations

SETPOINT_NAMES = (
    "base_translation_m",
    "base_rotation_rad",
    "lift_m",
    "arm_m",
    "wrist_yaw_rad",
    "wrist_pitch_rad",
    "wrist_roll_rad",
    "gripper_aperture_m",
    "head_pan_rad",
    "head_tilt_rad",
)
AXIS = {name: index for index, name in enumerate(SETPOINT_NAMES)}

BASE_TRANSLATION, BASE_ROTATION, LIFT, ARM, WRIST_YAW, WRIST_PITCH, WRIST_ROLL, GRIPPER, HEAD_PAN, HEAD_TILT = range(10)

# The vendor's JointState, in its order of publication. Map by name, never by position.
JOINT_STATE_NAMES = (
    "wrist_extension",
    "joint_lift",
    "joint_arm_l3",
    "joint_arm_l2",
    "joint_arm_l1",
    "joint_arm_l0",
    "joint_head_pan",
    "joint_head_tilt",
    "joint_wrist_yaw",
    "joint_wrist_pitch",
    "joint_wrist_roll",
    "joint_gripper_finger_left",
    "joint_gripper_finger_right",
)

# The vendor's joint that measures each axis; the base is measured by odometry. The finger is an angle, see below.
JOINT_STATE_OF = {
    "lift_m": "joint_lift",
    "arm_m": "wrist_extension",
    "wrist_yaw_rad": "joint_wrist_yaw",
    "wrist_pitch_rad": "joint_wrist_pitch",
    "wrist_roll_rad": "joint_wrist_roll",
    "gripper_aperture_m": "joint_gripper_finger_left",
    "head_pan_rad": "joint_head_pan",
    "head_tilt_rad": "joint_head_tilt",
}

ARM_SEGMENTS = ("joint_arm_l3", "joint_arm_l2", "joint_arm_l1", "joint_arm_l0")
FINGER_LENGTH_M = 0.171

WHEEL_RADIUS_M = 0.0508
WHEEL_SEPARATION_M = 0.3153


def aperture_of_finger(finger_rad: float) -> float:
    """Aperture in m at the vendor's angle of one finger, rad from where the tips touch (vendor's formula)."""
    return 2.0 * FINGER_LENGTH_M * finger_rad


def finger_of_aperture(aperture_m: float) -> float:
    """The vendor's angle of one finger, rad from where the tips touch, at an aperture in m."""
    return aperture_m / (2.0 * FINGER_LENGTH_M)
