"""Limits of the Stretch 3 as its vendor states them: positions, and the default motion of each joint, not the fastest.

Where the vendor's sources differ the narrower range stands here; every robot also has ranges of its own, which the
drivers read and intersect. The base's figures are those that the vendor's own watch over the base enforces while
the arm is out or up (0.1 m/s, 0.15 m/s^2): held always, so that it never interferes.
"""

from __future__ import annotations

from hardware.stretch.joints import SETPOINT_NAMES
from robot_stack.core.protocols import SetpointLimits

GRIPPER_MAX_APERTURE_M = 0.09

# Base axes are endless; these bounds only keep a setpoint a sane number.
_BASE_RANGE_M = 100.0
_BASE_RANGE_RAD = 1000.0

# axis: lower, upper, velocity, acceleration. The gripper's motion is ours: the vendor's figures are the motor's.
_TABLE = {
    "base_translation_m": (-_BASE_RANGE_M, _BASE_RANGE_M, 0.1, 0.15),
    "base_rotation_rad": (-_BASE_RANGE_RAD, _BASE_RANGE_RAD, 0.3, 0.5),
    "lift_m": (0.0, 1.1, 0.11, 0.2),
    "arm_m": (0.0, 0.52, 0.14, 0.14),
    "wrist_yaw_rad": (-1.39, 4.0, 2.0, 3.0),
    "wrist_pitch_rad": (-1.57, 0.451, 2.0, 6.0),
    "wrist_roll_rad": (-2.911, 2.911, 2.0, 8.0),
    "gripper_aperture_m": (0.0, GRIPPER_MAX_APERTURE_M, 0.1, 0.5),
    "head_pan_rad": (-3.9, 1.5, 3.0, 8.0),
    "head_tilt_rad": (-1.53, 0.419, 3.0, 8.0),
}

# The full acceleration is reached in 50 ms: soft for the mast, and short beside the 100 ms of a control step.
_JERK_TIME_S = 0.05


def default_limits() -> SetpointLimits:
    """Our default limits of the setpoint (10,): m, rad and their time derivatives."""
    rows = [_TABLE[name] for name in SETPOINT_NAMES]
    lower, upper, velocity, acceleration = zip(*rows, strict=True)
    return SetpointLimits(
        names=SETPOINT_NAMES,
        lower=lower,
        upper=upper,
        max_velocity=velocity,
        max_acceleration=acceleration,
        max_jerk=tuple(limit / _JERK_TIME_S for limit in acceleration),
    )
