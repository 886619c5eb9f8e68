"""Webcams and video files through OpenCV.

Number and device time: of a file the position in it; of a device the time that the kernel's driver stamped on the
buffer, and a count of its changes. A device whose back-end stamps nothing is refused: nobody could tell its frozen
picture from a scene that stands still.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hardware.cameras.config import UvcConfig
from hardware.cameras.pictures import check_size, checked_image, not_connected
from robot_stack.core.clock import NS_PER_S, s_to_ns
from robot_stack.core.errors import MissingDependencyError, RobotError
from robot_stack.core.protocols import Camera, CameraSpec, Frame

_STAMP_TRIES = 10


def _require_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python", "realsense", "webcams and video files") from error
    return cv2


class UvcCamera(Camera):
    """One device or one file; a file is played at `rate_hz`, whatever rate it was recorded with."""

    def __init__(self, config: UvcConfig) -> None:
        self._config = config
        self._is_file = False
        self._spec = CameraSpec(
            name=config.name,
            model="uvc",
            serial=config.device,
            width=config.width,
            height=config.height,
            rate_hz=config.rate_hz,
        )
        self._cv2: Any = None
        self._capture: Any = None
        self._number = -1
        self._device_time_ns = -1
        self._due_ns = 0

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    def connect(self) -> None:
        """Open the device and check its size and, of a device, its rate and that it stamps its pictures."""
        self.close()
        self._cv2 = _require_cv2()
        device = self._config.device
        self._is_file = Path(device).is_file()
        if not self._is_file and not Path(f"/dev/video{device}" if device.isdigit() else device).exists():
            found = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
            raise RobotError(
                f"camera '{self._spec.name}': there is no device or video file '{device}'; video devices here: {found}"
                ". Plug it in, or set `device`"
            )
        try:
            self._open(device)
        except RobotError:
            self.close()
            raise

    def grab(self, timeout_s: float) -> Frame | None:
        if self._capture is None:
            raise not_connected(self._spec)
        return self._grab_file(timeout_s) if self._is_file else self._grab_device(timeout_s)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = None

    def _open(self, device: str) -> None:
        cv2, spec = self._cv2, self._spec
        if self._is_file:
            self._capture = cv2.VideoCapture(device)
        else:
            self._capture = cv2.VideoCapture(int(device) if device.isdigit() else device, cv2.CAP_V4L2)
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, spec.width)
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, spec.height)
            self._capture.set(cv2.CAP_PROP_FPS, spec.rate_hz)
        if not self._capture.isOpened():
            raise RobotError(
                f"camera '{spec.name}': '{device}' cannot be opened; is it in use by another program, or no video?"
            )
        check_size(
            spec,
            int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        self._number = self._device_time_ns = -1
        self._due_ns = time.monotonic_ns()
        if not self._is_file:
            self._check_device()

    def _check_device(self) -> None:
        rate_hz = self._capture.get(self._cv2.CAP_PROP_FPS)
        if abs(rate_hz - self._spec.rate_hz) > 0.5:
            raise RobotError(
                f"camera '{self._spec.name}' runs at {rate_hz:g} Hz, expected {self._spec.rate_hz:g} Hz; set rate_hz "
                "to a rate that it has at this size"
            )
        period_s = 1.0 / self._spec.rate_hz
        if not any(self._grab_device(4.0 * period_s) is not None for _ in range(_STAMP_TRIES)):
            raise RobotError(
                f"camera '{self._spec.name}' ('{self._config.device}') delivers no pictures with a time stamp; a "
                "frozen picture could not be told from a still scene. Use a V4L2 device"
            )

    def _grab_file(self, timeout_s: float) -> Frame | None:
        wait_ns = min(self._due_ns - time.monotonic_ns(), s_to_ns(timeout_s))
        if wait_ns > 0:
            time.sleep(wait_ns / NS_PER_S)
        if time.monotonic_ns() < self._due_ns:
            return None
        stamp_ns = time.monotonic_ns()
        good, pixels = self._capture.read()
        if not good:
            pixels = self._again()
        self._number += 1
        period_ns = s_to_ns(1.0 / self._spec.rate_hz)
        self._due_ns = max(self._due_ns + period_ns, stamp_ns)
        return self._frame(pixels, stamp_ns, self._number * period_ns)

    def _again(self) -> Any:
        """The first picture of the file once more."""
        if not self._config.loop or self._number < 0:
            raise RobotError(
                f"camera '{self._spec.name}': the video file {self._config.device} has ended after {self._number + 1} "
                "pictures; set loop=true to play it again and again"
            )
        self._capture.release()
        self._capture = self._cv2.VideoCapture(self._config.device)
        good, pixels = self._capture.read()
        if not good:
            raise RobotError(f"camera '{self._spec.name}': the video file {self._config.device} cannot be read again")
        return pixels

    def _grab_device(self, timeout_s: float) -> Frame | None:
        # 0 would mean to wait without end
        try:
            ready, _ = self._cv2.VideoCapture.waitAny([self._capture], timeoutNs=max(1, s_to_ns(timeout_s)))
        except self._cv2.error as error:
            where = f"camera '{self._spec.name}' ('{self._config.device}')"
            raise RobotError(f"{where}: {error}; was it unplugged?") from error
        if not ready:
            return None
        stamp_ns = time.monotonic_ns()
        device_time_ns = round(self._capture.get(self._cv2.CAP_PROP_POS_MSEC) * 1e6)
        good, pixels = self._capture.retrieve()
        if not good or device_time_ns <= 0:
            return None
        self._number += device_time_ns != self._device_time_ns
        self._device_time_ns = device_time_ns
        return self._frame(pixels, stamp_ns, device_time_ns)

    def _frame(self, pixels: Any, stamp_ns: int, device_time_ns: int) -> Frame:
        image = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
        return Frame(
            stamp_ns=stamp_ns - s_to_ns(self._config.latency_s),
            device_time_ns=device_time_ns,
            number=self._number,
            image=checked_image(self._spec, image),
        )
