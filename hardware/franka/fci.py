"""The Franka through the vendor's own control interface (FCI), without ROS.

Built on `franky-control`, which runs the 1 kHz loop and a joint impedance controller in a C++ thread and takes a new
reference at any time. The vendor's `pylibfranka` gives `readOnce`/`writeOnce`, a 1 kHz loop that Python itself would
have to keep: that is no place for an interpreter with pauses. Both must not be loaded into one process.

When this process dies, the loop dies with it: the robot misses its packets and stops by itself within 20 ms
(`communication_constraints_violation`). So this back-end needs no keeper. Needed: a real-time kernel, a cable of its
own to the control unit, FCI mode switched on.
"""

from __future__ import annotations

import importlib
import logging
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.config import FrankaFciConfig
from hardware.franka.embodiment import FrankaEmbodiment, FrankaMeasured, shifted_wrench
from hardware.franka.gripper import GRASP_FORCE_N, SPEED_M_S, WidthGoals
from hardware.franka.model import TCP_SITE
from robot_stack.core.clock import MonotonicClock, s_to_ns
from robot_stack.core.errors import MissingDependencyError, RobotError
from robot_stack.core.messages import FloatArray
from robot_stack.core.protocols import Reading, Robot, RobotGeometry, Setpoint, SetpointLimits
from robot_stack.core.specs import RobotSpec

logger = logging.getLogger(__name__)

Dialled = TypeVar("Dialled")
FloatVector = NDArray[np.float64]

COMMAND_PORT = 1337
STOP_TIMEOUT_S = 3.0
HAND_POLL_S = 0.05
HAND_MAX_AGE_S = 1.0

_STOPPED_MODES = ("Reflex", "UserStopped")


def load_franky() -> Any:
    """The module franky; MissingDependencyError says how to get it."""
    try:
        return importlib.import_module("franky")
    except ImportError as error:
        raise MissingDependencyError("franky-control", "franka", "the FCI back-end of the Franka") from error


def require_reachable(host: str, timeout_s: float) -> None:
    """RobotError unless the control unit takes connections. The vendor's library would wait for minutes."""
    try:
        socket.create_connection((host, COMMAND_PORT), timeout_s).close()
    except OSError as error:
        raise RobotError(
            f"the Franka's control unit at {host}:{COMMAND_PORT} cannot be reached within {timeout_s:g} s ({error}); "
            "check the address, the cable, that the joints are unlocked and that FCI is switched on in Desk"
        ) from error


def _within(timeout_s: float, act: Callable[[], Dialled]) -> Dialled:
    """The result of a call that may block for ever, or TimeoutError. Only for connecting: the call is left behind."""
    results: queue.SimpleQueue[Dialled | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(act())
        except BaseException as error:
            results.put(error)

    threading.Thread(target=run, name="franka_connect", daemon=True).start()
    try:
        result = results.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"it accepted the connection and then said nothing for {timeout_s:g} s") from None
    if isinstance(result, BaseException):
        raise result
    return result


class _Hand:
    """The Franka Hand. Reading its width waits for the hand, so a thread of its own does it."""

    def __init__(self, gripper: Any) -> None:
        self._gripper = gripper
        self._goals = WidthGoals()
        self._newest = (float(gripper.width), time.monotonic_ns())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="franka_hand", daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._closed.wait(HAND_POLL_S):
            try:
                self._newest = (float(self._gripper.width), time.monotonic_ns())
            except Exception:
                continue

    @property
    def newest(self) -> tuple[float, int]:
        """Width in m, and the host time at which it came."""
        return self._newest

    def start(self, width_m: float) -> None:
        self._goals.start(width_m)

    def want(self, width_m: float, now_ns: int) -> None:
        goal = self._goals.next(width_m, now_ns)
        if goal is None:
            return
        if goal[1]:
            anything = limits.HAND_MAX_WIDTH_M
            self._gripper.grasp_async(goal[0], SPEED_M_S, GRASP_FORCE_N, anything, anything)
        else:
            self._gripper.move_async(goal[0], SPEED_M_S)

    def stop(self) -> None:
        self._gripper.stop_async()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(2.0)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`."""

    franky: Any
    robot: Any
    hand: _Hand | None


class FrankaFci(Robot):
    """A `Robot`. Features, actions and setpoints are those of `FrankaEmbodiment`.

    Active: a joint impedance motion that follows the newest setpoint. Inactive: the robot holds itself. Whatever ends
    the motion (reflex, user stop, lost packets) is a fault; only `recover`, a person's act, clears it at the robot.
    """

    def __init__(
        self,
        name: str,
        task: str,
        config: FrankaFciConfig,
        *,
        action_space: str = "ee_delta",
        control_rate_hz: float = 10.0,
        tick_rate_hz: float = 100.0,
    ) -> None:
        self._config = config
        self._embodiment = FrankaEmbodiment(
            name,
            task,
            action_space=action_space,
            control_rate_hz=control_rate_hz,
            tick_rate_hz=tick_rate_hz,
            limits_of_setpoint=limits.make_limits(config.limits),
        )
        self._clock = MonotonicClock()
        self._wrenches: deque[FloatVector] = deque(maxlen=self._embodiment.ticks_per_step)
        self._torques = np.zeros(7)
        self._state: Any = None
        self._robot_time = -1
        self._received_ns = 0
        self._motion: Any = None
        self._error = ""
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

    # ---- life -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the control unit and, where the task moves it, the hand; take the robot's own limits.

        MissingDependencyError without franky-control; RobotError names the host and what to check.
        """
        if self._opened is not None:
            return
        franky = load_franky()
        host = self._config.host
        require_reachable(host, self._config.connect_timeout_s)
        try:
            robot, gripper, description = _within(self._config.connect_timeout_s, lambda: self._dial(franky))
            hand = _Hand(gripper) if gripper is not None else None
        except Exception as error:
            raise RobotError(
                f"{self.spec.name}: the Franka at {host} refuses the connection: {error}; check that FCI is on, no "
                "other program holds it, and the kernel is real-time (or set realtime=false, for tests only)"
            ) from error
        self._opened = _Opened(franky, robot, hand)
        try:
            self._embodiment.open(limits.read_urdf(description, self.spec.name))
            self.hold()
        except RobotError:
            self.close()
            raise

    def _dial(self, franky: Any) -> tuple[Any, Any, str]:
        """Connections to the arm and, where the task moves it, the hand; and the robot's own description."""
        kernel = franky.RealtimeConfig.Enforce if self._config.realtime else franky.RealtimeConfig.Ignore
        robot = franky.Robot(self._config.host, realtime_config=kernel)
        gripper = franky.Gripper(self._config.host) if self._embodiment.gripper_moves else None
        return robot, gripper, robot.model_urdf

    def close(self) -> None:
        """Bring the arm to rest under its own brakes and let go."""
        if self._opened is None:
            return
        opened = self._opened
        try:
            self.release()
            self._call("come to rest", lambda: opened.robot.join_motion(timeout=STOP_TIMEOUT_S))
        except RobotError as error:
            logger.error("%s", error)  # closing goes on: the process ends its motion in any case
        if opened.hand is not None:
            opened.hand.close()
        self._opened, self._state = None, None
        self._embodiment.close()

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"robot '{self.spec.name}' is not connected; call connect() first")
        return self._opened

    # ---- control ----------------------------------------------------------------------------------------------

    def measured_setpoint(self) -> Setpoint:
        return self._embodiment.setpoint(self._measured())

    def hold(self) -> None:
        self._embodiment.hold(self._measured())

    def resolve(self, action: FloatArray) -> Setpoint:
        return self._embodiment.resolve(action, self._measured())

    def engage(self) -> None:
        """Begin to follow, from where the arm is."""
        opened, measured = self._open, self._measured()
        franky = opened.franky
        motion = franky.JointImpedanceTrackingMotion(
            stiffness=np.asarray(self._config.stiffness_nm_rad),
            lower_joint_limits=np.asarray(self.limits.lower[:7]),
            upper_joint_limits=np.asarray(self.limits.upper[:7]),
        )
        motion.set_reference(franky.JointReference(q=measured.joints_rad))
        self._error = ""
        self._call("begin to move", lambda: opened.robot.move(motion, asynchronous=True))
        self._motion = motion
        if opened.hand is not None:
            opened.hand.start(measured.gripper_width_m)

    def send(self, setpoint: Setpoint) -> None:
        opened = self._open
        if self._motion is not None:
            self._motion.set_reference(opened.franky.JointReference(q=np.asarray(setpoint[:7])))
        if opened.hand is not None:
            opened.hand.want(float(setpoint[7]), self._clock.now_ns())

    def release(self) -> None:
        """End the motion: torques ramp down to damping, the arm comes to rest, the robot holds itself."""
        opened = self._open
        if self._motion is not None and opened.robot.is_in_control:
            stop = opened.franky.TorqueStopMotion()
            self._call("end its motion", lambda: opened.robot.move(stop, asynchronous=True))
        self._motion, self._error = None, ""

    def emergency_stop(self) -> None:
        """The vendor's stop: preempts the motion at once, and stops the hand."""
        opened, self._motion, self._error = self._open, None, ""
        self._call("stop", opened.robot.stop)
        if opened.hand is not None:
            opened.hand.stop()

    def recover(self) -> None:
        """The vendor's automatic error recovery. Only for a person who has looked at the robot: neither this driver
        nor the guard ever calls it by itself."""
        if not self._call("recover", self._open.robot.recover_from_errors):
            raise RobotError(f"{self.spec.name}: error recovery failed; look at the robot and at Desk")

    def _call(self, what: str, act: Any) -> Any:
        """Act on the robot; whatever the vendor's library raises becomes a RobotError."""
        try:
            return act()
        except Exception as error:
            raise RobotError(f"{self.spec.name} at {self._config.host} did not {what}: {error}") from error

    # ---- observation ------------------------------------------------------------------------------------------

    def read(self) -> Reading:
        measured = self._measured()
        return Reading(stamp_ns=self._received_ns, features=self._embodiment.features(measured), fault=self._fault())

    def external_effort(self) -> Setpoint:
        return np.append(self._torques, 0.0)

    def _measured(self) -> FrankaMeasured:
        opened = self._open
        self._state = state = self._call("tell its state", lambda: opened.robot.state)
        now_ns = self._clock.now_ns()
        sign = self._config.external_sign
        if (robot_time := state.time.to_msec()) != self._robot_time:
            self._robot_time, self._received_ns = robot_time, now_ns
            self._wrenches.append(np.asarray(state.O_F_ext_hat_K, dtype=np.float64) * sign)
            self._torques = np.asarray(state.tau_ext_hat_filtered, dtype=np.float64) * sign
        joints, velocities = np.array(state.q, dtype=np.float64), np.array(state.dq, dtype=np.float64)
        width_m = opened.hand.newest[0] if opened.hand is not None else 0.0
        sample = self._embodiment.measured(joints, velocities, np.zeros(6), width_m)
        hand_m, _ = self._embodiment.kinematics.site_pose(TCP_SITE, joints)
        mean = np.asarray(np.mean(self._wrenches, axis=0), dtype=np.float64)
        wrench = shifted_wrench(mean, hand_m, sample.tool.position_m)
        return FrankaMeasured(joints, velocities, wrench, sample.gripper_width_m, sample.tool)

    # ---- faults -----------------------------------------------------------------------------------------------

    def _fault(self) -> str:
        opened, name, now_ns = self._open, self.spec.name, self._clock.now_ns()
        if now_ns - self._received_ns > s_to_ns(self._config.max_state_age_s):
            age_ms = (now_ns - self._received_ns) / 1e6
            return f"{name}: no state for {age_ms:.0f} ms from {self._config.host}; check the cable and the robot"
        if opened.hand is not None and now_ns - opened.hand.newest[1] > s_to_ns(HAND_MAX_AGE_S):
            return f"{name}: the hand has not told its width for {HAND_MAX_AGE_S:g} s; check its cable"
        return self._motion_error() or _state_fault(self._state, name)

    def _motion_error(self) -> str:
        """Why the motion ended though nobody asked for it; stays while the robot counts as active."""
        if self._motion is not None and not self._error:
            try:
                if not self._open.robot.poll_motion():
                    self._error = f"{self.spec.name}: the motion ended by itself; look at the robot"
            except Exception as error:
                self._error = f"{self.spec.name}: the motion ended: {error}; look at the robot, recover it"
        return self._error


def _state_fault(state: Any, robot: str) -> str:
    errors = state.current_errors
    words = [name for name in dir(errors) if not name.startswith("_") and getattr(errors, name) is True]
    mode = state.robot_mode.name
    if mode in _STOPPED_MODES:
        words.insert(0, f"mode {mode}")
    if not words:
        return ""
    return f"{robot}: the robot reports {', '.join(words)}; look at it, recover it, then clear the fault"
