"""Limits of the G1's motors by hardware variant, and our own, much narrower ones for the setpoint.

A variant is named by `mode_machine`, which the robot reports in every low state. The motors' limits are those of the
vendor's descriptions of that variant (revision 1.0); speeds there are what the motors can do, not what is safe. Units:
rad, rad/s, N m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.unitree_g1.joints import (
    ARM_AXES,
    ARM_SDK_MOTORS,
    GRIPPER_NAMES,
    LEG_MOTORS,
    MOTOR_NAMES,
    PARALLEL_MOTORS,
    WAIST_MOTORS,
)
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.protocols import SetpointLimits

FloatVector = NDArray[np.float64]

HANDS = ("none", "dex3")
DEFAULT_MODE_MACHINE = 5

PARALLEL_TORQUE_NM = 35.0
"""Of ankles and waist pitch and roll. The vendor's descriptions of one revision say 35 and 50; we take the smaller."""

POSITION_MARGIN_RAD = 0.02
ARM_VELOCITY_RAD_S = 2.0
ARM_ACCELERATION_RAD_S2 = 8.0
ARM_JERK_RAD_S3 = 200.0
WAIST_VELOCITY_RAD_S = 0.5
WAIST_ACCELERATION_RAD_S2 = 2.0
WAIST_JERK_RAD_S3 = 50.0
GRIPPER_VELOCITY_1_S = 2.0
GRIPPER_ACCELERATION_1_S2 = 20.0
GRIPPER_JERK_1_S3 = 1000.0

# name -> (lower, upper) of the left side; rolls and yaws are mirrored on the right
_POSITION_RAD = {
    "hip_pitch": (-2.5307, 2.8798),
    "hip_roll": (-0.5236, 2.9671),
    "hip_yaw": (-2.7576, 2.7576),
    "knee": (-0.087267, 2.8798),
    "ankle_pitch": (-0.87267, 0.5236),
    "ankle_roll": (-0.2618, 0.2618),
    "waist_yaw": (-2.618, 2.618),
    "waist_roll": (-0.52, 0.52),
    "waist_pitch": (-0.52, 0.52),
    "shoulder_pitch": (-3.0892, 2.6704),
    "shoulder_roll": (-1.5882, 2.2515),
    "shoulder_yaw": (-2.618, 2.618),
    "elbow": (-1.0472, 2.0944),
    "wrist_roll": (-1.9722, 1.9722),
    "wrist_pitch": (-1.6144, 1.6144),
    "wrist_yaw": (-1.6144, 1.6144),
}
# name -> (rad/s, N m) of mode_machine 5
_DRIVE = {
    "hip_pitch": (32.0, 88.0),
    "hip_roll": (20.0, 139.0),
    "hip_yaw": (32.0, 88.0),
    "knee": (20.0, 139.0),
    "ankle_pitch": (30.0, 35.0),
    "ankle_roll": (30.0, 35.0),
    "waist_yaw": (32.0, 88.0),
    "waist_roll": (30.0, 35.0),
    "waist_pitch": (30.0, 35.0),
    "shoulder_pitch": (37.0, 25.0),
    "shoulder_roll": (37.0, 25.0),
    "shoulder_yaw": (37.0, 25.0),
    "elbow": (37.0, 25.0),
    "wrist_roll": (37.0, 25.0),
    "wrist_pitch": (22.0, 5.0),
    "wrist_yaw": (22.0, 5.0),
}
_STRONG_HIP = {"hip_pitch": (20.0, 139.0)}
_STRONG_WRIST = {"wrist_pitch": (27.0, 13.4), "wrist_yaw": (27.0, 13.4)}

_LOCKED_WAIST = ("waist_roll", "waist_pitch")
_23_JOINTS = (*_LOCKED_WAIST, *(f"{side}_wrist_{part}" for side in ("left", "right") for part in ("pitch", "yaw")))
_ARMS_ALONE = tuple(MOTOR_NAMES[index] for index in (*LEG_MOTORS, *WAIST_MOTORS))


@dataclass(frozen=True, slots=True)
class _Variant:
    """What of a hardware variant differs from mode_machine 5: drives by part, and motors that it has not."""

    drives: dict[str, tuple[float, float]]
    absent: tuple[str, ...] = ()


_VARIANTS = {
    4: _Variant({}, _23_JOINTS),
    5: _Variant({}),
    6: _Variant({}, _LOCKED_WAIST),
    9: _Variant({}, _ARMS_ALONE),
    10: _Variant(_STRONG_HIP, _23_JOINTS),
    11: _Variant(_STRONG_HIP),
    12: _Variant(_STRONG_HIP, _LOCKED_WAIST),
    13: _Variant(_STRONG_WRIST),
    14: _Variant(_STRONG_WRIST, _LOCKED_WAIST),
    15: _Variant(_STRONG_HIP | _STRONG_WRIST),
    16: _Variant(_STRONG_HIP | _STRONG_WRIST, _LOCKED_WAIST),
}
_DEPRECATED = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class MotorLimits:
    """Of 29 motors, (29,) each: rad, rad/s, N m. `present` is false where the variant has no such motor."""

    lower_rad: FloatVector
    upper_rad: FloatVector
    max_velocity_rad_s: FloatVector
    max_torque_nm: FloatVector
    present: NDArray[np.bool_]


def motor_limits(mode_machine: int) -> MotorLimits:
    """The motors of that hardware variant; RobotError for deprecated and unknown ones."""
    if mode_machine in _DEPRECATED:
        raise RobotError(
            f"mode_machine {mode_machine} is a deprecated G1 with other reductions and limits; this driver knows "
            f"{', '.join(map(str, _VARIANTS))}. Do not command this robot"
        )
    if mode_machine not in _VARIANTS:
        raise RobotError(
            f"mode_machine {mode_machine} is unknown; this driver knows {', '.join(map(str, _VARIANTS))}. Add its "
            "limits from the vendor's description of that variant before commanding it"
        )
    variant = _VARIANTS[mode_machine]
    ranges = np.array([_range(name) for name in MOTOR_NAMES])
    drives = _DRIVE | variant.drives
    velocity, torque = np.array([drives[_part(name)] for name in MOTOR_NAMES]).T
    torque[list(PARALLEL_MOTORS)] = np.minimum(torque[list(PARALLEL_MOTORS)], PARALLEL_TORQUE_NM)
    present = np.array([name not in variant.absent for name in MOTOR_NAMES])
    return MotorLimits(ranges[:, 0].copy(), ranges[:, 1].copy(), velocity.copy(), torque.copy(), present)


def _part(motor: str) -> str:
    return motor.removeprefix("left_").removeprefix("right_")


def _range(motor: str) -> tuple[float, float]:
    lower, upper = _POSITION_RAD[_part(motor)]
    mirrored = motor.startswith("right_") and motor.endswith(("_roll", "_yaw"))
    return (-upper, -lower) if mirrored else (lower, upper)


def default_limits(hands: str = "none", mode_machine: int = DEFAULT_MODE_MACHINE) -> SetpointLimits:
    """Our limits of the setpoint: 17 joints of arms and waist (rad), and with hands two grippers, opening 0 to 1.

    Positions are the variant's, less `POSITION_MARGIN_RAD` at both ends. ConfigError for unknown hands; RobotError for
    a variant that lacks one of the 17 motors.
    """
    if hands not in HANDS:
        raise ConfigError(f"the G1 has no hands '{hands}'; choose one of {', '.join(HANDS)}")
    motors = motor_limits(mode_machine)
    axes = list(ARM_SDK_MOTORS)
    absent = [MOTOR_NAMES[index] for index in axes if not motors.present[index]]
    if absent:
        raise RobotError(
            f"a G1 with mode_machine {mode_machine} has no motor {', '.join(absent)}; the setpoint needs all 17 of "
            "arms and waist, so use a robot with 29 joints and an unlocked waist"
        )
    grippers = len(GRIPPER_NAMES) if hands != "none" else 0
    waist_axes = len(axes) - ARM_AXES
    return SetpointLimits(
        names=(*(f"{MOTOR_NAMES[index]}_rad" for index in axes), *GRIPPER_NAMES[:grippers]),
        lower=(*(motors.lower_rad[axes] + POSITION_MARGIN_RAD).tolist(), *(0.0,) * grippers),
        upper=(*(motors.upper_rad[axes] - POSITION_MARGIN_RAD).tolist(), *(1.0,) * grippers),
        max_velocity=_by_part(ARM_VELOCITY_RAD_S, WAIST_VELOCITY_RAD_S, GRIPPER_VELOCITY_1_S, waist_axes, grippers),
        max_acceleration=_by_part(
            ARM_ACCELERATION_RAD_S2, WAIST_ACCELERATION_RAD_S2, GRIPPER_ACCELERATION_1_S2, waist_axes, grippers
        ),
        max_jerk=_by_part(ARM_JERK_RAD_S3, WAIST_JERK_RAD_S3, GRIPPER_JERK_1_S3, waist_axes, grippers),
    )


def _by_part(arm: float, waist: float, gripper: float, waist_axes: int, grippers: int) -> tuple[float, ...]:
    return (*(arm,) * ARM_AXES, *(waist,) * waist_axes, *(gripper,) * grippers)
