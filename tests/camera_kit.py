"""What the camera tests share: one rig per driver that feeds it red pictures of 64x48 through its real interface."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hardware.cameras.config import RealSenseConfig, Ros2CameraConfig, SimulatedCameraConfig, UvcConfig
from hardware.cameras.realsense import RealSenseCamera, require_realsense
from hardware.cameras.ros2 import Ros2Camera
from hardware.cameras.sim import SimulatedCamera, simulated_spec
from hardware.cameras.uvc import UvcCamera
from robot_stack.core.errors import RobotError
from robot_stack.core.protocols import Camera
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable

WIDTH, HEIGHT, RATE_HZ = 64, 48, 30.0
DOMAIN = 100 + os.getpid() % 100
NAMESPACE = f"/camera_test_{os.getpid()}"
SIZE: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "rate_hz": RATE_HZ}
DEPTH_MM = 500
FOCAL_PX = 60.0


def red(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, :, 0] = 255
    return image


class Pump(threading.Thread):
    """Calls `feed(number)` at a rate until told to hold or to end."""

    def __init__(self, feed: Callable[[int], None], rate_hz: float = RATE_HZ) -> None:
        super().__init__(daemon=True)
        self._feed = feed
        self._period_s = 1.0 / rate_hz
        self._end = threading.Event()
        self.flowing = threading.Event()
        self.flowing.set()

    def run(self) -> None:
        number = 0
        while not self._end.wait(self._period_s):
            if self.flowing.is_set():
                number += 1
                self._feed(number)

    def end(self) -> None:
        self._end.set()
        self.join()


class SimRig:
    """`hold` stops nothing here: a simulated camera always has a next picture, so grabs come sooner than it."""

    def __init__(self, folder: Path) -> None:
        self.camera: Camera = SimulatedCamera(simulated_spec(SimulatedCameraConfig(name="front", **SIZE)), red)
        self.short_s = 0.005

    def missing(self) -> tuple[Camera, str]:
        def away() -> np.ndarray:
            raise RobotError("the scene does not answer")

        return SimulatedCamera(self.camera.spec, away), "front"

    def hold(self) -> None: ...

    def close(self) -> None:
        self.camera.close()


class UvcRig:
    """A video file of 200 red pictures."""

    short_s = 0.005

    def __init__(self, folder: Path) -> None:
        self.path = write_video(folder / "red.avi", [red()] * 200)
        self.camera: Camera = UvcCamera(UvcConfig(name="front", device=str(self.path), **SIZE))

    def missing(self) -> tuple[Camera, str]:
        return UvcCamera(UvcConfig(name="front", device="/dev/video77", **SIZE)), "/dev/video77"

    def hold(self) -> None: ...

    def close(self) -> None:
        self.camera.close()


def write_video(path: Path, pictures: list[np.ndarray], rate_hz: float = RATE_HZ) -> Path:
    import cv2

    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate_hz, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(picture[:, :, ::-1])
    writer.release()
    return path


class Ros2Rig:
    """A real publisher node, in a thread and DDS participant of its own."""

    short_s = 0.2

    def __init__(self, folder: Path, **changes: Any) -> None:
        from sensor_msgs.msg import Image

        self._link = Ros2Link("camera_driver", NAMESPACE, domain_id=DOMAIN)
        self._link.open()
        self._publisher = self._link.node.create_publisher(Image, "camera/color/image_raw", newest_reliable())
        self.camera: Camera = Ros2Camera(self.config(**changes))
        self._pump = Pump(lambda number: self._publisher.publish(image_message(red(), "rgb8", time.time_ns())))
        self._pump.start()

    @staticmethod
    def config(topic: str = "camera/color/image_raw", **changes: Any) -> Ros2CameraConfig:
        return Ros2CameraConfig(name="front", topic=topic, namespace=NAMESPACE, domain_id=DOMAIN, **(SIZE | changes))

    def missing(self) -> tuple[Camera, str]:
        return Ros2Camera(self.config(topic="nobody/image_raw")), "nobody/image_raw"

    def hold(self) -> None:
        self._pump.flowing.clear()

    def close(self) -> None:
        self.camera.close()
        self._pump.end()
        self._link.close()


def image_message(pixels: np.ndarray, encoding: str, stamp_ns: int, padding: int = 0) -> Any:
    """sensor_msgs/Image with `padding` bytes at the end of each row."""
    from builtin_interfaces.msg import Time
    from sensor_msgs.msg import Image

    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    message = Image(height=height, width=width, encoding=encoding, step=rows.shape[1])
    message.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    message.data = rows.tobytes()
    return message


class SoftwareSource:
    """Framesets of a librealsense `software_device`, given out by its syncer: a `FrameSource`.

    A D435i has its colour picture on a sensor of its own, a D405 on the stereo sensor. `color_x_m`: where the depth
    picture's origin lies in the colour picture's frame, to the right.
    """

    def __init__(
        self, model: str, *, color_format: str = "rgb8", units_m: float = 0.001, color_x_m: float = 0.0
    ) -> None:
        self.rs = rs = require_realsense()
        self._device = rs.software_device()
        self._device.register_info(rs.camera_info.serial_number, "000000000001")
        self._device.register_info(rs.camera_info.name, f"Intel RealSense {model}")
        stereo = self._device.add_sensor("Stereo Module")
        stereo.add_read_only_option(rs.option.depth_units, units_m)
        color = stereo if model == "D405" else self._device.add_sensor("RGB Camera")
        self._units_m = units_m
        self._depth = self._stream(stereo, rs.stream.depth, rs.format.z16, 1, 2)
        self._color = self._stream(color, rs.stream.color, getattr(rs.format, color_format), 2, 3)
        apart = rs.extrinsics()
        apart.rotation, apart.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [color_x_m, 0, 0]
        self._depth.register_extrinsics_to(self._color, apart)
        self._device.create_matcher(rs.matchers.default)
        self._sensors = {"depth": stereo, "color": color}
        self._opened = False

    def _stream(self, sensor: Any, kind: Any, fmt: Any, uid: int, bpp: int) -> Any:
        rs = self.rs
        intrinsics = rs.intrinsics()
        intrinsics.width, intrinsics.height = WIDTH, HEIGHT
        intrinsics.ppx, intrinsics.ppy, intrinsics.fx, intrinsics.fy = WIDTH / 2, HEIGHT / 2, FOCAL_PX, FOCAL_PX
        stream = rs.video_stream()
        stream.type, stream.fmt, stream.uid, stream.index = kind, fmt, uid, 0
        stream.width, stream.height, stream.fps, stream.bpp = WIDTH, HEIGHT, int(RATE_HZ), bpp
        stream.intrinsics = intrinsics
        return sensor.add_video_stream(stream).as_video_stream_profile()

    def open(self) -> None:
        self._syncer = self.rs.syncer()
        stereo, color = self._sensors["depth"], self._sensors["color"]
        if stereo is color:
            stereo.open([self._depth, self._color])
            stereo.start(self._syncer)
        else:
            for sensor, profile in ((stereo, self._depth), (color, self._color)):
                sensor.open(profile)
                sensor.start(self._syncer)
        self._opened = True

    def wait(self, timeout_s: float) -> Any | None:
        came, frameset = self._syncer.try_wait_for_frames(max(1, round(timeout_s * 1000)))
        return frameset if came else None

    def close(self) -> None:
        if self._opened:
            for sensor in set(self._sensors.values()):
                sensor.stop()
                sensor.close()
        self._opened = False

    def feed(self, number: int, image: np.ndarray, counts: np.ndarray) -> None:
        """Give one pair of pictures to the device; depth in the device's counts."""
        if not self._opened:
            return
        at_ms = number * 1000.0 / RATE_HZ
        self._give("depth", self._depth, counts, 2, number, at_ms)
        self._give("color", self._color, image, 3, number, at_ms)

    def _give(self, sensor: str, profile: Any, pixels: np.ndarray, bpp: int, number: int, at_ms: float) -> None:
        frame = self.rs.software_video_frame()
        frame.pixels, frame.profile, frame.bpp, frame.stride = pixels, profile, bpp, WIDTH * bpp
        frame.timestamp, frame.domain, frame.frame_number = at_ms, self.rs.timestamp_domain.hardware_clock, number
        if sensor == "depth":
            frame.depth_units = self._units_m
        self._sensors[sensor].on_video_frame(frame)


class RealSenseRig:
    """The driver on a software device, fed from another thread."""

    short_s = 0.2

    def __init__(self, folder: Path, model: str = "D435i") -> None:
        units_m = 0.0001 if model == "D405" else 0.001
        source = SoftwareSource(model, units_m=units_m)
        config = RealSenseConfig(name="front", serial="000000000001", model=model, depth=True, **SIZE)
        counts = np.full((HEIGHT, WIDTH), round(DEPTH_MM / 1000.0 / units_m), dtype=np.uint16)
        self.camera: Camera = RealSenseCamera(config, source)
        self._pump = Pump(lambda number: source.feed(number, red(), counts))
        self._pump.start()

    def missing(self) -> tuple[Camera, str]:
        return RealSenseCamera(RealSenseConfig(name="front", serial="836612070000", **SIZE)), "836612070000"

    def hold(self) -> None:
        self._pump.flowing.clear()

    def close(self) -> None:
        self._pump.end()
        self.camera.close()
