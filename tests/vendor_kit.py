"""What tests of vendor back-ends share: real vendor-side simulators and robot servers, each a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from robot_stack.apps.build import build_robot, build_simulated
from robot_stack.apps.connections import free_network, network_overrides, robot_client, scene_client
from robot_stack.apps.keys import OPERATOR_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.scene_robot import SceneRobot
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import StackConfig
from robot_stack.core.clock import MonotonicClock, Pacer
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import Done, GetState, RobotState
from robot_stack.core.scene_messages import InjectFault, SceneRequest, SceneState, VendorFault
from robot_stack.safety.guard import RobotGuard


@dataclass(frozen=True)
class Vendor:
    """One robot, reached through its vendor's interface."""

    robot: str
    backend: str

    def __str__(self) -> str:
        return f"{self.robot}_{self.backend}"


VENDORS = (Vendor("franka", "ros2"), Vendor("g1", "dds"), Vendor("stretch", "ros2"))


class VendorSide:
    """A vendor-side simulator in a process of its own, and whatever a test starts beside it."""

    def __init__(self, vendor: Vendor, directory: Path, supervisor: Supervisor) -> None:
        self.overrides = [
            f"robot={vendor.robot}",
            f"backend={vendor.backend}",
            "run=vendor",
            f"runs_directory={directory}",
            *network_overrides(free_network(domain=True)),
        ]
        self.config: StackConfig = compose_config(self.overrides)
        self.keys = ensure_keys(RunLayout.of(self.config))
        self.supervisor = supervisor

    def start(self, name: str) -> None:
        self.supervisor.start(name, robot_stack_command(name, *self.overrides))

    def scene(self, message: SceneRequest) -> SceneState | Done:
        with scene_client(self.config.network, self.keys, OPERATOR_KEY) as client:
            reply = client.request(message, timeout_s=30.0)
        assert isinstance(reply, SceneState | Done), reply
        return reply

    def inject(self, fault: VendorFault, axis: int = 0, share: float = 0.3) -> None:
        self.scene(InjectFault(fault=fault, axis=axis, share=share))

    def driver(self) -> SceneRobot:
        """The driver and its scene, in this process; not connected yet."""
        world = build_simulated(self.config)
        return SceneRobot(build_robot(self.config), world, self.config.network, self.keys)

    def robot_state(self) -> RobotState:
        """What the robot server says, asked with the operator's key."""
        with robot_client(self.config.network, self.keys, OPERATOR_KEY) as client:
            state = client.request(GetState(), timeout_s=3.0)
        assert isinstance(state, RobotState)
        return state

    def server_pid(self) -> int:
        """Of the robot server itself: its keeper is the parent."""
        keeper = psutil.Process(self.supervisor.pid("robot-server"))
        servers = [child.pid for child in keeper.children() if "--unkept" in child.cmdline()]
        assert len(servers) == 1, keeper.children()
        return servers[0]


@contextmanager
def vendor_side(vendor: Vendor, directory: Path) -> Iterator[VendorSide]:
    """A running vendor-side simulator."""
    with Supervisor(directory / "logs", announce=print) as supervisor:
        side = VendorSide(vendor, directory, supervisor)
        side.start("vendor-sim")
        yield side


class GuardedDriver:
    """A driver behind the guard on the wall clock, ticked by the test: the robot server's loop without its sockets."""

    def __init__(self, robot: SceneRobot) -> None:
        self.robot = robot
        self.guard = RobotGuard(robot, MonotonicClock())
        self._pacer = Pacer(1.0 / robot.spec.tick_rate_hz)
        self._state_every = max(1, round(robot.spec.tick_rate_hz / 100.0))

    def __enter__(self) -> GuardedDriver:
        self.guard.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.guard.close()

    def run(self, duration_s: float, until: Callable[[RobotState], bool] = lambda _: False) -> RobotState:
        """Tick for so long, or until a state fulfils the condition; the last state."""
        end = time.monotonic() + duration_s
        state = self.guard.state()
        while time.monotonic() < end and not until(state):
            self._pacer.wait()
            self.guard.tick()
            if self._pacer.ticks % self._state_every == 0:
                state = self.guard.state()
        return state


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until the condition holds, whatever it raises on the way."""
    deadline = time.monotonic() + timeout_s
    last = ""
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except RobotStackError as error:
            last = str(error)
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s} s ({last})")
