"""Whatever comes in, what goes out keeps every rule; and it does not hold back without need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from robot_stack.core.errors import RobotError
from robot_stack.core.protocols import Clearance, SetpointLimits, VelocityEnvelope
from robot_stack.safety.filter import HeldBack, SafetyFilter, _GeometryRule
from tests.safety.checking import assert_within_limits
from tests.safety.fake_robot import LIMITS, TwoLinkGeometry

TICK_S = 0.01
FUZZED = 100_000
WILD = (np.nan, np.inf, -np.inf, 1e300, -1e300, -0.0, 5e-324)

# Three different axes: jerk-limited, without jerk limit, slow.
THREE = SetpointLimits(
    names=("a_rad", "b_rad", "c_m"),
    lower=(-2.0, -1.0, 0.0),
    upper=(2.0, 1.5, 0.08),
    max_velocity=(2.0, 3.0, 0.2),
    max_acceleration=(10.0, 10.0, 2.0),
    max_jerk=(300.0, np.inf, 50.0),
)
ENVELOPE = VelocityEnvelope(
    lower=(-2.0, -1.0, 0.0), upper=(2.0, 1.5, 0.08), offset=(0.3, 0.0, 0.0), deceleration=(4.0, 40.0, np.inf)
)


def made(limits: SetpointLimits = THREE, start: tuple[float, ...] = (0.0, 0.0, 0.04)) -> SafetyFilter:
    filter_ = SafetyFilter(limits, TICK_S)
    filter_.start(np.array(start))
    return filter_


def fuzzed_candidates(filter_: SafetyFilter, rng: np.random.Generator, limits: SetpointLimits, count: int):  # type: ignore[no-untyped-def]
    """Gentle ones, ones at the limits of the rates, and wild ones, in streaks."""
    lower, upper = np.array(limits.lower), np.array(limits.upper)
    size = len(lower)
    while count > 0:
        kind, streak = rng.integers(0, 6), int(rng.integers(1, 40))
        push = filter_.rates.change * rng.choice([-1.0, -0.3, 0.3, 1.0], size)
        for _ in range(min(streak, count)):
            ahead = filter_.setpoint + filter_.step
            if kind <= 1:
                yield ahead + push
            elif kind == 2:
                yield ahead + rng.normal(0.0, 1.0, size) * filter_.rates.change
            elif kind == 3:
                yield rng.uniform(lower - 1.0, upper + 1.0)
            elif kind == 4:
                yield np.where(rng.random(size) < 0.5, rng.choice(WILD, size), ahead)
            else:
                yield filter_.setpoint
        count -= streak


@pytest.mark.parametrize("envelope", [None, ENVELOPE], ids=["rectangle", "envelope"])
def test_fuzz_keeps_every_limit(envelope: VelocityEnvelope | None) -> None:
    limits = structs.replace(THREE, envelope=envelope)
    filter_, rng = made(limits), np.random.default_rng(5)
    path = [filter_.setpoint]
    for candidate in fuzzed_candidates(filter_, rng, limits, FUZZED // 4):
        path.append(filter_.toward(candidate))
    assert_within_limits(path, limits, TICK_S)
    assert np.ptp(path, axis=0).min() > 0.05  # it was not simply standing still
    if envelope is not None:
        assert_within_envelope(np.array(path), envelope)


def assert_within_envelope(path: np.ndarray, envelope: VelocityEnvelope) -> None:
    velocity = np.diff(path, axis=0) / TICK_S
    offset, twice = np.array(envelope.offset), 2.0 * np.array(envelope.deceleration)
    for room, speed in ((envelope.upper - path[1:], velocity), (path[1:] - envelope.lower, -velocity)):
        with np.errstate(invalid="ignore"):
            highest = np.where(np.isinf(twice), np.inf, np.maximum(np.sqrt(twice * np.maximum(room, 0.0)) - offset, 0))
        assert (speed <= highest + 1e-6).all()


@settings(max_examples=150, deadline=None)
@given(
    candidates=st.lists(
        st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3) | st.just((0.1, 0.1, 0.05)), max_size=40
    ),
    start=st.tuples(st.floats(-2.0, 2.0), st.floats(-1.0, 1.5), st.floats(0.0, 0.08)),
)
def test_any_candidate_from_any_start_keeps_every_limit(
    candidates: list[tuple[float, ...]], start: tuple[float, ...]
) -> None:
    filter_ = made(start=start)
    path = [filter_.setpoint] + [filter_.toward(np.array(candidate)) for candidate in candidates]
    path += [filter_.stop() for _ in range(120)]
    assert_within_limits(path, THREE, TICK_S)
    assert not filter_.moving


def test_the_same_inputs_give_the_same_bits() -> None:
    def run() -> bytes:
        filter_, rng = made(), np.random.default_rng(1)
        return b"".join(filter_.toward(c).tobytes() for c in fuzzed_candidates(filter_, rng, THREE, 500))

    assert run() == run()


def test_a_candidate_within_the_rules_goes_through_unchanged() -> None:
    filter_ = made()
    for tick in range(1, 20):
        candidate = np.array([0.5 * 3.0 * (tick * TICK_S) ** 3, 0.0, 0.04])
        assert filter_.toward(candidate).tobytes() == candidate.tobytes()
        assert filter_.held_back is HeldBack.NOTHING


def test_one_bad_axis_stops_and_the_others_go_on() -> None:
    filter_ = made()
    for tick in range(1, 30):
        filter_.toward(np.array([0.001 * tick, 0.001 * tick, 0.04]))
    path = [filter_.setpoint]
    for tick in range(30, 60):
        path.append(filter_.toward(np.array([np.nan, 0.001 * tick, 0.04])))
        assert filter_.held_back is HeldBack.NOT_FINITE
    assert path[-1][0] == path[-2][0]
    assert path[-1][1] == pytest.approx(0.059)


def test_the_stop_is_as_short_as_the_limits_allow() -> None:
    """From v = 2 at 10 rad/s^2 and 300 rad/s^3: 0.2 s of braking and 1/30 s for the jerk."""
    filter_ = made(structs.replace(THREE, lower=(-9.0, -1.0, 0.0), upper=(9.0, 1.5, 0.08)))
    for _ in range(100):
        ahead = filter_.setpoint + filter_.step
        filter_.toward(ahead + filter_.rates.change * np.array([1.0, 0.0, 0.0]))
        assert filter_.step[0] <= 2.0 * TICK_S * (1 + 1e-6)
        if abs(filter_.change[0]) < 1e-12 and filter_.step[0] > 1.99 * TICK_S:
            break
    ticks = 0
    speeds = [filter_.step[0]]
    while filter_.moving and ticks < 100:
        filter_.stop()
        speeds.append(filter_.step[0])
        ticks += 1
    assert speeds[1] < speeds[0]
    assert ticks <= np.ceil((0.2 + 1.0 / 30.0) / TICK_S) + 1


def test_position_limits_are_approached_and_named() -> None:
    filter_ = made()
    for _ in range(400):
        filter_.toward(filter_.setpoint + filter_.step + filter_.rates.change * np.array([1.0, 0.0, 0.0]))
    assert filter_.setpoint[0] > 2.0 - 0.02
    assert filter_.held_back is HeldBack.POSITION


def test_the_envelope_is_named() -> None:
    filter_ = made(structs.replace(THREE, envelope=ENVELOPE))
    held = set()
    for _ in range(400):
        filter_.toward(filter_.setpoint + filter_.step + filter_.rates.change * np.array([1.0, 0.0, 0.0]))
        held.add(filter_.held_back)
    # no speed is left where the offset eats the square root: 0.3^2 / (2 * 4) before the limit
    assert 2.0 - 0.3**2 / 8.0 - 0.02 < filter_.setpoint[0] <= 2.0 - 0.3**2 / 8.0 + 1e-9
    assert HeldBack.VELOCITY in held


def test_a_measured_position_outside_the_limits_is_taken_as_the_nearest_inside() -> None:
    assert made(start=(2.3, -1.4, 0.04)).setpoint.tolist() == [2.0, -1.0, 0.04]


def test_a_measured_position_that_is_no_number_is_an_error() -> None:
    with pytest.raises(RobotError, match="b_rad"):
        made(start=(0.0, np.nan, 0.0))


def test_without_rates_a_candidate_goes_through_at_once_and_is_clipped() -> None:
    free = SetpointLimits(
        names=("a0", "a1"),
        lower=(-1.0, -1.0),
        upper=(1.0, 1.0),
        max_velocity=(np.inf,) * 2,
        max_acceleration=(np.inf,) * 2,
    )
    filter_ = SafetyFilter(free, 0.1)
    filter_.start(np.zeros(2))
    assert filter_.toward(np.array([0.3, -0.7])).tolist() == [0.3, -0.7]
    assert filter_.toward(np.array([5.0, -0.7])).tolist() == [1.0, -0.7]
    assert filter_.toward(np.array([np.nan, -np.inf])).tolist() == [1.0, -0.7]
    assert filter_.toward(np.array([-5.0, 1.0])).tolist() == [-1.0, 1.0]
    assert filter_.stop().tolist() == [-1.0, 1.0]
    assert not filter_.moving


def test_axes_without_a_range_and_axes_without_rates_mix() -> None:
    mixed = SetpointLimits(
        names=("wheel_m", "free"),
        lower=(-np.inf, -1.0),
        upper=(np.inf, 1.0),
        max_velocity=(0.3, np.inf),
        max_acceleration=(0.5, np.inf),
    )
    filter_ = SafetyFilter(mixed, TICK_S)
    filter_.start(np.array([100.0, 0.0]))
    path = [filter_.setpoint] + [filter_.toward(np.array([1e9, (-1.0) ** tick])) for tick in range(200)]
    assert_within_limits(path, mixed, TICK_S)
    assert path[-1][0] > 100.3
    assert {point[1] for point in path[1:]} == {-1.0, 1.0}


# ---- rules for all axes together ---------------------------------------------------------------------------------

START = (-1.2, 1.0)
WIDE = structs.replace(LIMITS, lower=(-3.0, -3.0), upper=(3.0, 3.0))


def arm(start: tuple[float, float] = START) -> tuple[SafetyFilter, TwoLinkGeometry]:
    geometry = TwoLinkGeometry()
    filter_ = SafetyFilter(WIDE, TICK_S, geometry)
    filter_.start(np.array(start))
    return filter_, geometry


def outside_m(geometry: TwoLinkGeometry, setpoint: np.ndarray) -> float:
    points = geometry.look(setpoint).points_m
    return float(np.maximum(geometry.box_lower_m - points, points - geometry.box_upper_m).max())


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_keeps_the_box_and_the_distance(seed: int) -> None:
    filter_, geometry = arm((-0.5, 1.0))
    rng = np.random.default_rng(seed)
    path = [filter_.setpoint]
    held = set()
    for candidate in fuzzed_candidates(filter_, rng, WIDE, 4000):
        path.append(filter_.toward(candidate))
        held.add(filter_.held_back)
        assert outside_m(geometry, path[-1]) <= 1e-9
        assert geometry.look(path[-1]).self_distance_m >= geometry.min_self_distance_m - 1e-9
    assert_within_limits(path, WIDE, TICK_S)
    assert {HeldBack.WORKSPACE, HeldBack.SELF_COLLISION} & held


@pytest.mark.parametrize(("push", "cause"), [((0.0, 1.0), HeldBack.SELF_COLLISION), ((-1.0, 0.0), HeldBack.WORKSPACE)])
def test_it_rests_before_the_wall_and_says_which(push: tuple[float, float], cause: HeldBack) -> None:
    filter_, geometry = arm((-0.5, 1.0))
    held = set()
    for _ in range(400):
        filter_.toward(filter_.setpoint + filter_.step + np.minimum(filter_.rates.change, 3e-4) * np.array(push))
        held.add(filter_.held_back)
    assert held == {HeldBack.NOTHING, cause}
    clearance = geometry.look(filter_.setpoint)
    near_m = (
        clearance.self_distance_m - geometry.min_self_distance_m
        if cause is HeldBack.SELF_COLLISION
        else -outside_m(geometry, filter_.setpoint)
    )
    assert -1e-9 <= near_m < 0.02


def test_outside_the_box_only_the_way_back_is_open() -> None:
    start = (-1.2, -0.2)  # the tip is below the box
    filter_, geometry = arm(start)
    before = outside_m(geometry, np.array(start))
    assert before > 0.1
    for _ in range(50):
        filter_.toward(filter_.setpoint + np.array([-0.002, 0.0]))
        assert outside_m(geometry, filter_.setpoint) <= before + 1e-9
    assert filter_.held_back is HeldBack.WORKSPACE
    for tick in range(300):
        filter_.toward(np.array(start) + 0.002 * np.array([tick, tick]))
    assert outside_m(geometry, filter_.setpoint) < 0.0


def test_a_still_robot_is_not_looked_at() -> None:
    filter_, geometry = arm()
    geometry.looks = 0
    for _ in range(10):
        filter_.toward(np.array(START))
        filter_.stop()
    assert geometry.looks == 0


def test_slow_motion_takes_one_look_per_tick() -> None:
    filter_, geometry = arm()
    geometry.looks = 0
    for tick in range(1, 51):
        filter_.toward(np.array(START) + 0.001 * tick)
    assert filter_.moving
    assert geometry.looks <= 50


def test_a_geometry_that_is_not_finite_stops_the_robot() -> None:
    class Broken(TwoLinkGeometry):
        broken = False

        def look(self, setpoint: np.ndarray):  # type: ignore[no-untyped-def]
            clearance = super().look(setpoint)
            return structs.replace(clearance, self_distance_m=np.nan) if self.broken else clearance

    geometry = Broken()
    filter_ = SafetyFilter(WIDE, TICK_S, geometry)
    filter_.start(np.array(START))
    geometry.broken = True
    for tick in range(1, 20):
        filter_.toward(np.array(START) + 0.001 * tick)
    assert filter_.setpoint.tolist() == list(START)
    assert filter_.held_back is HeldBack.SELF_COLLISION


def test_the_envelope_holds_towards_both_sides() -> None:
    for side in (1.0, -1.0):
        limits = structs.replace(
            THREE, lower=(-1.5, -1.0, 0.0), envelope=structs.replace(ENVELOPE, lower=(-1.5, -1.0, 0.0))
        )
        filter_ = made(limits)
        path = [filter_.setpoint]
        for _ in range(400):
            path.append(
                filter_.toward(filter_.setpoint + filter_.step + filter_.rates.change * np.array([side, 0.0, 0.0]))
            )
        assert_within_envelope(np.array(path), limits.envelope or ENVELOPE)
        assert abs(np.diff(path, axis=0)[:, 0]).max() > 1.5 * TICK_S
        dead = 0.3**2 / 8.0
        end = 2.0 - dead if side > 0.0 else -1.5 + dead
        assert path[-1][0] == pytest.approx(end, abs=0.03)


class Wall(TwoLinkGeometry):
    """One guarded point at x = a + b, a box that ends at x = 0.5; the self-distance is that to y = -b."""

    @property
    def box_lower_m(self) -> np.ndarray:
        return np.array([-9.0, -9.0, -9.0])

    @property
    def box_upper_m(self) -> np.ndarray:
        return np.array([0.5, 9.0, 9.0])

    def look(self, setpoint: np.ndarray) -> Clearance:
        self.looks += 1
        return Clearance(points_m=np.array([[setpoint[0] + setpoint[1], 0.0, 0.0]]), self_distance_m=1.0)


def pushed_to_the_wall(lever_m: float, change: float) -> tuple[SafetyFilter, list[float]]:
    filter_ = SafetyFilter(WIDE, TICK_S, Wall(), lever_m)
    filter_.start(np.zeros(2))
    path = []
    for _ in range(300):
        path.append(float(filter_.toward(filter_.setpoint + filter_.step + np.array([change, 0.0]))[0]))
    return filter_, path


def test_the_margin_is_kept_free_as_long_as_the_robot_moves_and_vanishes_with_its_speed() -> None:
    ends = []
    for lever_m in (0.01, 1.0):
        filter_, path = pushed_to_the_wall(lever_m, 1e-3)
        assert max(path) <= 0.5
        assert filter_.held_back is HeldBack.WORKSPACE or not filter_.moving or path[-1] > 0.49
        ends.append(path[60])
        assert path[-1] > 0.47
    assert ends[1] < ends[0]


def test_a_long_stop_near_a_limit_is_looked_at_twice_and_elsewhere_once() -> None:
    geometry = Wall()
    filter_ = SafetyFilter(structs.replace(WIDE, lower=(-30.0, -3.0)), TICK_S, geometry)
    filter_.start(np.array([-20.0, 0.0]))
    for _ in range(60):
        geometry.looks = 0
        filter_.toward(filter_.setpoint + filter_.step + np.array([1e-3, 0.0]))
        assert geometry.looks <= 1
    filter_.start(np.array([-0.5, 0.0]))
    most = 0
    for _ in range(60):
        geometry.looks = 0
        filter_.toward(filter_.setpoint + filter_.step + np.array([1e-3, 0.0]))
        most = max(most, geometry.looks)
    assert most == 2


def test_the_margin_by_hand() -> None:
    rule = _GeometryRule(Wall(), np.array([1e-3, 1e-3]), 0.5)
    rule.start(np.zeros(2))
    way = np.array([0.2, 0.01])
    # an axis strays by 1e-3 * 20^2 / 8 = 0.05 or half its way; the arc of 0.21 bows by 0.21^2 / 8
    assert rule._margin_m(way, 20, 1) == pytest.approx(0.5 * (0.05 + 0.005 + 0.21**2 / 8.0))
    assert rule._margin_m(way, 10, 2) == pytest.approx(0.5 * (0.0125 + 0.005 + 0.105**2 / 8.0))
    near = np.array([[-0.05, -1.0, -1.0]])
    assert rule._free(near, 0.35, 0.04)
    assert not rule._free(near, 0.35, 0.06)
    assert rule.broken is HeldBack.WORKSPACE
    assert not rule._free(near, 0.33, 0.04)
    assert rule.broken is HeldBack.SELF_COLLISION
    rule.start(np.array([0.7, 0.0]))  # outside there is no margin to keep
    assert rule._margin_m(way, 20, 1) == 0.0
