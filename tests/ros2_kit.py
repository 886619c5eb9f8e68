"""A robot server process, and a ROS 2 node that watches the node under test beside it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from robot_stack.apps.connections import free_network, network_overrides, robot_client
from robot_stack.apps.keys import OPERATOR_KEY, VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.supervisor import robot_stack_command
from robot_stack.config.schema import NetworkConfig
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import (
    GetDiagnostics,
    GetState,
    Lifecycle,
    RobotDiagnostics,
    RobotState,
    Transition,
)
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.ros2.config import Ros2NodeConfig
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable

DOMAIN_ID = 10 + os.getpid() % 80
PATIENCE_S = 30.0


class Server:
    """A robot server process of the simulated Franka on the wall clock, and its keys."""

    def __init__(self, directory: Path) -> None:
        self.network = free_network()
        self._directory = directory
        self.keys = ensure_keys(RunLayout(directory / "ros2"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, robot: str = "franka_0") -> None:
        overrides = [f"robot.name={robot}", "robot.lock_step=false", "run=ros2", f"runs_directory={self._directory}"]
        command = robot_stack_command("robot-server", *overrides, *network_overrides(self.network))
        with (self._directory / "robot-server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self.state().lifecycle is Lifecycle.INACTIVE)

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20.0)

    def ask(self, request: object, key: str = VIEWER_KEY) -> Any:
        with robot_client(self.network, self.keys, key) as client:
            return client.request(request, 5.0)

    def state(self) -> RobotState:
        state = self.ask(GetState())
        assert isinstance(state, RobotState)
        return state

    def diagnostics(self) -> RobotDiagnostics:
        answer = self.ask(GetDiagnostics())
        assert isinstance(answer, RobotDiagnostics)
        return answer

    def transition(self, target: Lifecycle) -> None:
        self.ask(Transition(session="", target=target), OPERATOR_KEY)


def until(fine: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with suppress(RobotStackError):
            if fine():
                return
        time.sleep(0.02)
    raise AssertionError(f"did not happen within {patience_s} s")


def node_process(network: NetworkConfig, keys: Path, settings: Ros2NodeConfig, end: Any) -> None:
    from robot_stack.apps.ros2_node import run_ros2_node

    run_ros2_node(network, KeyStore(keys), settings, lambda: not end.is_set())


class Watcher:
    """A ROS 2 node of the test's own, and what it sees of the node under test."""

    def __init__(self, server: Server, name: str, **settings: Any) -> None:
        self.settings = Ros2NodeConfig(namespace=f"{name}_{os.getpid()}", domain_id=DOMAIN_ID, **settings)
        self.link = Ros2Link("watcher", self.settings.namespace, domain_id=DOMAIN_ID)
        context = multiprocessing.get_context("spawn")
        self._end = context.Event()
        arguments = (server.network, server.keys.directory, self.settings, self._end)
        self.process = context.Process(target=node_process, args=arguments, daemon=True)

    def open(self) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import JointState

        self.process.start()
        self.link.open()
        self.joints: Newest[Any] = self.link.subscribe_newest(JointState, "joint_states", newest_reliable())
        self._lines: dict[str, Any] = {}
        self.link.node.create_subscription(DiagnosticArray, "/diagnostics", self._take, 10)

    def close(self) -> None:
        self._end.set()
        self.process.join(15.0)
        assert self.process.exitcode == 0
        self.link.close()

    def _take(self, message: Any) -> None:
        self._lines |= {status.name: status for status in message.status}

    def until(self, fine: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        def looked() -> bool:
            self.link.spin(0.02)
            return fine()

        until(looked, patience_s)

    def line(self, name: str = "franka_0: robot server") -> Any:
        return self._lines.get(name)

    def level(self) -> bytes:
        return self.line().level if self.line() else b""

    def values(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.line().values} if self.line() else {}

    def call(self, name: str) -> Any:
        from std_srvs.srv import Trigger

        return self.link.call(Trigger, name, Trigger.Request(), PATIENCE_S)

    def shown(self) -> str:
        from lifecycle_msgs.srv import GetState as GetNodeState

        answer = self.link.call(GetNodeState, "robot/get_state", GetNodeState.Request(), PATIENCE_S)
        return str(answer.current_state.label)

    def change(self, label: str) -> bool:
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request()
        request.transition.label = label
        return bool(self.link.call(ChangeState, "robot/change_state", request, PATIENCE_S).success)


@contextmanager
def watching(server: Server, name: str, **settings: Any) -> Iterator[Watcher]:
    watcher = Watcher(server, name, **settings)
    watcher.open()
    try:
        watcher.until(lambda: watcher.joints.count > 0 and watcher.level() == b"\x00")
        yield watcher
    finally:
        watcher.close()


def rotation_of(quat_wxyz: tuple[float, ...]) -> np.ndarray:
    """Rotation matrix of a unit quaternion, by rotating the unit vectors."""
    w, axis = quat_wxyz[0], np.array(quat_wxyz[1:])
    columns = [v + 2 * w * np.cross(axis, v) + 2 * np.cross(axis, np.cross(axis, v)) for v in np.eye(3)]
    return np.column_stack(columns)
