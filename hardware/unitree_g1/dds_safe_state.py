"""The G1's safe state, for when its robot server is gone: the last arm_sdk target would stay in force for ever.

A keeper process listens all the time and is silent. When the server dies it takes over where the server stopped:
the arms hold where they are, the weight falls from where it was to 0, the base is told to stand still. A robot that is
tilting over is damped instead. Tried against our simulator only, never on hardware.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardware.unitree_g1.arm_sdk import AXES, ArmSdk
from hardware.unitree_g1.codec import LowCommand, LowState
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.dds_bus import DdsBus
from hardware.unitree_g1.dex3 import stop_message
from hardware.unitree_g1.joints import ARM_SDK_MOTORS, SIDES, WEIGHT_MOTOR
from hardware.unitree_g1.loco import Loco
from hardware.unitree_g1.state import StateWatch
from robot_stack.core.clock import MonotonicClock, Pacer, s_to_ns
from robot_stack.core.errors import MessageError
from robot_stack.core.protocols import SafeState

FloatVector = NDArray[np.float64]

RATE_HZ = 500.0
STAND_STILL_PERIOD_S = 0.2

_AXES = list(ARM_SDK_MOTORS)


class G1DdsSafeState(SafeState):
    """See `SafeState`. The first message goes out with the first period of `make_safe`, 2 ms; it returns when the
    weight is 0, after `weight_fall_s` at most.

    `weight`: authority that was last seen commanded by anybody, or by this.
    """

    def __init__(self, config: G1BusConfig) -> None:
        self._config = config
        self._clock = MonotonicClock()
        self._bus = DdsBus(config, watch_commands=True)
        self._watch = StateWatch(self._bus, config, "the G1")
        self._loco = Loco(self._bus)
        self._arms = ArmSdk(self._bus, config, tick_rate_hz=RATE_HZ, max_velocity_rad_s=np.zeros(AXES))
        self._last: LowCommand | None = None

    @property
    def weight(self) -> float:
        if not self._arms.silent:
            return self._arms.weight
        return float(self._last.motor["q"][WEIGHT_MOTOR]) if self._last is not None else 0.0

    def connect(self) -> None:
        """RobotError if the network cannot be opened. It does not wait for the robot, which may be off still."""
        self._bus.open()

    def watch(self) -> None:
        """Keep the newest state, and the newest command of the process that is watched. Sends nothing."""
        self._watch.poll(self._clock.now_ns())
        cdr = self._bus.take_arm_command()
        if cdr is None:
            return
        try:
            command = LowCommand(cdr)
        except MessageError:
            return
        if command.crc_is_good():
            self._last = command

    def make_safe(self) -> None:
        """Hold, give the arms back, stand still; damp a robot that tilts under our authority. Returns when arm_sdk is
        out of force."""
        self.watch()
        self._take_over()
        had_authority = self._arms.weight > 0.0
        pacer = Pacer(1.0 / RATE_HZ)
        stand_still_ns = self._clock.now_ns()
        while not self._arms.silent or self._loco.asking_to_damp:
            pacer.wait()
            now_ns = self._clock.now_ns()
            self._watch.poll(now_ns)
            self._loco.poll(now_ns)
            if had_authority and self._watch.newest is not None and self._watch.tilted:
                self._loco.damp(now_ns)
                self._arms.drop()
            elif now_ns >= stand_still_ns:
                stand_still_ns = now_ns + s_to_ns(STAND_STILL_PERIOD_S)
                self._loco.stand_still(now_ns)
            self._arms.idle()
        for side in SIDES if self._config.hands != "none" else ():
            self._bus.send_hand_command(side, stop_message())

    def _take_over(self) -> None:
        """Hold the measured pose (the last target if the state is old) from the weight and torques that are in force.

        Where no command was ever seen, the weight is 0, and so it is where no finite pose is known.
        """
        command = self._last if self._last is not None else LowCommand()
        # whatever the dead server sent: a weight that is no number could be any
        weight = min(max(self.weight, 0.0), 1.0) if math.isfinite(self.weight) else 1.0
        target = command.motor["q"][_AXES].astype(np.float64)
        gravity = command.motor["tau"][_AXES].astype(np.float64)
        newest: LowState | LowCommand = command
        if self._watch.newest is not None:
            newest = self._watch.newest
            if not self._watch.stale(self._clock.now_ns()) or not np.isfinite(target).all():
                target = self._watch.positions()[_AXES]
        if not np.isfinite(target).all():
            target, weight = np.zeros(AXES), 0.0
        if not np.isfinite(gravity).all():
            gravity = np.zeros(AXES)
        mode_pr, mode_machine = int(newest.record["mode_pr"]), int(newest.record["mode_machine"])
        self._arms.resume(target, gravity, weight, mode_pr, mode_machine)

    def close(self) -> None:
        self._bus.close()
