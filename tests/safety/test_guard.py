"""The guard as a whole, over a driver that records what reaches it."""

from __future__ import annotations

import numpy as np
import pytest

from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import CommandRefusedError
from robot_stack.core.messages import Command, Lifecycle, Refusal, Verdict
from robot_stack.safety.guard import LEASE_TIMEOUT_S, RobotGuard
from tests.safety.fake_robot import RecordingRobot

TICK_NS = 10_000_000


class Bench:
    """A guard, its driver and its clock; `session` holds the lease and the robot is active."""

    def __init__(self, *, active: bool = True) -> None:
        self.robot = RecordingRobot()
        self.clock = ManualClock(1_000_000_000)
        self.guard = RobotGuard(self.robot, self.clock)
        self.guard.connect()
        self.guard.acquire_lease("session", "edge")
        self.seq = 0
        if active:
            self.guard.transition(Lifecycle.ACTIVE)

    def command(self, action: tuple[float, float], *, seq: int | None = None, session: str = "session"):  # type: ignore[no-untyped-def]
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


def test_the_stop_begins_within_one_tick_of_the_timeout_and_ends_at_rest() -> None:
    bench = Bench()
    bench.command((0.12, -0.1))
    bench.ticks(5)
    for _ in range(8):
        bench.command((1.0, -0.1))
        bench.ticks(5)
    assert bench.guard.state().moving
    bench.ticks(11)  # 150 ms after the last command: its time is over
    before = bench.robot.sent[-1][0] - bench.robot.sent[-2][0]
    bench.ticks(1)
    after = bench.robot.sent[-1][0] - bench.robot.sent[-2][0]
    assert after < before
    bench.ticks(25)
    assert not bench.guard.state().moving
    assert bench.guard.stops == 1


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


@pytest.mark.parametrize("where", ["send", "resolve", "read"])
def test_faults_latch_and_only_a_person_clears_them(where: str) -> None:
    bench = Bench()
    if where == "read":
        bench.robot.fault = "joint_reflex"
        bench.guard.state()
    elif where == "send":
        bench.robot.fail_send = "cable"
        bench.ticks(1)
    else:
        bench.robot.fail_resolve = "reflex"
        bench.command((0.2, 0.0))
    bench.robot.fault = bench.robot.fail_send = bench.robot.fail_resolve = ""
    bench.ticks(50)
    assert bench.guard.state().lifecycle is Lifecycle.FAULT
    assert bench.guard.state().fault
    assert bench.command((0.2, 0.0)).refusal is Refusal.NOT_ACTIVE
    with pytest.raises(CommandRefusedError, match="fault"):
        bench.guard.transition(Lifecycle.ACTIVE)
    bench.guard.transition(Lifecycle.INACTIVE)
    bench.guard.transition(Lifecycle.ACTIVE)
    assert bench.guard.state().fault == ""
    assert bench.command((0.11, -0.1)).verdict is Verdict.ACCEPTED


def test_a_driver_without_a_finite_answer_is_refused() -> None:
    bench = Bench()
    bench.robot.resolved_nan = True
    assert bench.command((0.2, 0.0)).refusal is Refusal.DRIVER
    bench.ticks(5)
    assert np.isfinite(np.array(bench.robot.sent)).all()


def test_an_operator_stop_ramps_down_and_commands_wait_for_rest() -> None:
    bench = Bench()
    for _ in range(6):
        bench.command((1.0, -0.1))
        bench.ticks(5)
    bench.guard.stop("operator")
    assert bench.command((1.0, -0.1)).refusal is Refusal.STOPPING
    bench.ticks(40)
    assert not bench.guard.state().moving
    assert bench.command((0.5, -0.1)).verdict is Verdict.ACCEPTED


def test_a_real_robot_is_never_reset_by_software() -> None:
    with pytest.raises(CommandRefusedError, match="a person must"):
        Bench().guard.reset(1)
