"""Topics of ROS 2 as input devices: Joy, PoseStamped, JointState. Arrival counts, not the publisher's clock."""

from __future__ import annotations

import math
import time
from typing import Any

from robot_stack.core.errors import DeviceError, MissingDependencyError
from robot_stack.core.teleop_device import DeviceReading, TeleopDevice
from robot_stack.teleop.devices.settings import (
    Ros2JointStateSettings,
    Ros2JoySettings,
    Ros2PoseSettings,
    Ros2Settings,
)
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort

NODE = "robot_stack_teleop"


class Ros2Device(TeleopDevice):
    """One topic, and the joystick's button that is its dead man's switch if the settings name one.

    A joystick that says nothing for `max_age_s` is not held.
    """

    def __init__(self, settings: Ros2Settings) -> None:
        self._settings = settings
        self._link: Ros2Link | None = None
        self._newest: Newest[Any] = Newest()
        self._joy: Newest[Any] | None = None
        self._seen = 0

    @property
    def name(self) -> str:
        return self._settings.name

    def open(self) -> None:
        settings = self._settings
        domain_id = None if settings.domain_id < 0 else settings.domain_id
        link = Ros2Link(NODE, domain_id=domain_id, loopback_only=settings.loopback_only)
        link.open()
        self._link, self._seen = link, 0
        try:
            from geometry_msgs.msg import PoseStamped
            from sensor_msgs.msg import JointState, Joy
        except ImportError as error:
            raise MissingDependencyError("ros-sensor-msgs", "ros", "input devices of ROS 2") from error
        kinds = {Ros2JoySettings: Joy, Ros2PoseSettings: PoseStamped, Ros2JointStateSettings: JointState}
        self._newest = link.subscribe_newest(kinds[type(settings)], settings.topic, newest_best_effort())
        joy_topic = settings.joy_topic if isinstance(settings, (Ros2PoseSettings, Ros2JointStateSettings)) else ""
        self._joy = link.subscribe_newest(Joy, joy_topic, newest_best_effort()) if joy_topic else None

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def read(self, timeout_s: float) -> DeviceReading | None:
        if self._link is None:
            raise DeviceError(f"the ROS 2 topic of '{self.name}' is not open")
        until_s = time.monotonic() + timeout_s
        while self._newest.count == self._seen:
            left_s = until_s - time.monotonic()
            if left_s <= 0.0:
                return None
            self._link.spin(left_s)
        self._seen = self._newest.count
        return self._reading(self._newest.message, self._newest.received_ns)

    def _reading(self, message: Any, stamp_ns: int) -> DeviceReading:
        settings = self._settings
        if isinstance(settings, Ros2JoySettings):
            return joy_reading(settings, message, stamp_ns)
        if isinstance(settings, Ros2PoseSettings):
            place, turn = message.pose.position, message.pose.orientation
            pose = (place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w)
            return DeviceReading(stamp_ns=stamp_ns, held=self._held(stamp_ns), pose_in_device=pose)
        if len(message.name) != len(message.position):
            raise DeviceError(
                f"'{self.name}': {settings.topic} names {len(message.name)} joints and tells "
                f"{len(message.position)} angles"
            )
        joints = dict(zip(message.name, message.position, strict=True))
        return DeviceReading(stamp_ns=stamp_ns, held=self._held(stamp_ns), joints=joints)

    def _held(self, now_ns: int) -> bool | None:
        if self._joy is None:
            return None
        fresh = (now_ns - self._joy.received_ns) / 1e9 <= self._settings.max_age_s
        return bool(self._joy.message is not None and fresh and _pressed(self._joy.message, self._settings.held_button))


def joy_reading(settings: Ros2JoySettings, message: Any, stamp_ns: int) -> DeviceReading:
    """What a sensor_msgs/Joy means."""
    values = zip(settings.axes, message.axes, strict=False)
    deflection = {axis: max(-1.0, min(1.0, value)) if math.isfinite(value) else 0.0 for axis, value in values if axis}
    return DeviceReading(
        stamp_ns=stamp_ns,
        held=None if settings.held_button < 0 else _pressed(message, settings.held_button),
        deflection=deflection,
        buttons=tuple(str(number) for number, value in enumerate(message.buttons) if value),
    )


def _pressed(message: Any, button: int) -> bool:
    return 0 <= button < len(message.buttons) and bool(message.buttons[button])
