"""The simulated Franka Research 3 with the Franka Hand: same setpoints, limits and features as the real one.

The position actuators are the vendor's joint impedance controller, run at the physics rate. The external wrench is
estimated as the real robot does it: from the joint torques that contacts cause, through the tool's Jacobian.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.actions import ActionSpace, ArmPose, action_feature, make_action_space, tool_down
from hardware.franka.kinematics import ArmKinematics
from hardware.franka.model import ARM_JOINTS, HAND, READY_RAD, TCP_Z_IN_HAND_M, FrankaModel, build_franka
from hardware.sim.rendering import CameraConfig, image_features, mujoco
from hardware.sim.task import TOOL_SITE, Task
from hardware.sim.tasks import make_task
from hardware.sim.world import World, wrap_angle, yaw_of
from robot_stack.core.clock import Clock, MonotonicClock
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Array, Features, FloatArray, TaskStatus
from robot_stack.core.protocols import Reading, Setpoint, SetpointLimits, SimulatedRobot
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, Feature, RobotSpec, vector

FloatVector = NDArray[np.float64]

EXTERNAL_WRENCH = "observation.external_wrench"
JOINT_POSITION = "observation.joint_position"
JOINT_VELOCITY = "observation.joint_velocity"

_WRENCH_BOUND = np.array([60.0, 60.0, 60.0, 10.0, 10.0, 10.0])
_REGULARISATION = 1e-6 * np.eye(6)

_STATE_NAMES = (
    *("tool_x_m", "tool_y_m", "tool_z_m", "tool_yaw_rad", "tool_tilt_x", "tool_tilt_y"),
    *("tool_velocity_x_m_s", "tool_velocity_y_m_s", "tool_velocity_z_m_s"),
    *("goal_minus_tool_x_m", "goal_minus_tool_y_m", "goal_minus_tool_z_m", "goal_minus_tool_yaw_rad"),
)
_GRIPPER_NAMES = ("gripper_width_m", "gripper_goal_width_m")
_WRENCH_NAMES = ("force_x_n", "force_y_n", "force_z_n", "moment_x_nm", "moment_y_nm", "moment_z_nm")


@dataclass(frozen=True, slots=True)
class _Goal:
    position_m: FloatVector
    yaw_rad: float
    gripper_width_m: float


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`. The arm's joints come first in the world's state."""

    world: World
    kinematics: ArmKinematics
    actions: ActionSpace
    tool_site: int


class SimulatedFranka(SimulatedRobot):
    """A `SimulatedRobot`: one arm, one task.

    Observations (float32; base frame = link0; the tool is the task's: the peg's tip, or between the finger tips):
        observation.state: tool pose and velocity, how far the commanded goal leads the tool; the gripper, if it moves.
            Tilt is the horizontal part of the tool's z axis.
        observation.environment_state: from the task.
        observation.external_wrench: force and moment (6,) on the robot at the tool, averaged over the ticks of the
            last control period and clipped to 60 N and 10 N m.
        observation.joint_position, observation.joint_velocity: (7,) each.

    A setpoint is (8,): seven joints in rad, the gripper's width in m (constant where the task fixes the fingers).
    """

    def __init__(
        self,
        name: str,
        task: str | Task,
        *,
        action_space: str = "ee_delta",
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 100.0,
        cameras: tuple[CameraConfig, ...] = (),
        view_cameras: tuple[CameraConfig, ...] = (),
        clock: Clock | None = None,
    ) -> None:
        self._task = make_task(task) if isinstance(task, str) else task
        self._cameras = cameras + tuple(view for view in view_cameras if view not in cameras)
        self._action_space = action_space
        self._clock = clock or MonotonicClock()
        self._gripper_moves = self._task.finger_width_m is None
        self._limits = limits.rectangle_limits()
        self._spec = RobotSpec(
            name=name,
            model="franka_fr3",
            task=self._task.name,
            simulated=True,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            command_timeout_s=1.5 / control_rate_hz,
            max_episode_steps=self._task.max_episode_steps,
            action=action_feature(action_space, self._task.motion),
            observation=self._observation_features() | image_features(cameras),
        )
        ticks = max(1, round(tick_rate_hz / control_rate_hz))
        self._contact_torques: deque[FloatVector] = deque(maxlen=ticks)
        self._goal = _Goal(np.zeros(3), 0.0, 0.0)
        self._opened: _Opened | None = None

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def limits(self) -> SetpointLimits:
        return self._limits

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self._cameras)

    def _observation_features(self) -> dict[str, Feature]:
        return {
            STATE: vector(_STATE_NAMES + (_GRIPPER_NAMES if self._gripper_moves else ())),
            ENVIRONMENT_STATE: vector(self._task.environment_names),
            EXTERNAL_WRENCH: vector(_WRENCH_NAMES),
            JOINT_POSITION: vector(tuple(f"{name}_rad" for name in limits.JOINT_NAMES)),
            JOINT_VELOCITY: vector(tuple(f"{name}_rad_s" for name in limits.JOINT_NAMES)),
        }

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Compile the model and begin the episode of seed 0."""
        if self._opened is not None:
            return
        world = World(self._build(with_scene=True), self._cameras)
        kinematics = ArmKinematics(self._build(with_scene=False).compile(), TOOL_SITE, np.asarray(READY_RAD))
        actions = make_action_space(self._action_space, self._task.motion, kinematics)
        self._opened = _Opened(world, kinematics, actions, tool_site=world.model.site(TOOL_SITE).id)
        self.reset(0)

    def _build(self, *, with_scene: bool) -> mujoco.MjSpec:
        """The whole world, or the arm and its tool alone with the joint limits that inverse kinematics must keep."""
        spec = build_franka(FrankaModel(finger_width_m=self._task.finger_width_m if with_scene else 0.0))
        self._task.add_tool(spec.body(HAND), TCP_Z_IN_HAND_M)
        if with_scene:
            self._task.add_scene(spec)
        else:
            for index, joint in enumerate(ARM_JOINTS):
                spec.joint(joint).range = (self._limits.lower[index], self._limits.upper[index])
        return spec

    def close(self) -> None:
        if self._opened is not None:
            self._opened.world.close()
            self._opened = None

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self._spec.name}' is not connected; call connect() first")
        return self._opened

    @property
    def _data(self) -> mujoco.MjData:
        return self._open.world.data

    def reset(self, seed: int) -> None:
        """Set up the scene of that seed and put the arm, at rest, to the task's start pose."""
        world, kinematics = self._open.world, self._open.kinematics
        world.reset()
        start = self._task.reset(world.model, world.data, np.random.Generator(np.random.PCG64(seed)))
        joints = kinematics.solve(start.position_m, tool_down(start.yaw_rad), np.asarray(READY_RAD), max_iterations=200)
        world.data.qpos[:7] = joints
        world.data.ctrl[:7] = joints
        if self._gripper_moves:
            world.data.qpos[7:9] = start.gripper_width_m / 2
            world.data.ctrl[7] = start.gripper_width_m / 2
        world.forward()
        self._contact_torques.clear()
        self.hold()

    # ---- control ----------------------------------------------------------------------------------------------

    def measured_setpoint(self) -> Setpoint:
        return np.append(self._data.qpos[:7], self._measured_width())

    def _measured_width(self) -> float:
        if self._task.finger_width_m is not None:
            return self._task.finger_width_m
        width = float(self._data.qpos[7:9].sum())
        return min(max(width, 0.0), limits.HAND_MAX_WIDTH_M)

    def _tool_pose(self) -> tuple[FloatVector, FloatVector]:
        """Position (3,) and rotation (3, 3), copied."""
        site = self._open.tool_site
        return self._data.site_xpos[site].copy(), self._data.site_xmat[site].reshape(3, 3).copy()

    def hold(self) -> None:
        self._set_goal(self.measured_setpoint())
        self._open.actions.forget_goal()

    def resolve(self, action: FloatArray) -> Setpoint:
        measured = ArmPose(self._data.qpos[:7].copy(), self._measured_width(), *self._tool_pose())
        goal = self._open.actions.resolve(action, measured)
        self._set_goal(goal)
        return goal

    def _set_goal(self, goal: Setpoint) -> None:
        position, rotation = self._open.kinematics.tool_pose(goal[:7])
        self._goal = _Goal(position, yaw_of(rotation), float(goal[7]))

    def send(self, setpoint: Setpoint) -> None:
        self._data.ctrl[:7] = setpoint[:7]
        if self._gripper_moves:
            self._data.ctrl[7] = setpoint[7] / 2

    def advance(self, duration_s: float) -> None:
        self._open.world.advance(duration_s)
        self._contact_torques.append(self._data.qfrc_constraint[:7].copy())

    def _tool_jacobian(self) -> FloatVector:
        """(6, 7): linear then angular velocity of the tool, base frame."""
        world = self._open.world
        jacobian = np.empty((6, world.model.nv))
        mujoco.mj_jacSite(world.model, world.data, jacobian[:3], jacobian[3:], self._open.tool_site)
        return jacobian[:, :7]

    def _estimate_wrench(self) -> FloatVector:
        """The wrench (6,) on the tool that explains the joints' mean contact torques: torque = J^T wrench."""
        torques = np.mean(self._contact_torques, axis=0) if self._contact_torques else np.zeros(7)
        if not torques.any():
            return np.zeros(6)
        jacobian = self._tool_jacobian()
        wrench = np.linalg.solve(jacobian @ jacobian.T + _REGULARISATION, jacobian @ torques)
        return np.clip(wrench, -_WRENCH_BOUND, _WRENCH_BOUND)

    # ---- observation ------------------------------------------------------------------------------------------

    def read(self) -> Reading:
        features = {
            STATE: self._state(),
            ENVIRONMENT_STATE: self._task.environment_state(self._data),
            EXTERNAL_WRENCH: self._estimate_wrench(),
            JOINT_POSITION: self._data.qpos[:7],
            JOINT_VELOCITY: self._data.qvel[:7],
        }
        return Reading(
            stamp_ns=self._clock.now_ns(),
            features={key: value.astype(np.float32) for key, value in features.items()},
            fault=self._open.world.fault,
        )

    def _state(self) -> FloatVector:
        position, rotation = self._tool_pose()
        yaw = yaw_of(rotation)
        velocity = self._tool_jacobian()[:3] @ self._data.qvel[:7]
        lead = self._goal.position_m - position
        values = [*position, yaw, *rotation[:2, 2], *velocity, *lead, wrap_angle(self._goal.yaw_rad - yaw)]
        if self._gripper_moves:
            values += [self._measured_width(), self._goal.gripper_width_m]
        return np.asarray(values)

    def task_status(self) -> TaskStatus:
        return self._task.status(self._data)

    def ground_truth(self) -> Features:
        return self._task.ground_truth(self._data)

    def render(self, camera: str) -> Array:
        return self._open.world.render(camera)
