"""The ROS 2 driver against the vendor-side simulator, over real DDS, in one process."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from msgspec import structs

pytest.importorskip("rclpy", reason="the package rclpy is not installed")


from hardware.franka import limits, ros2_names
from hardware.franka.config import FrankaRos2Config
from hardware.franka.ros2 import FrankaRos2
from hardware.franka.ros2_names import JointReader
from hardware.franka.ros2_safe_state import FrankaRos2SafeState
from hardware.franka.ros2_simulator import FrankaRos2Simulator
from hardware.franka.sim import EXTERNAL_WRENCH, SimulatedFranka
from hardware.sim.tasks.peg_insertion import PegInsertion, PegInsertionConfig
from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.messages import Command, Lifecycle, RobotState, Verdict
from robot_stack.core.scene_messages import InjectFault, VendorFault
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.safety.guard import RobotGuard
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable

TICK_S = 0.01
TICKS = 10
DOMAIN = 1 + os.getpid() % 90
_numbers = itertools.count()


def make_config(**changes: Any) -> FrankaRos2Config:
    namespace = f"/franka_{os.getpid()}_{next(_numbers)}"
    config = FrankaRos2Config(namespace=namespace, domain_id=DOMAIN, connect_timeout_s=15.0, max_state_age_s=1.0)
    return structs.replace(config, **changes)


def make_driver(config: FrankaRos2Config, task: str = "pick_cube", **arguments: Any) -> FrankaRos2:
    return FrankaRos2("franka_0", task, config, control_rate_hz=10.0, tick_rate_hz=100.0, **arguments)


def while_ticking(simulator: FrankaRos2Simulator, act: Callable[[], Any]) -> Any:
    """Run a call that waits for the vendor's side while that side lives on in another thread."""
    done = threading.Event()

    def live() -> None:
        while not done.is_set():
            simulator.tick()
            time.sleep(TICK_S / 2)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        return act()
    finally:
        done.set()
        thread.join()


@dataclass
class Line:
    """Guard, driver and simulator, ticked in turn; the guard's time is that of the ticks, whatever the machine does."""

    simulator: FrankaRos2Simulator
    driver: FrankaRos2
    guard: RobotGuard
    clock: ManualClock
    seq: int = 0
    sent: list[np.ndarray] = field(default_factory=list)

    def tick(self, count: int = 1) -> RobotState:
        for _ in range(count):
            began_s = time.monotonic()
            self.guard.tick()
            self.simulator.tick()
            self.clock.advance_ns(10_000_000)
            time.sleep(max(0.0, TICK_S - (time.monotonic() - began_s)))
            state = self.guard.state()
        return state

    def activate(self) -> None:
        self.guard.acquire_lease("test", "test")
        self.guard.transition(Lifecycle.ACTIVE)

    def step(self, action: Any) -> RobotState:
        self.seq += 1
        deadline_ns = self.clock.now_ns() + 10**9
        command = Command(
            session="test", seq=self.seq, deadline_ns=deadline_ns, action=np.asarray(action, dtype=np.float32)
        )
        result = self.guard.command(command)
        assert result.verdict is Verdict.ACCEPTED, result.message
        return self.tick(TICKS)

    def until_fault(self, action: Any, steps: int = 25) -> str:
        for _ in range(steps):
            if self.step(action).fault:
                return self.guard.fault
        return ""


@pytest.fixture
def lines() -> Iterator[Callable[..., Line]]:
    opened: list[Line] = []

    def make(task: Any = "pick_cube", **changes: Any) -> Line:
        config = make_config(**changes)
        simulator = FrankaRos2Simulator(SimulatedFranka("franka_0", task), config)
        simulator.open()
        driver = make_driver(config, task)
        clock = ManualClock()
        line = Line(simulator, driver, RobotGuard(driver, clock), clock)
        opened.append(line)
        while_ticking(simulator, line.guard.connect)
        line.tick(5)
        return line

    yield make
    for line in opened:
        line.guard.close()
        line.simulator.close()


def targets_of(line: Line) -> list[np.ndarray]:
    """Every target that reaches the simulated controller from now on."""
    targets: list[np.ndarray] = []
    inbox = line.simulator._inboxes[0]
    take = inbox.take
    reader = JointReader(limits.JOINT_NAMES, "target", "test")

    def spy(message: Any, measured: np.ndarray) -> None:
        targets.append(reader.pick(message, "position"))
        take(message, measured)

    inbox.take = spy
    return targets


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait for discovery, which takes its time on a busy machine."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "discovery took too long"
        time.sleep(0.02)


def send_for(line: Line, ticks: int) -> None:
    """The driver sends where the arm is, past the guard."""
    for _ in range(ticks):
        line.driver.send(line.driver.measured_setpoint())
        time.sleep(TICK_S / 2)
        line.simulator.tick()


# ---- the whole loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["target_joint", "target_pose", "joint_trajectory"])
def test_it_follows_a_motion_of_ten_centimetres(lines: Callable[..., Line], stream: str) -> None:
    line = lines(stream=stream)
    line.activate()
    before = line.guard.state().features[STATE]
    for _ in range(10):
        line.step([0.0, 0.010, 0.0, 0.0, 1.0])
    for _ in range(6):
        state = line.step([0.0, 0.0, 0.0, 0.0, 1.0])
    assert state.fault == ""
    moved = state.features[STATE][:3] - before[:3]
    np.testing.assert_allclose(moved, [0.0, 0.10, 0.0], atol=1e-3)
    true_joints = line.simulator.world.measured_setpoint()[:7]
    np.testing.assert_allclose(line.driver.measured_setpoint()[:7], true_joints, atol=1e-3)


def test_the_first_target_is_where_the_arm_is(lines: Callable[..., Line]) -> None:
    line = lines()
    line.simulator.reset(4)
    line.tick(10)
    targets = targets_of(line)
    measured = line.simulator.world.measured_setpoint()[:7]
    line.activate()
    line.tick(5)
    assert len(targets) >= 2
    np.testing.assert_allclose(targets[0], measured, atol=1e-4)
    line.step([0.0, 0.010, 0.0, 0.0, 1.0])
    largest = np.abs(np.diff(np.array(targets), axis=0)).max()
    assert 0.0 < largest < 0.05


@pytest.mark.parametrize("task", ["pick_cube", "peg_insertion"])
def test_its_features_are_those_of_the_simulation_back_end(lines: Callable[..., Line], task: str) -> None:
    line = lines(task)
    world, driver = line.simulator.world, line.driver
    assert not driver.spec.simulated
    expected = {key: value for key, value in world.spec.observation.items() if key != ENVIRONMENT_STATE}
    assert driver.spec.observation == expected
    assert driver.spec.action == world.spec.action
    assert driver.limits == world.limits
    line.simulator.reset(3)
    line.tick(20)
    driver.hold()
    world.hold()
    ours, theirs = driver.read().features, world.read().features
    assert ours.keys() == expected.keys()
    for key, value in ours.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, theirs[key], atol=2e-3, err_msg=key)


def test_the_wrench_of_a_contact_is_felt_at_the_tool_with_our_sign(lines: Callable[..., Line]) -> None:
    """The peg's tip lies 5 cm beyond the frame at which the vendor states the wrench."""
    line = lines(PegInsertion(PegInsertionConfig(start_range_m=0.0, socket_xy_range_m=0.0)))
    line.activate()
    for _ in range(2):
        line.step([0.01, 0.0, 0.0, 0.0])
    for _ in range(8):
        state = line.step([0.0, 0.0, -0.01, 0.0])
    assert state.fault == ""
    felt, true = state.features[EXTERNAL_WRENCH], line.simulator.world.read().features[EXTERNAL_WRENCH]
    assert felt[2] > 10.0
    np.testing.assert_allclose(felt[:3], true[:3], atol=2.0)
    np.testing.assert_allclose(felt[3:], true[3:], atol=0.2)
    effort = line.driver.external_effort()
    assert effort is not None
    np.testing.assert_allclose(effort, [*line.simulator.world.contact_torques(), 0.0], atol=2.0)


def test_the_gripper_closes_and_opens(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    for _ in range(18):
        state = line.step([0.0, 0.0, 0.0, 0.0, 0.0])
    assert state.features[STATE][13] < 0.005
    for _ in range(18):
        state = line.step([0.0, 0.0, 0.0, 0.0, 1.0])
    assert state.features[STATE][13] > 0.075
    assert state.fault == ""


def test_a_reading_carries_the_time_its_state_arrived(lines: Callable[..., Line]) -> None:
    line = lines()
    line.simulator.tick()
    time.sleep(0.02)
    line.driver.hold()  # takes what has arrived
    first = line.driver.read().stamp_ns
    time.sleep(0.05)
    again = line.driver.read()
    assert again.stamp_ns == first
    assert time.monotonic_ns() - again.stamp_ns > 50_000_000
    line.simulator.tick()
    time.sleep(0.02)
    assert line.driver.read().stamp_ns > first


def test_a_new_scene_forgets_the_old_targets(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    for _ in range(4):
        line.step([0.0, 0.010, 0.0, 0.0, 1.0])
    line.driver.send(line.driver.measured_setpoint() + 0.05)
    time.sleep(0.05)  # it lies in the queue when the scene begins anew
    line.simulator.reset(7)
    start = line.simulator.world.measured_setpoint()
    for _ in range(30):
        line.simulator.tick()
    np.testing.assert_allclose(line.simulator.world.measured_setpoint(), start, atol=1e-3)


# ---- faults -------------------------------------------------------------------------------------------------------

STEP = [0.0, 0.010, 0.0, 0.0, 1.0]


def test_a_reflex_is_a_latched_fault_until_a_person_recovers_it(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    line.step(STEP)
    line.simulator.inject(InjectFault(fault=VendorFault.REFLEX))
    fault = line.until_fault(STEP)
    assert "does not follow" in fault
    assert line.guard.lifecycle is Lifecycle.FAULT
    line.simulator.inject(InjectFault(fault=VendorFault.NONE))
    line.tick(60)
    assert line.guard.fault == fault
    assert line.simulator.error == "cartesian_reflex"
    while_ticking(line.simulator, line.driver.recover)
    assert line.simulator.error == ""
    line.guard.transition(Lifecycle.INACTIVE)
    assert line.tick(5).fault == ""
    line.guard.transition(Lifecycle.ACTIVE)
    before = line.driver.measured_setpoint()
    for _ in range(4):
        state = line.step(STEP)
    assert state.fault == ""
    assert np.abs(line.driver.measured_setpoint() - before).max() > 0.02


def test_a_stuck_joint_is_named(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    line.simulator.inject(InjectFault(fault=VendorFault.STUCK_JOINT, axis=0))
    assert "fr3_joint1 does not follow" in line.until_fault(STEP)


def test_frozen_state_is_a_fault_that_names_topic_and_age(lines: Callable[..., Line]) -> None:
    line = lines(max_state_age_s=0.1)
    line.activate()
    line.step(STEP)
    line.simulator.inject(InjectFault(fault=VendorFault.FROZEN_STATE))
    state = line.tick(30)
    assert "no state for" in state.fault
    assert ros2_names.JOINT_STATES in state.fault
    assert state.lifecycle is Lifecycle.FAULT


def test_some_lost_packets_are_survived_and_nothing_but_losses_is_a_fault(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    line.simulator.inject(InjectFault(fault=VendorFault.LOST_PACKETS, share=0.3))
    before = line.guard.state().features[STATE][1]
    for _ in range(6):
        state = line.step(STEP)
    assert state.fault == ""
    assert state.features[STATE][1] - before > 0.03
    line.simulator.inject(InjectFault(fault=VendorFault.LOST_PACKETS, share=1.0))
    assert "no state for" in line.tick(150).fault


def test_another_publisher_is_a_fault_and_deafens_the_controller(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    line.step(STEP)
    stream, inbox = line.driver._open.stream, line.simulator._inboxes[0]
    with Ros2Link("intruder", line.driver._config.namespace, domain_id=DOMAIN) as intruder:
        from sensor_msgs.msg import JointState

        intruder.node.create_publisher(JointState, ros2_names.TARGET_JOINT, newest_reliable())
        seen = lambda: stream.rivals() == 1 and inbox.publisher_count() == 2  # noqa: E731
        while_ticking(line.simulator, lambda: until(seen))
        assert "1 other publisher" in line.tick().fault
        targets = targets_of(line)
        send_for(line, 20)
        assert targets == []
    until(lambda: stream.rivals() == 0 and inbox.publisher_count() == 1)
    send_for(line, 20)
    assert len(targets) > 5  # alone again, it is heard again


def test_a_controller_that_goes_away_is_a_fault(lines: Callable[..., Line]) -> None:
    line = lines(max_state_age_s=60.0)
    assert line.driver.read().fault == ""
    line.simulator.close()
    until(lambda: "no controller takes targets" in line.driver.read().fault)


def test_a_target_that_is_not_finite_stops_the_arm_until_recovery(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    for _ in range(3):
        line.step(STEP)
    line.driver.send(np.full(8, np.nan))
    time.sleep(0.02)
    line.simulator.tick()
    assert "not finite" in line.simulator.error
    for _ in range(30):
        line.simulator.tick()
    before = line.simulator.world.measured_setpoint()
    line.tick(20)
    np.testing.assert_allclose(line.simulator.world.measured_setpoint(), before, atol=1e-3)


def test_a_wrench_that_is_not_finite_is_a_fault(lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    line = lines()
    monkeypatch.setattr(line.simulator.world, "wrench_at", lambda site: np.full(6, np.nan))
    assert "wrench" in line.tick(5).fault


def test_a_dead_sender_leaves_the_arm_on_its_last_target(lines: Callable[..., Line]) -> None:
    line = lines()
    line.activate()
    for _ in range(3):
        line.step(STEP)
    targets = targets_of(line)
    line.tick(1)
    for _ in range(100):
        line.simulator.tick()
    np.testing.assert_allclose(line.simulator.world.measured_setpoint()[:7], targets[-1], atol=1e-3)


def test_the_simulator_refuses_faults_it_does_not_have(lines: Callable[..., Line]) -> None:
    line = lines()
    with pytest.raises(RobotError, match=r"runstop.*reflex"):
        line.simulator.inject(InjectFault(fault=VendorFault.RUNSTOP))
    with pytest.raises(RobotError, match="share"):
        line.simulator.inject(InjectFault(fault=VendorFault.LOST_PACKETS, share=1.5))


# ---- connecting ---------------------------------------------------------------------------------------------------


def test_narrower_limits_of_the_robot_are_taken_by_later_connections(lines: Callable[..., Line]) -> None:
    line = lines()
    assert line.driver.limits == limits.rectangle_limits()
    line.simulator.inject(InjectFault(fault=VendorFault.WRONG_LIMITS))
    line.guard.close()
    driver = make_driver(line.driver._config)
    while_ticking(line.simulator, driver.connect)
    try:
        ours, theirs = driver.limits, limits.rectangle_limits()
        assert (np.array(ours.lower[:7]) > theirs.lower[:7]).all()
        assert (np.array(ours.upper[:7]) < theirs.upper[:7]).all()
        lower, upper = driver.spec.action.lower_array(), driver.spec.action.upper_array()
        goals = [driver.resolve(np.where(upper > 0, corner, 0).astype(np.float32)) for corner in [lower, upper] * 20]
        assert (np.array(goals) <= np.array(ours.upper)).all()
        assert (np.array(goals) >= np.array(ours.lower)).all()
    finally:
        driver.close()


def test_connect_waits_for_the_robot_and_names_what_is_missing() -> None:
    config = make_config(connect_timeout_s=0.3)
    began_s = time.monotonic()
    with pytest.raises(RobotError, match=rf"franka_0.*{ros2_names.JOINT_STATES}"):
        make_driver(config).connect()
    assert time.monotonic() - began_s < 5.0
    with pytest.raises(RobotError, match="keeper"):
        FrankaRos2SafeState(config).connect()
    with pytest.raises(RobotError, match=r"not connected; call connect\(\) first"):
        make_driver(config).read()


def test_a_topic_that_somebody_else_commands_is_refused_at_connect_or_soon_after(lines: Callable[..., Line]) -> None:
    line = lines(max_state_age_s=60.0)
    second = make_driver(structs.replace(line.driver._config, connect_timeout_s=3.0))
    try:
        while_ticking(line.simulator, second.connect)
        until(lambda: "other publisher" in second.read().fault)  # its discovery came late
    except RobotError as error:
        assert "other publisher" in str(error)
    finally:
        second.close()


def test_words_of_the_configuration_are_checked() -> None:
    with pytest.raises(ConfigError, match="target_pose"):
        make_driver(make_config(stream="servo"))
    with pytest.raises(ConfigError, match="rectangle"):
        make_driver(make_config(limits="all"))


def test_an_action_package_that_is_missing_is_named(lines: Callable[..., Line]) -> None:
    line = lines()
    config = structs.replace(line.driver._config, gripper_interface="franka_msgs")
    try:
        import franka_msgs  # noqa: F401
    except ImportError:
        with pytest.raises(RobotError, match=r"franka_msgs.*franka_ros2"):
            while_ticking(line.simulator, make_driver(config).connect)
    with pytest.raises(ConfigError, match="control_msgs"):
        make_driver(structs.replace(config, gripper_interface="telepathy")).connect()


# ---- safe state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["target_joint", "joint_trajectory"])
def test_the_safe_state_takes_over_when_the_server_has_gone(lines: Callable[..., Line], stream: str) -> None:
    line = lines(stream=stream)
    config = line.driver._config
    keeper = FrankaRos2SafeState(config, takeover_timeout_s=5.0)
    while_ticking(line.simulator, keeper.connect)
    line.activate()
    for _ in range(4):
        keeper.watch()
        assert line.step(STEP).fault == ""  # the keeper's presence does not deafen the controller
    line.driver.close()  # its publisher goes, as a dead one does when its lease ends; nothing ramped down
    inbox = line.simulator._inboxes[0 if stream == "target_joint" else 2]
    before = inbox.newest.count
    while_ticking(line.simulator, keeper.make_safe)
    assert inbox.newest.count > before
    arm = line.simulator._arm
    np.testing.assert_allclose(arm._target, line.simulator.world.measured_setpoint()[:7], atol=5e-3)
    for _ in range(20):
        line.simulator.tick()
    assert np.abs(line.simulator.world.measured().velocities_rad_s).max() < 0.01
    keeper.close()


def test_the_safe_state_gives_up_where_a_dead_publisher_lingers(
    lines: Callable[..., Line], caplog: pytest.LogCaptureFixture
) -> None:
    line = lines()
    keeper = FrankaRos2SafeState(line.driver._config, takeover_timeout_s=0.3)
    while_ticking(line.simulator, keeper.connect)
    until(lambda: keeper._open.link.node.count_publishers(ros2_names.TARGET_JOINT) == 1)
    while_ticking(line.simulator, keeper.make_safe)  # the driver's publisher is still there
    assert "not taken over: 1 other publisher" in caplog.text
    keeper.close()


def test_the_safe_state_says_so_when_no_state_comes(
    lines: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardware.franka.ros2_safe_state.STANDSTILL_TIMEOUT_S", 0.3)
    line = lines()
    keeper = FrankaRos2SafeState(line.driver._config)
    while_ticking(line.simulator, keeper.connect)
    with pytest.raises(RobotError, match="press the stop"):
        keeper.make_safe()
    keeper.close()
