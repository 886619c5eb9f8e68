"""The G1's network through ROS 2: the same topics, with Unitree's message packages. Never run on hardware.

A DDS topic `rt/x` is the ROS 2 topic `/x`. The robot speaks CycloneDDS 0.10.2, and its vendor asks for
`rmw_cyclonedds_cpp` on the ROS 2 side. Messages are published and received in their serialised form, so the same codec
serves both ways and no message is built field by field in Python.
"""

from __future__ import annotations

import importlib
from typing import Any

from hardware.unitree_g1.bus import (
    ARM_COMMAND_TOPIC,
    LOW_STATE_TOPIC,
    SERVICE_DEPTH,
    G1Bus,
    hand_command_topic,
    hand_state_topic,
    request_topic,
    response_topic,
)
from hardware.unitree_g1.config import G1BusConfig
from hardware.unitree_g1.joints import SIDES
from hardware.unitree_g1.rpc import SERVICES
from robot_stack.core.errors import RobotError
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort, newest_reliable


def _message_types(package: str) -> Any:
    try:
        return importlib.import_module(f"{package}.msg")
    except ImportError as error:
        raise RobotError(
            f"the ROS 2 package '{package}' is not on this machine; build Unitree's unitree_ros2 workspace, source its "
            "setup.bash in this shell, and start again (or use the back-end 'dds', which needs neither)"
        ) from error


def _ros_name(topic: str) -> str:
    return "/" + topic.removeprefix("rt/")


class Ros2Bus(G1Bus):
    """Stands where `DdsBus` stands. Its node works in `take_low_state` only.

    Args:
        config: `interface` `lo` stays on this machine, any other means the subnet; which network card that is,
            the middleware's own configuration says.
    """

    def __init__(self, config: G1BusConfig) -> None:
        self._config = config
        self._link = Ros2Link("g1_bus", domain_id=config.domain_id, loopback_only=config.interface == "lo")
        self._publishers: dict[str, Any] = {}
        self._newest: dict[str, Newest[bytes]] = {}
        self._taken: dict[str, int] = {}
        self._responses: dict[str, list[bytes]] = {}

    def open(self) -> None:
        humanoid, services = _message_types("unitree_hg"), _message_types("unitree_api")
        self._link.open()
        self._publish(ARM_COMMAND_TOPIC, humanoid.LowCmd)
        self._subscribe(LOW_STATE_TOPIC, humanoid.LowState)
        for service in SERVICES:
            self._publish(request_topic(service), services.Request)
            self._subscribe_responses(service, services.Response)
        for side in SIDES if self._config.hands != "none" else ():
            self._publish(hand_command_topic(side), humanoid.HandCmd)
            self._subscribe(hand_state_topic(side), humanoid.HandState)

    def _publish(self, topic: str, message_type: Any) -> None:
        self._publishers[topic] = self._link.node.create_publisher(message_type, _ros_name(topic), newest_reliable())

    def _subscribe(self, topic: str, message_type: Any) -> None:
        newest: Newest[bytes] = Newest()
        self._newest[topic] = newest
        self._taken[topic] = 0
        self._link.node.create_subscription(message_type, _ros_name(topic), newest.take, newest_best_effort(), raw=True)

    def _subscribe_responses(self, service: str, message_type: Any) -> None:
        topic = response_topic(service)
        self._responses[service] = []
        self._link.node.create_subscription(
            message_type, _ros_name(topic), self._responses[service].append, SERVICE_DEPTH, raw=True
        )

    def close(self) -> None:
        self._link.close()
        self._publishers.clear()

    def take_low_state(self) -> bytes | None:
        self._link.spin()
        return self._take(LOW_STATE_TOPIC)

    def take_hand_state(self, side: str) -> bytes | None:
        return self._take(hand_state_topic(side))

    def _take(self, topic: str) -> bytes | None:
        newest = self._newest[topic]
        if newest.count == self._taken[topic]:
            return None
        self._taken[topic] = newest.count
        return newest.message

    def send_arm_command(self, cdr: bytes) -> None:
        self._publishers[ARM_COMMAND_TOPIC].publish(cdr)

    def send_hand_command(self, side: str, cdr: bytes) -> None:
        self._publishers[hand_command_topic(side)].publish(cdr)

    def send_request(self, service: str, cdr: bytes) -> None:
        self._publishers[request_topic(service)].publish(cdr)

    def take_responses(self, service: str) -> list[bytes]:
        responses = self._responses[service]
        taken = responses.copy()
        responses.clear()
        return taken
