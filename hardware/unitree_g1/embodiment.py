"""Everything of the G1 that is the same whether it is simulated or real.

Spec, limits, geometry, the meaning of actions, and features from measured quantities. Back-ends move measured
quantities in and setpoints out, so a policy that was trained on one of them fits every other.

A setpoint is (17,) or (19,): arms and waist in rad in the order of `joints.ARM_SDK_MOTORS`, and with hands the openings
of both grippers, 0 to 1. The legs belong to the robot's own balance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.collision import ModelGeometry
from hardware.sim.rendering import CameraConfig, image_features, mujoco
from hardware.unitree_g1.actions import (
    ARM_JOINTS,
    JOINT_DELTA,
    PALM_DELTA,
    ActionSpace,
    action_feature,
    make_action_space,
)
from hardware.unitree_g1.geometry import g1_geometry
from hardware.unitree_g1.joints import ARM_AXES, ARM_SDK_MOTORS, GRIPPER_NAMES, MOTOR_NAMES, SIDES
from hardware.unitree_g1.kinematics import G1Kinematics, Palms
from hardware.unitree_g1.limits import DEFAULT_MODE_MACHINE, default_limits
from hardware.unitree_g1.tasks import PalmTask, make_task
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.protocols import Setpoint
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, Feature, RobotSpec, vector

FloatVector = NDArray[np.float64]

JOINT_POSITION = "observation.joint_position"
JOINT_VELOCITY = "observation.joint_velocity"
JOINT_EFFORT = "observation.joint_effort"

REST_ARMS_RAD = np.array([-0.1, 0.9, -0.65, 0.0, -0.85, -0.4, 0.5, -0.1, -0.9, 0.65, 0.0, 0.85, -0.4, -0.5])
"""Hands level and forward, palms inward, elbows spread clear of the torso: where the arms' null space is drawn to."""

_JOINTS = len(ARM_SDK_MOTORS)
_MOTORS = list(ARM_SDK_MOTORS)


def _state_names(grippers: bool, joints: bool) -> tuple[str, ...]:
    palms = []
    for side in SIDES:
        palms += [f"{side}_palm_{axis}_m" for axis in "xyz"]
        palms += [f"{side}_palm_turn_{axis}_rad" for axis in "xyz"]
        palms += [f"{side}_palm_velocity_{axis}_m_s" for axis in "xyz"]
        palms += [f"goal_minus_{side}_palm_{axis}_m" for axis in "xyz"]
    if grippers:
        palms += [*GRIPPER_NAMES, *(f"{name}_goal" for name in GRIPPER_NAMES)]
    if joints:
        palms += [f"{joint}_rad" for joint in ARM_JOINTS]
        palms += [f"goal_minus_{joint}_rad" for joint in ARM_JOINTS]
    return tuple(palms)


@dataclass(frozen=True, slots=True)
class G1Measured:
    """One sample, in motor order: positions (29,) rad, velocities (29,) rad/s, torques (29,) N m; openings of left and
    right gripper (2,), 0 to 1, zeros without hands."""

    position_rad: FloatVector
    velocity_rad_s: FloatVector
    effort_nm: FloatVector
    gripper: FloatVector


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`."""

    kinematics: G1Kinematics
    actions: ActionSpace
    geometry: ModelGeometry


class G1Embodiment:
    """Both arms and the waist, with one task.

    Features (float32; pelvis frame):
        observation.state: of each palm position, rotation vector, velocity, and how far its commanded goal leads it;
            the grippers and their goals, if there are hands; in the action space `joint_delta` the arms' joints and how
            far their goals lead them.
        observation.joint_position, observation.joint_velocity, observation.joint_effort: (29,) each, motor order.

    Args:
        with_environment: name `observation.environment_state` in the spec; whoever does it, fills it.
        hands: `none` or `dex3`. action_space: `palm_delta` or `joint_delta`.
    """

    def __init__(
        self,
        name: str,
        task: str | PalmTask,
        *,
        action_space: str = PALM_DELTA,
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 500.0,
        simulated: bool,
        with_environment: bool,
        hands: str = "none",
        cameras: tuple[CameraConfig, ...] = (),
    ) -> None:
        self.task = make_task(task) if isinstance(task, str) else task
        self.hands = hands
        self.has_grippers = hands != "none"
        self.limits = default_limits(hands)
        self._action_space = action_space
        self.spec = RobotSpec(
            name=name,
            model="unitree_g1",
            task=self.task.name,
            simulated=simulated,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            command_timeout_s=1.5 / control_rate_hz,
            max_episode_steps=self.task.max_episode_steps,
            action=action_feature(action_space, self.task.motion, self.has_grippers),
            observation=self._observation_features(with_environment) | image_features(cameras),
        )
        self._goal_arms_rad = np.zeros(ARM_AXES)
        self._goal_palms_m = np.zeros((2, 3))
        self._goal_gripper = np.zeros(2)
        self._opened: _Opened | None = None

    def _observation_features(self, with_environment: bool) -> dict[str, Feature]:
        environment = {ENVIRONMENT_STATE: vector(self.task.environment_names)} if with_environment else {}
        return {
            STATE: vector(_state_names(self.has_grippers, self._action_space == JOINT_DELTA)),
            **environment,
            JOINT_POSITION: vector(tuple(f"{name}_rad" for name in MOTOR_NAMES)),
            JOINT_VELOCITY: vector(tuple(f"{name}_rad_s" for name in MOTOR_NAMES)),
            JOINT_EFFORT: vector(tuple(f"{name}_nm" for name in MOTOR_NAMES)),
        }

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self, mode_machine: int = DEFAULT_MODE_MACHINE) -> None:
        """Take the limits of the robot's hardware variant and compile kinematics and geometry; no I/O.

        RobotError for a variant that is unknown, deprecated, or lacks a motor of the setpoint.
        """
        if self._opened is not None:
            return
        self.limits = default_limits(self.hands, mode_machine)
        kinematics = G1Kinematics(self.limits, self.hands, REST_ARMS_RAD)
        actions = make_action_space(self._action_space, self.task.motion, kinematics, self.limits)
        self._opened = _Opened(kinematics, actions, g1_geometry(self.task, self.hands))

    def close(self) -> None:
        self._opened = None

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._opened

    @property
    def kinematics(self) -> G1Kinematics:
        """Of the robot within its limits; known after `connect`."""
        return self._open.kinematics

    @property
    def geometry(self) -> ModelGeometry | None:
        """None until `connect`."""
        return self._opened.geometry if self._opened else None

    # ---- measured quantities ----------------------------------------------------------------------------------

    def setpoint_of(self, measured: G1Measured) -> Setpoint:
        """Where the robot is, (S,)."""
        joints = measured.position_rad[_MOTORS]
        return np.concatenate([joints, measured.gripper]) if self.has_grippers else joints

    def gravity_torque(self, measured: G1Measured) -> FloatVector:
        """(29,) N m that hold the unloaded robot at rest where it is: feed-forward for its motors."""
        return self._open.kinematics.gravity_torque(measured.position_rad)

    # ---- control ----------------------------------------------------------------------------------------------

    def hold(self, measured: G1Measured) -> None:
        """Forget the goal: it is where the robot is, and later relative actions count from there."""
        self._open.actions.forget_goal()
        self._goal_arms_rad = self.setpoint_of(measured)[:ARM_AXES]
        self._goal_palms_m = self._palms(measured).position_m
        self._goal_gripper = np.array(measured.gripper)

    def resolve(self, action: FloatArray, measured: G1Measured) -> Setpoint:
        """The goal (S,), inside the limits, that a checked action means from here."""
        joints = self._open.actions.resolve(action, self.setpoint_of(measured), self._palms(measured))
        goal = joints
        if self.has_grippers:
            self._goal_gripper = np.asarray(action[-len(GRIPPER_NAMES) :], dtype=np.float64)
            goal = np.concatenate([joints, self._goal_gripper])
        goal = np.clip(goal, self.limits.lower, self.limits.upper)
        position = np.array(measured.position_rad)
        position[_MOTORS] = goal[:_JOINTS]
        self._goal_arms_rad = goal[:ARM_AXES].copy()
        self._goal_palms_m = self._open.kinematics.palms(position, measured.velocity_rad_s).position_m
        return goal

    def _palms(self, measured: G1Measured) -> Palms:
        return self._open.kinematics.palms(measured.position_rad, measured.velocity_rad_s)

    # ---- observation ------------------------------------------------------------------------------------------

    def features(self, measured: G1Measured) -> Features:
        """All features but `observation.environment_state` and images; float32, the caller's to keep."""
        features = {
            STATE: self._state(measured),
            JOINT_POSITION: measured.position_rad,
            JOINT_VELOCITY: measured.velocity_rad_s,
            JOINT_EFFORT: measured.effort_nm,
        }
        return {key: value.astype(np.float32) for key, value in features.items()}

    def _state(self, measured: G1Measured) -> FloatVector:
        palms = self._palms(measured)
        turns = np.array([_rotation_vector(rotation) for rotation in palms.rotation])
        lead = self._goal_palms_m - palms.position_m
        state = np.concatenate([palms.position_m, turns, palms.velocity_m_s, lead], axis=1).reshape(-1)
        hands = [measured.gripper, self._goal_gripper] if self.has_grippers else []
        arms_rad = self.setpoint_of(measured)[:ARM_AXES]
        joints = [arms_rad, self._goal_arms_rad - arms_rad] if self._action_space == JOINT_DELTA else []
        return np.concatenate([state, *hands, *joints])


def _rotation_vector(rotation: FloatVector) -> FloatVector:
    quat, vector_rad = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quat, rotation.reshape(9))
    mujoco.mju_quat2Vel(vector_rad, quat, 1.0)
    return vector_rad
