"""The way from the teleop server to one input device: a thread that opens it, reads it, and comes back after errors.

Whoever asks sees the newest reading, or that there is none: a device that is gone has said nothing. Nothing waits for a
device: one that hangs gets too old.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from msgspec import Struct

from robot_stack.core.errors import DeviceError
from robot_stack.core.teleop_device import DeviceReading, PlayedDevice, TeleopDevice, wrong_with
from robot_stack.teleop.threads import LinkThread

READ_S = 0.02
FUTURE_NS = 1_000_000
NOT_OPEN = "not opened yet"

Changed = Callable[[], None]
"""Called in the device's thread: there is a new reading, or the device is gone."""


class Look(Struct, frozen=True, kw_only=True):
    """What is known of a device at one moment.

    Attributes:
        reading: the newest since it was opened; None before the first, and when it is gone.
        opened_ns: when it was opened. problem: why it is gone, in words, or ''.
        begun: how often it was begun (`DeviceLink.begin`).
    """

    reading: DeviceReading | None = None
    opened_ns: int = 0
    problem: str = NOT_OPEN
    begun: int = 0


class DeviceLink(LinkThread):
    """One input device, from entered to left. `look` is whole at any moment, whichever thread asks."""

    def __init__(self, device: TeleopDevice) -> None:
        super().__init__(f"device {device.name}")
        self._device = device
        self._changed: tuple[Changed, ...] = ()
        self._asked = 0
        self._wanted = threading.Event()
        self.look = Look()

    @property
    def name(self) -> str:
        return self._device.name

    def listen(self, changed: Changed) -> None:
        """Call this at every change from now on; before the link is entered."""
        self._changed = (*self._changed, changed)

    def begin(self) -> int:
        """A person has chosen the device: only a `Look` whose `begun` is the returned number, or larger, counts."""
        self._asked += 1
        self._wanted.set()
        return self._asked

    def _serve(self) -> None:
        try:
            self._device.open()
            self.problem = ""
            self._see(Look(opened_ns=time.monotonic_ns(), problem="", begun=self._asked))
            while not self._end.is_set():
                if self._wanted.is_set():
                    self._begin()
                self._read()
        except BaseException as error:
            words = str(error) or type(error).__name__
            self._see(Look(problem=words, begun=self._asked))  # before anything that may take its time
            raise
        finally:
            self._device.close()
        self._see(Look(begun=self._asked))

    def _begin(self) -> None:
        self._wanted.clear()
        asked = self._asked
        if isinstance(self._device, PlayedDevice):
            self._device.begin()
        self._see(Look(opened_ns=self.look.opened_ns, problem="", begun=asked))

    def _read(self) -> None:
        reading = self._device.read(READ_S)
        if reading is None:
            return
        wrong = wrong_with(reading)
        if wrong:
            raise DeviceError(f"'{self.name}' says what cannot be: {wrong}")
        now_ns = time.monotonic_ns()
        if reading.stamp_ns > now_ns + FUTURE_NS:
            raise DeviceError(f"'{self.name}' has read {(reading.stamp_ns - now_ns) / 1e6:.0f} ms ahead of time")
        self._see(Look(reading=reading, opened_ns=self.look.opened_ns, problem="", begun=self.look.begun))

    def _see(self, look: Look) -> None:
        self.look = look
        for changed in self._changed:
            changed()
