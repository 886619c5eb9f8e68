"""Interpolation and filter together: goals are followed smoothly, in time, and never past the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from robot_stack.core.protocols import SetpointLimits, VelocityEnvelope
from robot_stack.safety.filter import HeldBack
from robot_stack.safety.interpolation import Interpolator
from robot_stack.safety.motion import MotionFilter
from tests.safety.checking import assert_within_limits

TICK_S = 0.01
TICKS = 10
LIMITS = SetpointLimits(
    names=("a_rad", "b_m"),
    lower=(-1.0, 0.0),
    upper=(2.0, 0.08),
    max_velocity=(1.5, 0.2),
    max_acceleration=(10.0, 2.0),
    max_jerk=(1000.0, np.inf),
)


def motion(start: tuple[float, float] = (0.0, 0.04), limits: SetpointLimits = LIMITS) -> MotionFilter:
    made = MotionFilter(limits, TICK_S)
    made.start(np.array(start))
    return made


def follow(made: MotionFilter, goal: tuple[float, float], ticks: int = TICKS) -> list[np.ndarray]:
    """One command: due after TICKS ticks, followed for `ticks`."""
    return [made.toward(np.array(goal), (TICKS - tick) * TICK_S) for tick in range(ticks)]


def test_the_first_setpoint_equals_the_measured_state() -> None:
    assert motion((0.3, 0.02)).toward(np.array([0.3, 0.02]), 0.1).tolist() == [0.3, 0.02]


def test_a_reachable_goal_is_reached_when_it_is_due_and_kept() -> None:
    made = motion()
    path = np.array(follow(made, (0.015, 0.042), 3 * TICKS))
    np.testing.assert_allclose(path[TICKS - 1], [0.015, 0.042], atol=1e-9)
    assert (path[TICKS:] == path[TICKS]).all()
    assert (np.diff(path[:, 0]) >= 0.0).all()
    assert not made.moving
    assert made.setpoint.tolist() == [0.015, 0.042]


def test_it_takes_the_time_that_there_is_and_not_less() -> None:
    path = np.array(follow(motion(), (0.01, 0.04)))
    assert path[TICKS // 2 - 1][0] == pytest.approx(0.005, abs=0.001)


def stream(made: MotionFilter, step: float, count: int) -> np.ndarray:
    return np.array([point for index in range(1, count + 1) for point in follow(made, (step * index, 0.04))])[:, 0]


def test_a_stream_of_goals_is_followed_without_stop_and_go() -> None:
    steps = np.diff(stream(motion(), 0.03, 12))[4 * TICKS :]
    assert steps.min() > 0.5 * 0.003
    assert steps.max() < 1.5 * 0.003


def test_a_stream_lags_by_little() -> None:
    path = stream(motion(), 0.03, 12)
    assert (0.03 * 12 - path[-1]) < 0.1 * 0.03


@pytest.mark.parametrize("step", [0.005, 0.03, 0.1, -0.05])
def test_when_no_newer_goal_comes_it_rests_on_the_last_without_swinging(step: float) -> None:
    made = motion()
    path = stream(made, step, 8)
    tail = [float(made.toward(np.array([8 * step, 0.04]), -tick * TICK_S)[0]) for tick in range(60)]
    whole = np.array([*path, *tail])
    assert not made.moving
    assert whole[-1] == pytest.approx(8 * step, abs=1e-9)
    assert (np.sign(step) * np.diff(whole) >= -1e-9).all()  # never back
    assert abs(whole).max() <= abs(8 * step) + 1e-9


def test_goals_that_turn_round_are_nearly_reached() -> None:
    made = motion()
    for index in range(8):
        goal = (0.005 if index % 2 else -0.005, 0.04)
        assert follow(made, goal)[-1][0] == pytest.approx(goal[0], abs=1e-3)


def test_an_axis_that_comes_late_does_not_slow_the_others_down() -> None:
    path = np.array(follow(motion(), (0.015, 0.0)))
    assert path[-1][0] == pytest.approx(0.015, abs=1e-9)
    alone = np.array(follow(motion(), (0.0, 0.0)))
    np.testing.assert_array_equal(path[:, 1], alone[:, 1])
    assert path[-1][1] < 0.04 - 0.009


def test_a_goal_beyond_the_limits_is_taken_as_the_nearest_inside() -> None:
    made = motion()
    path = [made.setpoint]
    for _ in range(40):
        path += follow(made, (1e9, -1e9))
    assert path[-1].tolist() == pytest.approx([2.0, 0.0], abs=1e-6)
    assert_within_limits(path, LIMITS, TICK_S)


def test_an_overdue_goal_is_approached_in_the_shortest_time() -> None:
    made = motion()
    ticks = 0
    while made.setpoint[0] < 1.0 - 1e-6 and ticks < 1000:
        made.toward(np.array([1.0, 0.04]), 0.0)
        ticks += 1
    shortest_s = 1.0 / 1.5 + 1.5 / 10.0 + 10.0 / 1000.0
    assert shortest_s < ticks * TICK_S < 1.08 * shortest_s


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_goal_that_is_not_finite_is_a_stop(bad: float) -> None:
    made = motion()
    follow(made, (0.5, 0.04))
    speed = made.setpoint[0]
    made.toward(np.array([bad, 0.04]), 0.1)
    assert made.moving
    for _ in range(30):
        made.toward(np.array([bad, 0.04]), 0.1)
    assert not made.moving
    assert made.setpoint[0] > speed


@settings(max_examples=200, deadline=None)
@given(
    goals=st.lists(
        st.tuples(
            st.floats(allow_nan=True) | st.floats(-1.0, 2.0),
            st.floats(-1e6, 1e6) | st.floats(0.0, 0.08),
            st.floats(-1.0, 1.0),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    ),
    start=st.tuples(st.floats(-1.0, 2.0), st.floats(0.0, 0.08)),
)
def test_position_velocity_acceleration_and_jerk_never_leave_their_limits(
    goals: list[tuple[float, float, float, bool]], start: tuple[float, float]
) -> None:
    made = motion(start)
    path = [made.setpoint]
    for first, second, remaining_s, stop in goals:
        for _ in range(3):
            path.append(made.stop() if stop else made.toward(np.array([first, second]), remaining_s))
    assert_within_limits(path, LIMITS, TICK_S)


ENVELOPE = VelocityEnvelope(lower=(-1.0, 0.0), upper=(2.0, 0.08), offset=(0.2, 0.0), deceleration=(4.0, np.inf))


def test_the_envelope_is_followed_without_being_held_back_all_the_time() -> None:
    limits = structs.replace(LIMITS, envelope=ENVELOPE)
    made = motion(limits=limits)
    held = 0
    path = [made.setpoint]
    for tick in range(300):
        path.append(made.toward(np.array([1.9, 0.04]), -0.01 * tick))
        held += made.held_back is not HeldBack.NOTHING
    speed = np.diff(path, axis=0)[:, 0] / TICK_S
    room = 2.0 - np.array(path)[1:, 0]
    assert (speed <= np.maximum(np.sqrt(8.0 * room) - 0.2, 0.0) + 1e-6).all()
    assert speed.max() > 1.3
    assert path[-1][0] == pytest.approx(1.9, abs=1e-3)
    assert held < 30


def test_infinite_rates_let_the_goal_through_at_once() -> None:
    free = SetpointLimits(
        names=("a0",), lower=(-1.0,), upper=(1.0,), max_velocity=(np.inf,), max_acceleration=(np.inf,)
    )
    made = MotionFilter(free, 0.1)
    made.start(np.array([0.0]))
    assert made.toward(np.array([1.0]), 0.1)[0] == 1.0
    assert made.moving
    assert made.toward(np.array([-5.0]), 0.1)[0] == -1.0
    assert made.toward(np.array([0.123456789]), 0.1)[0] == 0.123456789
    assert made.stop()[0] == 0.123456789
    assert not made.moving


def test_free_and_limited_axes_mix() -> None:
    mixed = structs.replace(LIMITS, max_velocity=(1.5, np.inf), max_acceleration=(10.0, np.inf))
    made = motion(limits=mixed)
    path = follow(made, (0.015, 0.01))
    assert path[0][1] == 0.01
    assert path[-1][0] == pytest.approx(0.015, abs=1e-9)


def test_a_stop_is_taken_up_from_where_it_left_the_robot() -> None:
    made = motion()
    path = [made.setpoint, *follow(made, (0.2, 0.04), 6)]
    path += [made.stop() for _ in range(3)]
    path += follow(made, (0.2, 0.04), 5 * TICKS)
    assert_within_limits(path, LIMITS, TICK_S)
    assert path[-1][0] == pytest.approx(0.2, abs=1e-9)


def test_where_ruckig_has_no_answer_there_is_no_candidate_and_the_filter_stops() -> None:
    interpolator = Interpolator(LIMITS, TICK_S)
    interpolator.start(np.array([0.0, 0.04]))
    assert interpolator.toward(np.array([np.nan, 0.04]), 0.1) is None
    assert interpolator.toward(np.array([np.nan, 0.04]), 0.0) is None
    # one axis late, the other impossible
    assert interpolator.toward(np.array([np.nan, 0.0]), 0.1) is None


def test_the_same_goals_give_the_same_bits() -> None:
    paths = []
    for _ in range(2):
        made, rng = motion(), np.random.default_rng(3)
        path = [point for _ in range(30) for point in follow(made, (rng.uniform(-1, 2), rng.uniform(0, 0.08)), 4)]
        paths.append(np.array(path).tobytes())
    assert paths[0] == paths[1]
