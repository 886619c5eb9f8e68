"""From a device's settings to the device. What a device needs is imported when it is opened."""

from __future__ import annotations

from pathlib import Path

from robot_stack.core.errors import ConfigError
from robot_stack.core.teleop_device import TeleopDevice
from robot_stack.teleop.devices.leader_arm import LeaderArm
from robot_stack.teleop.devices.replay import RecordedDevice, ReplayDevice
from robot_stack.teleop.devices.ros2 import Ros2Device
from robot_stack.teleop.devices.settings import (
    KINDS,
    DeviceSettings,
    LeaderArmSettings,
    ReplaySettings,
    Ros2Settings,
    SpaceMouseSettings,
    ZeroMqSettings,
)
from robot_stack.teleop.devices.spacemouse import SpaceMouse
from robot_stack.teleop.devices.zeromq import ZeroMqDevice


def build_device(settings: DeviceSettings) -> TeleopDevice:
    """The device, not opened yet. ConfigError for a kind that is not known."""
    device = _build(settings)
    return RecordedDevice(device, Path(settings.record)) if settings.record else device


def _build(settings: DeviceSettings) -> TeleopDevice:
    if isinstance(settings, SpaceMouseSettings):
        return SpaceMouse(settings)
    if isinstance(settings, LeaderArmSettings):
        return LeaderArm(settings)
    if isinstance(settings, Ros2Settings):
        return Ros2Device(settings)
    if isinstance(settings, ZeroMqSettings):
        return ZeroMqDevice(settings)
    if isinstance(settings, ReplaySettings):
        return ReplayDevice(settings.name, Path(settings.path))
    raise ConfigError(
        f"device '{settings.name}': no device is made of {type(settings).__name__}; there are: {', '.join(KINDS)}"
    )
