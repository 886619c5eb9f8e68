"""The closed-form stop: within its limits, exactly to rest, and never a tick longer than it has to be."""

from __future__ import annotations

import numpy as np
import pytest

from robot_stack.safety.stopping import StopProfile

CASES = 400
AXES = 12


def random_states(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """step, change and their limits, over many magnitudes, with the corner cases that matter among them."""
    rng = np.random.default_rng(seed)
    most = 10.0 ** rng.uniform(-5, -1, AXES)
    jerk = np.minimum(most * 10.0 ** rng.uniform(-1.5, 1.0, AXES), 2.0 * most)
    change = rng.uniform(-most, most)
    kind = rng.integers(0, 4, AXES)
    change = np.where(kind == 0, 0.0, np.where(kind == 1, np.sign(change) * most, change))
    step = rng.uniform(-30, 30, AXES) * most * 10.0 ** rng.uniform(-3, 0, AXES) * (rng.random(AXES) < 0.9)
    return step, change, most, jerk


@pytest.mark.parametrize("seed", range(5))
def test_it_keeps_its_limits_and_ends_at_rest(seed: int) -> None:
    for case in range(CASES):
        step, change, most, jerk = random_states(seed * CASES + case)
        steps = StopProfile(most, jerk).steps(step, change)
        assert (steps[-1] == 0.0).all()
        changes = np.diff(np.vstack([step, steps, np.zeros(AXES)]), axis=0)
        jerks = np.diff(np.vstack([change, changes]), axis=0)
        assert (np.abs(changes) <= most * (1 + 1e-9)).all()
        assert (np.abs(jerks) <= jerk * (1 + 1e-9)).all()


def hardest_sum(change: float, most: float, jerk: float, ticks: int) -> float:
    """What `ticks` ticks can take away at most, by the definition of the profile, one tick after the other."""
    return -sum(max(change - tick * jerk, -most, -(ticks - tick) * jerk) for tick in range(1, ticks + 1))


def test_it_takes_as_few_ticks_as_possible() -> None:
    for case in range(CASES):
        step, change, most, jerk = random_states(10_000 + case)
        steps = StopProfile(most, jerk).steps(step, change)
        for axis in range(AXES):
            least = int(np.ceil(abs(change[axis]) / jerk[axis] - 1e-9))
            moving = np.flatnonzero(steps[:, axis])
            ticks = int(moving[-1]) + 2 if len(moving) else 0  # the last one brings the acceleration to zero
            # letting go alone decides on which side speed is left
            left = step[axis] + np.sign(change[axis]) * sum(
                max(abs(change[axis]) - tick * jerk[axis], 0.0) for tick in range(1, least + 1)
            )
            side = np.sign(left)
            shorter = max(ticks - 1, least)
            if side == 0.0 or shorter >= ticks:
                continue
            speed = side * step[axis]
            assert hardest_sum(side * change[axis], most[axis], jerk[axis], shorter) < speed + 1e-9 * most[axis]


def test_at_rest_there_is_nothing_to_do() -> None:
    assert StopProfile(np.ones(3), np.ones(3)).steps(np.zeros(3), np.zeros(3)).tolist() == [[0.0, 0.0, 0.0]]


def test_by_hand() -> None:
    """Speed 3, changes of at most 1, jerk of at most 1: -1 -1 -1 at the limit from the first tick on."""
    assert StopProfile(np.ones(1), np.ones(1)).steps(np.array([3.0]), np.zeros(1))[:, 0].tolist() == [2, 1, 0, 0]
    # with jerk 0.5 the braking is -.5 -1 -1 -.5
    assert StopProfile(np.ones(1), np.full(1, 0.5)).steps(np.array([3.0]), np.zeros(1))[:, 0].tolist() == [
        2.5,
        1.5,
        0.5,
        0.0,
        0.0,
    ]
