"""An episode that begins where the robot is: nothing is moved, and nothing begins while it moves."""

from __future__ import annotations

import numpy as np
import pytest

from robot_stack.core.direction import Direction
from robot_stack.core.errors import CommandRefusedError
from robot_stack.core.messages import Lifecycle, Verdict
from robot_stack.core.protocols import ReversibleRobot
from robot_stack.safety.settling import SETTLE_S, settle
from tests.safety.checking import assert_within_limits
from tests.safety.fake_robot import LIMITS, EpisodicRecordingRobot, RecordingRobot
from tests.safety.test_guard import Bench

TICK_S = 0.01


class ThereAndBack(EpisodicRecordingRobot, ReversibleRobot):
    """A scene whose task goes both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[tuple[int, Direction]] = []

    @property
    def directions(self) -> tuple[Direction, ...]:
        return tuple(Direction)

    def begin_here(self, seed: int, direction: Direction) -> None:
        self._called("begin_here")
        self.begun.append((seed, direction))


def settled(bench: Bench) -> None:
    settle(bench.guard, lambda: bench.ticks(1), TICK_S)


def test_scene_and_robot_stay_and_commands_are_taken_at_once() -> None:
    robot = ThereAndBack()
    bench = Bench(robot=robot)
    bench.run_fast()
    settled(bench)
    bench.guard.begin_here(7, Direction.BACKWARD)
    assert (robot.begun, robot.seeds) == ([(7, Direction.BACKWARD)], [])
    state = bench.guard.state()
    assert (state.episode_seed, state.moving, state.stopping) == (7, False, False)
    assert bench.guard.holds_lease("session")
    assert bench.command((0.03, 0.0)).verdict is Verdict.ACCEPTED


def test_it_is_refused_while_the_robot_moves_and_the_robot_goes_on() -> None:
    robot = ThereAndBack()
    bench = Bench(robot=robot)
    bench.run_fast()
    with pytest.raises(CommandRefusedError, match="moving") as refused:
        bench.guard.begin_here(7, Direction.BACKWARD)
    assert refused.value.reason == "moving"
    assert robot.begun == []
    assert bench.guard.lifecycle is Lifecycle.ACTIVE


def test_settling_ramps_within_the_limits_and_ends() -> None:
    bench = Bench(robot=ThereAndBack())
    bench.run_fast()
    before = len(bench.robot.sent)
    settled(bench)
    assert not bench.guard.moving
    assert 0 < len(bench.robot.sent) - before < SETTLE_S / TICK_S
    assert_within_limits([np.array([0.1, -0.1]), *bench.robot.sent], LIMITS, TICK_S)
    calls = len(bench.robot.sent)
    settled(bench)
    assert len(bench.robot.sent) == calls, "at rest no time passes"


def test_an_inactive_robot_and_a_task_of_one_way_are_refused_without_a_fault() -> None:
    with pytest.raises(CommandRefusedError, match="activate it first"):
        Bench(robot=ThereAndBack(), active=False).guard.begin_here(1, Direction.FORWARD)
    bench = Bench(robot=EpisodicRecordingRobot())
    with pytest.raises(CommandRefusedError, match="backward") as refused:
        bench.guard.begin_here(1, Direction.BACKWARD)
    assert refused.value.reason == "one_way"
    assert bench.guard.lifecycle is Lifecycle.ACTIVE


def test_a_real_robot_begins_where_it_is_in_either_direction() -> None:
    bench = Bench(robot=RecordingRobot())
    for seed, direction in enumerate(Direction):
        bench.guard.begin_here(seed, direction)
        assert bench.guard.state().episode_seed == seed


def test_an_error_of_the_scene_latches_a_fault() -> None:
    robot = ThereAndBack()
    bench = Bench(robot=robot)
    robot.failing = {"begin_here": "the scene is gone"}
    with pytest.raises(CommandRefusedError, match="the scene is gone"):
        bench.guard.begin_here(1, Direction.BACKWARD)
    assert bench.guard.lifecycle is Lifecycle.FAULT
