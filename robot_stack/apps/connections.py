"""Opening the connections between processes, with the run's keys."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from robot_stack.apps.keys import EDGE_KEY, LEARNER_KEY, POLICY_KEY, ROBOT_KEY
from robot_stack.config.schema import NetworkConfig
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import LearnerReply, RobotReply, RobotState
from robot_stack.core.policy_messages import PolicyReply
from robot_stack.core.scene_messages import SceneReply
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Subscriber

ROBOT_REQUEST = SERVICES["robot.request"]
ROBOT_STATE = SERVICES["robot.state"]
LEARNER_REQUEST = SERVICES["learner.request"]
POLICY_REQUEST = SERVICES["policy.request"]
SCENE_REQUEST = SERVICES["scene.request"]
SCENE_STATE = SERVICES["scene.state"]

FIRST_FREE_DOMAIN, LAST_FREE_DOMAIN = 2, 99
_held_domains: list[socket.socket] = []


def robot_client(network: NetworkConfig, keys: KeyStore, key_name: str) -> RequestClient[RobotReply]:
    return RequestClient(ROBOT_REQUEST, network.robot_address, keys, key_name, ROBOT_KEY, RobotReply)


def learner_client(network: NetworkConfig, keys: KeyStore, key_name: str) -> RequestClient[LearnerReply]:
    return RequestClient(LEARNER_REQUEST, network.learner_address, keys, key_name, LEARNER_KEY, LearnerReply)


def policy_client(network: NetworkConfig, keys: KeyStore, key_name: str) -> RequestClient[PolicyReply]:
    return RequestClient(POLICY_REQUEST, network.policy_address, keys, key_name, POLICY_KEY, PolicyReply)


def scene_client(network: NetworkConfig, keys: KeyStore, key_name: str) -> RequestClient[SceneReply]:
    return RequestClient(SCENE_REQUEST, network.scene_address, keys, key_name, ROBOT_KEY, SceneReply)


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


def free_network(*, domain: bool = False) -> NetworkConfig:
    """Loopback addresses that are free now, for servers that only their parent talks to.

    `domain`: a free DDS domain too, for a vendor's interface. There are about a hundred, and one is this process's
    until it ends.
    """
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(8)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        addresses = [f"tcp://127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()
    return NetworkConfig(
        robot_address=addresses[0],
        state_address=addresses[1],
        learner_address=addresses[2],
        scene_address=addresses[3],
        scene_state_address=addresses[4],
        policy_address=addresses[5],
        seat_address=addresses[6],
        seat_state_address=addresses[7],
        domain_id=_free_domain() if domain else NetworkConfig().domain_id,
    )


def _free_domain() -> int:
    """A DDS domain for this process and its children. A loopback port stands for it until the process ends: DDS
    itself lets any number of strangers share a domain."""
    for domain_id in range(FIRST_FREE_DOMAIN, LAST_FREE_DOMAIN + 1):
        token = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            token.bind(("127.0.0.1", 7500 + domain_id))
        except OSError:
            token.close()
            continue
        _held_domains.append(token)
        return domain_id
    raise RobotStackError(f"all DDS domains from {FIRST_FREE_DOMAIN} to {LAST_FREE_DOMAIN} are taken on this machine")


def network_overrides(network: NetworkConfig) -> list[str]:
    """The same addresses as command-line overrides."""
    fields = msgspec.structs.asdict(network)
    return [f"network.{name}={value}" for name, value in fields.items()]
