"""What every Stretch has in common, simulated or real: its spec, what an action means, what is observed.

The back-ends only move measured quantities in and setpoints out, so a policy trained on one fits the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from hardware.sim.rendering import CameraConfig, image_features
from hardware.sim.world import yaw_of
from hardware.stretch.geometry import stretch_geometry
from hardware.stretch.joints import AXIS, GRIPPER, SETPOINT_NAMES
from hardware.stretch.kinematics import StretchKinematics
from hardware.stretch.limits import GRIPPER_MAX_APERTURE_M, default_limits
from hardware.stretch.tasks import GRIPPER_ACTION, StretchTask, make_task
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.protocols import RobotGeometry, Setpoint, SetpointLimits
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, Feature, RobotSpec, vector

FloatVector = NDArray[np.float64]

MODEL = "stretch_3"
JOINT_POSITION = "observation.joint_position"
JOINT_VELOCITY = "observation.joint_velocity"

_RATE_SUFFIX = {"m": "m_s", "rad": "rad_s"}
_POSE_NAMES = ("gripper_x_m", "gripper_y_m", "gripper_z_m", "gripper_heading_rad")


@dataclass(frozen=True, slots=True)
class StretchMeasured:
    """One sample of the robot.

    Attributes:
        setpoint: (10,) where every axis is, units and order of `SETPOINT_NAMES`.
        velocity: (10,) their time derivatives.
        effort: (10,) force in N or torque in N m of every axis; zeros where the device does not tell.
        base_pose_xyyaw: (3,) x m, y m, yaw rad by odometry, in the frame where odometry began.
    """

    setpoint: FloatVector
    velocity: FloatVector
    effort: FloatVector
    base_pose_xyyaw: FloatVector


class StretchEmbodiment:
    """Spec, limits, geometry, actions and features of one Stretch with one task.

    Actions: changes of the axes that the task commands, all others held where they were; `gripper` is absolute, 0
    closed to 1 open. They count from the last goal, which leads the measured axis by no more than the task's
    `max_lead`; after `hold` from the measured state.

    Observations (float32; base frame: x forward, y left, origin on the floor between the wheels):
        observation.state: grasp point and heading of the gripper, then the axes that the task commands: where they
            are (without the base's, which only count what was driven), how fast, and how far goals lead.
        observation.environment_state: from the task, if `with_environment`.
        observation.joint_position, observation.joint_velocity: (10,) each, all axes.
    """

    def __init__(
        self,
        name: str,
        task: str | StretchTask,
        *,
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 100.0,
        simulated: bool,
        with_environment: bool,
        cameras: tuple[CameraConfig, ...] = (),
    ) -> None:
        self.task = make_task(task) if isinstance(task, str) else task
        self._moved = [AXIS[axis] for axis in self.task.max_step]
        self._max_lead = np.array([self.task.max_lead[axis] for axis in self.task.max_step])
        self._limits = default_limits()
        self._goal: Setpoint | None = None
        self._kinematics: StretchKinematics | None = None
        self._geometry: RobotGeometry | None = None
        environment = {ENVIRONMENT_STATE: vector(self.task.environment_names)} if with_environment else {}
        self._spec = RobotSpec(
            name=name,
            model=MODEL,
            task=self.task.name,
            simulated=simulated,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            command_timeout_s=1.5 / control_rate_hz,
            max_episode_steps=self.task.max_episode_steps,
            action=_action_feature(self.task),
            observation=self._observation_features() | environment | image_features(cameras),
        )

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def limits(self) -> SetpointLimits:
        return self._limits

    @property
    def geometry(self) -> RobotGeometry | None:
        """None before `connect`."""
        return self._geometry

    def connect(self) -> None:
        """Compile the kinematics; no I/O. Harmless if done before."""
        if self._kinematics is None:
            self._kinematics = StretchKinematics()
            self._geometry = stretch_geometry()

    def narrow_positions(self, lower: FloatVector, upper: FloatVector) -> None:
        """Take the narrower of our position limits and the robot's own (10,); RobotError if nothing is left."""
        lowest, highest = np.maximum(self._limits.lower, lower), np.minimum(self._limits.upper, upper)
        empty = [name for name, low, high in zip(SETPOINT_NAMES, lowest, highest, strict=True) if not low < high]
        if empty:
            axis = AXIS[empty[0]]
            raise RobotError(
                f"robot '{self._spec.name}': {empty[0]} may go from {lower[axis]:.4g} to {upper[axis]:.4g} by the "
                f"robot's own limits and from {self._limits.lower[axis]:.4g} to {self._limits.upper[axis]:.4g} by "
                "ours, which leaves nothing; home the robot and check its parameters"
            )
        self._limits = structs.replace(self._limits, lower=tuple(map(float, lowest)), upper=tuple(map(float, highest)))

    def _observation_features(self) -> dict[str, Feature]:
        axes = tuple(self.task.max_step)
        names = (
            *_POSE_NAMES,
            *(axis for axis in axes if not axis.startswith("base_")),
            *(_rate_name(axis) for axis in axes),
            *(f"goal_minus_{axis}" for axis in axes),
            "gripper_aperture_m",
            "gripper_goal_aperture_m",
        )
        return {
            STATE: vector(names),
            JOINT_POSITION: vector(SETPOINT_NAMES),
            JOINT_VELOCITY: vector(tuple(_rate_name(name) for name in SETPOINT_NAMES)),
        }

    # ---- control ----------------------------------------------------------------------------------------------

    def setpoint_of(self, measured: StretchMeasured) -> Setpoint:
        """Where the robot is, (10,)."""
        return measured.setpoint.copy()

    def hold(self, measured: StretchMeasured) -> None:
        """Forget the goal: later actions count from `measured`."""
        self._goal = self._within(measured.setpoint)

    def resolve(self, action: FloatArray, measured: StretchMeasured) -> Setpoint:
        """The goal (10,) of a checked action (A,)."""
        goal = self._within(measured.setpoint) if self._goal is None else self._goal.copy()
        actual = measured.setpoint[self._moved]
        lead = goal[self._moved] + action[:-1].astype(np.float64) - actual
        goal[self._moved] = actual + np.clip(lead, -self._max_lead, self._max_lead)
        goal[GRIPPER] = float(action[-1]) * GRIPPER_MAX_APERTURE_M
        self._goal = self._within(goal)
        return self._goal.copy()

    def _within(self, setpoint: FloatVector) -> FloatVector:
        return np.clip(setpoint, self._limits.lower, self._limits.upper)

    # ---- observation ------------------------------------------------------------------------------------------

    def features(self, measured: StretchMeasured) -> Features:
        """Everything observed except the environment's state and images."""
        return {
            STATE: self._state(measured).astype(np.float32),
            JOINT_POSITION: measured.setpoint.astype(np.float32),
            JOINT_VELOCITY: measured.velocity.astype(np.float32),
        }

    def _state(self, measured: StretchMeasured) -> FloatVector:
        if self._kinematics is None:
            raise RobotError(f"robot '{self._spec.name}' is not connected; call connect() first")
        goal = self._goal if self._goal is not None else measured.setpoint
        position, rotation = self._kinematics.gripper_pose(measured.setpoint)
        positions = [measured.setpoint[axis] for axis in self._moved if not SETPOINT_NAMES[axis].startswith("base_")]
        return np.array(
            [
                *position,
                yaw_of(rotation),
                *positions,
                *measured.velocity[self._moved],
                *(goal - measured.setpoint)[self._moved],
                measured.setpoint[GRIPPER],
                goal[GRIPPER],
            ]
        )


def _rate_name(axis: str) -> str:
    name, unit = axis.rsplit("_", 1)
    return f"{name}_velocity_{_RATE_SUFFIX[unit]}"


def _action_feature(task: StretchTask) -> Feature:
    names = tuple(f"{axis.rsplit('_', 1)[0]}_delta_{axis.rsplit('_', 1)[1]}" for axis in task.max_step)
    bounds = tuple(task.max_step.values())
    return vector((*names, GRIPPER_ACTION), (*(-bound for bound in bounds), 0.0), (*bounds, 1.0))
