"""A bridge that publishes `DeviceReading`, encrypted: VR headsets, and whatever has a program of its own."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from msgspec.structs import replace

from robot_stack.core.errors import DeviceError
from robot_stack.core.teleop_device import DeviceReading, TeleopDevice
from robot_stack.teleop.devices.settings import ZeroMqSettings
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Subscriber

DELAYS = 1000


class BridgeClock:
    """A bridge's clock runs from another origin: the quickest of the newest readings tells the distance, and what took
    longer than that is so much older. A delay that all of them have is not seen."""

    def __init__(self) -> None:
        self._delays_ns: deque[int] = deque(maxlen=DELAYS)
        self._last_ns = 0

    def to_local_ns(self, stamp_ns: int, came_ns: int) -> int:
        if stamp_ns < self._last_ns:  # the bridge was started again
            self._delays_ns.clear()
        self._last_ns = stamp_ns
        self._delays_ns.append(came_ns - stamp_ns)
        return stamp_ns + min(self._delays_ns)


class ZeroMqDevice(TeleopDevice):
    """Readings of one bridge, with their stamps on this host's clock."""

    def __init__(self, settings: ZeroMqSettings) -> None:
        self._settings = settings
        self._stream: Subscriber[DeviceReading] | None = None
        self._clock = BridgeClock()

    @property
    def name(self) -> str:
        return self._settings.name

    def open(self) -> None:
        settings = self._settings
        stream: Subscriber[DeviceReading] = Subscriber(
            SERVICES["teleop.device"],
            settings.address,
            KeyStore(Path(settings.keys_directory)),
            settings.key,
            settings.server_key,
            DeviceReading,
        )
        self._stream, self._clock = stream.__enter__(), BridgeClock()

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.__exit__(None, None, None)

    def read(self, timeout_s: float) -> DeviceReading | None:
        if self._stream is None:
            raise DeviceError(f"the bridge of '{self.name}' is not connected")
        reading = self._stream.newest(timeout_s)
        if reading is None:
            return None
        return replace(reading, stamp_ns=self._clock.to_local_ns(reading.stamp_ns, time.monotonic_ns()))
