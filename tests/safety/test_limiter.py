"""No goal, however wild, makes the filter leave its limits; and it does reach goals that are allowed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.core.protocols import SetpointLimits
from robot_stack.safety.limiter import SetpointLimiter

TICK_S = 0.01
LIMITS = SetpointLimits(
    names=("a_rad", "b_m"),
    lower=(-1.0, 0.0),
    upper=(2.0, 0.08),
    max_velocity=(1.5, 0.2),
    max_acceleration=(10.0, 2.0),
)


def limiter(start: tuple[float, float] = (0.0, 0.04)) -> SetpointLimiter:
    made = SetpointLimiter(LIMITS, TICK_S)
    made.start(np.array(start))
    return made


def test_first_setpoint_equals_the_measured_state() -> None:
    made = limiter((0.3, 0.02))
    assert made.toward(np.array([0.3, 0.02]), 0.1).tolist() == [0.3, 0.02]


def test_a_reachable_goal_is_reached_in_its_time_on_a_straight_line() -> None:
    made = limiter()
    path = [made.toward(np.array([0.05, 0.05]), 0.1 - i * TICK_S) for i in range(30)]
    assert np.allclose(path[-1], [0.05, 0.05], atol=1e-6)
    assert abs(path[9][0] - 0.05) < 0.01  # nearly there when its time is over


@settings(max_examples=200, deadline=None)
@given(
    goals=st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1.0, 1.0), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    start=st.tuples(st.floats(-1.0, 2.0), st.floats(0.0, 0.08)),
)
def test_position_velocity_and_acceleration_never_leave_their_limits(
    goals: list[tuple[float, float, float, bool]], start: tuple[float, float]
) -> None:
    made = limiter(start)
    positions = [made.setpoint]
    for first, second, remaining_s, stop in goals:
        for _ in range(3):
            positions.append(made.stop() if stop else made.toward(np.array([first, second]), remaining_s))
    path = np.array(positions)
    velocity = np.diff(path, axis=0, prepend=path[:1]) / TICK_S
    acceleration = np.diff(velocity, axis=0) / TICK_S
    assert np.all(path >= np.array(LIMITS.lower) - 1e-12)
    assert np.all(path <= np.array(LIMITS.upper) + 1e-12)
    assert np.all(np.abs(velocity) <= np.array(LIMITS.max_velocity) + 1e-9)
    assert np.all(np.abs(acceleration) <= np.array(LIMITS.max_acceleration) * (1 + 1e-6) + 1e-6)


def test_stop_decelerates_at_the_first_tick_and_comes_to_rest() -> None:
    made = limiter()
    for i in range(40):
        made.toward(np.array([2.0, 0.04]), 1.0 - i * TICK_S)
    before = made.setpoint
    moved = [float(made.stop()[0]) for _ in range(30)]
    steps = np.diff([float(before[0]), *moved])
    assert steps[0] < 1.5 * TICK_S
    assert np.all(np.diff(steps) <= 1e-12)
    assert not made.moving
    assert moved[-1] == moved[-2]


def test_infinite_rates_let_the_goal_through_at_once() -> None:
    free = SetpointLimits(
        names=("a0",), lower=(-1.0,), upper=(1.0,), max_velocity=(np.inf,), max_acceleration=(np.inf,)
    )
    made = SetpointLimiter(free, 0.1)
    made.start(np.array([0.0]))
    assert made.toward(np.array([1.0]), 0.1)[0] == 1.0
    assert made.toward(np.array([-5.0]), 0.1)[0] == -1.0
