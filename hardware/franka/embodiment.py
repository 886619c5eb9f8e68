"""Everything of the Franka that is the same whether it is simulated or real.

Spec, limits, geometry, the meaning of actions, and features from measured quantities. Back-ends move measured
quantities in and setpoints out, so a policy that was trained on one of them fits every other.

A setpoint is (8,): seven joints in rad, the gripper's width in m (constant where the task fixes the fingers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.actions import JOINT_DELTA, ActionSpace, ArmPose, action_feature, make_action_space
from hardware.franka.collision import franka_geometry
from hardware.franka.kinematics import ArmKinematics
from hardware.franka.model import ARM_JOINTS, HAND, READY_RAD, TCP_Z_IN_HAND_M, FrankaModel, build_franka
from hardware.sim.collision import ModelGeometry
from hardware.sim.rendering import CameraConfig, image_features
from hardware.sim.task import TOOL_SITE, Task
from hardware.sim.tasks import make_task
from hardware.sim.world import wrap_angle, yaw_of
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.protocols import Setpoint, SetpointLimits
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, Feature, RobotSpec, vector

FloatVector = NDArray[np.float64]

EXTERNAL_WRENCH = "observation.external_wrench"
JOINT_POSITION = "observation.joint_position"
JOINT_VELOCITY = "observation.joint_velocity"

WRENCH_BOUND = np.array([60.0, 60.0, 60.0, 10.0, 10.0, 10.0])

_STATE_NAMES = (
    *("tool_x_m", "tool_y_m", "tool_z_m", "tool_yaw_rad", "tool_tilt_x", "tool_tilt_y"),
    *("tool_velocity_x_m_s", "tool_velocity_y_m_s", "tool_velocity_z_m_s"),
    *("goal_minus_tool_x_m", "goal_minus_tool_y_m", "goal_minus_tool_z_m", "goal_minus_tool_yaw_rad"),
)
_GRIPPER_NAMES = ("gripper_width_m", "gripper_goal_width_m")
_JOINT_NAMES = (
    *(f"{name}_rad" for name in limits.JOINT_NAMES),
    *(f"goal_minus_{name}_rad" for name in limits.JOINT_NAMES),
)
_WRENCH_NAMES = ("force_x_n", "force_y_n", "force_z_n", "moment_x_nm", "moment_y_nm", "moment_z_nm")


@dataclass(frozen=True, slots=True)
class ToolMeasured:
    """The task's tool in the base frame: position (3,) m, rotation (3, 3), linear velocity (3,) m/s."""

    position_m: FloatVector
    rotation: FloatVector
    velocity_m_s: FloatVector


@dataclass(frozen=True, slots=True)
class FrankaMeasured:
    """One sample: joints (7,) rad, their velocities (7,) rad/s, force and moment (6,) N, N m on the robot at the tool
    in the base frame, gripper width m, and the tool that follows from the joints (see `FrankaEmbodiment.measured`)."""

    joints_rad: FloatVector
    velocities_rad_s: FloatVector
    external_wrench: FloatVector
    gripper_width_m: float
    tool: ToolMeasured


@dataclass(frozen=True, slots=True)
class _Goal:
    joints_rad: FloatVector
    position_m: FloatVector
    yaw_rad: float
    gripper_width_m: float


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `open` and `close`."""

    kinematics: ArmKinematics
    actions: ActionSpace
    geometry: ModelGeometry


class FrankaEmbodiment:
    """One arm with one task's tool.

    Features (float32; base frame = link0; the tool is the task's: the peg's tip, or between the finger tips):
        observation.state: tool pose and velocity, how far the commanded goal leads the tool; the gripper, if it moves;
            in the action space `joint_delta` the joints and how far their goals lead them. Tilt is the horizontal part
            of the tool's z axis.
        observation.external_wrench: force and moment (6,) on the robot at the tool, averaged over the ticks of the
            last control period and clipped to 60 N and 10 N m.
        observation.joint_position, observation.joint_velocity: (7,) each.

    Args:
        with_environment: name `observation.environment_state` in the spec; whoever does it, fills it.
        limits: of the setpoint; the rectangle if None.
    """

    def __init__(
        self,
        name: str,
        task: str | Task,
        *,
        action_space: str,
        control_rate_hz: float,
        tick_rate_hz: float,
        simulated: bool = False,
        with_environment: bool = False,
        cameras: tuple[CameraConfig, ...] = (),
        limits_of_setpoint: SetpointLimits | None = None,
    ) -> None:
        self.task = make_task(task) if isinstance(task, str) else task
        self.gripper_moves = self.task.finger_width_m is None
        self.limits = limits_of_setpoint or limits.rectangle_limits()
        self.ticks_per_step = max(1, round(tick_rate_hz / control_rate_hz))
        self._action_space = action_space
        self.spec = RobotSpec(
            name=name,
            model="franka_fr3",
            task=self.task.name,
            simulated=simulated,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            command_timeout_s=1.5 / control_rate_hz,
            max_episode_steps=self.task.max_episode_steps,
            action=action_feature(action_space, self.task.motion),
            observation=self._observation_features(with_environment) | image_features(cameras),
        )
        self._goal = _Goal(np.zeros(7), np.zeros(3), 0.0, 0.0)
        self._opened: _Opened | None = None

    def _observation_features(self, with_environment: bool) -> dict[str, Feature]:
        environment = {ENVIRONMENT_STATE: vector(self.task.environment_names)} if with_environment else {}
        gripper = _GRIPPER_NAMES if self.gripper_moves else ()
        joints = _JOINT_NAMES if self._action_space == JOINT_DELTA else ()
        return {
            STATE: vector(_STATE_NAMES + gripper + joints),
            **environment,
            EXTERNAL_WRENCH: vector(_WRENCH_NAMES),
            JOINT_POSITION: vector(tuple(f"{name}_rad" for name in limits.JOINT_NAMES)),
            JOINT_VELOCITY: vector(tuple(f"{name}_rad_s" for name in limits.JOINT_NAMES)),
        }

    # ---- life -------------------------------------------------------------------------------------------------

    def open(self, facts: limits.JointFacts | None = None) -> None:
        """Take the robot's own limits, where it tells them, and compile the models that inverse kinematics and
        geometry need. RobotError if nothing is left of the limits."""
        if self._opened is not None:
            return
        if facts is not None:
            self.limits = limits.narrowed(self.limits, facts, self.spec.name)
        spec = build_franka(FrankaModel(finger_width_m=0.0))
        self.task.add_tool(spec.body(HAND), TCP_Z_IN_HAND_M)
        for index, joint in enumerate(ARM_JOINTS):
            spec.joint(joint).range = (self.limits.lower[index], self.limits.upper[index])
        kinematics = ArmKinematics(spec.compile(), TOOL_SITE, np.asarray(READY_RAD))
        actions = make_action_space(self._action_space, self.task.motion, kinematics, self.limits)
        self._opened = _Opened(kinematics, actions, franka_geometry(self.task))

    def close(self) -> None:
        self._opened = None

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._opened

    @property
    def kinematics(self) -> ArmKinematics:
        """Of the arm with the task's tool, within the limits; known when open."""
        return self._open.kinematics

    @property
    def geometry(self) -> ModelGeometry | None:
        """None until open."""
        return self._opened.geometry if self._opened else None

    # ---- measured quantities ----------------------------------------------------------------------------------

    def measured(
        self,
        joints_rad: FloatVector,
        velocities_rad_s: FloatVector,
        external_wrench: FloatVector,
        gripper_width_m: float,
    ) -> FrankaMeasured:
        """A sample whose tool follows from the joints by forward kinematics; fixed fingers have the task's width."""
        tool = ToolMeasured(*self._open.kinematics.motion(joints_rad, velocities_rad_s))
        return FrankaMeasured(joints_rad, velocities_rad_s, external_wrench, self.width(gripper_width_m), tool)

    def width(self, measured_m: float) -> float:
        """The gripper's width (m) within its range; the task's where that fixes the fingers."""
        if self.task.finger_width_m is not None:
            return self.task.finger_width_m
        return min(max(measured_m, 0.0), limits.HAND_MAX_WIDTH_M)

    @staticmethod
    def setpoint(measured: FrankaMeasured) -> Setpoint:
        return np.append(measured.joints_rad, measured.gripper_width_m)

    # ---- control ----------------------------------------------------------------------------------------------

    def hold(self, measured: FrankaMeasured) -> None:
        """Forget the goal: it is where the robot is, and later relative actions count from there."""
        self._set_goal(self.setpoint(measured))
        self._open.actions.forget_goal()

    def resolve(self, action: FloatArray, measured: FrankaMeasured) -> Setpoint:
        """The goal (8,), inside the limits, that a checked action means from here."""
        tool = measured.tool
        pose = ArmPose(measured.joints_rad, measured.gripper_width_m, tool.position_m, tool.rotation)
        goal = np.clip(self._open.actions.resolve(action, pose), self.limits.lower, self.limits.upper)
        self._set_goal(goal)
        return goal

    def _set_goal(self, goal: Setpoint) -> None:
        position, rotation = self._open.kinematics.tool_pose(goal[:7])
        self._goal = _Goal(goal[:7].copy(), position, yaw_of(rotation), float(goal[7]))

    # ---- observation ------------------------------------------------------------------------------------------

    def features(self, measured: FrankaMeasured) -> Features:
        """All features but `observation.environment_state` and images; float32, the caller's to keep."""
        features = {
            STATE: self._state(measured),
            EXTERNAL_WRENCH: np.clip(measured.external_wrench, -WRENCH_BOUND, WRENCH_BOUND),
            JOINT_POSITION: measured.joints_rad,
            JOINT_VELOCITY: measured.velocities_rad_s,
        }
        return {key: value.astype(np.float32) for key, value in features.items()}

    def _state(self, measured: FrankaMeasured) -> FloatVector:
        tool = measured.tool
        yaw = yaw_of(tool.rotation)
        lead = self._goal.position_m - tool.position_m
        turn = wrap_angle(self._goal.yaw_rad - yaw)
        values = [*tool.position_m, yaw, *tool.rotation[:2, 2], *tool.velocity_m_s, *lead, turn]
        if self.gripper_moves:
            values += [measured.gripper_width_m, self._goal.gripper_width_m]
        if self._action_space == JOINT_DELTA:
            values += [*measured.joints_rad, *(self._goal.joints_rad - measured.joints_rad)]
        return np.asarray(values)


def shifted_wrench(wrench: FloatVector, at_m: FloatVector, to_m: FloatVector) -> FloatVector:
    """The same force and moment (6,), stated at another point: moment' = moment + (at - to) x force."""
    force = wrench[:3]
    return np.concatenate([force, wrench[3:] + np.cross(at_m - to_m, force)])
