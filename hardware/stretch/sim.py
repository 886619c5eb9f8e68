"""The simulated Stretch 3: same setpoints, limits and features as the real one, and its base drives on wheels.

Lift, arm, wrist, gripper and head are position servos. The base's two axes are closed over the wheels' angles, as the
robot's own controller does it: speed = gain * what is left, each wheel its share. Where the base really is, slip
included, only the ground truth tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import CameraConfig, mujoco
from hardware.sim.world import World
from hardware.stretch.embodiment import StretchEmbodiment, StretchMeasured
from hardware.stretch.joints import (
    ARM,
    ARM_SEGMENTS,
    AXIS,
    BASE_ROTATION,
    BASE_TRANSLATION,
    GRIPPER,
    SETPOINT_NAMES,
    WHEEL_RADIUS_M,
    WHEEL_SEPARATION_M,
    aperture_of_finger,
)
from hardware.stretch.kinematics import DIRECT_JOINTS, JointMap, aperture_of_slide, slide_of_aperture
from hardware.stretch.model import (
    ARM_TENDON,
    FINGER_PER_SLIDE,
    GRIPPER_SLIDE,
    WHEEL_DAMPING,
    WHEEL_FRICTION_NM,
    WHEEL_GAIN,
    WHEELS,
    StretchModel,
    build_stretch,
)
from hardware.stretch.tasks import StretchTask
from robot_stack.core.clock import Clock, MonotonicClock
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Array, Features, FloatArray, TaskStatus
from robot_stack.core.protocols import Reading, RobotGeometry, Setpoint, SetpointLimits, SimulatedRobot
from robot_stack.core.specs import ENVIRONMENT_STATE, RobotSpec

FloatVector = NDArray[np.float64]

_BASE = "base_free"
_BASE_PERIOD_S = 0.01
_HALF_TRACK_M = WHEEL_SEPARATION_M / 2
_BASE_GAIN_HZ = 20.0  # the base follows 50 ms behind, as the other axes do
# What the base's own controller allows: m/s, and m/s^2 that its wheels bring to the floor without slipping.
_WHEEL_SPEED_M_S = 0.3
_WHEEL_ACCELERATION_M_S2 = 1.0
_CREEP_RAD_S = 0.05  # below it the friction's direction is not worth trusting
_SETTLE_S = 1.0


def _clip(value: float, most: float) -> float:
    return min(max(value, -most), most)


def _approach(left_m: float) -> float:
    """Speed in m/s towards a target that is so far away: as the gain has it, and not faster than it can brake."""
    return math.copysign(
        min(_BASE_GAIN_HZ * abs(left_m), math.sqrt(1.6 * _WHEEL_ACCELERATION_M_S2 * abs(left_m))), left_m
    )


def _drive(speed_m_s: float) -> float:
    """Command in rad/s that turns a wheel at a speed, with what its damping and friction take off."""
    wheel_rad_s = speed_m_s / WHEEL_RADIUS_M
    friction_nm = WHEEL_FRICTION_NM * _clip(wheel_rad_s / _CREEP_RAD_S, 1.0)
    return wheel_rad_s + (WHEEL_DAMPING * wheel_rad_s + friction_nm) / WHEEL_GAIN


class _Axes:
    """Where the axes of the setpoint live in a compiled world, for reading and driving all of them but the base."""

    def __init__(self, model: mujoco.MjModel) -> None:
        def state(names: tuple[str, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
            joints = [model.joint(name) for name in names]
            return (
                np.array([joint.qposadr[0] for joint in joints], dtype=np.intp),
                np.array([joint.dofadr[0] for joint in joints], dtype=np.intp),
            )

        def drives(names: tuple[str, ...]) -> NDArray[np.intp]:
            return np.array([model.actuator(name).id for name in names], dtype=np.intp)

        direct = tuple(DIRECT_JOINTS.values())
        self.direct = np.array(list(DIRECT_JOINTS), dtype=np.intp)
        self.direct_qpos, self.direct_qvel = state(direct)
        self.segments_qpos, self.segments_qvel = state(ARM_SEGMENTS)
        self.slide_qpos, self.slide_qvel = state((GRIPPER_SLIDE,))
        self.wheels_qpos, self.wheels_qvel = state(WHEELS)
        self.wheel_drives = drives(WHEELS)
        self.joints = np.array([*DIRECT_JOINTS, ARM, GRIPPER], dtype=np.intp)
        self.joint_drives = drives((*direct, ARM_TENDON, GRIPPER_SLIDE))


@dataclass(slots=True)
class _Base:
    """What drives the base, and where it is by its wheels: state that lives outside the physics."""

    target: FloatVector  # (2,) m, rad: where the two axes shall be
    twist: tuple[float, float] | None  # m/s, rad/s: commanded instead of a target
    speed: tuple[float, float]  # m/s: of the middle, and of the right wheel around it, as last asked of the wheels
    pose_xyyaw: FloatVector
    travelled: FloatVector  # (2,) m, rad at the last look at the wheels

    @classmethod
    def at_rest(cls) -> _Base:
        return cls(np.zeros(2), None, (0.0, 0.0), np.zeros(3), np.zeros(2))


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`."""

    world: World
    axes: _Axes
    joints: JointMap
    standing: FloatVector  # (7,) pose in which the base stands still on the floor, at the origin


class SimulatedStretch(SimulatedRobot):
    """A `SimulatedRobot`: one Stretch, one task. Setpoint and observations: see `StretchEmbodiment`.

    The robot server drives it by `send`; a vendor-side simulator by `command_joint` and `command_base_velocity`, at
    any period of `advance`.
    """

    def __init__(
        self,
        name: str,
        task: str | StretchTask,
        *,
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 100.0,
        cameras: tuple[CameraConfig, ...] = (),
        view_cameras: tuple[CameraConfig, ...] = (),
        clock: Clock | None = None,
    ) -> None:
        self._embodiment = StretchEmbodiment(
            name,
            task,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            simulated=True,
            with_environment=True,
            cameras=cameras,
        )
        self._task = self._embodiment.task
        self._cameras = cameras + tuple(view for view in view_cameras if view not in cameras)
        self._clock = clock or MonotonicClock()
        self._base = _Base.at_rest()
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
    def cameras(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self._cameras)

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Compile the model, let it settle on its wheels, and begin the episode of seed 0."""
        if self._opened is not None:
            return
        self._embodiment.connect()
        spec = build_stretch(StretchModel())
        self._task.add_scene(spec)
        world = World(spec, self._cameras)
        standing = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        self._opened = _Opened(world, _Axes(world.model), JointMap(world.model), standing)
        self.reset(0)
        self.advance(_SETTLE_S)
        standing[2:6] = self._data.joint(_BASE).qpos[2:6]  # how far it sinks in and leans, not where it rolled
        self.reset(0)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.world.close()
            self._opened = None

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._opened

    @property
    def _data(self) -> mujoco.MjData:
        return self._open.world.data

    def reset(self, seed: int) -> None:
        """Set up the scene of that seed, with the robot at rest at the origin in the task's start posture."""
        opened = self._open
        opened.world.reset()
        start = self._task.reset(self._data, np.random.Generator(np.random.PCG64(seed)))
        self._data.joint(_BASE).qpos = opened.standing
        opened.joints.fill(start, self._data.qpos)
        self._base = _Base.at_rest()
        self.send(start)
        opened.world.forward()
        self.hold()

    # ---- measured ---------------------------------------------------------------------------------------------

    @property
    def measured(self) -> StretchMeasured:
        """The present state of every axis; arrays are the caller's to keep."""
        axes, data = self._open.axes, self._data
        position, velocity, effort = np.empty(10), np.empty(10), np.empty(10)
        position[:2], velocity[:2] = self._travelled(data.qpos[axes.wheels_qpos]), self._wheel_twist()
        position[axes.direct], velocity[axes.direct] = data.qpos[axes.direct_qpos], data.qvel[axes.direct_qvel]
        position[ARM], velocity[ARM] = data.qpos[axes.segments_qpos].sum(), data.qvel[axes.segments_qvel].sum()
        position[GRIPPER] = aperture_of_slide(float(data.qpos[axes.slide_qpos][0]))
        velocity[GRIPPER] = aperture_of_finger(float(data.qvel[axes.slide_qvel][0]) * FINGER_PER_SLIDE)
        left, right = data.actuator_force[axes.wheel_drives] / WHEEL_RADIUS_M
        effort[:2] = (left + right, (right - left) * WHEEL_SEPARATION_M / 2)
        effort[axes.joints] = data.actuator_force[axes.joint_drives]
        return StretchMeasured(position, velocity, effort, self._base.pose_xyyaw.copy())

    def measured_setpoint(self) -> Setpoint:
        return self._embodiment.setpoint_of(self.measured)

    def odometry(self) -> tuple[float, float, float, float, float]:
        """x m, y m, yaw rad since `reset`, and v m/s, w rad/s, from the wheels' angles alone."""
        x_m, y_m, yaw_rad = self._base.pose_xyyaw
        v_m_s, w_rad_s = self._wheel_twist()
        return float(x_m), float(y_m), float(yaw_rad), float(v_m_s), float(w_rad_s)

    def _wheel_twist(self) -> FloatVector:
        return self._travelled(self._data.qvel[self._open.axes.wheels_qvel])

    @staticmethod
    def _travelled(wheels: FloatVector) -> FloatVector:
        """Distance and turn (2,) of the base that angles, or rates, of the left and right wheel (2,) mean."""
        left_m, right_m = wheels * WHEEL_RADIUS_M
        return np.array([(left_m + right_m) / 2, (right_m - left_m) / WHEEL_SEPARATION_M])

    # ---- control ----------------------------------------------------------------------------------------------

    def hold(self) -> None:
        self._embodiment.hold(self.measured)

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self.measured)

    def send(self, setpoint: Setpoint) -> None:
        axes = self._open.axes
        targets = setpoint.copy()
        targets[GRIPPER] = slide_of_aperture(float(setpoint[GRIPPER]))
        self._data.ctrl[axes.joint_drives] = targets[axes.joints]
        self._base.target, self._base.twist = setpoint[[BASE_TRANSLATION, BASE_ROTATION]].copy(), None

    def command_joint(self, name: str, value: float) -> None:
        """Drive one axis of `SETPOINT_NAMES` to a position, base axes included; the others go on as they were."""
        axis = AXIS.get(name)
        if axis is None:
            raise RobotError(f"robot '{self.spec.name}' has no axis '{name}'; it has {', '.join(SETPOINT_NAMES)}")
        axes = self._open.axes
        if axis in (BASE_TRANSLATION, BASE_ROTATION):
            if self._base.twist is not None:
                self._base.target, self._base.twist = self._travelled(self._data.qpos[axes.wheels_qpos]), None
            self._base.target[axis] = value
            return
        drive = axes.joint_drives[int(np.flatnonzero(axes.joints == axis)[0])]
        self._data.ctrl[drive] = slide_of_aperture(value) if axis == GRIPPER else value

    def command_base_velocity(self, v_m_s: float, w_rad_s: float) -> None:
        """Drive the base at a speed forward and a turn rate until told otherwise by this, a base axis or `send`."""
        self._base.twist = (v_m_s, w_rad_s)

    def advance(self, duration_s: float) -> None:
        """Move on by any duration; the base's controller runs every 10 ms of it."""
        periods = max(1, math.ceil(duration_s / _BASE_PERIOD_S - 1e-9))
        for _ in range(periods):
            self._drive_base(duration_s / periods)
            self._open.world.advance(duration_s / periods)
            self._integrate_odometry()

    def _drive_base(self, period_s: float) -> None:
        """Ask the wheels for the speed that the target or the twist wants, as fast as the controller lets it change."""
        axes, base = self._open.axes, self._base
        if base.twist is None:
            left = (base.target - self._travelled(self._data.qpos[axes.wheels_qpos])).tolist()
            wanted = (_approach(left[0]), _approach(left[1] * _HALF_TRACK_M))
        else:
            wanted = (base.twist[0], base.twist[1] * _HALF_TRACK_M)
        most_m_s = _WHEEL_ACCELERATION_M_S2 * period_s
        forward, turn = (
            last + _clip(_clip(speed, _WHEEL_SPEED_M_S) - last, most_m_s)
            for speed, last in zip(wanted, base.speed, strict=True)
        )
        base.speed = (forward, turn)
        self._data.ctrl[axes.wheel_drives] = (_drive(forward - turn), _drive(forward + turn))

    def _integrate_odometry(self) -> None:
        """Add what the wheels turned since the last look, as driven on the mean heading of that time."""
        base = self._base
        travelled = self._travelled(self._data.qpos[self._open.axes.wheels_qpos])
        distance_m, turn_rad = travelled - base.travelled
        heading_rad = base.pose_xyyaw[2] + turn_rad / 2
        base.pose_xyyaw += (distance_m * math.cos(heading_rad), distance_m * math.sin(heading_rad), turn_rad)
        base.travelled = travelled

    # ---- observation ------------------------------------------------------------------------------------------

    def read(self) -> Reading:
        features = self._embodiment.features(self.measured)
        features[ENVIRONMENT_STATE] = self._task.environment_state(self._data).astype(np.float32)
        return Reading(stamp_ns=self._clock.now_ns(), features=features, fault=self._open.world.fault)

    def task_status(self) -> TaskStatus:
        return self._task.status(self._data)

    def ground_truth(self) -> Features:
        return self._task.ground_truth(self._data)

    def render(self, camera: str) -> Array:
        return self._open.world.render(camera)
