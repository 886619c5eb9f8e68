"""Pictures from a real ROS 2 node: encodings, padding, compression, depth, and what is refused."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

from hardware.cameras.config import Ros2CameraConfig
from hardware.cameras.ros2 import Ros2Camera
from robot_stack.core.errors import RobotError
from robot_stack.core.protocols import Frame
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable
from tests.camera_kit import DOMAIN, HEIGHT, NAMESPACE, SIZE, WIDTH, image_message

STAMP_NS = 1_700_000_000_123_456_789
WAIT_S = 10.0


@pytest.fixture
def node() -> Iterator[Any]:
    with Ros2Link("driver", NAMESPACE + "/unit", domain_id=DOMAIN) as link:
        yield link.node


class Published:
    """Publishes the same messages again and again; the stamp of the colour message advances unless told not to."""

    def __init__(self, node: Any, color: Any, depth: Image | None = None) -> None:
        self._messages = [(node.create_publisher(type(color), "color", newest_reliable()), color)]
        if depth is not None:
            self._messages.append((node.create_publisher(Image, "depth", newest_reliable()), depth))

    def send(self, stamp_ns: int) -> None:
        for publisher, message in self._messages:
            message.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
            publisher.publish(message)


def opened(published: Published, **settings: Any) -> Ros2Camera:
    """A connected camera; pictures with stamps before STAMP_NS are sent meanwhile."""
    camera = Ros2Camera(
        Ros2CameraConfig(
            name="front",
            topic="color",
            namespace=NAMESPACE + "/unit",
            domain_id=DOMAIN,
            connect_timeout_s=0.3,
            **(SIZE | settings),
        )
    )
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            published.send(STAMP_NS - 10**9)
            _while_connecting(camera, lambda: published.send(STAMP_NS - 10**9))
            return camera
        except RobotError as error:
            if "nothing arrived" not in str(error) or time.monotonic() > deadline_s:
                raise


def _while_connecting(camera: Ros2Camera, send: Callable[[], None]) -> None:
    import threading

    done = threading.Event()

    def run() -> None:
        while not done.wait(0.02):
            send()

    sender = threading.Thread(target=run)
    sender.start()
    try:
        camera.connect()
    finally:
        done.set()
        sender.join()


def grab(camera: Ros2Camera, published: Published, stamp_ns: int = STAMP_NS) -> Frame:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        published.send(stamp_ns)
        frame = camera.grab(0.2)
        if frame is not None and frame.device_time_ns == stamp_ns:
            return frame
    raise AssertionError("nothing arrived")


def gradient() -> np.ndarray:
    """Every pixel and channel tells where it belongs."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows * 5, columns * 3, 255 - columns], axis=2).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 13])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8"])
def test_every_encoding_arrives_as_rgb_pixel_by_pixel(node: Any, encoding: str, padding: int) -> None:
    pixels = gradient()
    sent = {"rgb8": pixels, "bgr8": pixels[:, :, ::-1], "mono8": pixels[:, :, 0]}[encoding]
    wanted = np.repeat(pixels[:, :, :1], 3, axis=2) if encoding == "mono8" else pixels
    published = Published(node, image_message(sent, encoding, STAMP_NS, padding))
    camera = opened(published)
    try:
        np.testing.assert_array_equal(grab(camera, published).image, wanted)
    finally:
        camera.close()


@pytest.mark.parametrize(("form", "tolerance"), [("png", 0), ("jpeg", 40)])
def test_compressed_pictures_arrive_as_rgb(node: Any, form: str, tolerance: int) -> None:
    blob = io.BytesIO()
    PillowImage.fromarray(gradient()).save(blob, form)
    published = Published(node, CompressedImage(format=f"rgb8; {form} compressed bgr8", data=blob.getvalue()))
    camera = opened(published, compressed=True)
    try:
        image = grab(camera, published).image
        assert np.abs(image.astype(int) - gradient()).max() <= tolerance
    finally:
        camera.close()


def test_the_number_counts_changes_of_the_stamp(node: Any) -> None:
    published = Published(node, image_message(gradient(), "rgb8", STAMP_NS))
    camera = opened(published)
    try:
        first = grab(camera, published, STAMP_NS)
        again = grab(camera, published, STAMP_NS)
        later = grab(camera, published, STAMP_NS + 33_000_000)
        assert first.number == again.number
        assert later.number == first.number + 1
        assert (first.device_time_ns, later.device_time_ns) == (STAMP_NS, STAMP_NS + 33_000_000)
        assert first.stamp_ns < later.stamp_ns < time.monotonic_ns()
    finally:
        camera.close()


def test_the_latency_is_taken_off_the_stamp(node: Any) -> None:
    published = Published(node, image_message(gradient(), "rgb8", STAMP_NS))
    camera = opened(published, latency_s=3.0)
    try:
        before_ns = time.monotonic_ns()
        assert -3.1e9 < grab(camera, published).stamp_ns - before_ns < -3e9 + WAIT_S * 1e9
        assert grab(camera, published).stamp_ns < time.monotonic_ns() - 3 * 10**9
    finally:
        camera.close()


@pytest.mark.parametrize("big_endian", [False, True])
def test_depth_of_the_same_moment_comes_with_the_picture(node: Any, big_endian: bool) -> None:
    depth_mm = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 7).reshape(HEIGHT, WIDTH)
    depth = image_message(depth_mm.astype(">u2" if big_endian else "<u2"), "16UC1", STAMP_NS, padding=4)
    depth.is_bigendian = int(big_endian)
    published = Published(node, image_message(gradient(), "rgb8", STAMP_NS), depth)
    camera = opened(published, depth_topic="depth")
    try:
        frame = grab(camera, published)
        assert frame.depth_mm is not None
        np.testing.assert_array_equal(frame.depth_mm, depth_mm)
    finally:
        camera.close()


def test_a_picture_waits_for_the_depth_of_its_own_moment(node: Any) -> None:
    color = image_message(gradient(), "rgb8", STAMP_NS)
    depth = image_message(np.full((HEIGHT, WIDTH), 5, dtype=np.uint16), "16UC1", STAMP_NS)
    published = Published(node, color, depth)
    camera = opened(published, depth_topic="depth")
    try:
        grab(camera, published)
        alone = Published(node, color)
        period_ns = round(1e9 / SIZE["rate_hz"])
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            alone.send(STAMP_NS + period_ns)
            assert camera.grab(0.05) is None, "a picture came with depth of another moment"
        assert grab(camera, published, STAMP_NS + period_ns).depth_mm is not None
    finally:
        camera.close()


@pytest.mark.parametrize(
    ("color", "settings", "words"),
    [
        (image_message(gradient(), "rgb8", 0), {"width": 80}, r"'front'.*delivers 64x48, expected 80x48"),
        (image_message(gradient()[:, :, :2], "yuv422", 0), {}, r"'front'.*encoding.*'color' is yuv422, expected rgb8"),
        (image_message(gradient()[:40], "rgb8", 0), {"height": 40, "width": 64}, ""),
    ],
    ids=["size", "encoding", "fine"],
)
def test_what_does_not_fit_is_named_with_what_was_expected(
    node: Any, color: Image, settings: dict[str, int], words: str
) -> None:
    published = Published(node, color)
    camera = opened(published, **settings)
    try:
        if words:
            with pytest.raises(RobotError, match=words):
                grab(camera, published)
        else:
            assert grab(camera, published).image.shape == (40, 64, 3)
    finally:
        camera.close()


def test_too_little_data_is_refused(node: Any) -> None:
    message = image_message(gradient(), "rgb8", 0)
    message.data = message.data[:-1]
    published = Published(node, message)
    camera = opened(published)
    try:
        with pytest.raises(RobotError, match=r"192 bytes a row and 9215 in all, expected 192 bytes a row and 9216"):
            grab(camera, published)
    finally:
        camera.close()


@pytest.mark.parametrize("broken", [b"not a picture", b"", "cut", "large"])
def test_a_broken_or_oversized_compressed_picture_is_refused(node: Any, broken: bytes | str) -> None:
    blob = io.BytesIO()
    size = (3000, 2000) if broken == "large" else (WIDTH, HEIGHT)
    PillowImage.new("RGB", size).save(blob, "png")
    data = broken if isinstance(broken, bytes) else blob.getvalue()[: -60 if broken == "cut" else None]
    published = Published(node, CompressedImage(format="png", data=data))
    camera = opened(published, compressed=True)
    try:
        words = "3000x2000, expected 64x48" if broken == "large" else r"'png' that cannot be read"
        with pytest.raises(RobotError, match=words):
            grab(camera, published)
    finally:
        camera.close()


def test_depth_of_a_wrong_encoding_is_refused(node: Any) -> None:
    depth = image_message(np.zeros((HEIGHT, WIDTH), dtype=np.float32), "32FC1", STAMP_NS)
    published = Published(node, image_message(gradient(), "rgb8", STAMP_NS), depth)
    camera = opened(published, depth_topic="depth")
    try:
        with pytest.raises(RobotError, match=r"'depth' is 32FC1, expected 16UC1"):
            grab(camera, published)
    finally:
        camera.close()
