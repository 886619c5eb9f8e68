"""The simulated Unitree G1 in front of its task: same setpoints, limits and features as the real one.

The pelvis is fixed at standing height: the vendor's balance is not simulated. Arms and waist are held as `arm_sdk`
holds them, by each motor's own position and velocity gains, plus the torque that gravity asks for as feed-forward,
which the sender computes from the measured joints. Nothing else compensates gravity, and no feed-forward knows of a
load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import CameraConfig, mujoco
from hardware.sim.world import World
from hardware.unitree_g1.actions import PALM_DELTA, PALM_QUAT
from hardware.unitree_g1.embodiment import REST_ARMS_RAD, G1Embodiment, G1Measured
from hardware.unitree_g1.joints import ARM_SDK_MOTORS, JOINT_NAMES, MOTOR_COUNT
from hardware.unitree_g1.model import (
    ARM_SDK_GAINS,
    FINGER_JOINTS,
    FINGER_TRAVEL_M,
    G1Model,
    add_surroundings,
    build_g1,
)
from hardware.unitree_g1.tasks import PalmTask
from robot_stack.core.clock import Clock, MonotonicClock
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Array, Features, FloatArray, TaskStatus
from robot_stack.core.protocols import Reading, RobotGeometry, Setpoint, SetpointLimits, SimulatedRobot
from robot_stack.core.specs import ENVIRONMENT_STATE, RobotSpec

FloatVector = NDArray[np.float64]

_MOTORS = list(ARM_SDK_MOTORS)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`; index arrays are in motor order."""

    world: World
    qpos: NDArray[np.intp]
    dofs: NDArray[np.intp]
    driven_fingers: NDArray[np.intp]
    all_fingers: NDArray[np.intp]


class SimulatedG1(SimulatedRobot):
    """A `SimulatedRobot`: both arms and the waist, one task. See `G1Embodiment` for features and setpoints.

    A vendor-side simulator drives the motors themselves, with `command_motors`, instead of `send`.
    """

    def __init__(
        self,
        name: str,
        task: str | PalmTask,
        *,
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 100.0,
        cameras: tuple[CameraConfig, ...] = (),
        view_cameras: tuple[CameraConfig, ...] = (),
        hands: str = "none",
        action_space: str = PALM_DELTA,
        clock: Clock | None = None,
    ) -> None:
        self._embodiment = G1Embodiment(
            name,
            task,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            simulated=True,
            with_environment=True,
            hands=hands,
            action_space=action_space,
            cameras=cameras,
        )
        self._task = self._embodiment.task
        self._cameras = cameras + tuple(view for view in view_cameras if view not in cameras)
        self._clock = clock or MonotonicClock()
        self._kp, self._kd = np.asarray(ARM_SDK_GAINS.kp), np.asarray(ARM_SDK_GAINS.kd)
        self._targets = np.zeros(MOTOR_COUNT)
        self._zeros = np.zeros(MOTOR_COUNT)
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
        """Compile the models and begin the episode of seed 0."""
        if self._opened is not None:
            return
        self._embodiment.connect()
        spec = build_g1(G1Model(hands=self._embodiment.hands))
        add_surroundings(spec)
        self._task.add_scene(spec)
        world = World(spec, self._cameras)
        fingers = FINGER_JOINTS if self._embodiment.has_grippers else ()
        all_fingers = _addresses(world.model, fingers, "qposadr")
        self._opened = _Opened(
            world=world,
            qpos=_addresses(world.model, JOINT_NAMES, "qposadr"),
            dofs=_addresses(world.model, JOINT_NAMES, "dofadr"),
            driven_fingers=all_fingers[::2],
            all_fingers=all_fingers,
        )
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
        """Set up the scene of that seed and put the arms, at rest, to the task's start pose."""
        opened = self._open
        opened.world.reset()
        palms_m = self._task.reset(opened.world.model, self._data, np.random.Generator(np.random.PCG64(seed)))
        rest = np.concatenate([REST_ARMS_RAD, np.zeros(3)])
        joints = self._embodiment.kinematics.solve(palms_m, np.array([PALM_QUAT] * 2), rest, max_iterations=200)
        self._targets[:] = 0.0
        self._targets[_MOTORS] = joints
        self._data.qpos[opened.qpos] = self._targets
        self._data.qpos[opened.all_fingers] = FINGER_TRAVEL_M
        self.command_grippers(np.ones(2))
        self._hold_targets()
        opened.world.forward()
        self.hold()

    # ---- control ----------------------------------------------------------------------------------------------

    @property
    def measured(self) -> G1Measured:
        """The present sample, a copy."""
        position, velocity, effort = self.motor_state()
        fingers = self._data.qpos[self._open.driven_fingers] / FINGER_TRAVEL_M
        gripper = np.clip(fingers, 0.0, 1.0) if self._embodiment.has_grippers else np.zeros(2)
        return G1Measured(position, velocity, effort, gripper)

    def measured_setpoint(self) -> Setpoint:
        return self._embodiment.setpoint_of(self.measured)

    def hold(self) -> None:
        self._embodiment.hold(self.measured)

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self.measured)

    def send(self, setpoint: Setpoint) -> None:
        self._targets[_MOTORS] = setpoint[: len(_MOTORS)]
        self._hold_targets()
        if self._embodiment.has_grippers:
            self.command_grippers(setpoint[len(_MOTORS) :])

    def _hold_targets(self) -> None:
        position = self._data.qpos[self._open.qpos]
        gravity = self._embodiment.kinematics.gravity_torque(position)
        self.command_motors(self._targets, self._zeros, self._kp, self._kd, gravity)

    def advance(self, duration_s: float) -> None:
        self._open.world.advance(duration_s)

    # ---- the motors themselves --------------------------------------------------------------------------------

    def motor_state(self) -> tuple[FloatVector, FloatVector, FloatVector]:
        """Positions (29,) rad, velocities (29,) rad/s and torques (29,) N m of the motors."""
        opened, data = self._open, self._data
        return data.qpos[opened.qpos], data.qvel[opened.dofs], data.actuator_force[:MOTOR_COUNT].copy()

    def command_motors(
        self, q: FloatVector, dq: FloatVector, kp: FloatVector, kd: FloatVector, tau: FloatVector
    ) -> None:
        """Drive every motor, (29,) each, until the next call: torque = tau + kp (q - q_now) + kd (dq - dq_now), at the
        physics rate and within the motor's torque limit. rad, rad/s, N m/rad, N m s/rad, N m."""
        bias = self._open.world.model.actuator_biasprm
        np.negative(kp, out=bias[:MOTOR_COUNT, 1])
        np.negative(kd, out=bias[:MOTOR_COUNT, 2])
        self._data.ctrl[:MOTOR_COUNT] = tau + kp * q + kd * dq

    def command_grippers(self, opening: FloatVector) -> None:
        """Openings (2,) of left and right gripper, 0 to 1; without hands nothing happens."""
        if self._embodiment.has_grippers:
            self._data.ctrl[MOTOR_COUNT:] = np.asarray(opening) * FINGER_TRAVEL_M

    def imu(self) -> tuple[FloatVector, FloatVector, FloatVector]:
        """Of the fixed pelvis: quaternion (4,) w x y z, angular velocity (3,) rad/s, specific force (3,) m/s^2."""
        return np.array([1.0, 0.0, 0.0, 0.0]), np.zeros(3), -self._open.world.model.opt.gravity

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


def _addresses(model: mujoco.MjModel, joints: tuple[str, ...], kind: str) -> NDArray[np.intp]:
    return np.array([getattr(model.joint(name), kind)[0] for name in joints], dtype=np.intp)
