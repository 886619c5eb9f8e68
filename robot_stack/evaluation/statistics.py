"""How sure we may be of a success rate, and of the difference between two.

Methods: score interval of Wilson (1927); exact test of McNemar (1947) for paired outcomes; square-and-add interval of
Newcombe (Statistics in Medicine 17:2635, 1998, its method 10) for the difference of two paired proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, both ends included."""

    lower: float
    upper: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of `successes` in `n` trials; [0, 1] without trials.

    Unlike the textbook p +- z sqrt(p (1 - p) / n) it holds its confidence for few trials and near 0 and 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == n else min(1.0, centre + half),
    )


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    `b` and `c` count the pairs in which only the one, only the other succeeded. If both were equally good, each such
    pair would be a fair coin: p = 2 P(X <= min(b, c)) for X ~ Binomial(b + c, 1/2), at most 1.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts of pairs cannot be negative: {b}, {c}")
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / int(2 ** (b + c)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two policies on the same episodes, counted by which of them succeeded."""

    both: int
    only_before: int
    only_after: int
    neither: int

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> Comparison:
        """From the outcomes of the same episodes in the same order."""
        pairs = list(zip(before, after, strict=True))
        return cls(
            both=pairs.count((True, True)),
            only_before=pairs.count((True, False)),
            only_after=pairs.count((False, True)),
            neither=pairs.count((False, False)),
        )

    @property
    def n(self) -> int:
        return self.both + self.only_before + self.only_after + self.neither

    @property
    def successes_before(self) -> int:
        return self.both + self.only_before

    @property
    def successes_after(self) -> int:
        return self.both + self.only_after

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided."""
        return mcnemar_exact(self.only_before, self.only_after)

    @property
    def difference(self) -> float:
        """Success rate after minus before; 0 without episodes."""
        return (self.only_after - self.only_before) / self.n if self.n else 0.0

    def difference_interval(self, confidence: float = 0.95) -> Interval:
        """Newcombe's interval for `difference`; [-1, 1] without episodes."""
        if self.n == 0:
            return Interval(-1.0, 1.0)
        before, after = self.successes_before / self.n, self.successes_after / self.n
        wilson_before = wilson_interval(self.successes_before, self.n, confidence)
        wilson_after = wilson_interval(self.successes_after, self.n, confidence)
        phi = self._correlation()

        def add(x: float, y: float) -> float:
            return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

        down = add(after - wilson_after.lower, wilson_before.upper - before)
        up = add(wilson_after.upper - after, before - wilson_before.lower)
        return Interval(max(-1.0, self.difference - down), min(1.0, self.difference + up))

    def _correlation(self) -> float:
        """Phi of the two-by-two table, with Newcombe's continuity correction where it is positive."""
        fails_before, fails_after = self.n - self.successes_before, self.n - self.successes_after
        scale = self.successes_before * fails_before * self.successes_after * fails_after
        if scale == 0:
            return 0.0
        excess = self.both * self.neither - self.only_before * self.only_after
        return (max(excess - self.n / 2, 0.0) if excess > 0 else float(excess)) / math.sqrt(scale)
