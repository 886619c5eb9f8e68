"""A leader arm: a small passive arm of Dynamixel servos that a person moves by hand, in the manner of GELLO.

Only read: nothing is ever written to a servo, so the arm stays limp. One sync read (protocol 2.0) per sample takes the
present positions of all servos.
"""

from __future__ import annotations

import math
import time
from typing import Any

from robot_stack.core.errors import DeviceError, MissingDependencyError
from robot_stack.core.teleop_device import DeviceReading, TeleopDevice
from robot_stack.teleop.devices.settings import LeaderArmSettings

PRESENT_POSITION, POSITION_BYTES = 132, 4
RAD_PER_TICK = 2 * math.pi / 4096
PROTOCOL = 2.0
MAX_FAILURES = 3
READ_BLOCKS_S = 0.002


class LeaderArm(TeleopDevice):
    """Joint angles and, if it has a trigger, the hand.

    Without a dead man's switch of its own: the page's switch is held to drive with it.
    """

    def __init__(self, settings: LeaderArmSettings) -> None:
        self._settings = settings
        self._ids = [joint.id for joint in settings.joints] + ([settings.hand.id] if settings.hand else [])
        self._port: Any = None
        self._positions: Any = None
        self._failures = 0
        self._next_s = 0.0

    @property
    def name(self) -> str:
        return self._settings.name

    def open(self) -> None:
        try:
            import dynamixel_sdk
        except ImportError as error:
            raise MissingDependencyError("dynamixel-sdk", "devices", "a leader arm") from error
        port, packets = dynamixel_sdk.PortHandler(self._settings.port), dynamixel_sdk.PacketHandler(PROTOCOL)
        try:
            if not port.setBaudRate(self._settings.baud_rate):
                raise DeviceError(
                    f"leader arm '{self.name}': {self._settings.baud_rate} is no baud rate of these servos"
                )
            port.ser.timeout = READ_BLOCKS_S  # the SDK would spin while it waits for an answer
            self._port = port
            self._check_servos(packets)
        except OSError as error:  # pyserial's is one
            raise DeviceError(
                f"leader arm '{self.name}': {self._settings.port} cannot be opened: {error}. Plug it in, and let this "
                "user into the group 'dialout'"
            ) from error
        self._positions = dynamixel_sdk.GroupSyncRead(port, packets, PRESENT_POSITION, POSITION_BYTES)
        for servo in self._ids:
            self._positions.addParam(servo)
        self._failures = 0

    def _check_servos(self, packets: Any) -> None:
        silent = [servo for servo in self._ids if packets.ping(self._port, servo)[1] != 0]
        if silent:
            raise DeviceError(
                f"leader arm '{self.name}': no answer from servo {', '.join(map(str, silent))} at "
                f"{self._settings.port}, {self._settings.baud_rate} baud; check its power, its cable and its id"
            )

    def close(self) -> None:
        port, self._port, self._positions = self._port, None, None
        if port is not None and port.ser is not None:
            port.closePort()

    def read(self, timeout_s: float) -> DeviceReading | None:
        if self._positions is None:
            raise DeviceError(f"the leader arm '{self.name}' is not open")
        time.sleep(max(0.0, min(timeout_s, self._next_s - time.monotonic())))
        self._next_s = time.monotonic() + 1.0 / self._settings.rate_hz
        try:
            answer = self._positions.txRxPacket()
        except (OSError, TypeError) as error:  # pyserial raises the latter when the port dies under it
            raise DeviceError(f"leader arm '{self.name}': {self._settings.port} is gone: {error}") from error
        if answer != 0:
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise DeviceError(
                    f"leader arm '{self.name}': the servos at {self._settings.port} do not answer (SDK code {answer}); "
                    "check power and cables"
                )
            return None
        self._failures = 0
        return self._reading()

    def _reading(self) -> DeviceReading:
        settings, hand = self._settings, None
        if settings.hand is not None:
            span = settings.hand.open_rad - settings.hand.closed_rad
            hand = (self._angle_rad(settings.hand.id) - settings.hand.closed_rad) / span
            hand = max(0.0, min(1.0, hand))
        joints = {one.name: one.sign * (self._angle_rad(one.id) - one.zero_rad) for one in settings.joints}
        return DeviceReading(stamp_ns=time.monotonic_ns(), joints=joints, hand=hand)

    def _angle_rad(self, servo: int) -> float:
        ticks = int(self._positions.getData(servo, PRESENT_POSITION, POSITION_BYTES))
        return RAD_PER_TICK * (ticks - 2**32 if ticks >= 2**31 else ticks)
