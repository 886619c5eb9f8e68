"""Topics of ROS 2 as input devices, over real DDS."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState, Joy

from robot_stack.core.errors import DeviceError
from robot_stack.core.teleop_device import DeviceReading
from robot_stack.teleop.devices.ros2 import Ros2Device
from robot_stack.teleop.devices.settings import (
    Ros2JointStateSettings,
    Ros2JoySettings,
    Ros2PoseSettings,
    Ros2Settings,
)
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable

DOMAIN = 100 + os.getpid() % 100
TOPIC, STICK = f"/hand_{os.getpid()}", f"/stick_{os.getpid()}"


class Desk:
    """A node that publishes, and the device that listens."""

    def __init__(self, far: Ros2Link) -> None:
        self.far = far
        self.devices: list[Ros2Device] = []
        self._publishers: dict[str, Any] = {}

    def opened(self, settings: Ros2Settings) -> Ros2Device:
        device = Ros2Device(settings)
        device.open()
        self.devices.append(device)
        return device

    def publish(self, topic: str, message: Any) -> None:
        if topic not in self._publishers:
            self._publishers[topic] = self.far.node.create_publisher(type(message), topic, newest_reliable())
        self._publishers[topic].publish(message)

    def heard(
        self, device: Ros2Device, fine: Callable[[DeviceReading], bool], *messages: tuple[str, Any]
    ) -> DeviceReading:
        until_s = time.monotonic() + 20.0
        while time.monotonic() < until_s:
            for topic, message in messages:
                self.publish(topic, message)
            reading = device.read(0.02)
            if reading is not None and fine(reading):
                return reading
        raise AssertionError("nothing arrived that is fine")


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Ros2Link("far", domain_id=DOMAIN) as far:
        made = Desk(far)
        yield made
        for device in made.devices:
            device.close()


def test_a_joystick_is_deflections_and_its_button_the_dead_mans_switch(desk: Desk) -> None:
    settings = Ros2JoySettings(name="joy", topic=TOPIC, domain_id=DOMAIN, held_button=1, axes=("y", "x", "", "yaw"))
    device = desk.opened(settings)
    assert device.read(0.0) is None
    message = Joy(axes=[0.25, -1.5, 0.9, float("nan"), 1.0], buttons=[1, 1, 0])
    before_ns = time.monotonic_ns()
    reading = desk.heard(device, lambda one: True, (TOPIC, message))
    assert reading.deflection == {"y": 0.25, "x": -1.0, "yaw": 0.0}
    assert reading.held is True and reading.buttons == ("0", "1")
    assert before_ns < reading.stamp_ns <= time.monotonic_ns()
    assert desk.heard(device, lambda one: one.held is False, (TOPIC, Joy(axes=[0.0], buttons=[1, 0]))).deflection == {
        "y": 0.0
    }
    assert desk.heard(device, lambda one: not one.buttons, (TOPIC, Joy(axes=[], buttons=[]))).held is False
    device.read(0.05)
    assert device.read(0.05) is None  # what was said is said once


def test_a_pose_with_the_switch_of_a_joystick_beside_it(desk: Desk) -> None:
    settings = Ros2PoseSettings(name="vr", topic=TOPIC, domain_id=DOMAIN, joy_topic=STICK, held_button=0, max_age_s=0.3)
    device = desk.opened(settings)
    place = PoseStamped()
    place.pose.position.x, place.pose.orientation.w, place.pose.orientation.z = 0.5, 0.6, 0.8
    reading = desk.heard(device, lambda one: True, (TOPIC, place))
    assert reading.pose_in_device == (0.5, 0.0, 0.0, 0.0, 0.0, 0.8, 0.6) and reading.held is False
    desk.heard(device, lambda one: one.held is True, (TOPIC, place), (STICK, Joy(axes=[], buttons=[1])))
    desk.heard(device, lambda one: one.held is False, (TOPIC, place))  # a joystick that falls silent lets go


def test_joint_states_by_their_names(desk: Desk) -> None:
    device = desk.opened(Ros2JointStateSettings(name="leader", topic=TOPIC, domain_id=DOMAIN))
    reading = desk.heard(device, lambda one: True, (TOPIC, JointState(name=["a", "b"], position=[0.1, -0.2])))
    assert reading.joints == {"a": 0.1, "b": -0.2} and reading.held is None
    with pytest.raises(DeviceError, match="names 1 joints and tells 2 angles"):
        desk.heard(device, lambda one: False, (TOPIC, JointState(name=["a"], position=[0.1, 0.2])))


def test_before_it_is_opened_and_after_it_is_closed_it_says_so() -> None:
    device = Ros2Device(Ros2JoySettings(name="joy"))
    device.close()
    with pytest.raises(DeviceError, match="the ROS 2 topic of 'joy' is not open"):
        device.read(0.0)
