"""A robot that is told to stand still does, however often it is told: what is asked for at every tick and does not
change is not overshot."""

from __future__ import annotations

import numpy as np
import pytest

from robot_stack.config.robots.base import Setting
from robot_stack.config.robots.franka import FrankaConfig
from robot_stack.core.clock import ManualClock, s_to_ns
from robot_stack.core.messages import Command, Lifecycle
from robot_stack.core.specs import STATE
from robot_stack.safety.guard import RobotGuard


@pytest.mark.parametrize("every_ticks", [1, 2, 10])
def test_a_robot_that_is_told_to_stand_still_does_however_often_it_is_told(every_ticks: int) -> None:
    robot, clock = FrankaConfig().simulated(Setting("peg_insertion")), ManualClock()
    guard = RobotGuard(robot, clock)
    guard.connect()
    guard.acquire_lease("s", "s")
    guard.transition(Lifecycle.ACTIVE)
    guard.reset(0)
    seq = 0

    def tick(moves_m: float | None) -> float:
        nonlocal seq
        if moves_m is not None:
            seq += 1
            action = np.array([moves_m, 0, 0, 0], np.float32)
            guard.command(Command(session="s", seq=seq, deadline_ns=2**62, action=action))
        guard.tick()
        robot.advance(0.01)
        clock.advance_ns(s_to_ns(0.01))
        return float(guard.state().features[STATE][0])

    for _ in range(100):
        tick(0.00075)
    places_m = [tick(0.0 if number % every_ticks == 0 else None) for number in range(100)]
    guard.close()
    assert np.abs(np.diff(places_m[30:])).max() < 1e-4 and abs(places_m[-1] - places_m[30]) < 1e-3
