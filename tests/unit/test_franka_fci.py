"""The FCI back-end: what it says without a robot, and how it drives the vendor's library.

No robot answers here, so the library is played by `FakeFranky`: the calls that the driver makes, with an arm that
follows its reference. Everything of the driver itself is real.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hardware.franka import limits
from hardware.franka.config import FrankaFciConfig
from hardware.franka.fci import FrankaFci, require_reachable
from hardware.franka.model import READY_RAD
from hardware.franka.ros2_simulator import robot_description
from hardware.franka.sim import EXTERNAL_WRENCH, JOINT_POSITION, SimulatedFranka
from robot_stack.core.clock import MonotonicClock
from robot_stack.core.errors import MissingDependencyError, RobotError
from robot_stack.core.messages import Command, Lifecycle, StopLevel
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.safety.guard import RobotGuard


def make_driver(task: str = "pick_cube", **changes: Any) -> FrankaFci:
    return FrankaFci("franka_0", task, FrankaFciConfig(**changes), control_rate_hz=10.0, tick_rate_hz=100.0)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


# ---- without a robot ----------------------------------------------------------------------------------------------


def test_a_robot_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardware.franka.fci.COMMAND_PORT", free_port())
    began_s = time.monotonic()
    with pytest.raises(RobotError, match=r"127\.0\.0\.1.*address.*FCI"):
        require_reachable("127.0.0.1", 5.0)
    assert time.monotonic() - began_s < 5.0


@pytest.mark.skipif(importlib.util.find_spec("franky") is not None, reason="franky-control is installed")
def test_the_missing_library_is_named_with_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"franky-control.*robot-stack\[franka\]"):
        make_driver().connect()


@pytest.mark.skipif(importlib.util.find_spec("franky") is None, reason="franky-control is not installed")
def test_something_that_is_no_robot_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("hardware.franka.fci.COMMAND_PORT", silent.getsockname()[1])
        began_s = time.monotonic()
        with pytest.raises(RobotError, match="refuses the connection"):
            make_driver(host="127.0.0.1", connect_timeout_s=1.0, realtime=False).connect()
        assert time.monotonic() - began_s < 10.0


# ---- with the library played --------------------------------------------------------------------------------------


class FakeMotion:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.references: list[np.ndarray] = []

    def set_reference(self, reference: Any) -> None:
        self.references.append(np.array(reference.q))


class FakeErrors:
    joint_reflex = False


class FakeRobot:
    """An arm that stands at once where its newest reference is."""

    def __init__(self) -> None:
        self.motions: list[Any] = []
        self.is_in_control = False
        self.failure: Exception | None = None
        self.recovers = True
        self.calls: list[str] = []
        self.model_urdf = robot_description()
        self.joints = np.array(READY_RAD)
        self.wrench = np.zeros(6)
        self.errors = FakeErrors()
        self.mode = "Idle"
        self.ticks = 0
        self.frozen = False

    @property
    def state(self) -> Any:
        self.ticks += 0 if self.frozen else 1
        moving = self.motions and isinstance(self.motions[-1], FakeMotion) and self.is_in_control
        if moving:
            self.joints = self.motions[-1].references[-1]
        return SimpleNamespace(
            q=self.joints,
            dq=np.zeros(7),
            O_F_ext_hat_K=self.wrench,
            tau_ext_hat_filtered=np.arange(7.0),
            time=SimpleNamespace(to_msec=lambda ticks=self.ticks: ticks),
            current_errors=self.errors,
            robot_mode=SimpleNamespace(name=self.mode),
        )

    def move(self, motion: Any, asynchronous: bool) -> None:
        assert asynchronous
        self.motions.append(motion)
        self.is_in_control = isinstance(motion, FakeMotion)

    def poll_motion(self) -> bool:
        if self.failure is not None:
            failure, self.failure, self.is_in_control = self.failure, None, False
            raise failure
        return self.is_in_control

    def join_motion(self, timeout: float) -> bool:
        return True

    def stop(self) -> None:
        self.calls.append("stop")
        self.is_in_control = False

    def recover_from_errors(self) -> bool:
        self.calls.append("recover")
        self.errors, self.mode = FakeErrors(), "Idle"
        return self.recovers


class FakeGripper:
    def __init__(self) -> None:
        self.width = 0.08
        self.goals: list[tuple[str, float]] = []

    def move_async(self, width: float, speed: float) -> None:
        self.goals.append(("move", width))
        self.width = width

    def grasp_async(self, width: float, speed: float, force: float, inner: float, outer: float) -> None:
        self.goals.append(("grasp", width))
        self.width = width

    def stop_async(self) -> None:
        self.goals.append(("stop", self.width))


class FakeFranky:
    RealtimeConfig = SimpleNamespace(Enforce=1, Ignore=0)
    JointImpedanceTrackingMotion = FakeMotion

    def __init__(self) -> None:
        self.robot, self.gripper = FakeRobot(), FakeGripper()

    def Robot(self, host: str, realtime_config: int) -> FakeRobot:
        return self.robot

    def Gripper(self, host: str) -> FakeGripper:
        return self.gripper

    @staticmethod
    def JointReference(q: np.ndarray) -> Any:
        return SimpleNamespace(q=q)

    @staticmethod
    def TorqueStopMotion() -> str:
        return "stop motion"


@pytest.fixture
def franky(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFranky]:
    fake = FakeFranky()
    monkeypatch.setitem(sys.modules, "franky", fake)
    with socket.create_server(("127.0.0.1", 0)) as control_unit:
        monkeypatch.setattr("hardware.franka.fci.COMMAND_PORT", control_unit.getsockname()[1])
        yield fake


@pytest.fixture
def driver(franky: FakeFranky) -> Iterator[FrankaFci]:
    made = make_driver(host="127.0.0.1")
    made.connect()
    yield made
    made.close()


def activate(driver: FrankaFci) -> RobotGuard:
    guard = RobotGuard(driver, MonotonicClock())
    guard.connect()
    guard.acquire_lease("test", "test")
    guard.transition(Lifecycle.ACTIVE)
    return guard


def test_its_features_are_those_of_the_simulation_back_end(franky: FakeFranky, driver: FrankaFci) -> None:
    world = SimulatedFranka("franka_0", "pick_cube")
    expected = {key: value for key, value in world.spec.observation.items() if key != ENVIRONMENT_STATE}
    assert driver.spec.observation == expected
    assert not driver.spec.simulated
    features = driver.read().features
    for key, feature in expected.items():
        assert features[key].shape == feature.shape
        assert features[key].dtype == np.float32
    np.testing.assert_allclose(features[STATE][:3], [0.30689, 0.0, 0.48688], atol=1e-4)
    assert features[STATE][13] == pytest.approx(0.08)


def test_it_follows_from_where_the_arm_is_and_releases_with_a_stop_motion(
    franky: FakeFranky, driver: FrankaFci
) -> None:
    guard = activate(driver)
    motion = franky.robot.motions[-1]
    np.testing.assert_allclose(motion.references[0], READY_RAD)
    assert motion.arguments["stiffness"].shape == (7,)
    action = np.array([0.0, 0.005, 0.0, 0.0, 1.0], dtype=np.float32)
    command = Command(session="test", seq=1, deadline_ns=time.monotonic_ns() + 10**9, action=action)
    assert guard.command(command).refusal is None
    before = driver.read().features[JOINT_POSITION]
    for _ in range(10):
        guard.tick()
        time.sleep(0.01)
    assert np.abs(driver.read().features[JOINT_POSITION] - before).max() > 1e-3
    steps = np.abs(np.diff(motion.references, axis=0)).max()
    assert 0.0 < steps < 0.02
    guard.stop("test", StopLevel.RELEASE)
    for _ in range(30):
        guard.tick()
    assert franky.robot.motions[-1] == "stop motion"
    assert guard.state().fault == ""


def test_a_motion_that_ends_by_itself_is_a_fault_until_it_is_recovered(franky: FakeFranky, driver: FrankaFci) -> None:
    guard = activate(driver)
    franky.robot.failure = RuntimeError("communication_constraints_violation")
    assert "communication_constraints_violation" in guard.state().fault
    for _ in range(5):
        guard.tick()
    driver.recover()
    guard.transition(Lifecycle.INACTIVE)
    assert guard.state().fault == ""
    assert franky.robot.calls == ["recover"]


def test_the_robots_flags_are_faults(franky: FakeFranky, driver: FrankaFci) -> None:
    franky.robot.errors.joint_reflex = True
    franky.robot.mode = "Reflex"
    assert "mode Reflex, joint_reflex" in driver.read().fault
    franky.robot.recovers = False
    with pytest.raises(RobotError, match="recovery failed"):
        driver.recover()


def test_a_state_that_does_not_move_on_is_a_fault(franky: FakeFranky, driver: FrankaFci) -> None:
    first = driver.read().stamp_ns
    franky.robot.frozen = True
    time.sleep(0.08)
    again = driver.read()
    assert again.stamp_ns - first < 20_000_000
    assert "no state for" in again.fault


def test_an_emergency_stop_is_the_vendors(franky: FakeFranky, driver: FrankaFci) -> None:
    guard = activate(driver)
    guard.stop("test", StopLevel.EMERGENCY)
    assert franky.robot.calls == ["stop"]
    assert franky.gripper.goals[-1][0] == "stop"
    assert guard.lifecycle is Lifecycle.FAULT


def test_the_hand_grasps_to_close_and_moves_to_open(franky: FakeFranky, driver: FrankaFci) -> None:
    driver.engage()
    start = driver.measured_setpoint()
    for width in (0.0, 0.0):
        driver.send(np.append(start[:7], width))
    assert franky.gripper.goals == [("grasp", 0.0)]
    driver.release()


def test_the_wrench_has_our_sign_and_the_limits_are_the_robots(franky: FakeFranky) -> None:
    franky.robot.wrench = np.array([0.0, 0.0, -8.0, 0.0, 0.0, 0.0])  # the vendor's: what the robot exerts
    franky.robot.model_urdf = robot_description(0.9)
    driver = make_driver(host="127.0.0.1")
    driver.connect()
    try:
        assert driver.read().features[EXTERNAL_WRENCH][2] == pytest.approx(8.0)
        np.testing.assert_allclose(driver.external_effort(), [0, -1, -2, -3, -4, -5, -6, 0])
        assert driver.limits.upper[0] < limits.RECTANGLE_UPPER_RAD[0]
    finally:
        driver.close()


def test_limits_that_leave_nothing_close_the_line_again(franky: FakeFranky) -> None:
    franky.robot.model_urdf = robot_description().replace("fr3_", "panda_")
    driver = make_driver(host="127.0.0.1")
    with pytest.raises(RobotError, match="fr3_joint1"):
        driver.connect()
    with pytest.raises(RobotError, match="not connected"):
        driver.read()
