"""Intervals and tests against published values and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from robot_stack.evaluation.statistics import Comparison, Interval, mcnemar_exact, wilson_interval


def close(interval: Interval, lower: float, upper: float) -> bool:
    return bool(np.allclose((interval.lower, interval.upper), (lower, upper), atol=6e-5))


@pytest.mark.parametrize(
    ("successes", "n", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_values_of_newcombe_1998(successes: int, n: int, lower: float, upper: float) -> None:
    assert close(wilson_interval(successes, n), lower, upper)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(confidence: float) -> None:
    for successes, n in ((0, 1), (1, 1), (7, 10), (93, 200), (200, 200)):
        expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert np.allclose(
            (wilson_interval(successes, n, confidence).lower, wilson_interval(successes, n, confidence).upper), expected
        )


def test_wilson_without_trials_knows_nothing_and_refuses_nonsense() -> None:
    assert wilson_interval(0, 0) == Interval(0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson_interval(3, 2)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(7, 1) == 2 * (1 + 8) / 256


def test_mcnemar_is_the_two_sided_fair_coin_and_symmetric() -> None:
    for b, c in ((1, 2), (3, 11), (0, 40), (60, 41), (2, 700)):
        assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
        assert np.isclose(mcnemar_exact(b, c), binomtest(b, b + c).pvalue, rtol=1e-9)


def test_comparison_counts_pairs() -> None:
    comparison = Comparison.of([True, True, False, False, False], [True, False, True, True, False])
    assert comparison == Comparison(both=1, only_before=1, only_after=2, neither=1)
    assert (comparison.n, comparison.successes_before, comparison.successes_after) == (5, 2, 3)
    assert comparison.difference == pytest.approx(0.2)
    assert comparison.p_value == 1.0
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Comparison.of([True], [True, False])


@pytest.mark.parametrize(
    ("comparison", "lower", "upper"),
    [
        (Comparison(both=36, only_before=2, only_after=12, neither=0), 0.0569, 0.3404),
        (Comparison(both=1, only_before=7, only_after=1, neither=12), -0.5069, -0.0256),
    ],
)
def test_paired_difference_gives_published_values(comparison: Comparison, lower: float, upper: float) -> None:
    assert close(comparison.difference_interval(), lower, upper)


def test_paired_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        easy = rng.random(60) < 0.3
        before = easy | (rng.random(60) < 0.2)
        after = easy | (rng.random(60) < 0.6)
        interval = Comparison.of(before.tolist(), after.tolist()).difference_interval(0.9)
        covered += interval.lower <= 0.7 * (0.6 - 0.2) <= interval.upper
    assert 0.87 <= covered / 400 <= 0.96


def test_no_episodes_say_nothing() -> None:
    nothing = Comparison(both=0, only_before=0, only_after=0, neither=0)
    assert (nothing.difference, nothing.p_value) == (0.0, 1.0)
    assert nothing.difference_interval() == Interval(-1.0, 1.0)
