"""The guard as a whole, over a driver that records what reaches it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec import structs

from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import CommandRefusedError, ConfigError
from robot_stack.core.messages import Command, CommandResult, Lifecycle, Refusal, StopLevel, Verdict
from robot_stack.core.protocols import SetpointLimits
from robot_stack.safety.guard import LEASE_TIMEOUT_S, Narrow, RobotGuard
from robot_stack.safety.passivity import EnergyTankConfig
from tests.safety.checking import assert_within_limits
from tests.safety.fake_robot import LIMITS, EpisodicRecordingRobot, RecordingRobot, TwoLinkGeometry

TICK_NS = 10_000_000


class Bench:
    """A guard, its driver and its clock; `session` holds the lease and the robot is active."""

    def __init__(
        self,
        *,
        active: bool = True,
        robot: RecordingRobot | None = None,
        tank: EnergyTankConfig | None = None,
        start_ns: int = 1_000_000_000,
        narrow: Narrow = lambda limits: limits,
    ) -> None:
        self.robot = robot or RecordingRobot()
        self.clock = ManualClock(start_ns)
        self.guard = RobotGuard(self.robot, self.clock, tank, narrow)
        self.guard.connect()
        self.guard.acquire_lease("session", "edge")
        self.seq = 0
        if active:
            self.guard.transition(Lifecycle.ACTIVE)

    def command(
        self, action: tuple[float, float], *, seq: int | None = None, session: str = "session"
    ) -> CommandResult:
        self.seq = self.seq + 1 if seq is None else seq
        now_ns = self.clock.now_ns()
        return self.guard.command(
            Command(
                session=session,
                seq=self.seq,
                deadline_ns=now_ns + 150_000_000,
                action=np.asarray(action, dtype=np.float32),
            )
        )

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.guard.tick()
            self.clock.advance_ns(TICK_NS)

    def run_fast(self) -> None:
        """Let it move at full speed."""
        for _ in range(6):
            assert self.command((1.0, -0.1)).refusal is None
            self.ticks(5)
        assert self.guard.state().moving

    def speed(self) -> float:
        """Of the first axis, per tick."""
        return float(self.robot.sent[-1][0] - self.robot.sent[-2][0])


def test_nothing_reaches_the_driver_before_a_person_activates() -> None:
    bench = Bench(active=False)
    result = bench.command((0.5, 0.5))
    bench.ticks(20)
    assert result.refusal is Refusal.NOT_ACTIVE
    assert bench.robot.sent == []


def test_first_setpoint_after_activation_is_where_the_robot_is() -> None:
    bench = Bench()
    bench.ticks(1)
    assert bench.robot.sent[0].tolist() == [0.1, -0.1]


def test_an_accepted_command_moves_the_robot_to_its_goal() -> None:
    bench = Bench()
    assert bench.command((0.12, -0.12)).verdict is Verdict.ACCEPTED
    bench.ticks(14)
    assert np.allclose(bench.robot.sent[-1], [0.12, -0.12], atol=1e-3)


# From 2 rad/s at 10 rad/s^2 and 400 rad/s^3: braking, the jerk's ramp up and back, the tick that is under way.
STOP_TICKS = 20 + 3 + 1


def test_the_stop_begins_within_one_tick_of_the_timeout_and_ends_at_rest() -> None:
    bench = Bench()
    bench.run_fast()
    bench.ticks(10)
    assert bench.guard.stops == 0
    bench.ticks(1)  # 150 ms after the last command was given its time is over, but not yet past
    before = bench.speed()
    assert bench.guard.stops == 0
    bench.ticks(1)
    assert bench.guard.stops == 1
    assert bench.speed() < before
    bench.ticks(STOP_TICKS)
    assert not bench.guard.state().moving
    assert bench.guard.state().stopping
    assert bench.guard.stops == 1


def test_at_every_speed_the_stop_begins_at_once_and_ends_within_the_bound_of_the_limits() -> None:
    for ticks in range(3, 30):
        bench = Bench()
        for _ in range(ticks):
            bench.command((1.0, -1.0))
            bench.ticks(1)
        bench.guard.stop("test")
        bench.ticks(1)
        first, second, third, fourth = bench.robot.sent[-4:]
        before, after = third - 2 * second + first, fourth - 2 * third + second
        # an acceleration falls at full jerk; one that brakes already may go on
        speeding = before * (third - second) > 0.0
        most = np.maximum(np.abs(before) - 4e-4, 0.0) + 1e-9
        assert (np.sign(before) * after <= most)[speeding].all()
        speed = np.abs(fourth - third).max() + 2e-3  # what the acceleration still adds
        bench.ticks(int(np.ceil(speed / 1e-3)) + 2 * 3)
        assert not bench.guard.state().moving


@pytest.mark.parametrize(
    "action", [(np.nan, 0.0), (np.inf, 0.0), (1e9, 0.0), (-9.0, 0.0)], ids=["nan", "inf", "huge", "gross"]
)
def test_a_bad_action_is_refused_counted_and_changes_nothing(action: tuple[float, float]) -> None:
    bench = Bench()
    bench.ticks(3)
    result = bench.command(action)
    bench.ticks(20)
    assert result.verdict is Verdict.REFUSED
    assert sum(bench.guard.refusals.values()) == 1
    assert {tuple(setpoint) for setpoint in bench.robot.sent} == {(0.1, -0.1)}


def test_a_repeated_command_is_refused() -> None:
    bench = Bench()
    bench.command((0.12, -0.1), seq=7)
    assert bench.command((0.5, -0.1), seq=7).refusal is Refusal.REPEATED
    assert bench.command((0.5, -0.1), seq=6).refusal is Refusal.REPEATED


def test_a_stale_command_is_refused_and_the_robot_stays() -> None:
    bench = Bench()
    late = Command(session="session", seq=1, deadline_ns=0, action=np.zeros(2, dtype=np.float32))
    assert bench.guard.command(late).refusal is Refusal.STALE
    bench.ticks(5)
    assert {tuple(setpoint) for setpoint in bench.robot.sent} == {(0.1, -0.1)}


def test_one_lease_at_a_time_and_it_lapses_when_its_holder_falls_silent() -> None:
    bench = Bench()
    with pytest.raises(CommandRefusedError, match="held by session"):
        bench.guard.acquire_lease("second", "operator")
    bench.ticks(round(LEASE_TIMEOUT_S * 100) + 1)
    bench.guard.acquire_lease("second", "operator")
    assert bench.command((0.1, 0.0)).refusal is Refusal.NO_LEASE


def test_a_new_session_of_the_same_peer_replaces_the_old_one() -> None:
    bench = Bench()
    bench.command((0.5, -0.1))
    bench.guard.acquire_lease("restarted", "edge")
    assert bench.command((0.5, -0.1)).refusal is Refusal.NO_LEASE
    assert bench.command((0.1, -0.1), seq=1, session="restarted").refusal in (None, Refusal.STOPPING)


@pytest.mark.parametrize("where", ["send", "fault", "read", "read_error", "hold"])
def test_faults_latch_and_only_a_person_clears_them(where: str) -> None:
    bench = Bench()
    if where == "read":
        bench.robot.fault = "joint_reflex"
        bench.guard.state()
    elif where == "read_error":
        bench.robot.failing = {"read": "cable"}
        assert bench.guard.state().features == {}
    elif where == "send":
        bench.robot.failing = {"send": "cable"}
        bench.ticks(1)
    elif where == "hold":
        bench.robot.failing = {"hold": "cable"}
        bench.guard.stop("test")
    else:
        bench.robot.failing = {"fault": "reflex"}
        assert bench.command((0.2, 0.0)).refusal is Refusal.DRIVER
    bench.robot.fault = ""
    bench.robot.failing = {}
    bench.ticks(50)
    assert bench.guard.state().lifecycle is Lifecycle.FAULT
    assert bench.guard.state().fault
    assert bench.command((0.2, 0.0)).refusal is Refusal.NOT_ACTIVE
    with pytest.raises(CommandRefusedError, match="its fault is"):
        bench.guard.transition(Lifecycle.ACTIVE)
    bench.guard.transition(Lifecycle.INACTIVE)
    bench.ticks(3)
    assert bench.guard.state().lifecycle is Lifecycle.INACTIVE
    bench.guard.transition(Lifecycle.ACTIVE)
    assert bench.guard.state().fault == ""
    assert bench.command((0.11, -0.1)).verdict is Verdict.ACCEPTED


def test_the_first_fault_is_the_one_that_is_kept() -> None:
    bench = Bench()
    bench.robot.fault = "first"
    bench.guard.state()
    bench.robot.fault = "second"
    bench.robot.failing = {"send": "third", "release": "fourth", "idle": "fifth"}
    bench.ticks(5)
    assert bench.guard.state().fault == "first"


def test_deactivation_does_not_hide_a_fault_that_it_meets() -> None:
    bench = Bench()
    bench.robot.failing = {"hold": "cable"}
    bench.guard.transition(Lifecycle.INACTIVE)
    assert bench.guard.lifecycle is Lifecycle.FAULT
    assert bench.guard.fault == "cable"


@pytest.mark.parametrize("goal", [np.full(2, np.nan), np.array([0.0, np.inf]), np.zeros(3)])
def test_a_driver_without_a_usable_goal_is_refused(goal: np.ndarray) -> None:
    bench = Bench()
    bench.robot.goal = goal
    assert bench.command((0.2, 0.0)).refusal is Refusal.DRIVER
    bench.ticks(5)
    assert {tuple(setpoint) for setpoint in bench.robot.sent} == {(0.1, -0.1)}
    assert bench.guard.lifecycle is Lifecycle.ACTIVE


def test_an_error_that_is_no_fault_refuses_the_command_alone() -> None:
    bench = Bench()
    bench.robot.failing = {"resolve": "out of reach"}
    result = bench.command((0.2, 0.0))
    assert (result.refusal, result.message) == (Refusal.DRIVER, "out of reach")
    assert bench.guard.lifecycle is Lifecycle.ACTIVE
    assert bench.guard.refusals[Refusal.DRIVER] == 1
    bench.robot.failing = {}
    assert bench.command((0.2, 0.0)).verdict is Verdict.ACCEPTED


def test_an_operator_stop_ramps_down_and_commands_wait_for_rest() -> None:
    bench = Bench()
    bench.run_fast()
    bench.guard.stop("operator")
    assert bench.command((1.0, -0.1)).refusal is Refusal.STOPPING
    bench.ticks(STOP_TICKS)
    assert not bench.guard.state().moving
    assert bench.guard.lifecycle is Lifecycle.ACTIVE
    assert bench.guard.stops == 1
    assert bench.command((0.5, -0.1)).verdict is Verdict.ACCEPTED
    assert not bench.guard.state().stopping


# ---- authority ----------------------------------------------------------------------------------------------------


def test_the_driver_is_engaged_at_activation_and_idles_before_it() -> None:
    bench = Bench(active=False)
    bench.ticks(3)
    assert bench.robot.calls == ["connect", "idle", "idle", "idle"]
    assert bench.robot.sent == []
    bench.guard.transition(Lifecycle.ACTIVE)
    assert bench.robot.calls[-2:] == ["hold", "engage"]
    bench.guard.transition(Lifecycle.ACTIVE)
    bench.ticks(3)
    assert bench.robot.calls.count("engage") == 1
    assert bench.robot.calls.count("idle") == 3
    assert len(bench.robot.sent) == 3


def released_at_rest(bench: Bench) -> None:
    """It ramps down by setpoints, is released once when it rests, and idles from then on."""
    sent = len(bench.robot.sent)
    bench.robot.calls.clear()
    bench.ticks(STOP_TICKS + 5)
    steps = np.diff([setpoint[0] for setpoint in bench.robot.sent[sent - 1 :]])
    assert 15 < len(steps) <= STOP_TICKS
    assert steps[-1] == 0.0
    assert (np.diff(steps) <= 1e-12).all()
    calls = [call for call in bench.robot.calls if call != "hold"]
    assert calls == ["release"] + ["idle"] * (len(calls) - 1)
    assert len(calls) == STOP_TICKS + 5 - len(steps) + 1
    assert not bench.guard.state().moving


def test_after_deactivation_it_ramps_down_and_is_released_once_at_rest() -> None:
    bench = Bench()
    bench.run_fast()
    bench.guard.transition(Lifecycle.INACTIVE)
    assert bench.guard.stops == 1
    released_at_rest(bench)
    assert bench.guard.lifecycle is Lifecycle.INACTIVE


def test_after_a_fault_it_ramps_down_and_is_released_once_at_rest() -> None:
    bench = Bench()
    bench.run_fast()
    bench.guard.latch_fault("test")
    released_at_rest(bench)
    assert bench.guard.lifecycle is Lifecycle.FAULT


def test_a_driver_that_takes_no_setpoints_in_fault_is_released() -> None:
    bench = Bench()
    bench.run_fast()
    bench.robot.failing = {"send": "cable"}
    bench.robot.calls.clear()
    bench.ticks(1)
    assert bench.guard.lifecycle is Lifecycle.FAULT
    assert "release" not in bench.robot.calls
    bench.ticks(3)
    assert bench.robot.calls == ["release", "idle", "idle"]


def test_activation_during_the_ramp_keeps_the_ramp() -> None:
    bench = Bench()
    bench.run_fast()
    bench.guard.transition(Lifecycle.INACTIVE)
    bench.ticks(5)
    speed = bench.speed()
    bench.guard.transition(Lifecycle.ACTIVE)
    bench.ticks(1)
    assert 0.0 < bench.speed() < speed
    assert bench.command((1.0, -0.1)).refusal is Refusal.STOPPING
    bench.ticks(STOP_TICKS)
    assert bench.robot.calls.count("engage") == 1
    assert "release" not in bench.robot.calls
    assert bench.command((1.0, -0.1)).verdict is Verdict.ACCEPTED


def test_a_failed_activation_latches_and_does_not_engage() -> None:
    bench = Bench(active=False)
    bench.robot.failing = {"engage": "no authority"}
    with pytest.raises(CommandRefusedError, match="no authority"):
        bench.guard.transition(Lifecycle.ACTIVE)
    assert bench.guard.lifecycle is Lifecycle.FAULT
    bench.ticks(3)
    assert bench.robot.sent == []


def test_a_measured_position_that_is_no_number_cannot_be_activated() -> None:
    bench = Bench(active=False)
    bench.robot.position = np.array([np.nan, 0.0])
    with pytest.raises(CommandRefusedError, match="a_rad"):
        bench.guard.transition(Lifecycle.ACTIVE)
    assert "engage" not in bench.robot.calls


# ---- stop levels --------------------------------------------------------------------------------------------------


def test_a_release_stop_ramps_down_and_then_goes_inactive() -> None:
    bench = Bench()
    bench.run_fast()
    bench.guard.stop("operator", StopLevel.RELEASE)
    assert bench.guard.lifecycle is Lifecycle.ACTIVE
    bench.guard.transition(Lifecycle.ACTIVE)  # changes nothing
    assert bench.command((1.0, -0.1)).refusal is Refusal.STOPPING
    released_at_rest(bench)
    assert bench.guard.lifecycle is Lifecycle.INACTIVE
    assert bench.guard.fault == ""
    assert bench.command((1.0, -0.1)).refusal is Refusal.NOT_ACTIVE


def test_a_release_stop_at_rest_takes_no_command_before_it_is_inactive() -> None:
    bench = Bench()
    bench.ticks(3)
    bench.guard.stop("operator", StopLevel.RELEASE)
    assert bench.command((1.0, -0.1)).refusal is Refusal.STOPPING
    bench.ticks(1)
    assert bench.guard.lifecycle is Lifecycle.INACTIVE


def test_a_hold_stop_after_a_release_stop_does_not_take_it_back_but_stays() -> None:
    bench = Bench()
    bench.guard.transition(Lifecycle.INACTIVE)
    bench.ticks(2)
    bench.guard.stop("nobody is active", StopLevel.RELEASE)
    bench.guard.transition(Lifecycle.ACTIVE)
    bench.ticks(2)
    assert bench.guard.lifecycle is Lifecycle.ACTIVE


@pytest.mark.parametrize("active", [True, False])
def test_an_emergency_stop_is_the_vendors_at_once_and_a_fault(active: bool) -> None:
    bench = Bench(active=active)
    if active:
        bench.run_fast()
    sent = len(bench.robot.sent)
    bench.robot.calls.clear()
    bench.guard.stop("person in the way", StopLevel.EMERGENCY)
    assert bench.robot.calls[0] == "emergency_stop"
    assert bench.robot.calls.count("release") == int(active)
    assert bench.guard.fault == "emergency stop: person in the way"
    assert bench.guard.stops == 1
    bench.ticks(20)
    assert len(bench.robot.sent) == sent  # nothing contradicts the vendor's stop
    state = bench.guard.state()
    assert (state.lifecycle, state.moving, state.stopping) == (Lifecycle.FAULT, False, True)
    with pytest.raises(CommandRefusedError):
        bench.guard.transition(Lifecycle.ACTIVE)


def test_an_emergency_stop_that_fails_says_so() -> None:
    bench = Bench()
    bench.robot.failing = {"emergency_stop": "cable", "release": "cable too"}
    bench.guard.stop("operator", StopLevel.EMERGENCY)
    assert bench.guard.fault.startswith("emergency stop: operator")
    assert "cable; use the hardware emergency stop" in bench.guard.fault


def test_before_it_is_connected_there_is_nothing_to_stop_and_nothing_to_tick() -> None:
    robot = RecordingRobot()
    guard = RobotGuard(robot, ManualClock(0))
    guard.stop("too early", StopLevel.EMERGENCY)
    guard.tick()
    assert robot.calls == []
    assert guard.lifecycle is Lifecycle.UNCONFIGURED


# ---- sessions, time -----------------------------------------------------------------------------------------------


def test_a_session_that_comes_back_cannot_repeat_what_it_said() -> None:
    bench = Bench()
    for seq in range(1, 6):
        bench.command((0.1, -0.1), seq=seq)
    bench.guard.release_lease("session")
    bench.guard.acquire_lease("other", "edge")
    assert bench.command((0.1, -0.1), seq=1, session="other").verdict is Verdict.ACCEPTED
    bench.guard.release_lease("other")
    bench.guard.acquire_lease("session", "edge")
    for seq in range(1, 6):
        assert bench.command((0.5, -0.1), seq=seq).refusal is Refusal.REPEATED
    assert bench.command((0.1, -0.1), seq=6).verdict is Verdict.ACCEPTED
    bench.ticks(round(LEASE_TIMEOUT_S * 100) + 2)  # silent until its lease lapses
    bench.guard.acquire_lease("session", "edge")
    assert bench.command((0.5, -0.1), seq=6).refusal is Refusal.REPEATED


def test_a_recorded_session_is_never_executed_again() -> None:
    bench = Bench()
    recorded = []
    for seq in range(1, 200):
        now_ns = bench.clock.now_ns()
        action = np.array([0.001 * seq, -0.1], dtype=np.float32)
        recorded.append(Command(session="session", seq=seq, deadline_ns=now_ns + 10**12, action=action))
        assert bench.guard.command(recorded[-1]).refusal is None
        bench.ticks(1)
    bench.ticks(40)
    bench.guard.acquire_lease("next", "edge")
    rest = bench.robot.sent[-1].tolist()
    for command in recorded * 3:
        assert bench.guard.command(command).refusal is Refusal.NO_LEASE
    bench.guard.acquire_lease("session", "edge")
    for command in recorded * 3:
        assert bench.guard.command(command).refusal is Refusal.REPEATED
    bench.ticks(20)
    assert bench.robot.sent[-1].tolist() == rest


def test_a_jump_of_the_wall_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    bench = Bench()
    true_time = time.time
    for jump_s in (3600.0, -3600.0) * 20:
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: true_time() + jump_s)
        assert bench.command((0.1, -0.1)).verdict is Verdict.ACCEPTED
        bench.ticks(14)
        assert bench.guard.stops == 0
    bench.ticks(3)
    assert bench.guard.stops == 1


def test_the_origin_of_the_monotonic_clock_does_not_matter() -> None:
    paths = []
    for start_ns in (0, 10**18):
        bench = Bench(start_ns=start_ns)
        bench.run_fast()
        bench.ticks(40)
        paths.append(np.array(bench.robot.sent).tobytes())
    assert paths[0] == paths[1]


def test_diagnostics_of_lease_and_sample_age() -> None:
    bench = Bench()
    assert bench.guard.lease_session == "session"
    bench.robot.stamp_ns = bench.clock.now_ns() - 20_000_000
    bench.guard.state()
    assert bench.guard.sample_age_s() == pytest.approx(0.02)
    bench.robot.stamp_ns = bench.clock.now_ns() + 10**9
    bench.guard.state()
    assert bench.guard.sample_age_s() == 0.0
    bench.guard.release_lease("session")
    assert bench.guard.lease_session == ""
    assert not bench.guard.holds_lease("session")
    with pytest.raises(CommandRefusedError, match="does not hold the lease"):
        bench.guard.require_lease("session")


def test_requests_of_the_holder_keep_its_lease() -> None:
    bench = Bench()
    for _ in range(5):
        bench.ticks(60)
        bench.guard.require_lease("session")
    assert bench.guard.holds_lease("session")
    bench.guard.acquire_lease("session", "edge")
    assert bench.guard.boot


# ---- what connect finds -------------------------------------------------------------------------------------------


def test_limits_that_became_narrower_at_connect_are_kept() -> None:
    class Narrower(RecordingRobot):
        def connect(self) -> None:
            self.limits_now = structs.replace(LIMITS, upper=(0.2, 0.2))

    bench = Bench(robot=Narrower())
    for _ in range(20):
        bench.command((1.0, 1.0))
        bench.ticks(5)
    assert np.array(bench.robot.sent).max() <= 0.2
    assert bench.robot.sent[-1][0] == pytest.approx(0.2, abs=1e-3)


def test_limits_that_became_wider_at_connect_are_refused() -> None:
    class Wider(RecordingRobot):
        def connect(self) -> None:
            self.limits_now = structs.replace(LIMITS, max_velocity=(2.0, 3.0))

    with pytest.raises(ConfigError, match=r"b_rad: max_velocity = 3, allowed \(0, 2\]"):
        Bench(robot=Wider())


def test_close_leaves_nothing_engaged() -> None:
    bench = Bench()
    bench.run_fast()
    bench.guard.close()
    bench.ticks(3)
    assert bench.robot.calls[-1] == "close"
    assert bench.guard.lifecycle is Lifecycle.UNCONFIGURED


# ---- what holds it back -------------------------------------------------------------------------------------------


def arm() -> RecordingRobot:
    robot = RecordingRobot()
    robot.reach = TwoLinkGeometry()
    robot.limits_now = structs.replace(LIMITS, lower=(-3.0, -3.0), upper=(3.0, 3.0))
    robot.position = np.array([-0.5, 1.0])
    return robot


def test_what_holds_it_back_is_in_the_state_and_counted() -> None:
    robot = arm()
    robot.goal = np.array([-3.0, 0.0])
    bench = Bench(robot=robot)
    seen = []
    for tick in range(100):
        if tick % 5 == 0:
            bench.command((0.0, 0.0))
        bench.ticks(1)
        seen.append(bench.guard.state().held_back)
    assert set(seen) == {"", "workspace"}
    assert bench.guard.held_back == {"workspace": seen.count("workspace")}
    assert "workspace" in seen[-10:]
    bench.guard.transition(Lifecycle.INACTIVE)
    bench.ticks(30)
    assert bench.guard.state().held_back == ""


def test_an_error_of_the_geometry_is_a_fault_and_a_stop() -> None:
    robot = arm()
    bench = Bench(robot=robot)
    robot.goal = np.array([0.5, 1.0])
    bench.command((0.0, 0.0))
    bench.ticks(8)
    assert bench.guard.state().moving
    assert robot.reach is not None
    robot.reach.fail = "no model"
    sent = len(robot.sent)
    bench.ticks(30)
    assert bench.guard.fault == "no model"
    assert len(robot.sent) > sent + 2
    assert not bench.guard.state().moving


def test_a_tank_without_an_effort_is_off_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tank=EnergyTankConfig())
    bench.run_fast()
    assert [record.message for record in caplog.records].count(
        "recording_0 tells no external effort: its energy tank is off"
    ) == 1


def test_an_empty_tank_holds_the_robot_back_from_pushing() -> None:
    robot = RecordingRobot()
    robot.effort = np.array([-20.0, 0.0])
    bench = Bench(robot=robot, tank=EnergyTankConfig(initial_j=1.0, floor_j=0.0, refill_w=0.0))
    for _ in range(40):
        bench.command((1.0, -0.1))
        bench.ticks(5)
    assert bench.guard.state().held_back == "energy"
    assert 0.02 < robot.sent[-1][0] - 0.1 <= 1.0 / 20.0


def test_an_error_of_the_effort_is_a_fault_and_a_ramp() -> None:
    robot = RecordingRobot()
    robot.effort = np.zeros(2)
    bench = Bench(robot=robot, tank=EnergyTankConfig(stiffness=0.0))
    bench.run_fast()
    robot.failing = {"external_effort": "no sensor"}
    released_at_rest(bench)
    assert bench.guard.fault == "no sensor"


# ---- episodes -----------------------------------------------------------------------------------------------------


def test_a_reset_starts_anew_from_the_measured_state() -> None:
    robot = EpisodicRecordingRobot()
    bench = Bench(robot=robot)
    bench.run_fast()
    bench.guard.reset(7)
    bench.ticks(1)
    assert robot.sent[-1].tolist() == [0.07, 0.0]
    state = bench.guard.state()
    assert (state.episode_seed, state.moving, robot.seeds) == (7, False, [7])
    assert state.task is not None and state.task.success
    assert state.ground_truth is not None


def test_a_reset_needs_an_active_robot() -> None:
    with pytest.raises(CommandRefusedError, match="activate it first"):
        Bench(robot=EpisodicRecordingRobot(), active=False).guard.reset(1)


@pytest.mark.parametrize("where", ["reset", "task_status"])
def test_errors_of_the_scene_latch_a_fault(where: str) -> None:
    robot = EpisodicRecordingRobot()
    bench = Bench(robot=robot)
    robot.failing = {where: "the scene is gone"}
    if where == "reset":
        with pytest.raises(CommandRefusedError, match="the scene is gone"):
            bench.guard.reset(1)
    state = bench.guard.state()
    state = bench.guard.state()
    assert state.lifecycle is Lifecycle.FAULT
    assert state.fault == "the scene is gone"
    assert (state.task is None) == (where == "task_status")


# ---- everything at once -------------------------------------------------------------------------------------------


def wild_command(rng: np.random.Generator, bench: Bench, seq: int) -> Command:
    kind = rng.integers(0, 9)
    action: np.ndarray = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
    session, deadline_ns = "session", bench.clock.now_ns() + 100_000_000
    if kind == 0:
        action = action * np.float32(10.0 ** rng.uniform(0, 38))
    elif kind == 1:
        action[rng.integers(2)] = rng.choice([np.nan, np.inf, -np.inf])
    elif kind == 2:
        action = np.zeros(int(rng.integers(0, 5)), dtype=np.float32)
    elif kind == 3:
        action = action.astype(rng.choice(["float64", "float16", "int32"]))
    elif kind == 4:
        deadline_ns = bench.clock.now_ns() - int(rng.integers(1, 10**9))
    elif kind == 5:
        seq -= int(rng.integers(1, 100))
    elif kind == 6:
        session = "old"
    elif kind == 7:
        action = np.array([-0.0, 5e-324], dtype=np.float32)
    return Command(session=session, seq=seq, deadline_ns=deadline_ns, action=action)


def test_a_hundred_thousand_commands_and_every_setpoint_within_its_limits() -> None:
    bench, rng = Bench(), np.random.default_rng(11)
    path = [bench.robot.position.copy()]
    bench.robot.sent.append(path[0])
    for seq in range(1, 100_001):
        result = bench.guard.command(wild_command(rng, bench, seq))
        assert (result.refusal is None) == (result.verdict is not Verdict.REFUSED)
        if seq % 5 == 0:
            bench.ticks(1)
        if seq % 7_001 == 0:
            bench.guard.stop("now and then")
    assert sum(bench.guard.verdicts.values()) == 100_000
    refused = set(bench.guard.refusals)
    assert refused >= {Refusal.REPEATED, Refusal.STALE, Refusal.WRONG_SHAPE, Refusal.NOT_FINITE, Refusal.NO_LEASE}
    assert refused >= {Refusal.OUT_OF_BOUNDS, Refusal.STOPPING}
    assert_within_limits(bench.robot.sent, LIMITS, 0.01)
    assert np.ptp(bench.robot.sent, axis=0).min() > 0.5


def test_an_episode_of_a_real_robot_begins_where_it_rests() -> None:
    bench = Bench()
    before = bench.robot.position.copy()
    bench.guard.reset(1)
    bench.ticks(20)
    assert bench.guard.state().episode_seed == 1
    np.testing.assert_array_equal(bench.robot.position, before)
    assert bench.command((0.9, 0.9)).verdict is Verdict.ACCEPTED
    bench.ticks(5)
    with pytest.raises(CommandRefusedError, match="moving"):
        bench.guard.reset(2)
    assert bench.guard.state().episode_seed == 1


def test_a_configuration_narrows_the_robots_limits_before_and_after_it_is_connected() -> None:
    seen: list[SetpointLimits] = []

    def narrow(limits: SetpointLimits) -> SetpointLimits:
        seen.append(limits)
        return structs.replace(limits, upper=(0.3, 0.3))

    bench = Bench(narrow=narrow)
    assert len(seen) == 2
    for _ in range(40):
        bench.command((1.0, 1.0))
        bench.ticks(5)
    assert np.max(bench.robot.sent) == pytest.approx(0.3)


def test_a_configuration_that_is_wider_than_the_robot_does_not_start() -> None:
    def widen(limits: SetpointLimits) -> SetpointLimits:
        raise ConfigError("wider")

    with pytest.raises(ConfigError, match="wider"):
        Bench(narrow=widen)


# ---- what is told -------------------------------------------------------------------------------------------------


def test_the_first_state_says_that_nothing_has_happened() -> None:
    bench = Bench(active=False)
    state = bench.guard.state()
    assert (state.seq, state.episode_seed, state.last_command_seq) == (1, -1, -1)
    assert (state.moving, state.stopping, state.held_back, state.fault) == (False, False, "", "")
    assert (state.boot, state.stamp_ns, state.lifecycle) == (bench.guard.boot, 1, Lifecycle.INACTIVE)
    assert (state.task, state.ground_truth) == (None, None)
    assert bench.guard.state().seq == 2
    assert bench.guard.state().seq == 3
    assert RobotGuard(RecordingRobot(), bench.clock).sample_age_s() == 0.0


def test_results_and_counters_say_what_was_done() -> None:
    bench = Bench()
    good = bench.command((0.12, -0.1), seq=0)
    assert (good.seq, good.verdict, good.refusal, good.message) == (0, Verdict.ACCEPTED, None, "")
    assert good.sent.tolist() == np.array([0.12, -0.1], dtype=np.float32).tolist()
    assert bench.command((0.12, -0.1), seq=1).verdict is Verdict.ACCEPTED
    assert bench.command((0.12, 1.1), seq=2).verdict is Verdict.CLIPPED
    bad = [bench.command((np.nan, 0.0), seq=3) for _ in range(3)]
    assert [result.seq for result in bad] == [3, 3, 3]
    assert bench.guard.verdicts == {Verdict.ACCEPTED: 2, Verdict.CLIPPED: 1, Verdict.REFUSED: 3}
    assert bench.guard.refusals == {Refusal.NOT_FINITE: 3}
    state = bench.guard.state()
    assert (state.last_command_seq, state.stopping) == (2, False)
    bench.robot.failing = {"fault": "reflex"}
    assert bench.command((0.12, -0.1), seq=4).message == "reflex"
    state = bench.guard.state()
    assert (state.fault, state.stopping, state.last_command_seq) == ("reflex", True, 2)


def test_refused_requests_carry_their_reason() -> None:
    def reason(call: Callable[[], None]) -> str:
        with pytest.raises(CommandRefusedError) as caught:
            call()
        return caught.value.reason

    bench = Bench()
    guard = bench.guard
    assert reason(lambda: guard.acquire_lease("second", "operator")) == "no_lease"
    assert reason(lambda: guard.require_lease("second")) == "no_lease"
    assert reason(lambda: guard.transition(Lifecycle.UNCONFIGURED)) == "lifecycle"
    guard.latch_fault("test")
    assert reason(lambda: guard.reset(1)) == "not_active"
    guard.transition(Lifecycle.INACTIVE)
    bench.ticks(2)
    bench.robot.failing = {"engage": "no authority"}
    assert reason(lambda: guard.transition(Lifecycle.ACTIVE)) == "fault"
    scene = Bench(robot=EpisodicRecordingRobot())
    scene.robot.failing = {"reset": "gone"}
    assert reason(lambda: scene.guard.reset(1)) == "fault"


def test_the_goal_is_reached_when_it_is_due_and_not_before() -> None:
    bench = Bench()
    bench.command((0.102, -0.1))
    bench.ticks(5)
    assert bench.robot.sent[-1][0] == pytest.approx(0.101, abs=3e-4)
    bench.ticks(5)
    assert bench.robot.sent[-1][0] == pytest.approx(0.102, abs=1e-6)


def test_the_holder_may_ask_for_its_lease_again_without_being_stopped() -> None:
    bench = Bench()
    bench.run_fast()
    bench.guard.acquire_lease("session", "edge")
    assert bench.guard.stops == 0
    assert bench.command((1.0, -0.1)).verdict is Verdict.ACCEPTED
    bench.guard.acquire_lease("restarted", "edge")
    assert bench.guard.stops == 1


def test_energy_that_a_stop_takes_is_booked() -> None:
    robot = RecordingRobot()
    robot.effort = np.array([-0.1, 0.0])
    config = EnergyTankConfig(capacity_j=5.0, initial_j=1.0, floor_j=0.0, refill_w=0.0, stiffness=0.0)
    bench = Bench(robot=robot, tank=config)
    bench.run_fast()
    bench.guard.stop("test")
    stopped_at = robot.sent[-1][0]
    robot.effort = np.array([-2.0, 0.0])
    bench.ticks(STOP_TICKS)
    used_j = 0.1 * (stopped_at - 0.1) + 2.0 * (robot.sent[-1][0] - stopped_at)
    robot.effort = np.array([-10.0, 0.0])
    start = robot.sent[-1][0]
    for _ in range(40):
        bench.command((1.0, -0.1))
        bench.ticks(5)
    assert 10.0 * (robot.sent[-1][0] - start) == pytest.approx(1.0 - used_j, rel=0.15)
    assert 10.0 * (robot.sent[-1][0] - start) <= 1.0 - used_j + 1e-9


def test_stops_are_counted_one_by_one_and_logged_with_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench()
    for count in (1, 2, 3):
        bench.command((0.12, -0.1))
        bench.ticks(1)
        bench.guard.stop(f"reason {count}")
        bench.ticks(STOP_TICKS)
        assert bench.guard.stops == count
    bench.guard.stop("nothing to stop")
    assert bench.guard.stops == 3
    bench.guard.stop("person", StopLevel.EMERGENCY)
    assert bench.guard.stops == 4
    told = [record.getMessage() for record in caplog.records]
    assert told[:3] == [f"recording_0: stopping: reason {count}" for count in (1, 2, 3)]
    assert told[-1] == "recording_0: fault latched: emergency stop: person"


def test_a_reset_takes_commands_at_once() -> None:
    bench = Bench(robot=EpisodicRecordingRobot())
    bench.run_fast()
    bench.guard.stop("test")
    bench.guard.reset(3)
    assert not bench.guard.state().stopping
    assert bench.command((0.03, 0.0)).verdict is Verdict.ACCEPTED


def test_an_error_while_reading_keeps_the_stamp_of_the_last_sample() -> None:
    bench = Bench()
    bench.robot.stamp_ns = 77
    bench.guard.state()
    bench.robot.failing = {"read": "cable"}
    state = bench.guard.state()
    assert (state.stamp_ns, state.fault) == (77, "cable")
