"""Watches the G1's state: takes it from the bus, checks it, and says in words what is wrong with it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardware.unitree_g1.bus import LOW_STATE_TOPIC, G1Bus
from hardware.unitree_g1.codec import LowState
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.joints import MOTOR_COUNT, MOTOR_NAMES
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import MessageError, RobotError

FloatVector = NDArray[np.float64]

# One damaged message may happen; a run of them means that robot and codec disagree.
MAX_DAMAGED_IN_A_ROW = 5
_HALF_RANGE = 2**31


def tilt_of(quat_wxyz: NDArray[np.float32]) -> float:
    """Angle in rad between the body's up axis and the world's; nan for a quaternion that is none."""
    _, x, y, _ = (float(value) for value in quat_wxyz)
    norm = float(np.dot(quat_wxyz, quat_wxyz))
    if not norm > 0.0:
        return math.nan
    return math.acos(min(max(1.0 - 2.0 * (x * x + y * y) / norm, -1.0), 1.0))


class StateWatch:
    """`poll` at every tick. A state counts only if its checksum is right and its tick differs from the last one.

    `newest`: the last state that counted; `stamp_ns`: host time at which it was taken from the bus, -1 before the
    first. `damaged`: how many were dropped.
    """

    def __init__(self, bus: G1Bus, config: G1BusConfig, robot: str) -> None:
        self._bus = bus
        self._config = config
        self._robot = robot
        self._mode_machine: int | None = None
        self._damaged_in_a_row = 0
        self._repeated = 0
        self._restarted = False
        self.newest: LowState | None = None
        self.stamp_ns = -1
        self.damaged = 0

    def poll(self, now_ns: int) -> bool:
        """Take what arrived; true if it is a new state that counts."""
        cdr = self._bus.take_low_state()
        if cdr is None:
            return False
        try:
            state = LowState(cdr)
            damaged = not state.crc_is_good()
        except MessageError:
            damaged = True
        if damaged:
            self.damaged += 1
            self._damaged_in_a_row += 1
            return False
        self._damaged_in_a_row = 0
        return self._accept(state, now_ns)

    def _accept(self, state: LowState, now_ns: int) -> bool:
        if self.newest is not None:
            advanced = (state.tick - self.newest.tick) % 2**32
            if advanced == 0:
                self._repeated += 1
                return False
            self._restarted = self._restarted or advanced > _HALF_RANGE
        self._repeated = 0
        self.newest = state
        self.stamp_ns = now_ns
        return True

    def expect(self, mode_machine: int) -> None:
        """From now on another mode_machine is a fault."""
        self._mode_machine = mode_machine

    @property
    def state(self) -> LowState:
        if self.newest is None:
            raise RobotError(f"{self._robot}: no state on '{LOW_STATE_TOPIC}' yet; call connect() first")
        return self.newest

    @property
    def tilt_rad(self) -> float:
        return tilt_of(self.state.imu["quaternion"])

    @property
    def tilted(self) -> bool:
        """False where the IMU tells nothing usable: that is a fault, but no reason to let the robot fall."""
        return self.tilt_rad > self._config.max_tilt_rad

    def positions(self) -> FloatVector:
        """(29,) rad."""
        return self.state.motor["q"][:MOTOR_COUNT].astype(np.float64)

    def velocities(self) -> FloatVector:
        """(29,) rad/s."""
        return self.state.motor["dq"][:MOTOR_COUNT].astype(np.float64)

    def efforts(self) -> FloatVector:
        """(29,) N m, as the motors estimate it: gravity and inertia included."""
        return self.state.motor["tau_est"][:MOTOR_COUNT].astype(np.float64)

    def fault(self, now_ns: int) -> str:
        """What is wrong now, or ''."""
        return self._stale(now_ns) or self._contradiction() or self._tilt() or self._motors()

    def stale(self, now_ns: int) -> bool:
        """Whether the newest state that counts is older than `max_state_age_s`."""
        return now_ns - self.stamp_ns > s_to_ns(self._config.max_state_age_s)

    def _stale(self, now_ns: int) -> str:
        config = self._config
        if self._damaged_in_a_row >= MAX_DAMAGED_IN_A_ROW:
            return (
                f"{self._robot}: {self._damaged_in_a_row} states in a row on '{LOW_STATE_TOPIC}' had a wrong checksum "
                "or form; check the network, and the robot's firmware against this driver"
            )
        if not self.stale(now_ns):
            return ""
        age_ns = now_ns - self.stamp_ns
        if self._repeated:
            return (
                f"{self._robot}: the state on '{LOW_STATE_TOPIC}' is frozen: {self._repeated} messages with tick "
                f"{self.state.tick} over {age_ns / 1e6:.0f} ms; restart the robot's motion computer"
            )
        return (
            f"{self._robot}: no state for {age_ns / 1e6:.0f} ms on '{LOW_STATE_TOPIC}' (at most "
            f"{config.max_state_age_s * 1e3:.0f} ms); check the network cable, the interface '{config.interface}' and "
            f"domain_id {config.domain_id}"
        )

    def _contradiction(self) -> str:
        mode_machine = self.state.mode_machine
        if self._mode_machine is not None and mode_machine != self._mode_machine:
            return (
                f"{self._robot}: mode_machine changed from {self._mode_machine} to {mode_machine}: this is another "
                "robot, or its limits are others; restart the robot server"
            )
        if self._restarted:
            return (
                f"{self._robot}: the state's tick went back to {self.state.tick}: the robot restarted; restart the "
                "robot server too"
            )
        return ""

    def _tilt(self) -> str:
        if math.isnan(self.tilt_rad):
            return f"{self._robot}: the pelvis' IMU tells no orientation: {self.state.imu['quaternion'].tolist()}"
        if not self.tilted:
            return ""
        return (
            f"{self._robot}: the pelvis is tilted by {self.tilt_rad:.2f} rad (at most "
            f"{self._config.max_tilt_rad:.2f}); secure the robot and stand it up again"
        )

    def _motors(self) -> str:
        motors = self.state.motor[:MOTOR_COUNT]
        errors = motors["motorstate"] & np.uint32(self._config.motor_error_mask)
        if errors.any():
            index = int(np.argmax(errors != 0))
            return f"{self._robot}: motor {MOTOR_NAMES[index]} reports error word {int(errors[index]):#010x}"
        if not (np.isfinite(motors["q"]).all() and np.isfinite(motors["dq"]).all()):
            index = int(np.argmin(np.isfinite(motors["q"]) & np.isfinite(motors["dq"])))
            return f"{self._robot}: motor {MOTOR_NAMES[index]} reports a position or velocity that is not finite"
        temperature_c = motors["temperature"]
        if temperature_c.max() > self._config.max_motor_temperature_c:
            index = int(np.argmax(temperature_c.max(axis=1)))
            return (
                f"{self._robot}: motor {MOTOR_NAMES[index]} is at {int(temperature_c[index].max())} degrees C (at most "
                f"{self._config.max_motor_temperature_c:.0f}); let it cool down"
            )
        return ""
