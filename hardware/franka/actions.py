"""What an action of the Franka means: four action spaces, each turning an action into a goal setpoint.

`ee_delta`        change of the commanded tool pose: some of dx, dy, dz, droll, dpitch, dyaw (base frame), gripper
`ee_pose`         absolute tool pose in the base frame, quaternion w x y z, gripper
`joint_position`  seven joint positions, gripper
`joint_delta`     changes of the seven commanded joint positions, gripper

The gripper is 0 closed to 1 open; it is left out where the fingers are fixed. A setpoint is (8,): seven joints in
rad and the gripper's width in m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.kinematics import ArmKinematics
from hardware.sim.rendering import mujoco
from hardware.sim.task import ToolMotion
from hardware.sim.world import yaw_of
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Setpoint, SetpointLimits
from robot_stack.core.specs import Feature, vector

FloatVector = NDArray[np.float64]

JOINT_DELTA = "joint_delta"
ACTION_SPACES = ("ee_delta", "ee_pose", "joint_position", JOINT_DELTA)
MAX_LEAD_M = 0.020
MAX_LEAD_RAD = 0.25
MAX_JOINT_STEP_RAD = 0.04
MAX_JOINT_LEAD_RAD = 0.08

_TRANSLATION = ("dx", "dy", "dz")
_ROTATION = ("droll", "dpitch", "dyaw")
_GRIPPER = "gripper"
_JUMP_ITERATIONS = 20


def action_feature(space: str, motion: ToolMotion) -> Feature:
    """The bounded action vector of that action space for a task's tool motion."""
    gripper = _GRIPPER in motion.axes
    names: tuple[str, ...]
    if space == "ee_delta":
        names = tuple(_delta_name(axis) for axis in motion.axes)
        upper = tuple(_delta_bound(axis, motion) for axis in motion.axes)
        lower = tuple(0.0 if axis == _GRIPPER else -_delta_bound(axis, motion) for axis in motion.axes)
        return vector(names, lower, upper)
    if space == "ee_pose":
        names = ("x_m", "y_m", "z_m", "quat_w", "quat_x", "quat_y", "quat_z")
        lower = (*motion.workspace_lower_m, -1.0, -1.0, -1.0, -1.0)
        upper = (*motion.workspace_upper_m, 1.0, 1.0, 1.0, 1.0)
    elif space == "joint_position":
        names = tuple(f"{name}_rad" for name in limits.JOINT_NAMES)
        lower, upper = limits.RECTANGLE_LOWER_RAD, limits.RECTANGLE_UPPER_RAD
    elif space == JOINT_DELTA:
        names = tuple(f"{name}_delta_rad" for name in limits.JOINT_NAMES)
        lower, upper = (-MAX_JOINT_STEP_RAD,) * len(names), (MAX_JOINT_STEP_RAD,) * len(names)
    else:
        raise ConfigError(f"action space '{space}' is unknown; choose one of {', '.join(ACTION_SPACES)}")
    if gripper:
        return vector((*names, _GRIPPER), (*lower, 0.0), (*upper, 1.0))
    return vector(names, lower, upper)


def _delta_name(axis: str) -> str:
    if axis == _GRIPPER:
        return axis
    return f"{axis}_m" if axis in _TRANSLATION else f"{axis}_rad"


def _delta_bound(axis: str, motion: ToolMotion) -> float:
    if axis == _GRIPPER:
        return 1.0
    return motion.max_step_m if axis in _TRANSLATION else motion.max_step_rad


@dataclass(frozen=True, slots=True)
class ArmPose:
    """The measured arm: joints (7,) rad, gripper width m, tool position (3,) m and rotation (3, 3), base frame."""

    joints_rad: FloatVector
    gripper_width_m: float
    tool_position_m: FloatVector
    tool_rotation: FloatVector


class ActionSpace(Protocol):
    def forget_goal(self) -> None:
        """Later relative actions count from the measured pose."""

    def resolve(self, action: FloatArray, measured: ArmPose) -> Setpoint:
        """The goal setpoint (8,) of a checked action."""


def make_action_space(
    space: str, motion: ToolMotion, kinematics: ArmKinematics, limits_of_setpoint: SetpointLimits
) -> ActionSpace:
    if space == "ee_delta":
        return ToolDelta(motion, kinematics)
    if space == "ee_pose":
        return ToolPose(motion, kinematics)
    if space == JOINT_DELTA:
        return JointDelta(limits_of_setpoint)
    return JointPosition()


class JointPosition:
    def forget_goal(self) -> None:
        pass

    def resolve(self, action: FloatArray, measured: ArmPose) -> Setpoint:
        # float32 rounding must not carry a bound past its limit
        joints = np.clip(action[:7].astype(np.float64), limits.RECTANGLE_LOWER_RAD, limits.RECTANGLE_UPPER_RAD)
        return _setpoint(joints, _width(action[7:], measured))


class JointDelta:
    """Relative joint motion. Goals lead the measured joints by at most `MAX_JOINT_LEAD_RAD`, which bounds how hard the
    arm's impedance can press, and stay inside the limits. The task's workspace is not looked at."""

    def __init__(self, limits_of_setpoint: SetpointLimits) -> None:
        self._lower, self._upper = np.asarray(limits_of_setpoint.lower[:7]), np.asarray(limits_of_setpoint.upper[:7])
        self._joints: FloatVector | None = None

    def forget_goal(self) -> None:
        self._joints = None

    def resolve(self, action: FloatArray, measured: ArmPose) -> Setpoint:
        actual = measured.joints_rad
        wanted = (actual if self._joints is None else self._joints) + action[:7].astype(np.float64)
        wanted = np.clip(wanted, actual - MAX_JOINT_LEAD_RAD, actual + MAX_JOINT_LEAD_RAD)
        self._joints = np.clip(wanted, self._lower, self._upper)
        return _setpoint(self._joints, _width(action[7:], measured))


class ToolPose:
    """Absolute tool poses; the target stays in the task's workspace."""

    def __init__(self, motion: ToolMotion, kinematics: ArmKinematics) -> None:
        self._lower = np.asarray(motion.workspace_lower_m)
        self._upper = np.asarray(motion.workspace_upper_m)
        self._kinematics = kinematics
        self._goal_joints: FloatVector | None = None

    def forget_goal(self) -> None:
        self._goal_joints = None

    def resolve(self, action: FloatArray, measured: ArmPose) -> Setpoint:
        quat = np.asarray(action[3:7], dtype=np.float64)
        norm = float(np.linalg.norm(quat))
        if norm < 0.5:
            raise RobotError(f"quaternion {quat.tolist()} has norm {norm:.3g}; send a unit quaternion w x y z")
        position = np.clip(np.asarray(action[:3], dtype=np.float64), self._lower, self._upper)
        start = measured.joints_rad if self._goal_joints is None else self._goal_joints
        self._goal_joints = self._kinematics.solve(position, quat / norm, start, _JUMP_ITERATIONS)
        return _setpoint(self._goal_joints, _width(action[7:], measured))


class ToolDelta:
    """Relative tool motion. The target leads the measured pose by at most `MAX_LEAD_M` and `MAX_LEAD_RAD`.

    The lead bounds how hard the arm's impedance can press. Where roll and pitch are not commanded the tool is kept
    pointing straight down.
    """

    def __init__(self, motion: ToolMotion, kinematics: ArmKinematics) -> None:
        self._lower = np.asarray(motion.workspace_lower_m)
        self._upper = np.asarray(motion.workspace_upper_m)
        self._columns = [(*_TRANSLATION, *_ROTATION).index(axis) for axis in motion.axes if axis != _GRIPPER]
        self._gripper = _GRIPPER in motion.axes
        self._upright = not {"droll", "dpitch"} & set(motion.axes)
        self._kinematics = kinematics
        self._position_m = np.zeros(3)
        self._quat = tool_down(0.0)
        self._joints: FloatVector | None = None

    def forget_goal(self) -> None:
        self._joints = None

    def resolve(self, action: FloatArray, measured: ArmPose) -> Setpoint:
        if self._joints is None:
            self._position_m = measured.tool_position_m
            self._quat = _quaternion(measured.tool_rotation)
            self._joints = measured.joints_rad
        delta = np.zeros(6)
        delta[self._columns] = action[: len(self._columns)]
        self._position_m = self._next_position(self._position_m + delta[:3], measured.tool_position_m)
        self._quat = self._next_rotation(delta[3:], measured.tool_rotation)
        self._joints = self._kinematics.solve(self._position_m, self._quat, self._joints)
        return _setpoint(self._joints, _width(action[len(self._columns) :], measured))

    def _next_position(self, wanted_m: FloatVector, actual_m: FloatVector) -> FloatVector:
        lead = np.clip(wanted_m, self._lower, self._upper) - actual_m
        distance = float(np.linalg.norm(lead))
        return actual_m + lead * min(1.0, MAX_LEAD_M / max(distance, 1e-12))

    def _next_rotation(self, turn_rad: FloatVector, actual: FloatVector) -> FloatVector:
        wanted = np.empty(4)
        mujoco.mju_mulQuat(wanted, _turn(turn_rad), self._quat)
        measured = _quaternion(actual)
        lead = np.empty(3)
        mujoco.mju_subQuat(lead, wanted, measured)
        angle = float(np.linalg.norm(lead))
        target = measured.copy()
        mujoco.mju_quatIntegrate(target, lead, min(1.0, MAX_LEAD_RAD / max(angle, 1e-12)))
        return _upright(target) if self._upright else target


def _setpoint(joints_rad: FloatVector, width_m: float) -> Setpoint:
    return np.append(joints_rad, width_m)


def _width(gripper: FloatArray, measured: ArmPose) -> float:
    return float(gripper[0]) * limits.HAND_MAX_WIDTH_M if len(gripper) else measured.gripper_width_m


def _quaternion(rotation: FloatVector) -> FloatVector:
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(rotation).reshape(9))
    return quat


def _turn(rotation_vector_rad: FloatVector) -> FloatVector:
    quat = np.array([1.0, 0.0, 0.0, 0.0])
    mujoco.mju_quatIntegrate(quat, rotation_vector_rad, 1.0)
    return quat


def tool_down(yaw_rad: float) -> FloatVector:
    """Quaternion of a tool pointing straight down with that heading of its x axis."""
    return np.array([0.0, np.cos(yaw_rad / 2), np.sin(yaw_rad / 2), 0.0])


def _upright(quat_wxyz: FloatVector) -> FloatVector:
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, quat_wxyz)
    return tool_down(yaw_of(rotation.reshape(3, 3)))
