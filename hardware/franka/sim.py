"""The simulated Franka Research 3 with the Franka Hand: same setpoints, limits and features as the real one.

The position actuators are the vendor's joint impedance controller, run at the physics rate. The external wrench is
estimated as the real robot does it: from the joint torques that contacts cause, through the tool's Jacobian.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.franka.actions import tool_down
from hardware.franka.embodiment import (
    EXTERNAL_WRENCH,
    JOINT_POSITION,
    JOINT_VELOCITY,
    WRENCH_BOUND,
    FrankaEmbodiment,
    FrankaMeasured,
    ToolMeasured,
)
from hardware.franka.model import HAND, READY_RAD, TCP_Z_IN_HAND_M, FrankaModel, build_franka
from hardware.sim.rendering import CameraConfig, mujoco
from hardware.sim.task import TOOL_SITE, InstructedTask, ReversibleTask, Task
from hardware.sim.world import World
from robot_stack.core.clock import Clock, MonotonicClock
from robot_stack.core.direction import Direction
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Array, Features, FloatArray, TaskStatus
from robot_stack.core.protocols import Reading, RobotGeometry, Setpoint, SetpointLimits, SimulatedRobot
from robot_stack.core.specs import ENVIRONMENT_STATE, RobotSpec

__all__ = ["EXTERNAL_WRENCH", "JOINT_POSITION", "JOINT_VELOCITY", "SimulatedFranka"]

FloatVector = NDArray[np.float64]

_REGULARISATION = 1e-6 * np.eye(6)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`. The arm's joints come first in the world's state."""

    world: World
    tool_site: int


class SimulatedFranka(SimulatedRobot):
    """A `SimulatedRobot`: one arm, one task. Features and setpoints are those of `FrankaEmbodiment`;
    `observation.environment_state` comes from the task."""

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
        self._embodiment = FrankaEmbodiment(
            name,
            task,
            action_space=action_space,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            simulated=True,
            with_environment=True,
            cameras=cameras,
        )
        self._task = self._embodiment.task
        self._cameras = cameras + tuple(view for view in view_cameras if view not in cameras)
        self._clock = clock or MonotonicClock()
        self._contact_torques: deque[FloatVector] = deque(maxlen=self._embodiment.ticks_per_step)
        self._opened: _Opened | None = None

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RobotSpec:
        return self._embodiment.spec

    @property
    def limits(self) -> SetpointLimits:
        return self._embodiment.limits

    @property
    def geometry(self) -> RobotGeometry | None:
        return self._embodiment.geometry

    @property
    def embodiment(self) -> FrankaEmbodiment:
        return self._embodiment

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self._cameras)

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Compile the models and begin the episode of seed 0."""
        if self._opened is not None:
            return
        spec = build_franka(FrankaModel(finger_width_m=self._task.finger_width_m))
        self._task.add_tool(spec.body(HAND), TCP_Z_IN_HAND_M)
        self._task.add_scene(spec)
        world = World(spec, self._cameras)
        self._embodiment.open()
        self._opened = _Opened(world, tool_site=world.model.site(TOOL_SITE).id)
        self.reset(0)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.world.close()
            self._opened = None
            self._embodiment.close()

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._opened

    @property
    def _data(self) -> mujoco.MjData:
        return self._open.world.data

    def reset(self, seed: int) -> None:
        """Set up the scene of that seed and put the arm, at rest, to the task's start pose."""
        world, kinematics = self._open.world, self._embodiment.kinematics
        world.reset()
        start = self._task.reset(world.model, world.data, np.random.Generator(np.random.PCG64(seed)))
        joints = kinematics.solve(start.position_m, tool_down(start.yaw_rad), np.asarray(READY_RAD), max_iterations=200)
        world.data.qpos[:7] = joints
        world.data.ctrl[:7] = joints
        if self._embodiment.gripper_moves:
            world.data.qpos[7:9] = start.gripper_width_m / 2
            world.data.ctrl[7] = start.gripper_width_m / 2
        world.forward()
        self._contact_torques.clear()
        self.hold()

    @property
    def directions(self) -> tuple[Direction, ...]:
        return tuple(Direction) if isinstance(self._task, ReversibleTask) else ()

    def begin_here(self, seed: int, direction: Direction) -> None:
        """An episode in that direction; scene and arm stay as they are. RobotError if the task goes one way only."""
        if not isinstance(self._task, ReversibleTask):
            raise RobotError(f"the task '{self._task.name}' of {self.spec.name} cannot be undone; reset the scene")
        self._task.begin_here(self._data, np.random.Generator(np.random.PCG64(seed)), direction)
        self._contact_torques.clear()
        self.hold()

    # ---- control ----------------------------------------------------------------------------------------------

    def measured(self) -> FrankaMeasured:
        """The present sample, copied."""
        joints, velocities = self._data.qpos[:7].copy(), self._data.qvel[:7].copy()
        site = self._open.tool_site
        position, rotation = self._data.site_xpos[site].copy(), self._data.site_xmat[site].reshape(3, 3).copy()
        jacobian = self._jacobian(site)
        tool = ToolMeasured(position, rotation, jacobian[:3] @ velocities)
        return FrankaMeasured(joints, velocities, self._estimate_wrench(jacobian), self._width(), tool)

    def _width(self) -> float:
        moves = self._embodiment.gripper_moves
        return self._embodiment.width(float(self._data.qpos[7:9].sum()) if moves else 0.0)

    def measured_setpoint(self) -> Setpoint:
        return np.append(self._data.qpos[:7], self._width())

    def hold(self) -> None:
        self._embodiment.hold(self.measured())

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self.measured())

    def send(self, setpoint: Setpoint) -> None:
        self._data.ctrl[:7] = setpoint[:7]
        if self._embodiment.gripper_moves:
            self._data.ctrl[7] = setpoint[7] / 2

    def advance(self, duration_s: float) -> None:
        self._open.world.advance(duration_s)
        self._contact_torques.append(self.contact_torques())

    # ---- contact ----------------------------------------------------------------------------------------------

    def contact_torques(self) -> FloatVector:
        """Torques (7,) in N m that contacts cause in the joints at this instant."""
        torques: FloatVector = self._data.qfrc_constraint[:7].copy()
        return torques

    def drive_torques(self) -> FloatVector:
        """Torques (7,) in N m of the joints' drives at this instant, without the part that carries the weight."""
        torques: FloatVector = self._data.qfrc_actuator[:7].copy()
        return torques

    def external_effort(self) -> Setpoint:
        """Mean contact torques of the last control period; none on the gripper."""
        return np.append(self._mean_contact_torques(), 0.0)

    def wrench_at(self, site: str) -> FloatVector:
        """Force and moment (6,) on the robot at a site of the hand at this instant, base frame."""
        return self._wrench(self._jacobian(self._open.world.model.site(site).id), self.contact_torques())

    def _jacobian(self, site: int) -> FloatVector:
        """(6, 7): linear then angular velocity of the site, base frame."""
        world = self._open.world
        jacobian = np.empty((6, world.model.nv))
        mujoco.mj_jacSite(world.model, world.data, jacobian[:3], jacobian[3:], site)
        return jacobian[:, :7]

    def _mean_contact_torques(self) -> FloatVector:
        return np.asarray(np.mean(self._contact_torques, axis=0)) if self._contact_torques else np.zeros(7)

    def _estimate_wrench(self, jacobian: FloatVector) -> FloatVector:
        wrench = self._wrench(jacobian, self._mean_contact_torques())
        return np.clip(wrench, -WRENCH_BOUND, WRENCH_BOUND)

    @staticmethod
    def _wrench(jacobian: FloatVector, torques: FloatVector) -> FloatVector:
        """The wrench (6,) that explains the joint torques: torque = J^T wrench."""
        if not torques.any():
            return np.zeros(6)
        return np.asarray(np.linalg.solve(jacobian @ jacobian.T + _REGULARISATION, jacobian @ torques), np.float64)

    # ---- observation ------------------------------------------------------------------------------------------

    def read(self) -> Reading:
        environment = self._task.environment_state(self._data).astype(np.float32)
        return Reading(
            stamp_ns=self._clock.now_ns(),
            features={**self._embodiment.features(self.measured()), ENVIRONMENT_STATE: environment},
            fault=self._open.world.fault,
        )

    def task_status(self) -> TaskStatus:
        return self._task.status(self._data)

    def ground_truth(self) -> Features:
        return self._task.ground_truth(self._data)

    def instruction(self) -> str:
        return self._task.instruction() if isinstance(self._task, InstructedTask) else ""

    def render(self, camera: str) -> Array:
        return self._open.world.render(camera)
