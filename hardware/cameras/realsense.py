"""Intel RealSense cameras (D435i, D405) through pyrealsense2.

Known trouble: a pipeline that is started without its device waits 15 s, so the device is looked for first; "frames
didn't arrive" after a bad cable or a lost USB link is cured by a new process only, and stopping or resetting may hang.
Hence every wait here is bounded, nothing here resets a device, and the camera lives in a process that can be killed.

The device's own clock is used, not librealsense's estimate in host time ("global time"): the two clocks have to stay
independent to be compared.

Not for a process that loads rclpy too: librealsense and ROS 2 each bring a Fast DDS of their own, and their destructors
crash in one process when it ends.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hardware.cameras.config import RealSenseConfig
from hardware.cameras.pictures import checked_depth, checked_image, not_connected
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import MissingDependencyError, RobotError
from robot_stack.core.protocols import Camera, CameraSpec, Frame

MODELS = ("D435i", "D405")


def require_realsense() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise MissingDependencyError("pyrealsense2", "realsense", "RealSense cameras") from error
    return pyrealsense2


class FrameSource(Protocol):
    """Where framesets of librealsense come from: a device, or a `software_device` fed by a test."""

    def open(self) -> None:
        """RobotError says what is missing."""

    def wait(self, timeout_s: float) -> Any | None:
        """The next frameset (rs.composite_frame), or None if none came in time."""

    def close(self) -> None: ...


class RealSenseCamera(Camera):
    """One RealSense, known by its serial number; depth, where it is asked for, is aligned to the colour picture."""

    def __init__(self, config: RealSenseConfig, source: FrameSource | None = None) -> None:
        self._config = config
        self._source = source or PipelineSource(config)
        self._latency_ns = s_to_ns(config.latency_s)
        self._align: Any = None
        self._spec = CameraSpec(
            name=config.name,
            model=config.model,
            serial=config.serial,
            width=config.width,
            height=config.height,
            rate_hz=config.rate_hz,
            has_depth=config.depth,
        )

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    def connect(self) -> None:
        if self._config.model not in MODELS:
            raise RobotError(
                f"camera '{self._spec.name}': model = '{self._config.model}' is not known; expected "
                f"{' or '.join(MODELS)}"
            )
        self.close()
        rs = require_realsense()
        self._source.open()
        self._align = rs.align(rs.stream.color)

    def grab(self, timeout_s: float) -> Frame | None:
        if self._align is None:
            raise not_connected(self._spec)
        deadline_s = time.monotonic() + timeout_s
        while True:
            frameset = self._source.wait(max(0.0, deadline_s - time.monotonic()))
            stamp_ns = time.monotonic_ns() - self._latency_ns
            frame = None if frameset is None else self._frame(frameset, stamp_ns)
            if frame is not None or time.monotonic() >= deadline_s:
                return frame

    def close(self) -> None:
        self._align = None
        self._source.close()

    def _frame(self, frameset: Any, stamp_ns: int) -> Frame | None:
        """The frameset as a frame; None while it is not complete (the syncer gives out single pictures too)."""
        color = frameset.get_color_frame()
        if not color or (self._spec.has_depth and not frameset.get_depth_frame()):
            return None
        self._check_format(color)
        return Frame(
            stamp_ns=stamp_ns,
            device_time_ns=round(color.get_timestamp() * 1e6),
            number=color.get_frame_number(),
            # copied: the memory belongs to a small pool of librealsense
            image=checked_image(self._spec, np.array(color.get_data())),
            depth_mm=self._depth_mm(frameset) if self._spec.has_depth else None,
        )

    def _check_format(self, color: Any) -> None:
        found = color.get_profile().format()
        if found != require_realsense().format.rgb8:
            raise RobotError(
                f"camera '{self._spec.name}' ({self._spec.model} {self._spec.serial}) sends {found}, expected "
                "format.rgb8"
            )

    def _depth_mm(self, frameset: Any) -> NDArray[np.uint16]:
        """A D405 counts in 0.1 mm, a D435i in 1 mm; the frame tells. Beyond 65.5 m is told as 0, unknown."""
        depth = self._align.process(frameset).get_depth_frame()
        mm_per_count = depth.get_units() * 1000.0
        counts = np.array(depth.get_data())
        if abs(mm_per_count - 1.0) < 1e-6:
            return checked_depth(self._spec, counts)
        depth_mm = np.rint(counts * mm_per_count)
        depth_mm[depth_mm > np.iinfo(np.uint16).max] = 0
        return checked_depth(self._spec, depth_mm.astype(np.uint16))


class PipelineSource:
    """A real device through a librealsense pipeline."""

    def __init__(self, config: RealSenseConfig) -> None:
        self._config = config
        self._pipeline: Any = None

    def open(self) -> None:
        rs, config = require_realsense(), self._config
        self._find(rs)
        wanted = rs.config()
        wanted.enable_device(config.serial)
        rate_hz = round(config.rate_hz)
        wanted.enable_stream(rs.stream.color, config.width, config.height, rs.format.rgb8, rate_hz)
        if config.depth:
            wanted.enable_stream(rs.stream.depth, config.width, config.height, rs.format.z16, rate_hz)
        pipeline = rs.pipeline()
        try:
            # the start uses what is resolved here, so the clock is chosen before the first picture
            device = wanted.resolve(rs.pipeline_wrapper(pipeline)).get_device()
            for sensor in device.query_sensors():
                if sensor.supports(rs.option.global_time_enabled):
                    sensor.set_option(rs.option.global_time_enabled, 0)
            pipeline.start(wanted)
        except RuntimeError as error:
            raise RobotError(
                f"camera '{config.name}' ({config.model} {config.serial}) does not start with {config.width}x"
                f"{config.height} at {config.rate_hz:g} Hz: {error}; choose a mode that it has (rs-enumerate-devices), "
                "and check that it is on a USB 3 port and used by no other program"
            ) from error
        self._pipeline = pipeline

    def wait(self, timeout_s: float) -> Any | None:
        try:
            came, frameset = self._pipeline.try_wait_for_frames(max(1, round(timeout_s * 1000)))
        except RuntimeError as error:
            raise RobotError(
                f"camera '{self._config.name}' ({self._config.serial}): {error}; was it unplugged?"
            ) from error
        return frameset if came else None

    def close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.stop()
        self._pipeline = None

    def _find(self, rs: Any) -> None:
        """RobotError unless the device is plugged in and is the model that was configured."""
        config = self._config
        found = {
            device.get_info(rs.camera_info.serial_number): device.get_info(rs.camera_info.name)
            for device in rs.context().query_devices()
        }
        if config.serial not in found:
            listed = ", ".join(f"{serial} ({name})" for serial, name in sorted(found.items())) or "none"
            raise RobotError(
                f"camera '{config.name}': no RealSense with serial '{config.serial}' is plugged in; found: {listed}. "
                "Check cable and USB 3 port, or set `serial`"
            )
        if config.model.lower() not in found[config.serial].lower().replace(" ", ""):
            raise RobotError(
                f"camera '{config.name}': the RealSense with serial '{config.serial}' is a {found[config.serial]}, "
                f"expected a {config.model}; set `model` or `serial`"
            )
