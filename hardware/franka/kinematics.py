"""Cartesian goals to joint goals by differential inverse kinematics (mink: one quadratic program per iteration).

Reference: K. Zakka, "mink: Python inverse kinematics based on MuJoCo". Each iteration minimises the weighted pose
error of the tool plus a weak pull of the null space towards a rest posture, within the joint limits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import mujoco
from robot_stack.core.errors import MissingDependencyError, RobotError

try:
    import mink
except ImportError as error:
    raise MissingDependencyError("mink", "sim", "Cartesian control of the Franka") from error

FloatVector = NDArray[np.float64]

POSITION_TOLERANCE_M = 5e-5
ROTATION_TOLERANCE_RAD = 5e-4

_QP_SOLVER = "daqp"
_POSTURE_COST = 3e-3
_POSTURE_GAIN = 0.05
_UNIT_TIME_S = 1.0


class ArmKinematics:
    """Forward and inverse kinematics of one tool site of a fixed-base arm whose model has nothing but its joints.

    Positions in metres and quaternions w x y z in the base frame; joints (n,) in rad.
    """

    def __init__(self, model: mujoco.MjModel, tool_site: str, rest_rad: FloatVector) -> None:
        self._configuration = mink.Configuration(model, rest_rad)
        self._site = model.site(tool_site).id
        self._tool = mink.FrameTask(tool_site, "site", position_cost=1.0, orientation_cost=0.3)
        posture = mink.PostureTask(model, cost=_POSTURE_COST, gain=_POSTURE_GAIN)
        posture.set_target(rest_rad)
        self._tasks = [self._tool, posture]
        self._limits = [mink.ConfigurationLimit(model)]
        self._lower, self._upper = model.jnt_range.T.copy()

    def tool_pose(self, joints_rad: FloatVector) -> tuple[FloatVector, FloatVector]:
        """Position (3,) and rotation (3, 3) of the tool."""
        self._configuration.update(joints_rad)
        data = self._configuration.data
        return data.site_xpos[self._site].copy(), data.site_xmat[self._site].reshape(3, 3).copy()

    def motion(self, joints_rad: FloatVector, velocities_rad_s: FloatVector) -> tuple[FloatVector, ...]:
        """Position (3,), rotation (3, 3) and linear velocity (3,) in m/s of the tool."""
        position, rotation = self.tool_pose(joints_rad)
        model, data = self._configuration.model, self._configuration.data
        jacobian = np.empty((3, model.nv))
        mujoco.mj_jacSite(model, data, jacobian, None, self._site)
        return position, rotation, jacobian @ velocities_rad_s

    def site_pose(self, site: str, joints_rad: FloatVector) -> tuple[FloatVector, FloatVector]:
        """Position (3,) and quaternion w x y z of another site of the model."""
        self._configuration.update(joints_rad)
        frame = self._configuration.data.site(site)
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, frame.xmat)
        return frame.xpos.copy(), quat

    def solve(
        self, position_m: FloatVector, quat_wxyz: FloatVector, start_rad: FloatVector, max_iterations: int = 4
    ) -> FloatVector:
        """Joints (n,) that bring the tool to the pose, or as near as the limits let it come from `start_rad`.

        RobotError if the quadratic program has no solution.
        """
        self._tool.set_target(mink.SE3(np.concatenate([quat_wxyz, position_m])))
        self._configuration.update(np.clip(start_rad, self._lower, self._upper))
        for _ in range(max_iterations):
            error = self._tool.compute_error(self._configuration)
            if np.abs(error[:3]).max() < POSITION_TOLERANCE_M and np.abs(error[3:]).max() < ROTATION_TOLERANCE_RAD:
                break
            self._step()
        joints: FloatVector = np.clip(self._configuration.q, self._lower, self._upper)
        return joints

    def _step(self) -> None:
        try:
            step = mink.solve_ik(self._configuration, self._tasks, _UNIT_TIME_S, _QP_SOLVER, limits=self._limits)
        except mink.NoSolutionFound as error:
            raise RobotError(
                f"inverse kinematics found no solution near joints {self._configuration.q.round(3).tolist()} rad; "
                "move the target or reset the episode"
            ) from error
        self._configuration.integrate_inplace(step, _UNIT_TIME_S)
