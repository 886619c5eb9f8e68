"""Logs of input devices: written beside a device that is used, and played as a device, so that a session can be a test.

A log is JSON lines, one `DeviceReading` each, whose `stamp_ns` counts from the first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec
from msgspec.structs import replace

from robot_stack.core.errors import DeviceError, StorageError
from robot_stack.core.teleop_device import DeviceReading, PlayedDevice, TeleopDevice, wrong_with

logger = logging.getLogger(__name__)


class LogWriter:
    """Writes a log, from entered to left; what was there before is kept under `<path>.1`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._first_ns: int | None = None

    def __enter__(self) -> LogWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("wb", buffering=0)
        except OSError as error:
            raise StorageError(f"the device log {self._path} cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, reading: DeviceReading) -> None:
        """StorageError if it cannot be written; the log then ends here."""
        if self._file is None:
            raise StorageError(f"the device log {self._path} is not open")
        if self._first_ns is None:
            self._first_ns = reading.stamp_ns
        line = msgspec.json.encode(replace(reading, stamp_ns=reading.stamp_ns - self._first_ns)) + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            self._file.close()
            self._file = None
            raise StorageError(f"the device log {self._path} cannot be written: {error.strerror}") from error


def read_log(path: Path) -> list[DeviceReading]:
    """DeviceError says which line is wrong."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DeviceError(f"the device log {path} cannot be read: {error.strerror}") from error
    decoder, readings = msgspec.json.Decoder(DeviceReading), list[DeviceReading]()
    for number, line in enumerate(lines, 1):
        try:
            reading = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DeviceError(f"line {number} of the device log {path} is no reading: {error}") from error
        late = bool(readings) and reading.stamp_ns < readings[-1].stamp_ns
        wrong = "it is older than the line before" if late else wrong_with(reading)
        if wrong:
            raise DeviceError(f"line {number} of the device log {path} is wrong: {wrong}")
        readings.append(reading)
    if not readings:
        raise DeviceError(f"the device log {path} is empty; record one with the setting 'record' of a device")
    return readings


class ReplayDevice(PlayedDevice):
    """Plays a log once from `begin`; before and after it nothing is held.

    Every reading is returned once, in its order, and its stamp says when it was due: what a busy host reads late is as
    old as it is.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name, self._path, self._now_ns, self._sleep = name, path, now_ns, sleep
        self._log: list[DeviceReading] = []
        self._next = 0
        self._begun_ns: int | None = None

    @property
    def name(self) -> str:
        return self._name

    def open(self) -> None:
        self._log = read_log(self._path)
        self._next, self._begun_ns = 0, None

    def begin(self) -> None:
        self._next, self._begun_ns = 0, self._now_ns()

    def close(self) -> None:
        self._log, self._begun_ns = [], None

    @property
    def over(self) -> bool:
        """All of it was played."""
        return self._begun_ns is not None and self._next >= len(self._log)

    def read(self, timeout_s: float) -> DeviceReading | None:
        if self._begun_ns is None or self._next >= len(self._log):
            self._sleep(timeout_s)
            return None
        reading = self._log[self._next]
        due_ns = self._begun_ns + reading.stamp_ns - self._log[0].stamp_ns
        wait_s = (due_ns - self._now_ns()) / 1e9
        if wait_s > timeout_s:
            self._sleep(timeout_s)
            return None
        if wait_s > 0.0:
            self._sleep(wait_s)
        self._next += 1
        return replace(reading, stamp_ns=due_ns)


class RecordedDevice(TeleopDevice):
    """A device, and a log of what it says. The log never stands in the way of the device."""

    def __init__(self, device: TeleopDevice, path: Path) -> None:
        self._device, self._path = device, path
        self._log: LogWriter | None = None

    @property
    def name(self) -> str:
        return self._device.name

    def open(self) -> None:
        self._device.open()
        if self._log is None:
            try:
                self._log = LogWriter(self._path).__enter__()
            except StorageError as error:
                logger.error("%s: nothing is recorded: %s", self.name, error)

    def close(self) -> None:
        self._device.close()

    def read(self, timeout_s: float) -> DeviceReading | None:
        reading = self._device.read(timeout_s)
        if reading is not None and self._log is not None:
            try:
                self._log.write(reading)
            except StorageError as error:
                logger.error("%s: the recording ends: %s", self.name, error)
                self._log = None
        return reading
