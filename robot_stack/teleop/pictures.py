"""Pictures on their way to browsers: encoded once, the newest only, and no more than a page has acknowledged.

A binary frame, little-endian:  'RSP1'  u8 length of robot  u8 length of camera  u16 0  u32 number
f64 capture time in us of the teleop server's clock  robot  camera  JPEG
"""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from robot_stack.core.errors import MessageError

HEADER = struct.Struct("<4sBBHId")
MAGIC = b"RSP1"
IN_FLIGHT = 2
WANTED_S = 2.0


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture. `stamp_ns`: capture, on the teleop server's monotonic clock; `data`: the whole frame."""

    number: int
    stamp_ns: int
    data: bytes


def encode_picture(
    robot: str, camera: str, number: int, stamp_ns: int, image: NDArray[np.uint8], quality: int
) -> Picture:
    """Encode an RGB image (height, width, 3) uint8; MessageError if it is none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise MessageError(
            f"camera '{camera}' gave {image.dtype}{list(image.shape)}; shown is uint8 (height, width, 3)"
        )
    jpeg = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    names = robot.encode(), camera.encode()
    header = HEADER.pack(MAGIC, len(names[0]), len(names[1]), 0, number & 0xFFFFFFFF, stamp_ns / 1e3)
    return Picture(number, stamp_ns, b"".join((header, *names, jpeg)))


class PictureBox:
    """The newest picture of one camera, and what is wrong with it. One thread puts, any thread looks."""

    def __init__(self, robot: str, camera: str, quality: int) -> None:
        self.robot, self.camera, self._quality = robot, camera, quality
        self._lock = threading.Lock()
        self._newest: Picture | None = None
        self._count = 0
        self._looked_s = -WANTED_S
        self.problem = "no picture yet"

    def put(self, image: NDArray[np.uint8], stamp_ns: int) -> None:
        """Encode and keep; MessageError if it is no picture."""
        picture = encode_picture(self.robot, self.camera, self._count + 1, stamp_ns, image, self._quality)
        with self._lock:
            self._count += 1
            self._newest, self.problem = picture, ""

    @property
    def newest(self) -> Picture | None:
        self._looked_s = time.monotonic()
        with self._lock:
            return self._newest

    @property
    def wanted(self) -> bool:
        """Whether anybody looked a moment ago: pictures for nobody are not worth rendering."""
        return time.monotonic() - self._looked_s < WANTED_S


class Flow:
    """What a page may be sent of one series: nothing old, and never more than it can take."""

    def __init__(self, in_flight: int = IN_FLIGHT) -> None:
        self._most = in_flight
        self._newest = 0
        self._open: list[int] = []

    def admits(self, number: int) -> bool:
        """Whether to send this now; if so it counts as sent. False: it is nothing new, or the page is behind."""
        if number <= self._newest or len(self._open) >= self._most:
            return False
        self._newest = number
        self._open.append(number)
        return True

    def taken(self, number: int) -> None:
        """The page acknowledges `number`, and with it whatever was sent before."""
        self._open = [sent for sent in self._open if sent > number]
