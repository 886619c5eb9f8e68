"""The Stretch 3 through the vendor's Python library stretch_body, on the robot's own computer.

**Written from the vendor's published code and documentation; it never ran on a robot.** Its tests run against a
stand-in for the library. Use the ROS 2 back-end unless you cannot; when you try this one, keep a hand on the run-stop.

The library owns the serial ports, so nothing else may use the robot at the same time. Joints move to absolute
positions with the vendor's default profiles and hold them; the base takes velocities, and the library documents no
dead-man for it: a process that dies may leave the base rolling. The library brings 2 GB of packages and needs the
robot's own parameter files (HELLO_FLEET_PATH, HELLO_FLEET_ID), so it is imported in `connect` only.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.stretch.base import BaseAxes, BaseFollower, check_base_follows
from hardware.stretch.config import StretchBodyConfig
from hardware.stretch.embodiment import StretchEmbodiment, StretchMeasured
from hardware.stretch.joints import ARM, GRIPPER, LIFT, SETPOINT_NAMES
from hardware.stretch.ros2_names import PERCENT, aperture_from_gripper, gripper_from_aperture
from robot_stack.core.errors import MissingDependencyError, RobotError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Reading, Robot, RobotGeometry, Setpoint, SetpointLimits
from robot_stack.core.specs import RobotSpec

FloatVector = NDArray[np.float64]

logger = logging.getLogger(__name__)

_WRIST = {"wrist_yaw_rad": "wrist_yaw", "wrist_pitch_rad": "wrist_pitch", "wrist_roll_rad": "wrist_roll"}
_HEAD = {"head_pan_rad": "head_pan", "head_tilt_rad": "head_tilt"}
_GRIPPER = "stretch_gripper"
_BASE = slice(0, 2)
_SAME = 1e-5


class StretchBody(Robot):
    """A `Robot`. Setpoint and observations: see `StretchEmbodiment`.

    Velocity and effort of the gripper are zero: the library gives them for its motor. Faults: state too old,
    run-stop, low battery. A joint's command is sent when it changes, since each costs a transaction on a serial bus.
    """

    def __init__(
        self,
        name: str,
        task: str,
        config: StretchBodyConfig,
        *,
        control_rate_hz: float,
        tick_rate_hz: float = 30.0,
    ) -> None:
        self._config = config
        self._embodiment = StretchEmbodiment(
            name,
            task,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            simulated=False,
            with_environment=False,
        )
        self._follower = BaseFollower(
            config.base_gain_hz, 1.0 / tick_rate_hz, np.array(self.limits.max_velocity[_BASE])
        )
        self._vendor: Any = None
        self._base = BaseAxes()
        self._status: Mapping[str, Any] = {}
        self._seen: dict[str, tuple[float, int]] = {}
        self._measured: StretchMeasured | None = None
        self._sent: Setpoint | None = None
        self._engaged = False

    # ---- what it is ----

    @property
    def spec(self) -> RobotSpec:
        return self._embodiment.spec

    @property
    def limits(self) -> SetpointLimits:
        return self._embodiment.limits

    @property
    def geometry(self) -> RobotGeometry | None:
        return self._embodiment.geometry

    # ---- life ----

    def connect(self) -> None:
        """Starts the library's threads. Call it on the main thread: the library installs handlers of signals."""
        if self._vendor is not None:
            return
        self._embodiment.connect()
        vendor = _vendor_robot()
        with _own_signal_handlers():
            started = vendor.startup()
        try:
            if not started:
                raise RobotError(
                    f"{self.spec.name}: stretch_body could not start the robot; another process may be using it "
                    "(stretch_free_robot_process.py frees it), or run stretch_system_check.py"
                )
            self._vendor, self._base, self._seen = vendor, BaseAxes(), {}
            self._take_state()
            if not vendor.is_homed():
                raise RobotError(
                    f"{self.spec.name}: the robot is not homed; make room around it: stretch_robot_home.py"
                )
            problem = self._problem()
            if problem:
                raise RobotError(f"{self.spec.name}: {problem}")
            self._narrow_limits()
        except BaseException:
            self._vendor = None
            vendor.stop()
            raise
        self.hold()

    def _narrow_limits(self) -> None:
        lower, upper = np.full(len(SETPOINT_NAMES), -np.inf), np.full(len(SETPOINT_NAMES), np.inf)
        joints = {"lift_m": self._vendor.lift, "arm_m": self._vendor.arm}
        joints |= {axis: self._vendor.end_of_arm.motors[joint] for axis, joint in _WRIST.items()}
        joints |= {axis: self._vendor.head.motors[joint] for axis, joint in _HEAD.items()}
        for axis, joint in joints.items():
            place = SETPOINT_NAMES.index(axis)
            lowest, highest = joint.get_soft_motion_limits()
            lower[place] = -np.inf if lowest is None else lowest
            upper[place] = np.inf if highest is None else highest
        self._embodiment.narrow_positions(lower, upper)

    def close(self) -> None:
        """Stops the base and the library's threads; the joints hold."""
        if self._vendor is None:
            return
        try:
            self._stop_base()
        finally:
            self._vendor.stop()
            self._vendor = self._measured = None
            self._engaged = False

    # ---- control ----

    def measured_setpoint(self) -> Setpoint:
        return self._embodiment.setpoint_of(self._require_measured())

    def hold(self) -> None:
        self._embodiment.hold(self._require_measured())
        self._follower.forget()

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self._require_measured())

    def engage(self) -> None:
        problem = self._problem()
        if problem:
            raise RobotError(f"{self.spec.name}: {problem}")
        self._sent = None
        self._engaged = True
        self._follower.forget()

    def send(self, setpoint: Setpoint) -> None:
        """RobotError, and nothing is sent, if feedback is too old or the run-stop is pressed."""
        if not self._engaged:
            raise RobotError(f"{self.spec.name}: a setpoint was sent before the robot was activated")
        problem = self._problem()
        if problem:
            raise RobotError(f"{self.spec.name}: {problem}")
        if not np.isfinite(setpoint).all():
            raise RobotError(f"{self.spec.name}: the setpoint {setpoint.tolist()} is not finite")
        measured = self._require_measured().setpoint
        target = np.clip(measured if self._sent is None else setpoint, self.limits.lower, self.limits.upper)
        check_base_follows(self.spec.name, target[_BASE], measured[_BASE])
        for place, name in enumerate(SETPOINT_NAMES):
            if self._sent is None or abs(target[place] - self._sent[place]) > _SAME:
                self._move_joint(name, float(target[place]))
        self._vendor.base.set_velocity(*self._follower.velocity(target[_BASE], measured[_BASE]))
        self._vendor.push_command()
        self._sent = target

    def _move_joint(self, name: str, position: float) -> None:
        """Queue one joint's target; the base's axes have none."""
        if name == SETPOINT_NAMES[LIFT]:
            self._vendor.lift.move_to(position)
        elif name == SETPOINT_NAMES[ARM]:
            self._vendor.arm.move_to(position)
        elif name == SETPOINT_NAMES[GRIPPER]:
            self._vendor.end_of_arm.move_to(_GRIPPER, gripper_from_aperture(position, PERCENT))
        elif name in _WRIST:
            self._vendor.end_of_arm.move_to(_WRIST[name], position)
        elif name in _HEAD:
            self._vendor.head.move_to(_HEAD[name], position)

    def release(self) -> None:
        self._engaged = False
        self._stop_base()

    def emergency_stop(self) -> None:
        """Press the run-stop: motors are off until a person releases it at the robot."""
        self._engaged = False
        self._vendor.pimu.runstop_event_trigger()
        self._stop_base()

    def _stop_base(self) -> None:
        self._vendor.base.set_velocity(0.0, 0.0)
        self._vendor.push_command()

    # ---- state ----

    def read(self) -> Reading:
        self._take_state()
        problem = self._problem()
        return Reading(
            stamp_ns=self._oldest()[1],
            features=self._embodiment.features(self._require_measured()),
            fault=f"{self.spec.name}: {problem}" if problem else "",
        )

    def _take_state(self) -> None:
        """The library's threads keep the status up to date; every board stamps its own part."""
        if self._vendor is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        status = self._status = self._vendor.get_status()
        now_ns = time.monotonic_ns()
        for part, stamp_s in _stamps(status).items():
            if part not in self._seen or self._seen[part][0] != stamp_s:
                self._seen[part] = (stamp_s, now_ns)
        base = status["base"]
        self._base.update(
            np.array([base["x"], base["y"], base["theta"]]),
            np.array([base["x_vel"], base["theta_vel"]]),
            float(base["timestamp_pc"]),
        )
        joints = np.array([_joint(status, name) for name in SETPOINT_NAMES[2:]])
        if not np.isfinite(joints).all():
            raise RobotError(f"{self.spec.name}: a joint's state is not finite: {joints.tolist()}")
        self._measured = StretchMeasured(
            setpoint=np.concatenate((self._base.axes, joints[:, 0])),
            velocity=np.concatenate((self._base.velocity, joints[:, 1])),
            effort=np.concatenate((np.zeros(2), joints[:, 2])),
            base_pose_xyyaw=self._base.pose,
        )

    def _oldest(self) -> tuple[str, int]:
        """The part of the robot whose newest state is oldest, and when that arrived."""
        part = min(self._seen, key=lambda name: self._seen[name][1])
        return part, self._seen[part][1]

    def _problem(self) -> str:
        part, arrived_ns = self._oldest()
        age_s = (time.monotonic_ns() - arrived_ns) / 1e9
        if age_s > self._config.max_state_age_s:
            return (
                f"no state from '{part}' for {age_s * 1000:.0f} ms (allowed: "
                f"{self._config.max_state_age_s * 1000:.0f} ms); check its cable, then run stretch_system_check.py"
            )
        if self._status["pimu"]["runstop_event"]:
            return "the run-stop is pressed; find out why, release it at the robot, then clear this fault"
        if self._status["pimu"]["voltage"] < self._config.min_battery_v:
            voltage_v = self._status["pimu"]["voltage"]
            return f"the battery is at {voltage_v:.1f} V (at least {self._config.min_battery_v:g} V); charge it"
        return ""

    def _require_measured(self) -> StretchMeasured:
        if self._measured is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._measured


def _vendor_robot() -> Any:
    """The library's Robot, not started yet."""
    try:
        from stretch_body.robot import Robot as VendorRobot

        return VendorRobot()
    except ImportError as error:
        raise MissingDependencyError(
            "hello-robot-stretch-body", "stretch", "the Stretch's back-end 'body', on the robot's own computer"
        ) from error
    except (KeyError, SystemExit) as error:  # how the library ends without the robot's parameter files
        raise RobotError(
            f"stretch_body does not find this robot's parameters ({error!r}); run on the robot's own computer, where "
            "HELLO_FLEET_PATH and HELLO_FLEET_ID are set"
        ) from error


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """The library takes SIGINT and SIGTERM for itself; this takes them back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stamps(status: Mapping[str, Any]) -> dict[str, float]:
    """When each board was last heard, by its part; the chains of servos are polled apart from the rest."""
    return {
        **{part: float(status[part]["timestamp_pc"]) for part in ("base", "lift", "arm", "pimu")},
        "wrist": float(status["end_of_arm"]["wrist_yaw"]["timestamp_pc"]),
        "head": float(status["head"]["head_pan"]["timestamp_pc"]),
    }


def _joint(status: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """Position, velocity and effort of one axis; force in N for lift and arm, percent for the servos."""
    if name == SETPOINT_NAMES[GRIPPER]:
        return aperture_from_gripper(float(status["end_of_arm"][_GRIPPER]["pos_pct"]), PERCENT), 0.0, 0.0
    if name in (SETPOINT_NAMES[LIFT], SETPOINT_NAMES[ARM]):
        joint, effort = status["lift" if name == SETPOINT_NAMES[LIFT] else "arm"], "force"
    else:
        joint = status["end_of_arm"][_WRIST[name]] if name in _WRIST else status["head"][_HEAD[name]]
        effort = "effort"
    return float(joint["pos"]), float(joint["vel"]), float(joint[effort])
