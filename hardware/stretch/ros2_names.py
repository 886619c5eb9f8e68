"""The words of stretch_ros2's driver node: topics, services, modes, joint names, and the layout of its messages.

Everything that turns a message into setpoint axes or back is here, for the driver, the vendor-side simulator and the
safe state alike. Names are relative to the configured namespace; on a robot as delivered that is empty. Joint states
are read by joint name, never by place: the vendor's order depends on the tool.

The streamed command is a plain array of ten numbers (tool: dex wrist 3 with gripper 3). Every joint entry is absolute,
so a zero means "go to zero"; the two base entries are increments, which navigation mode ignores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.stretch.joints import ARM, ARM_SEGMENTS, GRIPPER, JOINT_STATE_OF, SETPOINT_NAMES, aperture_of_finger
from robot_stack.core.errors import ConfigError, RobotError

FloatVector = NDArray[np.float64]

NODE_NAME = "stretch_driver"
JOINT_STATES = "stretch/joint_states"
ODOMETRY = "odom"
BATTERY = "battery"
MODE = "mode"
TOOL = "tool"
IS_HOMED = "is_homed"
IS_RUNSTOPPED = "is_runstopped"
IS_STREAMING = "is_streaming_position"
JOINT_LIMITS = "joint_limits"
COMMAND_VELOCITY = "stretch/cmd_vel"
POSE_COMMAND = "joint_pose_cmd"

SWITCH_TO_NAVIGATION = "switch_to_navigation_mode"
SWITCH_TO_POSITION = "switch_to_position_mode"
SWITCH_TO_TRAJECTORY = "switch_to_trajectory_mode"
SWITCH_TO_GAMEPAD = "switch_to_gamepad_mode"
ACTIVATE_STREAMING = "activate_streaming_position"
DEACTIVATE_STREAMING = "deactivate_streaming_position"
STOP_THE_ROBOT = "stop_the_robot"
HOME_THE_ROBOT = "home_the_robot"
STOW_THE_ROBOT = "stow_the_robot"
GET_JOINT_STATES = "get_joint_states"
RUNSTOP = "runstop"
SELF_COLLISION_AVOIDANCE = "self_collision_avoidance"

NAVIGATION, POSITION, TRAJECTORY, GAMEPAD = "navigation", "position", "trajectory", "gamepad"
HOMING, STOWING, RUNSTOPPED = "homing", "stowing", "runstopped"

BASE_TIMEOUT_S = 0.5
"""The vendor's own dead-man of the base in navigation mode."""

BASE_AXES = 2
JOINT_AXES = SETPOINT_NAMES[BASE_AXES:]
GRIPPER_AXIS = SETPOINT_NAMES[GRIPPER]
ARM_AXIS = SETPOINT_NAMES[ARM]

STREAM_AXES = (
    *("arm_m", "lift_m", "wrist_yaw_rad", "wrist_pitch_rad", "wrist_roll_rad"),
    *("head_pan_rad", "head_tilt_rad", "gripper_aperture_m"),
)
"""Order of the joint entries of the streamed command; two base entries follow."""

STREAM_LENGTH = len(STREAM_AXES) + BASE_AXES

# ---- gripper: the one place that converts its units ----

FINGER_RAD = "finger_rad"
PERCENT = "percent"
METRES_PER_UNIT = {FINGER_RAD: aperture_of_finger(1.0), PERCENT: 0.09 / 70.0}
"""Aperture in m per unit of the vendor's; 70 percent is the open hand of 0.09 m."""

_LARGEST_FINGER_RAD = 1.5


def gripper_from_aperture(aperture_m: float, unit: str) -> float:
    """ConfigError for an unknown unit."""
    return aperture_m / _metres_per(unit)


def aperture_from_gripper(value: float, unit: str) -> float:
    """The inverse of `gripper_from_aperture`."""
    return value * _metres_per(unit)


def _metres_per(unit: str) -> float:
    if unit not in METRES_PER_UNIT:
        raise ConfigError(f"stretch: gripper_unit is '{unit}'; choose {' or '.join(METRES_PER_UNIT)}")
    return METRES_PER_UNIT[unit]


# ---- joint states ----


def joints_from_state(message: Any) -> FloatVector:
    """(3, 8): position, velocity and effort of the axes `JOINT_AXES`, from a sensor_msgs/JointState.

    The arm is `wrist_extension` or the sum of its four segments. Missing velocities and efforts are zero; effort is
    percent, as the vendor gives it. RobotError if a joint is missing or a value is not finite.
    """
    rows = []
    for values in (message.position, message.velocity, message.effort):
        by_name = dict(zip(message.name, values, strict=False))
        rows.append(_axis_values(by_name) if by_name else None)
    if rows[0] is None:
        raise RobotError(f"stretch: '{JOINT_STATES}' carries no positions")
    zeros = [0.0] * len(JOINT_AXES)
    table = np.array([zeros if row is None else row for row in rows])
    table[2, JOINT_AXES.index(ARM_AXIS)] = _arm_effort(dict(zip(message.name, message.effort, strict=False)))
    if not np.isfinite(table).all():
        raise RobotError(f"stretch: '{JOINT_STATES}' carries a value that is not finite: {table.tolist()}")
    return table


def _axis_values(by_name: Mapping[str, float]) -> list[float]:
    values = []
    for axis in JOINT_AXES:
        joint = JOINT_STATE_OF[axis]
        if axis == ARM_AXIS and joint not in by_name:
            values.append(sum(_value(by_name, segment) for segment in ARM_SEGMENTS))
        elif axis == GRIPPER_AXIS:
            values.append(aperture_from_gripper(_value(by_name, joint), FINGER_RAD))
        else:
            values.append(_value(by_name, joint))
    return values


def _arm_effort(by_name: Mapping[str, float]) -> float:
    """Every segment repeats the effort of the one motor."""
    return by_name.get(JOINT_STATE_OF[ARM_AXIS], by_name.get(ARM_SEGMENTS[0], 0.0))


def _value(by_name: Mapping[str, float], joint: str) -> float:
    if joint not in by_name:
        raise RobotError(
            f"stretch: '{JOINT_STATES}' has no joint '{joint}' (it has {', '.join(sorted(by_name))}); "
            "this back-end is for the Stretch 3 with the dex wrist 3 and the gripper 3"
        )
    return float(by_name[joint])


# ---- joint limits ----


def limits_from_message(message: Any) -> dict[str, tuple[float, float]]:
    """Lower and upper limit of every axis that the vendor's `joint_limits` names, in the units of the setpoint.

    The vendor misuses a JointState: `position` holds the lower limits, `velocity` the upper ones. The gripper's come
    in percent, whatever its other topics say; a range too wide for a finger angle tells.
    """
    limits = {}
    by_joint = {
        joint: (float(lower), float(upper))
        for joint, lower, upper in zip(message.name, message.position, message.velocity, strict=False)
    }
    for axis, joint in JOINT_STATE_OF.items():
        if joint not in by_joint:
            continue
        lower, upper = by_joint[joint]
        if axis == GRIPPER_AXIS:
            unit = PERCENT if max(abs(lower), abs(upper)) > _LARGEST_FINGER_RAD else FINGER_RAD
            lower, upper = aperture_from_gripper(lower, unit), aperture_from_gripper(upper, unit)
        if not (math.isfinite(lower) and math.isfinite(upper)):
            raise RobotError(f"stretch: '{JOINT_LIMITS}' gives {joint} the limits {lower} .. {upper}, not finite")
        limits[axis] = (lower, upper)
    return limits


# ---- streamed command ----


def pose_command(setpoint: FloatVector, gripper_unit: str) -> list[float]:
    """The streamed command (10,) for a setpoint (10,): all joints absolute, both base entries 0."""
    by_axis = dict(zip(SETPOINT_NAMES, setpoint.tolist(), strict=True))
    by_axis[GRIPPER_AXIS] = gripper_from_aperture(by_axis[GRIPPER_AXIS], gripper_unit)
    return [by_axis[axis] for axis in STREAM_AXES] + [0.0] * BASE_AXES


def targets_of_command(values: Sequence[float], gripper_unit: str) -> dict[str, float]:
    """Target of every joint axis in a streamed command (10,); the vendor's side of `pose_command`."""
    targets = dict(zip(STREAM_AXES, values, strict=False))
    targets[GRIPPER_AXIS] = aperture_from_gripper(targets[GRIPPER_AXIS], gripper_unit)
    return targets
