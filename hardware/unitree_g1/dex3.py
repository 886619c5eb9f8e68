"""The Dex3-1 hands: one opening 0..1 per hand to seven joints and back. Never run on hardware.

All fingers close together along a straight line in joint space, from open to closed. The order of the right hand's
fingers is not settled: the vendor's teleoperation sends index before middle, its model file lists middle before
index; `dex3_right_order` chooses. With this synergy both fingers get the same angles, so a wrong choice does no harm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.unitree_g1.bus import G1Bus
from hardware.unitree_g1.codec import HAND_MOTORS, HandCommand, HandState
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.joints import SIDES
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import ConfigError, MessageError

FloatVector = NDArray[np.float64]

JOINTS = ("thumb0", "thumb1", "thumb2", "middle0", "middle1", "index0", "index1")
ORDERS = {
    "middle_first": JOINTS,
    "index_first": ("thumb0", "thumb1", "thumb2", "index0", "index1", "middle0", "middle1"),
}
# Left hand, rad. The right hand is its mirror image: every sign changes.
OPEN_RAD = {"thumb0": 0.0, "thumb1": 0.0, "thumb2": 0.0, "middle0": 0.0, "middle1": 0.0, "index0": 0.0, "index1": 0.0}
CLOSED_RAD = {
    **{"thumb0": 0.0, "thumb1": 0.9, "thumb2": 1.5},
    **{"middle0": -1.4, "middle1": -1.5, "index0": -1.4, "index1": -1.5},
}

COMMAND_RATE_HZ = 100.0
STATUS_ON = 1
MAX_STATE_AGE_S = 0.5


def mode_byte(motor: int, *, status: int = STATUS_ON, timeout: bool = False) -> int:
    """Bits 0-3: the motor; 4-6: status, 1 is on; 7: let the motor time out."""
    return (motor & 0x0F) | (status & 0x07) << 4 | int(timeout) << 7


def joint_order(side: str, config: G1BusConfig) -> tuple[str, ...]:
    """Names of the seven motors of a hand, in the order of its messages. ConfigError for an unknown order."""
    if config.dex3_right_order not in ORDERS:
        raise ConfigError(f"dex3_right_order is '{config.dex3_right_order}'; choose one of: {', '.join(ORDERS)}")
    return ORDERS[config.dex3_right_order] if side == "right" else JOINTS


class HandSynergy:
    """One hand's line from open to closed, in the order of its messages. Arrays (7,) in rad."""

    def __init__(self, side: str, config: G1BusConfig) -> None:
        order, sign = joint_order(side, config), -1.0 if side == "right" else 1.0
        self._open = sign * np.array([OPEN_RAD[name] for name in order])
        self._span = sign * np.array([CLOSED_RAD[name] for name in order]) - self._open

    def joints(self, opening: float) -> FloatVector:
        """Joint angles for an opening, 1 open, 0 closed; clipped to 0..1."""
        return self._open + (1.0 - min(max(opening, 0.0), 1.0)) * self._span

    def opening(self, joints_rad: FloatVector) -> float:
        """The opening whose pose is nearest to these angles, in 0..1."""
        closure = float(np.dot(joints_rad - self._open, self._span) / np.dot(self._span, self._span))
        return min(max(1.0 - closure, 0.0), 1.0)


def stop_message() -> bytes:
    """Gives every joint of a hand back: on, with time-out, no gains."""
    message = HandCommand()
    message.motor["mode"] = [mode_byte(motor, timeout=True) for motor in range(HAND_MOTORS)]
    return bytes(message.cdr)


class Dex3Hands:
    """Both hands on one bus. `opening` (2,) is left, right; before the first state of a hand it is open."""

    def __init__(self, bus: G1Bus, config: G1BusConfig, *, tick_rate_hz: float) -> None:
        self._bus = bus
        self._ticks_per_command = max(1, round(tick_rate_hz / COMMAND_RATE_HZ))
        self._tick = 0
        self._synergies = {side: HandSynergy(side, config) for side in SIDES}
        self._message = HandCommand()
        self._message.motor["mode"] = [mode_byte(motor) for motor in range(HAND_MOTORS)]
        self._message.motor["kp"] = config.hand_kp
        self._message.motor["kd"] = config.hand_kd
        self._moved = False
        self._stamps_ns: dict[str, int] = {}
        self.opening: FloatVector = np.ones(2)

    def poll(self, now_ns: int) -> None:
        for index, side in enumerate(SIDES):
            cdr = self._bus.take_hand_state(side)
            if cdr is None:
                continue
            try:
                state = HandState(cdr)
            except MessageError:
                continue
            self.opening[index] = self._synergies[side].opening(state.motor["q"].astype(np.float64))
            self._stamps_ns[side] = now_ns

    @property
    def missing(self) -> str:
        """A side that no state came from yet, or ''."""
        return next((side for side in SIDES if side not in self._stamps_ns), "")

    def stale(self, now_ns: int) -> str:
        """A side whose newest state is older than `MAX_STATE_AGE_S`, or ''."""
        oldest_ns = now_ns - s_to_ns(MAX_STATE_AGE_S)
        return next((side for side, stamp_ns in self._stamps_ns.items() if stamp_ns < oldest_ns), "")

    def send(self, opening: FloatVector) -> None:
        """Openings (2,) left, right; goes out at about 100 Hz of the ticks."""
        self._tick += 1
        if self._tick % self._ticks_per_command and self._moved:
            return
        self._moved = True
        for value, side in zip(opening, SIDES, strict=True):
            self._message.motor["q"] = self._synergies[side].joints(float(value))
            self._bus.send_hand_command(side, bytes(self._message.cdr))

    def stop(self) -> None:
        """Let both hands go, if they were ever commanded."""
        if self._moved:
            self._moved = False
            for side in SIDES:
                self._bus.send_hand_command(side, stop_message())
