"""Who may arm a robot and clear its fault: asked over the real wire, around a driver that fails on command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robot_stack.apps.connections import ROBOT_REQUEST, ROBOT_STATE
from robot_stack.apps.robot_server import RobotServer
from robot_stack.core.errors import CommandRefusedError
from robot_stack.core.messages import (
    AcquireLease,
    Done,
    GetState,
    Lifecycle,
    RobotReply,
    RobotRequest,
    RobotState,
    Transition,
)
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.server import RequestServer
from robot_stack.transport.stream import Publisher
from tests.safety.fake_robot import RecordingRobot

Ask = Callable[[str, RobotRequest], RobotReply]
TIMEOUT_S = 3.0


@contextmanager
def served(tmp_path: Path, robot: RecordingRobot) -> Iterator[Ask]:
    """A wall-clock robot server in a thread, and a way to ask it with any of the keys."""
    keys = KeyStore(tmp_path / "keys")
    for role in (Role.ROBOT, Role.EDGE, Role.OPERATOR):
        keys.make(role.value, role)
    running, ready = threading.Event(), threading.Event()
    running.set()
    address: list[str] = []

    def serve() -> None:
        server: RequestServer[RobotRequest] = RequestServer(
            ROBOT_REQUEST, "tcp://127.0.0.1:*", keys, "robot", RobotRequest
        )
        with server, Publisher(ROBOT_STATE, "tcp://127.0.0.1:*", keys, "robot") as states:
            address.append(server.address)
            ready.set()
            RobotServer(robot, server, states, lock_step=False).run(running.is_set)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(10.0)

        def ask(key: str, message: RobotRequest) -> RobotReply:
            client: RequestClient[RobotReply] = RequestClient(ROBOT_REQUEST, address[0], keys, key, "robot", RobotReply)
            with client:
                return client.request(message, TIMEOUT_S)

        yield ask
    finally:
        running.clear()
        thread.join()


def lifecycle(ask: Ask) -> Lifecycle:
    state = ask("edge", GetState())
    assert isinstance(state, RobotState)
    return state.lifecycle


def test_an_edge_cannot_arm_a_real_robot_and_an_operator_can(tmp_path: Path) -> None:
    with served(tmp_path, RecordingRobot()) as ask:
        ask("edge", AcquireLease(session="mine"))
        with pytest.raises(CommandRefusedError, match="a person has to activate it"):
            ask("edge", Transition(session="mine", target=Lifecycle.ACTIVE))
        assert lifecycle(ask) is Lifecycle.INACTIVE
        assert isinstance(ask("operator", Transition(session="", target=Lifecycle.ACTIVE)), Done)
        assert lifecycle(ask) is Lifecycle.ACTIVE


def test_an_edge_cannot_clear_a_fault_and_an_operator_can(tmp_path: Path) -> None:
    robot = RecordingRobot()
    with served(tmp_path, robot) as ask:
        ask("edge", AcquireLease(session="mine"))
        ask("operator", Transition(session="", target=Lifecycle.ACTIVE))
        robot.fault = "joint_reflex"
        assert lifecycle(ask) is Lifecycle.FAULT
        robot.fault = ""
        with pytest.raises(CommandRefusedError, match="joint_reflex"):
            ask("edge", Transition(session="mine", target=Lifecycle.INACTIVE))
        assert lifecycle(ask) is Lifecycle.FAULT
        ask("operator", Transition(session="", target=Lifecycle.INACTIVE))
        assert lifecycle(ask) is Lifecycle.INACTIVE
