"""`rt/arm_sdk`: joint targets for arms and waist that the robot blends over its running locomotion, by a weight 0..1.

The vendor has no watchdog here: the last target stays in force when its sender dies. So authority is always taken and
given back by ramping the weight, and a message that goes out carries everything: target, gains, weight,
mode_machine, checksum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardware.unitree_g1.bus import G1Bus
from hardware.unitree_g1.codec import MOTORS, LowCommand
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.joints import ARM_SDK_MOTORS, WAIST_MOTORS, WEIGHT_MOTOR
from robot_stack.core.errors import ConfigError, RobotError

FloatVector = NDArray[np.float64]

AXES = len(ARM_SDK_MOTORS)
# The target's velocity goes out through a first-order low-pass, so that a step of the setpoint is no spike.
VELOCITY_CUTOFF_HZ = 20.0
# The message with weight 0 is repeated, since a single one may be lost.
FAREWELLS = 10

_MOTORS = np.array(ARM_SDK_MOTORS)


class ArmSdk:
    """Sends targets (17,) in rad, in the order of `ARM_SDK_MOTORS`. One call of `send` or `idle` at every tick.

    The weight moves by the same step at every tick, so a loop that stalls makes it late, never jump. Nothing is
    sent before `engage`, and nothing any more once the weight is back at 0 and that has been said `FAREWELLS` times.
    """

    def __init__(
        self, bus: G1Bus, config: G1BusConfig, *, tick_rate_hz: float, max_velocity_rad_s: FloatVector
    ) -> None:
        if not min(config.weight_rise_s, config.weight_fall_s) > 0.0:
            raise ConfigError(
                f"the G1's weight_rise_s and weight_fall_s are {config.weight_rise_s} and {config.weight_fall_s}; both "
                "must be above 0"
            )
        self._bus = bus
        self._rise = 1.0 / (tick_rate_hz * config.weight_rise_s)
        self._fall = 1.0 / (tick_rate_hz * config.weight_fall_s)
        self._tick_rate_hz = tick_rate_hz
        self._max_velocity = max_velocity_rad_s
        self._smoothing = 1.0 - math.exp(-2.0 * math.pi * VELOCITY_CUTOFF_HZ / tick_rate_hz)
        self._velocity: FloatVector = np.zeros(AXES)
        self._target: FloatVector = np.zeros(AXES)
        self._gravity: FloatVector = np.zeros(AXES)
        self._engaged = False
        self._farewells = 0
        self._message = _message(config)
        self.weight = 0.0

    @property
    def target(self) -> FloatVector:
        """The last target (17,), rad."""
        return self._target.copy()

    @property
    def silent(self) -> bool:
        """True while nothing of ours is in force on the robot, as far as this sender knows."""
        return not self._engaged and self._farewells == 0

    def engage(self, measured_rad: FloatVector, mode_pr: int, mode_machine: int) -> None:
        """Begin to take authority from this pose (17,). If some is left from before, the weight goes on from there."""
        self._message.record["mode_pr"] = mode_pr
        self._message.record["mode_machine"] = mode_machine
        self._engaged = True
        self._farewells = FAREWELLS
        self._target = measured_rad.copy()
        self._velocity = np.zeros(AXES)

    def resume(
        self, target_rad: FloatVector, gravity_nm: FloatVector, weight: float, mode_pr: int, mode_machine: int
    ) -> None:
        """Take over where another sender stopped, only to give its authority back in `idle`."""
        self.engage(target_rad, mode_pr, mode_machine)
        self._gravity = gravity_nm
        self._engaged = False
        self.weight = weight

    def send(self, target_rad: FloatVector, gravity_nm: FloatVector) -> None:
        """Send one target and the torques (17,) in N m that hold the arms against gravity; the weight rises if
        engaged, and else falls. RobotError if it is not finite."""
        if self.silent:
            return
        if not (np.isfinite(target_rad).all() and np.isfinite(gravity_nm).all()):
            raise RobotError(f"the G1's arm target {target_rad} or its torque {gravity_nm} is not finite; not sent")
        raw = np.clip((target_rad - self._target) * self._tick_rate_hz, -self._max_velocity, self._max_velocity)
        self._velocity += self._smoothing * (raw - self._velocity)
        self._target = target_rad.copy()
        self._gravity = gravity_nm
        self.weight = min(self.weight + self._rise, 1.0) if self._engaged else max(self.weight - self._fall, 0.0)
        self._send()

    def release(self) -> None:
        """Begin to give authority back; `idle` (or `send`, while a stop ramp still runs) goes on with it."""
        self._engaged = False

    def idle(self) -> None:
        """Hold the last target while the weight falls; then silent."""
        if not self._engaged:
            self.send(self._target, self._gravity)

    def drop(self) -> None:
        """Give all authority back in one message; `idle` repeats it."""
        self._engaged = False
        if not self.silent:
            self.weight = 0.0
            self._send()

    def _send(self) -> None:
        motor = self._message.motor
        motor["q"][_MOTORS] = self._target
        motor["dq"][_MOTORS] = self._velocity
        motor["tau"][_MOTORS] = self._gravity
        motor["q"][WEIGHT_MOTOR] = self.weight
        if self.weight == 0.0:
            self._farewells -= 1
        self._bus.send_arm_command(self._message.seal())


def _message(config: G1BusConfig) -> LowCommand:
    """What never changes: the motors that are meant, and their gains."""
    message = LowCommand()
    modes = np.zeros(MOTORS, dtype=np.uint8)
    modes[_MOTORS] = 1
    message.modes = modes
    scale = np.array([config.waist_gain_scale if motor in WAIST_MOTORS else 1.0 for motor in ARM_SDK_MOTORS])
    message.motor["kp"][_MOTORS] = config.kp * scale
    message.motor["kd"][_MOTORS] = config.kd * scale
    return message
