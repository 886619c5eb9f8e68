"""What an action of the G1 means: two action spaces, each turning an action into a goal of arms and waist.

`palm_delta`    changes of both palms' commanded positions in the pelvis frame: left_dx_m, left_dy_m, left_dz_m,
                right_dx_m, right_dy_m, right_dz_m. The palms keep facing each other, fingers forward: their frames stay
                parallel to the pelvis frame.
`joint_delta`   changes of the commanded positions of both arms' fourteen joints: left_shoulder_pitch_delta_rad, ...

With hands left_gripper and right_gripper follow, 0 closed to 1 open. The waist stays.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import mujoco
from hardware.unitree_g1.joints import ARM_AXES, ARM_SDK_MOTORS, GRIPPER_NAMES, MOTOR_NAMES, SIDES
from hardware.unitree_g1.kinematics import G1Kinematics, Palms
from hardware.unitree_g1.tasks import PalmMotion
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Setpoint, SetpointLimits
from robot_stack.core.specs import Feature, vector

FloatVector = NDArray[np.float64]

PALM_DELTA = "palm_delta"
JOINT_DELTA = "joint_delta"
ACTION_SPACES = (PALM_DELTA, JOINT_DELTA)
ARM_JOINTS = tuple(MOTOR_NAMES[motor] for motor in ARM_SDK_MOTORS[:ARM_AXES])

MAX_LEAD_M = 0.05
MAX_LEAD_RAD = 0.25
MAX_JOINT_STEP_RAD = 0.04
MAX_JOINT_LEAD_RAD = 0.15

PALM_QUAT = np.array([1.0, 0.0, 0.0, 0.0])
"""w x y z: how both palms are held, pelvis frame."""

_MIRROR = np.array([1.0, -1.0, 1.0])


def action_feature(space: str, motion: PalmMotion, grippers: bool) -> Feature:
    """The bounded action vector of that action space for a task's palm motion; ConfigError for an unknown space."""
    if space == PALM_DELTA:
        names = tuple(f"{side}_d{axis}_m" for side in SIDES for axis in "xyz")
        bound = (motion.max_step_m,) * len(names)
    elif space == JOINT_DELTA:
        names = tuple(f"{joint}_delta_rad" for joint in ARM_JOINTS)
        bound = (MAX_JOINT_STEP_RAD,) * len(names)
    else:
        raise ConfigError(f"the G1 has no action space '{space}'; choose one of {', '.join(ACTION_SPACES)}")
    if not grippers:
        return vector(names, tuple(-value for value in bound), bound)
    return vector((*names, *GRIPPER_NAMES), (*(-value for value in bound), 0.0, 0.0), (*bound, 1.0, 1.0))


class ActionSpace(Protocol):
    def forget_goal(self) -> None:
        """Later actions count from where the robot is measured to be."""

    def resolve(self, action: FloatArray, measured: Setpoint, palms: Palms) -> Setpoint:
        """The goal of the 17 joints. `measured`: setpoint (S,); `action`: (A,), of which the grippers are not read."""


def make_action_space(space: str, motion: PalmMotion, kinematics: G1Kinematics, limits: SetpointLimits) -> ActionSpace:
    return JointDelta(limits) if space == JOINT_DELTA else PalmDelta(motion, kinematics)


class JointDelta:
    """Relative motion of the arms' joints. Goals lead the measured joints by at most `MAX_JOINT_LEAD_RAD`, which bounds
    how hard the arms' stiffness can press, and stay inside the limits. The task's workspace is not looked at."""

    def __init__(self, limits: SetpointLimits) -> None:
        self._lower, self._upper = np.asarray(limits.lower[:ARM_AXES]), np.asarray(limits.upper[:ARM_AXES])
        self._goal_rad: FloatVector | None = None

    def forget_goal(self) -> None:
        self._goal_rad = None

    def resolve(self, action: FloatArray, measured: Setpoint, palms: Palms) -> Setpoint:
        goal = np.array(measured[:17] if self._goal_rad is None else self._goal_rad)
        actual = measured[:ARM_AXES]
        wanted = goal[:ARM_AXES] + action[:ARM_AXES].astype(np.float64)
        wanted = np.clip(wanted, actual - MAX_JOINT_LEAD_RAD, actual + MAX_JOINT_LEAD_RAD)
        goal[:ARM_AXES] = np.clip(wanted, self._lower, self._upper)
        self._goal_rad = goal
        return goal.copy()


class PalmDelta:
    """Relative motion of both palms. Goals lead the measured palms by at most `MAX_LEAD_M` along each axis and
    `MAX_LEAD_RAD` about any. The lead bounds how hard the arms' stiffness can press.
    """

    def __init__(self, motion: PalmMotion, kinematics: G1Kinematics) -> None:
        lower, upper = np.asarray(motion.lower_m), np.asarray(motion.upper_m)
        corners = np.array([[lower, lower * _MIRROR], [upper, upper * _MIRROR]])
        self._lower, self._upper = corners.min(axis=0), corners.max(axis=0)
        self._kinematics = kinematics
        self._position_m = np.zeros((2, 3))
        self._goal_rad: FloatVector | None = None

    def forget_goal(self) -> None:
        self._goal_rad = None

    def resolve(self, action: FloatArray, measured: Setpoint, palms: Palms) -> Setpoint:
        if self._goal_rad is None:
            self._position_m = palms.position_m
            self._goal_rad = measured[:17]
        delta = np.asarray(action[:6], dtype=np.float64).reshape(2, 3)
        self._position_m = self._next_positions(self._position_m + delta, palms.position_m)
        quats = np.array([_toward(rotation, PALM_QUAT) for rotation in palms.rotation])
        self._goal_rad = self._kinematics.solve(self._position_m, quats, self._goal_rad)
        return self._goal_rad

    def _next_positions(self, wanted_m: FloatVector, actual_m: FloatVector) -> FloatVector:
        lead = np.clip(wanted_m, self._lower, self._upper) - actual_m
        return actual_m + np.clip(lead, -MAX_LEAD_M, MAX_LEAD_M)


def _toward(rotation: FloatVector, wanted: FloatVector) -> FloatVector:
    """Quaternion w x y z on the way from a rotation (3, 3) to a wanted quaternion, at most `MAX_LEAD_RAD` along it."""
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(rotation).reshape(9))
    lead = np.empty(3)
    mujoco.mju_subQuat(lead, wanted, quat)
    angle = float(np.linalg.norm(lead))
    if angle <= MAX_LEAD_RAD:
        return wanted
    mujoco.mju_quatIntegrate(quat, lead, MAX_LEAD_RAD / angle)
    return quat
