"""Counterparts of input devices: a bus of Dynamixel servos that speaks protocol 2.0 byte by byte over a serial port (a
pseudo-terminal), the HID reports of a SpaceMouse, and a device that the test holds in its hand."""

from __future__ import annotations

import os
import pty
import select
import threading
import time
import tty
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robot_stack.core.errors import DeviceError
from robot_stack.core.teleop_device import DeviceReading, TeleopDevice
from robot_stack.teleop.devices.settings import SpaceMouseSettings

HEADER = b"\xff\xff\xfd\x00"
PING, SYNC_READ, STATUS = 0x01, 0x82, 0x55
PRESENT_POSITION = 132


def crc16(data: bytes) -> int:
    """CRC-16 of protocol 2.0: polynomial 0x8005, most significant bit first, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def packet(servo: int, instruction: int, parameters: bytes) -> bytes:
    """With the stuffing that keeps headers out of its parameters."""
    body = bytes([instruction]) + parameters
    body = body[:1] + body[1:].replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    head = HEADER + bytes([servo]) + (len(body) + 2).to_bytes(2, "little")
    return head + body + crc16(head + body).to_bytes(2, "little")


class DynamixelBus:
    """Servos behind one serial port, at `path`. `ticks`: by their ids.

    `corrupt` answers have a wrong checksum; `mute` servos say nothing. `unplug` and `plug` are the USB cable.
    """

    def __init__(self, path: Path, ticks: dict[int, int]) -> None:
        self.path, self.ticks = path, ticks
        self.corrupt, self.mute = False, set[int]()
        self.asked: list[int] = []
        self._master = -1
        self._thread: threading.Thread | None = None

    def plug(self) -> DynamixelBus:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(slave))
        self._thread = threading.Thread(target=self._answer, args=(self._master, slave), daemon=True)
        self._thread.start()
        return self

    def unplug(self) -> None:
        master, self._master = self._master, -1
        self.path.unlink(missing_ok=True)
        if self._thread is not None:
            self._thread.join(5.0)
        if master >= 0:
            os.close(master)

    def __enter__(self) -> DynamixelBus:
        return self.plug()

    def __exit__(self, *error: object) -> None:
        self.unplug()

    def _answer(self, master: int, slave: int) -> None:
        waiting = b""
        while self._master == master:
            if not select.select([master], [], [], 0.01)[0]:
                continue
            waiting += os.read(master, 4096)
            while (end := self._whole(waiting)) is not None:
                self._take(waiting[:end])
                waiting = waiting[end:]
        os.close(slave)

    @staticmethod
    def _whole(data: bytes) -> int | None:
        if len(data) < 7:
            return None
        end = 7 + int.from_bytes(data[5:7], "little")
        return end if len(data) >= end else None

    def _take(self, message: bytes) -> None:
        assert message.startswith(HEADER), message
        assert crc16(message[:-2]) == int.from_bytes(message[-2:], "little"), message
        servo, instruction, parameters = message[4], message[7], message[8:-2]
        self.asked.append(instruction)
        if instruction == PING and servo in self.ticks:
            self._say(servo, b"\x1e\x04\x34")  # an XL330
        elif instruction == SYNC_READ:
            assert parameters[:4] == bytes([PRESENT_POSITION, 0, 4, 0]), parameters
            for one in parameters[4:]:
                self._say(one, (self.ticks[one] % 2**32).to_bytes(4, "little"))

    def _say(self, servo: int, parameters: bytes) -> None:
        if servo in self.mute:
            return
        answer = packet(servo, STATUS, b"\x00" + parameters)
        if self._master >= 0:
            os.write(self._master, answer[:-1] + bytes([answer[-1] ^ 0xFF]) if self.corrupt else answer)


class HidMouse:
    """What hidapi gives of a SpaceMouse: its reports, byte for byte, and an error when it is unplugged."""

    product_string, manufacturer_string, release_number, serial_number = "SpaceMouse Compact", "3Dconnexion", 1, ""

    def __init__(self) -> None:
        self.reports: deque[bytes] = deque()
        self.plugged, self.closed = True, 0

    def says(self, *axes: int) -> None:
        """x, y, z, pitch, roll, yaw as the device counts them, -350 to 350."""
        for channel, part in ((1, axes[:3]), (2, axes[3:])):
            raw = b"".join(value.to_bytes(2, "little", signed=True) for value in part)
            if raw:
                self.reports.append(bytes([channel]) + raw)

    def presses(self, buttons: int) -> None:
        self.reports.append(bytes([3, buttons]) + bytes(5))

    def open(self) -> None: ...

    def close(self) -> None:
        self.closed += 1

    def set_nonblocking(self, on: bool) -> None: ...

    def read(self, size: int) -> bytearray:
        if not self.plugged:
            raise OSError("Failed to read from HID device: -1")
        return bytearray(self.reports.popleft()[:size]) if self.reports else bytearray()

    def opened_as(self, settings: SpaceMouseSettings, axes_came: Callable[[object], None]) -> Any:
        """The real pyspacemouse on top of these reports."""
        import pyspacemouse
        from pyspacemouse.loader import get_device_specs
        from pyspacemouse.types import AxisConvention

        if not self.plugged:
            raise DeviceError("there is no SpaceMouse")
        spec = pyspacemouse.apply_axis_convention(get_device_specs()["SpaceMouseCompact"], AxisConvention.ROS)
        mouse = pyspacemouse.SpaceMouseDevice(info=spec, device=self)  # type: ignore[arg-type]
        mouse.configure(dof_callback=axes_came)
        mouse.open()
        return mouse


class HeldDevice(TeleopDevice):
    """A device in the test's hand: what `now` says is its newest reading, ten times in `max_age_s`, as long as it is
    plugged in and does not hang."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.now: dict[str, Any] | None = None
        self.plugged, self.hangs, self.silent = True, False, False
        self.opens = self.closes = 0

    @property
    def name(self) -> str:
        return self._name

    def open(self) -> None:
        if not self.plugged:
            raise DeviceError(f"'{self._name}' is not plugged in")
        self.opens += 1

    def read(self, timeout_s: float) -> DeviceReading | None:
        time.sleep(0.01)
        while self.hangs:
            time.sleep(0.01)
        if not self.plugged:
            raise DeviceError(f"'{self._name}' was unplugged")
        if self.now is None or self.silent:
            return None
        return DeviceReading(stamp_ns=time.monotonic_ns(), **self.now)

    def close(self) -> None:
        self.closes += 1
