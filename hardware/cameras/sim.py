"""A camera of a simulated robot: pictures of a function, at a fixed rate, with a clock and a counter of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from hardware.cameras.config import SimulatedCameraConfig
from hardware.cameras.pictures import checked_image, not_connected
from robot_stack.core.clock import NS_PER_S, s_to_ns
from robot_stack.core.errors import RobotError, RobotStackError
from robot_stack.core.messages import Array
from robot_stack.core.protocols import Camera, CameraSpec, Frame


def simulated_spec(config: SimulatedCameraConfig) -> CameraSpec:
    return CameraSpec(
        name=config.name,
        model="simulated",
        serial=config.name,
        width=config.width,
        height=config.height,
        rate_hz=config.rate_hz,
    )


class SimulatedCamera(Camera):
    """Takes a picture from `source` on a fixed grid of times. The device's clock begins at `connect`.

    Args:
        spec: of the camera.
        source: gives an RGB picture uint8 (height, width, 3), for example a robot's `render`; RobotStackError if it
            has none.
        latency_s: taken off the stamp, as from a real camera's.
    """

    def __init__(self, spec: CameraSpec, source: Callable[[], Array], latency_s: float = 0.0) -> None:
        self._spec = spec
        self._source = source
        self._latency_ns = s_to_ns(latency_s)
        self._period_ns = s_to_ns(1.0 / spec.rate_hz)
        self._began_ns = 0
        self._number = -1

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    def connect(self) -> None:
        """Take one picture to see that there is a source of the right size."""
        self._picture()
        self._began_ns = time.monotonic_ns()
        self._number = 0

    def grab(self, timeout_s: float) -> Frame | None:
        if self._number < 0:
            raise not_connected(self._spec)
        now_ns = time.monotonic_ns()
        due_ns = self._began_ns + (self._number + 1) * self._period_ns
        wait_ns = min(due_ns - now_ns, s_to_ns(timeout_s))
        if wait_ns > 0:
            time.sleep(wait_ns / NS_PER_S)
        if time.monotonic_ns() < due_ns:
            return None
        stamp_ns = time.monotonic_ns()
        # pictures that were not asked for are lost, as in a real camera: the number counts them
        self._number = (stamp_ns - self._began_ns) // self._period_ns
        return Frame(
            stamp_ns=stamp_ns - self._latency_ns,
            device_time_ns=stamp_ns - self._began_ns,
            number=self._number,
            image=self._picture(),
        )

    def close(self) -> None:
        self._number = -1

    def _picture(self) -> Array:
        try:
            image = self._source()
        except RobotStackError as error:
            raise RobotError(f"camera '{self._spec.name}' (simulated) has no picture: {error}") from error
        return checked_image(self._spec, image)
