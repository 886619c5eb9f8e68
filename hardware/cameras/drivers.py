"""From a camera's settings to its driver. Nothing is opened here, and no SDK is imported."""

from __future__ import annotations

from collections.abc import Callable

from hardware.cameras.config import CameraConfig, RealSenseConfig, Ros2CameraConfig, UvcConfig
from hardware.cameras.realsense import RealSenseCamera
from hardware.cameras.ros2 import Ros2Camera
from hardware.cameras.sim import SimulatedCamera, simulated_spec
from hardware.cameras.uvc import UvcCamera
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Array
from robot_stack.core.protocols import Camera


def make_camera(config: CameraConfig, source: Callable[[], Array] | None = None) -> Camera:
    """The driver of these settings. `source` renders for a simulated camera; ConfigError if that one has none."""
    if isinstance(config, RealSenseConfig):
        return RealSenseCamera(config)
    if isinstance(config, Ros2CameraConfig):
        return Ros2Camera(config)
    if isinstance(config, UvcConfig):
        return UvcCamera(config)
    if source is None:
        raise ConfigError(f"camera '{config.name}' is simulated, and there is no simulated robot that renders it")
    return SimulatedCamera(simulated_spec(config), source, config.latency_s)
