"""A Stretch's driver and the vendor's side of it in simulation, in one process: real nodes over DDS, real physics.

The two take turns; where the driver may block, the vendor's side goes on ticking beside it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from geometry_msgs.msg import Twist
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from hardware.stretch import ros2_names as names
from hardware.stretch.config import StretchRos2Config
from hardware.stretch.ros2 import StretchRos2
from hardware.stretch.ros2_simulator import StretchRos2Simulator
from hardware.stretch.sim import SimulatedStretch
from robot_stack.transport.ros2.link import Ros2Link

DOMAIN = 100 + os.getpid() % 100
TASK = "stretch_reach_grasp"
PATIENCE_S = 20.0
AGE_S = 0.5
PAUSE_S = 0.003
"""Between the vendor's tick and the driver's: a loopback message needs a moment."""


@dataclass
class Rig:
    """One vendor's side, the driver to it, and an ear on the commands."""

    config: StretchRos2Config
    world: SimulatedStretch
    simulator: StretchRos2Simulator
    driver: StretchRos2
    ear: Ros2Link
    poses: list[list[float]] = field(default_factory=list)
    twists: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        heard = self.poses, self.twists
        self.ear.node.create_subscription(
            Float64MultiArray, names.POSE_COMMAND, lambda message: heard[0].append(list(message.data)), 100
        )
        self.ear.node.create_subscription(
            Twist, names.COMMAND_VELOCITY, lambda message: heard[1].append((message.linear.x, message.angular.z)), 100
        )

    def while_ticking(self, act: Callable[[], object]) -> None:
        """Do something that waits for the vendor's side, and raise what it raises."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                act()
            except BaseException as error:  # handed to the test's own thread
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():
            self.simulator.tick()
            time.sleep(PAUSE_S)
        if raised:
            raise raised[0]

    def connect(self) -> None:
        """And wait until the ear hears the driver too."""
        self.while_ticking(self.driver.connect)
        node = self.driver._node
        self.until(lambda: min(one.get_subscription_count() for one in (node._pose, node._twist)) > 1)

    def tick(self, setpoint: np.ndarray | None = None) -> str:
        """One period of both sides; the driver's fault."""
        self.simulator.tick()
        time.sleep(PAUSE_S)
        fault = self.driver.read().fault
        if setpoint is not None:
            self.driver.send(setpoint)
        self.ear.spin()
        return fault

    def ticks(self, count: int, setpoint: np.ndarray | None = None) -> None:
        for _ in range(count):
            assert self.tick(setpoint) == ""

    def until(self, reached: Callable[[], bool], setpoint: np.ndarray | None = None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < deadline, "it never happened"
            self.tick(setpoint)

    def engage(self) -> np.ndarray:
        """Activate as the guard does, which reads at every tick, until commands flow; the setpoint that holds."""
        self.until(lambda: self.driver.read().fault == "")
        self.driver.hold()
        setpoint = self.driver.measured_setpoint()
        self.driver.engage()
        heard = len(self.poses)
        self.until(lambda: len(self.poses) > heard, setpoint)
        return setpoint

    def go(self, start: np.ndarray, goal: np.ndarray, count: int) -> None:
        """Lead the setpoint from start to goal, then let the robot settle."""
        for step in range(1, count + 1):
            self.ticks(1, start + (goal - start) * step / count)
        self.ticks(15, goal)

    def fault(self) -> str:
        """The fault that the driver reports within the state's largest age."""
        faults: list[str] = []

        def faulted() -> bool:
            faults.append(self.tick())
            return faults[-1] != ""

        self.until(faulted)
        return faults[-1]

    def call(self, service: str, kind: Any = Trigger, **fields: bool) -> Any:
        """A service, called by somebody else."""
        answers: list[Any] = []
        self.while_ticking(lambda: answers.append(self.ear.call(kind, service, kind.Request(**fields), PATIENCE_S)))
        return answers[0]

    def lose_answer(self, service: str) -> None:
        """The vendor's side does what the next call of this service asks for, but its answer gets lost."""
        served = next(one for one in self.simulator._link.node.services if one.srv_name == service)
        send = served.send_response

        def lose(*_: object) -> None:
            served.send_response = send

        served.send_response = lose

    def somebody_sends(self, *values: float) -> None:
        publisher = self.ear.node.create_publisher(Float64MultiArray, names.POSE_COMMAND, 1)
        self.until(lambda: publisher.get_subscription_count() > 1)  # the ear is one of them
        publisher.publish(Float64MultiArray(data=list(values)))
        for _ in range(3):
            self.tick()
        self.ear.node.destroy_publisher(publisher)


@pytest.fixture(scope="module")
def world() -> Iterator[SimulatedStretch]:
    """Compiled once; every rig begins it anew."""
    world = SimulatedStretch("stretch_test", TASK)
    world.connect()
    world.close_for_good, world.close = world.close, lambda: None
    yield world
    world.close_for_good()


@pytest.fixture
def make_rig(world: SimulatedStretch) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**settings: Any) -> Rig:
        namespace = f"stretch_test_{os.getpid()}_{time.monotonic_ns()}"
        config = msgspec.structs.replace(
            StretchRos2Config(
                namespace=namespace, domain_id=DOMAIN, max_state_age_s=AGE_S, connect_timeout_s=PATIENCE_S
            ),
            **settings,
        )
        world.reset(0)
        simulator = StretchRos2Simulator(world, config)
        simulator.open()
        ear = Ros2Link("ear", config.namespace, domain_id=DOMAIN)
        ear.open()
        driver = StretchRos2("stretch_test", TASK, config, control_rate_hz=10.0)
        rigs.append(Rig(config, world, simulator, driver, ear))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.while_ticking(rig.driver.close)
        rig.ear.close()
        rig.simulator.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    rig = make_rig()
    rig.connect()
    return rig
