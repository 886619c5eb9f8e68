"""Opening the connections between processes, with the run's keys."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from robot_stack.apps.keys import EDGE_KEY, LEARNER_KEY, ROBOT_KEY
from robot_stack.config.schema import NetworkConfig
from robot_stack.core.messages import LearnerReply, RobotReply, RobotState
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Subscriber

ROBOT_REQUEST = SERVICES["robot.request"]
ROBOT_STATE = SERVICES["robot.state"]
LEARNER_REQUEST = SERVICES["learner.request"]


def robot_client(network: NetworkConfig, keys: KeyStore, key_name: str) -> RequestClient[RobotReply]:
    return RequestClient(ROBOT_REQUEST, network.robot_address, keys, key_name, ROBOT_KEY, RobotReply)


def learner_client(network: NetworkConfig, keys: KeyStore, key_name: str) -> RequestClient[LearnerReply]:
    return RequestClient(LEARNER_REQUEST, network.learner_address, keys, key_name, LEARNER_KEY, LearnerReply)


@contextmanager
def remote_robot(network: NetworkConfig, keys: KeyStore, key_name: str = EDGE_KEY) -> Iterator[RemoteRobot]:
    """An unarmed connection to the robot server; its lease is given back at the end."""
    states: Subscriber[RobotState] = Subscriber(
        ROBOT_STATE, network.state_address, keys, key_name, ROBOT_KEY, RobotState
    )
    with robot_client(network, keys, key_name) as client, states:
        robot = RemoteRobot(client, states, key_name)
        try:
            yield robot
        finally:
            robot.release()


def free_network() -> NetworkConfig:
    """Loopback addresses whose ports are free now, for servers that only their parent talks to."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(3)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        addresses = [f"tcp://127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()
    return NetworkConfig(robot_address=addresses[0], state_address=addresses[1], learner_address=addresses[2])


def network_overrides(network: NetworkConfig) -> list[str]:
    """The same addresses as command-line overrides."""
    return [
        f"network.robot_address={network.robot_address}",
        f"network.state_address={network.state_address}",
        f"network.learner_address={network.learner_address}",
    ]
