"""Cameras that a ROS 2 node drives: sensor_msgs/Image or CompressedImage.

Device time is the header's stamp. Image messages carry no frame number, so the number counts the changes of that
stamp: a node that publishes the same picture again does not count as a new one.
"""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from hardware.cameras.config import Ros2CameraConfig
from hardware.cameras.pictures import check_size, checked_depth, checked_image, not_connected
from robot_stack.core.clock import NS_PER_S, s_to_ns
from robot_stack.core.errors import MissingDependencyError, RobotError, UnreachableError
from robot_stack.core.messages import Array
from robot_stack.core.protocols import Camera, CameraSpec, Frame
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort

COLOR_CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}
COMPRESSED_FORMATS = ("JPEG", "PNG")
_SPIN_S = 0.01


class Ros2Camera(Camera):
    """Watches one colour topic, and one depth topic where there is one."""

    def __init__(self, config: Ros2CameraConfig) -> None:
        self._config = config
        self._latency_ns = s_to_ns(config.latency_s)
        self._spec = CameraSpec(
            name=config.name,
            model="ros2",
            serial=config.topic,
            width=config.width,
            height=config.height,
            rate_hz=config.rate_hz,
            has_depth=bool(config.depth_topic),
        )
        self._link: Ros2Link | None = None
        self._color: Newest[Any] = Newest()
        self._depth: Newest[Any] = Newest()
        self._seen = 0
        self._number = -1
        self._device_time_ns = -1

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    def connect(self) -> None:
        """Subscribe and wait for the first picture, up to `connect_timeout_s`."""
        self.close()
        config = self._config
        image, compressed_image = _message_types()
        link = Ros2Link(
            f"camera_{config.name}",
            config.namespace,
            domain_id=None if config.domain_id < 0 else config.domain_id,
            loopback_only=config.loopback_only,
        )
        link.open()
        qos = newest_best_effort()
        self._color = link.subscribe_newest(compressed_image if config.compressed else image, config.topic, qos)
        if config.depth_topic:
            self._depth = link.subscribe_newest(image, config.depth_topic, qos)
        self._link, self._seen, self._number, self._device_time_ns = link, 0, -1, -1
        try:
            link.wait_for(self._color, config.topic, config.connect_timeout_s)
            if config.depth_topic:
                link.wait_for(self._depth, config.depth_topic, config.connect_timeout_s)
        except UnreachableError as error:
            self.close()
            raise RobotError(f"camera '{config.name}': {error}") from error

    def grab(self, timeout_s: float) -> Frame | None:
        if self._link is None:
            raise not_connected(self._spec)
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._link.spin(min(_SPIN_S, max(0.0, deadline_s - time.monotonic())))
            if self._color.count != self._seen and self._depth_fits():
                return self._frame()
            if time.monotonic() >= deadline_s:
                return None

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None

    def _depth_fits(self) -> bool:
        """Depth of the same moment has arrived: half a period apart at most."""
        if not self._config.depth_topic:
            return True
        if self._depth.message is None or self._color.message is None:
            return False
        apart_ns = abs(_stamp_ns(self._depth.message) - _stamp_ns(self._color.message))
        return apart_ns <= NS_PER_S / self._spec.rate_hz / 2

    def _frame(self) -> Frame:
        message, self._seen = self._color.message, self._color.count
        device_time_ns = _stamp_ns(message)
        self._number += device_time_ns != self._device_time_ns
        self._device_time_ns = device_time_ns
        image = self._decompressed(message) if self._config.compressed else self._picture(message)
        depth = self._depth_of(self._depth.message) if self._config.depth_topic else None
        return Frame(
            stamp_ns=self._color.received_ns - self._latency_ns,
            device_time_ns=device_time_ns,
            number=self._number,
            image=checked_image(self._spec, image),
            depth_mm=depth,
        )

    def _picture(self, message: Any) -> Array:
        channels = COLOR_CHANNELS.get(message.encoding)
        if channels is None:
            raise self._wrong("encoding", message.encoding, ", ".join(COLOR_CHANNELS), self._config.topic)
        pixels = self._rows(message, np.dtype(np.uint8), channels, self._config.topic)
        if message.encoding == "bgr8":
            return pixels[:, :, ::-1]
        return np.repeat(pixels, 3, axis=2) if channels == 1 else pixels

    def _depth_of(self, message: Any) -> NDArray[np.uint16]:
        topic = self._config.depth_topic
        if message.encoding not in ("16UC1", "mono16"):
            raise self._wrong("encoding", message.encoding, "16UC1", topic)
        order = np.dtype(np.uint16).newbyteorder(">" if message.is_bigendian else "<")
        return checked_depth(self._spec, self._rows(message, order, 1, topic)[:, :, 0].astype(np.uint16))

    def _rows(self, message: Any, dtype: np.dtype[Any], channels: int, topic: str) -> Array:
        """The pixels (height, width, channels); rows may be padded."""
        check_size(self._spec, message.width, message.height)
        row_bytes = message.width * channels * dtype.itemsize
        data = np.frombuffer(message.data, dtype=np.uint8)
        if message.step < row_bytes or data.size != message.step * message.height:
            wanted = f"{row_bytes} bytes a row and {row_bytes * message.height} in all"
            raise self._wrong("data", f"{message.step} bytes a row and {data.size} in all", wanted, topic)
        rows = np.ascontiguousarray(data.reshape(message.height, message.step)[:, :row_bytes])
        return rows.view(dtype).reshape(message.height, message.width, channels)

    def _decompressed(self, message: Any) -> Array:
        try:
            with PillowImage.open(io.BytesIO(bytes(message.data)), formats=COMPRESSED_FORMATS) as picture:
                check_size(self._spec, *picture.size)  # before anything is decoded
                return np.array(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            found = f"'{message.format}' that cannot be read ({error})"
            raise self._wrong("compressed picture", found, "jpeg or png, 8 bit", self._config.topic) from error

    def _wrong(self, what: str, found: str, expected: str, topic: str) -> RobotError:
        return RobotError(
            f"camera '{self._spec.name}': the {what} on the ROS 2 topic '{topic}' is {found}, expected {expected}; set "
            "the topic, or the format that its node publishes"
        )


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * NS_PER_S + int(message.header.stamp.nanosec)


def _message_types() -> tuple[Any, Any]:
    try:
        from sensor_msgs.msg import CompressedImage, Image
    except ImportError as error:
        raise MissingDependencyError("ros-sensor-msgs", "ros", "pictures from ROS 2") from error
    return Image, CompressedImage
