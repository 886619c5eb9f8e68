"""The G1's 29 motors: names, order, and which of them `arm_sdk` moves.

Indices are those of `motor_cmd` and `motor_state` in the vendor's messages. Everything here counts in motor order
unless it says setpoint order: the 17 motors of `ARM_SDK_MOTORS`, left arm, right arm, waist.
"""

from __future__ import annotations

_LEG = ("hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll")
_WAIST = ("waist_yaw", "waist_roll", "waist_pitch")
_ARM = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch", "wrist_yaw")

SIDES = ("left", "right")


def _both(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{side}_{part}" for side in SIDES for part in parts)


MOTOR_NAMES: tuple[str, ...] = (*_both(_LEG), *_WAIST, *_both(_ARM))
MOTOR_COUNT = len(MOTOR_NAMES)
JOINT_NAMES: tuple[str, ...] = tuple(f"{name}_joint" for name in MOTOR_NAMES)

LEG_MOTORS = tuple(range(12))
WAIST_MOTORS = (12, 13, 14)
LEFT_ARM_MOTORS = tuple(range(15, 22))
RIGHT_ARM_MOTORS = tuple(range(22, 29))

ARM_SDK_MOTORS: tuple[int, ...] = (*LEFT_ARM_MOTORS, *RIGHT_ARM_MOTORS, *WAIST_MOTORS)
"""Motor of each of the setpoint's first 17 axes."""

ARM_AXES = 14
"""How many of these are arms; the waist follows."""

WEIGHT_MOTOR = 29
"""Unused motor slot whose `q` is the authority of arm_sdk over the robot's own controller, 0 to 1."""

PARALLEL_MOTORS = tuple(index for index, name in enumerate(MOTOR_NAMES) if "ankle" in name or name in _WAIST[1:])
"""Driven in pairs through parallel linkages: ankles and waist, pitch and roll."""

WRIST_MOTORS = tuple(index for index, name in enumerate(MOTOR_NAMES) if "wrist" in name)
GRIPPER_NAMES = ("left_gripper", "right_gripper")
