"""Forward and inverse kinematics of the G1's two arms, and the torques that gravity asks of its motors.

Everything is in the pelvis frame. Inverse kinematics are differential (mink: one quadratic program per iteration, see
K. Zakka, "mink: Python inverse kinematics based on MuJoCo"): both palms' pose errors plus a weak pull of each arm's
null space towards a rest posture, within the joint limits. The waist stays where it is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import mujoco
from hardware.unitree_g1.joints import ARM_AXES, ARM_SDK_MOTORS, JOINT_NAMES, LEG_MOTORS, WAIST_MOTORS
from hardware.unitree_g1.model import PALM_SITES, G1Model, build_g1
from robot_stack.core.errors import MissingDependencyError, RobotError
from robot_stack.core.protocols import SetpointLimits

try:
    import mink
except ImportError as error:
    raise MissingDependencyError("mink", "sim", "Cartesian control of the G1") from error

FloatVector = NDArray[np.float64]

POSITION_TOLERANCE_M = 5e-5
ROTATION_TOLERANCE_RAD = 5e-4

_QP_SOLVER = "daqp"
_ORIENTATION_COST = 0.3
_POSTURE_COST = 3e-3
_POSTURE_GAIN = 0.05
_UNIT_TIME_S = 1.0
_WAIST_LINKS = ("waist_yaw_link", "waist_roll_link", "torso_link")
_WAIST_AXES = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True, slots=True)
class Palms:
    """Left and right palm in the pelvis frame: positions (2, 3) m, rotations (2, 3, 3), velocities (2, 3) m/s."""

    position_m: FloatVector
    rotation: FloatVector
    velocity_m_s: FloatVector


class G1Kinematics:
    """Compiles two models: the whole robot, and its arms alone for inverse kinematics.

    Args:
        limits: of the setpoint; inverse kinematics keep the arms inside.
        hands: `none` or `dex3`.
        rest_rad: (14,) arms' posture that the null space is drawn to.
    """

    def __init__(self, limits: SetpointLimits, hands: str, rest_rad: FloatVector) -> None:
        body = build_g1(G1Model(pelvis_height_m=0.0, hands=hands)).compile()
        self._body = body
        self._data = mujoco.MjData(body)
        self._qpos = np.array([body.joint(name).qposadr[0] for name in JOINT_NAMES])
        self._dofs = np.array([body.joint(name).dofadr[0] for name in JOINT_NAMES])
        self._sites = [body.site(site).id for site in PALM_SITES]
        self._jacobian = np.zeros((3, body.nv))
        self._gravity = np.zeros(body.nv)
        self._arms = _ArmSolver(limits, rest_rad)

    def palms(self, position_rad: FloatVector, velocity_rad_s: FloatVector) -> Palms:
        """Of motor positions (29,) and velocities (29,)."""
        data = self._data
        data.qpos[self._qpos] = position_rad
        mujoco.mj_kinematics(self._body, data)
        mujoco.mj_comPos(self._body, data)
        velocity = np.empty((2, 3))
        for index, site in enumerate(self._sites):
            mujoco.mj_jacSite(self._body, data, self._jacobian, None, site)
            velocity[index] = self._jacobian[:, self._dofs] @ velocity_rad_s
        return Palms(data.site_xpos[self._sites], data.site_xmat[self._sites].reshape(2, 3, 3), velocity)

    def gravity_torque(self, position_rad: FloatVector) -> FloatVector:
        """(29,) N m that hold the robot, without any load, at rest at motor positions (29,), its pelvis upright."""
        data = self._data
        data.qpos[self._qpos] = position_rad
        mujoco.mj_kinematics(self._body, data)
        mujoco.mj_comPos(self._body, data)
        mujoco.mj_rne(self._body, data, 0, self._gravity)
        torque: FloatVector = self._gravity[self._dofs]
        return torque

    def solve(
        self, position_m: FloatVector, quat_wxyz: FloatVector, start_rad: FloatVector, max_iterations: int = 3
    ) -> FloatVector:
        """A goal (17,) that brings the palms to positions (2, 3) and orientations (2, 4), or as near as limits allow.

        `start_rad` (17,): where to begin, and where the waist stays. RobotError if there is no solution.
        """
        arms = self._arms.solve(position_m, quat_wxyz, start_rad, max_iterations)
        return np.concatenate([arms, start_rad[ARM_AXES:]])


class _ArmSolver:
    """Inverse kinematics of fourteen arm joints on a waist that is posed, not moved."""

    def __init__(self, limits: SetpointLimits, rest_rad: FloatVector) -> None:
        spec = build_g1(G1Model(pelvis_height_m=0.0, rigid=(*LEG_MOTORS, *WAIST_MOTORS)))
        for axis, motor in enumerate(ARM_SDK_MOTORS[:ARM_AXES]):
            spec.joint(JOINT_NAMES[motor]).range = (limits.lower[axis], limits.upper[axis])
        self._model = spec.compile()
        self._waist_bodies = [self._model.body(link).id for link in _WAIST_LINKS]
        self._waist_rad = np.zeros(3)
        self._configuration = mink.Configuration(self._model, rest_rad)
        self._palms = [mink.FrameTask(site, "site", 1.0, _ORIENTATION_COST) for site in PALM_SITES]
        posture = mink.PostureTask(self._model, cost=_POSTURE_COST, gain=_POSTURE_GAIN)
        posture.set_target(rest_rad)
        self._tasks = [*self._palms, posture]
        self._limits = [mink.ConfigurationLimit(self._model)]
        self._lower, self._upper = self._model.jnt_range.T.copy()

    def solve(
        self, position_m: FloatVector, quat_wxyz: FloatVector, start_rad: FloatVector, max_iterations: int
    ) -> FloatVector:
        self._pose_waist(start_rad[ARM_AXES:])
        for palm, position, quat in zip(self._palms, position_m, quat_wxyz, strict=True):
            palm.set_target(mink.SE3(np.concatenate([quat, position])))
        self._configuration.update(np.clip(start_rad[:ARM_AXES], self._lower, self._upper))
        for _ in range(max_iterations):
            errors = np.array([palm.compute_error(self._configuration) for palm in self._palms])
            reached = np.abs(errors[:, :3]).max() < POSITION_TOLERANCE_M
            if reached and np.abs(errors[:, 3:]).max() < ROTATION_TOLERANCE_RAD:
                break
            self._step()
        arms: FloatVector = np.clip(self._configuration.q, self._lower, self._upper)
        return arms

    def _pose_waist(self, waist_rad: FloatVector) -> None:
        if np.array_equal(waist_rad, self._waist_rad):
            return
        self._waist_rad = np.array(waist_rad)
        for body, axis, angle in zip(self._waist_bodies, _WAIST_AXES, waist_rad, strict=True):
            mujoco.mju_axisAngle2Quat(self._model.body_quat[body], axis, angle)

    def _step(self) -> None:
        try:
            step = mink.solve_ik(self._configuration, self._tasks, _UNIT_TIME_S, _QP_SOLVER, limits=self._limits)
        except mink.NoSolutionFound as error:
            raise RobotError(
                f"inverse kinematics found no solution near arm joints {self._configuration.q.round(3).tolist()} rad; "
                "move the targets or reset the episode"
            ) from error
        self._configuration.integrate_inplace(step, _UNIT_TIME_S)
