"""The controllers of the Franka's ROS 2 side, simulated: what becomes of a target once it has arrived.

Copies the weaknesses on purpose. The CRISP controllers smooth the newest target exponentially, hold it for ever when
its sender dies, and check neither limits nor age. The vendor's hardware layer refuses what is not finite: the arm stops
with an error. In an error the arm holds where it is until somebody recovers it, and targets are ignored.

Simplification: the arm below is a joint impedance; a pose target goes to it through inverse kinematics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.kinematics import ArmKinematics
from hardware.franka.ros2_names import JointReader
from robot_stack.core.errors import RobotError

FloatVector = NDArray[np.float64]

TARGET_TIME_CONSTANT_S = 0.01
"""Of the smoothing; stands for the filter coefficient of the real one at 1 kHz."""

# The vendor stops the arm when a joint is faster than it may ever be.
_VELOCITY_MARGIN = 1.02


class ArmController:
    """Newest target in, joint setpoint (7,) out. `error`: in words while the arm is stopped, else ''."""

    def __init__(self, kinematics: ArmKinematics) -> None:
        self.error = ""
        self._kinematics = kinematics
        self._joints = JointReader(limits.JOINT_NAMES, "target", "controller")
        self._target = np.zeros(7)
        self._smoothed = np.zeros(7)
        self._remaining_s = 0.0
        self._trajectory = False

    def rest_at(self, joints_rad: FloatVector) -> None:
        """Forget every earlier target and hold these joints (7,): what activation does."""
        self._target = joints_rad.copy()
        self._smoothed = joints_rad.copy()
        self._remaining_s, self._trajectory = 0.0, False

    def stop(self, error: str, joints_rad: FloatVector) -> None:
        """Stop with an error; the first one stands."""
        if not self.error:
            self.error = error
            self.rest_at(joints_rad)

    def recover(self, joints_rad: FloatVector) -> None:
        self.error = ""
        self.rest_at(joints_rad)

    # ---- targets ----------------------------------------------------------------------------------------------

    def take_joints(self, message: Any, measured_rad: FloatVector) -> None:
        """A `target_joint`; one that lacks joints is dropped, as the controller does."""
        if not np.isfinite(message.position).all():
            self.stop("a command was not finite", measured_rad)
            return
        try:
            target = self._joints.pick(message, "position")
        except RobotError:
            return
        self._take(target)

    def take_pose(self, message: Any, measured_rad: FloatVector) -> None:
        """A `target_pose` of the hand's tool centre point."""
        position, turn = message.pose.position, message.pose.orientation
        position_m = np.array([position.x, position.y, position.z])
        quat = np.array([turn.w, turn.x, turn.y, turn.z])
        norm = float(np.linalg.norm(quat))
        if not (np.isfinite(position_m).all() and math.isfinite(norm) and norm > 0.0):
            self.stop("a command was not finite", measured_rad)
            return
        self._take(self._kinematics.solve(position_m, quat / norm, self._target))

    def take_trajectory(self, message: Any, measured_rad: FloatVector) -> None:
        """A trajectory: its last point, reached in that point's time."""
        if not message.points or sorted(message.joint_names) != sorted(limits.JOINT_NAMES):
            return
        point = message.points[-1]
        if not np.isfinite(point.positions).all():
            self.stop("a command was not finite", measured_rad)
            return
        order = [list(message.joint_names).index(name) for name in limits.JOINT_NAMES]
        self._take(np.asarray(point.positions)[order])
        self._remaining_s = point.time_from_start.sec + point.time_from_start.nanosec / 1e9
        self._trajectory = True

    def _take(self, target_rad: FloatVector) -> None:
        if not self.error:
            self._target, self._trajectory = target_rad, False

    # ---- time -------------------------------------------------------------------------------------------------

    def step(self, duration_s: float, velocities_rad_s: FloatVector, measured_rad: FloatVector) -> FloatVector:
        """The joint setpoint (7,) after `duration_s`; stops with an error if a joint is too fast."""
        if (np.abs(velocities_rad_s) > np.multiply(limits.FULL_VELOCITY_RAD_S, _VELOCITY_MARGIN)).any():
            self.stop("joint_velocity_violation", measured_rad)
        if self._trajectory:
            share = min(1.0, duration_s / max(self._remaining_s, duration_s))
            self._remaining_s -= duration_s
        else:
            share = 1.0 - math.exp(-duration_s / TARGET_TIME_CONSTANT_S)
        self._smoothed = self._smoothed + share * (self._target - self._smoothed)
        return self._smoothed.copy()


class HandController:
    """The gripper's node: goes to the newest goal at its own speed, whatever the speed of the goals."""

    def __init__(self, speed_m_s: float) -> None:
        self._speed_m_s = speed_m_s
        self._goal_m = 0.0
        self._width_m = 0.0

    def rest_at(self, width_m: float) -> None:
        self._goal_m = self._width_m = width_m

    def take(self, message: Any) -> None:
        if len(message.data) == 1 and math.isfinite(message.data[0]):
            self._goal_m = min(max(message.data[0], 0.0), limits.HAND_MAX_WIDTH_M)

    def step(self, duration_s: float) -> float:
        """The width (m) to drive to after `duration_s`."""
        step_m = self._speed_m_s * duration_s
        self._width_m += min(max(self._goal_m - self._width_m, -step_m), step_m)
        return self._width_m
