"""The compiled arithmetic does what the plain one does, and is compiled before the first tick."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from robot_stack.core.compiled import compiled
from robot_stack.core.protocols import SetpointLimits, VelocityEnvelope
from robot_stack.safety import kernels
from robot_stack.safety.filter import HeldBack, Rates, SafetyFilter, SpeedCeiling
from robot_stack.safety.interpolation import Interpolator
from robot_stack.safety.motion import MotionFilter
from robot_stack.safety.passivity import EnergyTank, EnergyTankConfig
from robot_stack.safety.stopping import StopProfile
from tests.safety.checking import assert_within_limits
from tests.safety.fake_robot import LIMITS, TwoLinkGeometry
from tests.safety.reference import (
    ReferenceCeiling,
    ReferenceFilter,
    ReferenceStop,
    reference_aim,
    reference_speeds,
)
from tests.safety.test_stopping import random_states

TICK_S = 0.01
SAME = 1e-12

magnitudes = st.floats(-2.0, 2.0).map(lambda power: 10.0**power)
limits_of_rates = magnitudes | st.just(np.inf)
numbers = st.floats(-3.0, 3.0) | st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def axes_limits(draw: st.DrawFn) -> SetpointLimits:
    """Up to five axes with and without ranges, rates and envelope."""
    size = draw(st.integers(1, 5))

    def each(values: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(values, min_size=size, max_size=size)))

    lower = each(st.floats(-3.0, 0.0) | st.just(-np.inf))
    upper = each(st.floats(0.0, 3.0) | st.just(np.inf))
    envelope = VelocityEnvelope(
        lower=lower, upper=upper, offset=each(st.floats(0.0, 0.5)), deceleration=each(limits_of_rates)
    )
    return SetpointLimits(
        names=tuple(f"axis{axis}" for axis in range(size)),
        lower=lower,
        upper=upper,
        max_velocity=each(limits_of_rates),
        max_acceleration=each(magnitudes | st.just(np.inf)),
        max_jerk=each(magnitudes.map(lambda jerk: 100.0 * jerk) | st.just(np.inf)) if draw(st.booleans()) else (),
        envelope=envelope if draw(st.booleans()) else None,
    )


def assert_the_same(filter_: SafetyFilter, reference: ReferenceFilter) -> None:
    np.testing.assert_allclose(filter_.setpoint, reference.setpoint, rtol=SAME, atol=0.0)
    assert (np.abs(filter_.step - reference.step) <= SAME * (np.abs(reference.step) + reference.rates.step)).all()
    assert filter_.held_back is reference.held_back
    assert filter_.moving == reference.moving


def is_long(limits: SetpointLimits) -> bool:
    """The plain one takes all the memory for a stop of many thousand ticks."""
    rates = Rates.of(limits, TICK_S)
    return bool((rates.step / rates.change + rates.change / rates.jerk).max() > 2000.0)


@settings(max_examples=300, deadline=None)
@given(limits=axes_limits(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_the_filter_sends_what_the_plain_one_sends(limits: SetpointLimits, seed: int, data: st.DataObject) -> None:
    if is_long(limits):
        return
    size, rng = len(limits.names), np.random.default_rng(seed)
    filter_, reference = SafetyFilter(limits, TICK_S), ReferenceFilter(limits, TICK_S)
    start = rng.uniform(-1.0, 1.0, size)
    filter_.start(start)
    reference.start(start)
    odd = data.draw(st.lists(st.lists(numbers, min_size=size, max_size=size), max_size=6))
    push = np.zeros(size)
    for tick in range(60):
        if tick % 8 == 0:
            push = rng.choice([-1.0, -0.3, 0.0, 1.0, 3.0], size) * filter_.rates.change
        candidate = (
            np.array(odd[tick // 10])
            if tick % 10 == 5 and tick // 10 < len(odd)
            else push + (filter_.setpoint + filter_.step)
        )
        if rng.random() < 0.1:
            filter_.stop()
            reference.stop()
        else:
            filter_.toward(candidate)
            reference.toward(candidate)
        assert_the_same(filter_, reference)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lever_m", [1.0, 0.05])
def test_the_geometry_allows_what_the_plain_one_allows(seed: int, lever_m: float) -> None:
    limits, rng = structs.replace(LIMITS, lower=(-3.0, -3.0), upper=(3.0, 3.0)), np.random.default_rng(seed)
    filter_ = SafetyFilter(limits, TICK_S, TwoLinkGeometry(), lever_m)
    reference = ReferenceFilter(limits, TICK_S, TwoLinkGeometry(), lever_m)
    tanks = [EnergyTank(EnergyTankConfig(stiffness=5.0), TICK_S) for _ in range(2)]
    held = set()
    for tick in range(1500):
        if tick % 500 == 0:  # the second one is outside of the box
            start = np.array([(-0.5, 1.0), (-1.2, -0.2), (0.3, 0.8)][tick // 500])
            filter_.start(start)
            reference.start(start)
        if tick % 15 == 0:
            push = rng.choice([-1.0, -0.2, 0.2, 1.0], 2) * filter_.rates.change
        candidate, effort = filter_.setpoint + filter_.step + push, rng.normal(0.0, 20.0, 2)
        filter_.toward(candidate, tanks[0], effort)
        reference.toward(candidate, tanks[1], effort)
        assert_the_same(filter_, reference)
        held.add(filter_.held_back)
    assert {HeldBack.WORKSPACE, HeldBack.ENERGY, HeldBack.NOTHING} <= held


def test_stops_are_those_of_the_plain_profile() -> None:
    for case in range(400):
        step, change, most, jerk = random_states(case)
        expected = ReferenceStop(most, jerk).steps(step.copy(), change.copy())
        steps = StopProfile(most, jerk).steps(step, change)
        assert steps.shape == expected.shape
        np.testing.assert_allclose(steps, expected, rtol=SAME, atol=SAME * np.abs(step).max())


def test_an_axis_that_may_not_move_stays_and_the_others_go_on() -> None:
    limits = structs.replace(LIMITS, max_velocity=(0.0, 2.0))
    filter_ = SafetyFilter(limits, TICK_S)
    with np.errstate(invalid="ignore"):
        for tick in range(1, 40):
            filter_.toward(np.array([0.001 * tick, 0.001 * tick]))
    assert filter_.setpoint[0] == 0.0
    assert filter_.setpoint[1] > 0.03
    assert filter_.held_back is HeldBack.VELOCITY


SLOW = structs.replace(LIMITS, lower=(-1e6, -1.0), upper=(1e6, 1.0), max_acceleration=(0.5, 10.0), max_jerk=())


def test_a_stop_longer_than_the_room_there_is_gets_more() -> None:
    filter_, reference = SafetyFilter(SLOW, TICK_S), ReferenceFilter(SLOW, TICK_S)
    for _ in range(400):
        candidate = filter_.setpoint + filter_.step + filter_.rates.change
        filter_.toward(candidate)
        reference.toward(candidate)
        assert_the_same(filter_, reference)
    assert filter_.step[0] > 300 * filter_.rates.change[0]


def test_a_stop_that_is_far_too_long_is_not_needed_because_the_motion_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("robot_stack.safety.filter._MOST_ROWS", 200)
    filter_ = SafetyFilter(SLOW, TICK_S)
    path, held = [filter_.setpoint], set()
    for _ in range(400):
        path.append(filter_.toward(filter_.setpoint + filter_.step + filter_.rates.change))
        held.add(filter_.held_back)
    assert HeldBack.VELOCITY in held
    assert_within_limits(path, SLOW, TICK_S)
    assert np.diff(path, axis=0)[:, 0].max() < 260 * filter_.rates.change[0]
    for _ in range(260):
        filter_.stop()
    assert not filter_.moving


@settings(max_examples=200, deadline=None)
@given(limits=axes_limits(), seed=st.integers(0, 2**32 - 1))
def test_the_interpolation_aims_and_hurries_like_the_plain_one(limits: SetpointLimits, seed: int) -> None:
    size, rng = len(limits.names), np.random.default_rng(seed)
    goal, before, position = rng.normal(size=(3, size))
    goal = np.where(rng.random(size) < 0.2, position, goal)
    acceleration, ease_s = 10.0 ** rng.uniform(-2, 2, size), rng.choice([0.0, 0.1], size)
    times_s, target = (rng.uniform(0.01, 1.0), rng.uniform(0.01, 1.0)), np.zeros((2, size))
    kernels.aim(goal, before, position, times_s, 0.6, acceleration, ease_s, target)
    expected = reference_aim(goal, before, position, times_s, 0.6, acceleration, ease_s)
    np.testing.assert_allclose(target, expected, rtol=SAME, atol=SAME)

    most_acceleration = np.array(limits.max_acceleration)
    ceiling = SpeedCeiling(limits.envelope, most_acceleration, TICK_S)
    plain = ReferenceCeiling(limits.envelope, most_acceleration, TICK_S) if limits.envelope else None
    state, most = rng.normal(size=(3, size)), rng.uniform(0.1, 3.0, size)
    velocity, speeds = rng.normal(0.0, 3.0, size), np.zeros((2, size))
    low, high = reference_speeds(state, 0.03, plain, 97.0, most)
    cut = np.clip(velocity, low, high)
    kernels.speeds_ahead(state, 0.03, ceiling.terms, 97.0, most, velocity, speeds)
    np.testing.assert_allclose(speeds, [low, high], rtol=SAME)
    np.testing.assert_allclose(velocity, cut, rtol=SAME)


def test_late_axes_and_axes_in_time_by_hand() -> None:
    target, late, in_time = np.ones((2, 3)), np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)
    direct = np.array([False, False, True])
    found = kernels.part(np.array([0.1, 0.3, 9.0]), 0.2, direct, np.full(3, 5.0), target, late, in_time)
    assert found == (True, True)
    assert late.tolist() == [False, True, False]
    assert in_time.tolist() == [True, False, False]
    assert target.tolist() == [[1.0, 5.0, 1.0], [1.0, 0.0, 1.0]]


def test_settled_axes_by_hand() -> None:
    goal, direct = np.array([1.0, 2.0, 3.0]), np.array([False, False, True])
    state = np.array([[1.0 + 1e-11, 2.0, 0.0], [1e-8, 1.0, 5.0], [1.0, 1.0, 1.0]])
    assert not kernels.settle(state, goal, direct, 1e-10, 1e-7)
    assert state.tolist() == [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    state[1, 1] = 0.0
    assert kernels.settle(state, goal, direct, 1e-10, 1e-7)


def test_a_point_that_is_no_number_is_outside() -> None:
    points, outside, excess = np.array([[np.nan, 0.0, 0.0]]), np.zeros((1, 3)), np.zeros((1, 3))
    kernels.outside_box(points, -np.ones(3), np.ones(3), outside)
    assert np.isnan(outside[0, 0])
    assert not kernels.within_excess(outside, excess, 0.0)
    assert kernels.take_excess(outside, excess)
    assert not kernels.within_excess(np.full((1, 3), -1.0), excess, 0.0)


# ---- compiling ----


@pytest.mark.skipif(not hasattr(kernels.verify, "signatures"), reason="nothing is compiled")
def test_no_tick_waits_for_the_compiler() -> None:
    """Whatever comes in, no kernel meets types that it was not compiled for in the constructor."""
    envelope = VelocityEnvelope(lower=(-1.0,) * 2, upper=(1.0,) * 2, offset=(0.1,) * 2, deceleration=(4.0, np.inf))
    limits = structs.replace(LIMITS, envelope=envelope)
    made = MotionFilter(limits, TICK_S, TwoLinkGeometry(), EnergyTankConfig())
    compiled = {name: kernel for name, kernel in vars(kernels).items() if hasattr(kernel, "signatures")}
    before = {name: len(kernel.signatures) for name, kernel in compiled.items()}
    assert len(before) > 15
    made.start(np.array([-0.5, 0.9]))
    goals = [np.array([0.4, 0.9]), np.array([0.4, 0.9], dtype=np.float32), np.ones((2, 2))[:, 0], np.array([1, 0])]
    goals[0].setflags(write=False)
    for tick in range(200):
        made.toward(goals[tick // 10 % 4], 0.1 - 0.01 * (tick % 10), np.array([1.0, 0.0]))
        if tick % 37 == 0:
            made.stop()
    filter_ = SafetyFilter(limits, TICK_S, TwoLinkGeometry())
    filter_.start(np.array([-0.5, 0.9], dtype=np.float32))
    for goal in goals:
        filter_.toward(goal)
    interpolator = Interpolator(limits, TICK_S)
    interpolator.start(np.array([0, 0]))
    for goal in goals:
        interpolator.toward(goal, 0.1)
    StopProfile(np.ones(2), np.ones(2)).steps(np.ones((2, 2))[:, 0], np.zeros(2, dtype=np.float32))
    assert {name: len(kernel.signatures) for name, kernel in compiled.items()} == before


def test_where_nothing_can_be_kept_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def njit(**options: object) -> object:
        asked.append("cache" in options)
        if "cache" in options:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr("robot_stack.core.compiled.njit", njit)
    assert compiled(test_settled_axes_by_hand) is test_settled_axes_by_hand
    assert asked == [True, False]


def test_compiled_and_interpreted_send_the_same_bits() -> None:
    code = (
        "import numpy as np\n"
        "from robot_stack.safety.motion import MotionFilter\n"
        "from tests.safety.fake_robot import LIMITS, TwoLinkGeometry\n"
        "made, rng = MotionFilter(LIMITS, 0.01, TwoLinkGeometry()), np.random.default_rng(1)\n"
        "made.start(np.array([-0.5, 0.9]))\n"
        "for _ in range(20):\n"
        "    goal = rng.uniform(-1.0, 1.0, 2)\n"
        "    for tick in range(5): print(made.toward(goal, 0.1 - 0.01 * tick).tobytes().hex())\n"
    )

    def sent(disable: str) -> str:
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disable}
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    compiled = sent("0")
    assert len(compiled) > 2000
    assert compiled == sent("1")
