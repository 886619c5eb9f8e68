"""What is measured of every configuration, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from robot_stack.evaluation.statistics import Comparison, Interval, wilson_interval

SAME_TIME = 1.05
"""A rival may take so many times as long as what it is compared with."""


class Success(Struct, frozen=True, kw_only=True):
    """Success rate with Wilson's 95 % interval, and its paired difference to a reference with Newcombe's interval.

    `p_value`: McNemar's exact test.
    """

    n: int
    rate: float
    ci: tuple[float, float]
    difference: float
    difference_ci: tuple[float, float]
    p_value: float

    @classmethod
    def of(cls, outcomes: Sequence[bool], reference: Sequence[bool]) -> Success:
        """From outcomes of the same seeds in the same order; the longer of the two is cut."""
        n = min(len(outcomes), len(reference))
        pairs = Comparison.of(reference[:n], outcomes[:n])
        wins = pairs.successes_after
        return cls(
            n=n,
            rate=wins / n if n else 0.0,
            ci=_pair(wilson_interval(wins, n)),
            difference=pairs.difference,
            difference_ci=_pair(pairs.difference_interval()),
            p_value=pairs.p_value,
        )


class Row(Struct, frozen=True, kw_only=True):
    """One configuration on one back-end.

    Attributes:
        speedup: of one chunk at batch 1, over eager DDPM with all steps and diffusers' `scheduler.step`, same run.
        block_calls: blocks that a chunk computes.
        action_rmse: against the same solver without caching.
        success: paired with the baseline's, DDPM with all steps without caching, of the task's diffusion transformer.
    """

    task: str
    family: str
    solver: str
    cache: str
    backend: str
    ms: float
    speedup: float
    block_calls: int
    action_rmse: float
    success: Success

    @property
    def name(self) -> str:
        cached = f"+{self.cache}" if self.cache else ""
        return f"{self.task}/{self.family}/{self.solver}{cached}@{self.backend}"


class CachingAlone(Struct, frozen=True, kw_only=True):
    """A family's headline: its reference solver with and without its cache, on one back-end.

    `difference`: paired difference of the successes, with and without; `ci`: its 95 % interval.
    """

    task: str
    policy: str
    backend: str
    cache: str
    full_ms: float
    cached_ms: float
    speedup: float
    block_calls_full: int
    block_calls_cached: int
    action_rmse: float
    success_full: float
    success_cached: float
    difference: float
    ci: tuple[float, float]
    n: int


class Rival(Struct, frozen=True, kw_only=True):
    """A configuration with caching beside the best without that takes about the same time or less, on its back-end.

    `difference`: success of ours minus the rival's, paired, with Newcombe's 95 % interval.
    """

    ours: str
    rival: str
    ours_ms: float
    rival_ms: float
    difference: float
    difference_ci: tuple[float, float]
    n: int


def front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other beats: none is at least as successful in less time, or more so in the same; fastest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.ms, -row.success.rate)):
        if not best or row.success.rate > best[-1].success.rate:
            best.append(row)
    return best


def shipped(rows: Sequence[Row], margin: float) -> Row | None:
    """The fastest row of the front that is not inferior: the lower end of its paired difference is above -margin.

    None if there is none: the margin needs more episodes, or nothing is as good as the reference.
    """
    safe = [row for row in front(rows) if row.success.difference_ci[0] > -margin]
    return safe[0] if safe else None


def caching_alone(full: Row, cached: Row, paired: Success) -> CachingAlone:
    """`paired`: success with caching, paired with that without."""
    return CachingAlone(
        task=full.task,
        policy=full.family,
        backend=full.backend,
        cache=cached.cache,
        full_ms=full.ms,
        cached_ms=cached.ms,
        speedup=round(full.ms / cached.ms, 3),
        block_calls_full=full.block_calls,
        block_calls_cached=cached.block_calls,
        action_rmse=cached.action_rmse,
        success_full=full.success.rate,
        success_cached=cached.success.rate,
        difference=paired.difference,
        ci=paired.difference_ci,
        n=paired.n,
    )


def rivals_of(rows: Sequence[Row], outcomes: Mapping[str, Sequence[bool]]) -> list[Rival]:
    """For every row with caching its strongest rival on the same task and back-end, of whatever family.

    `outcomes`: by `<task>/<family>/<solver>[+<cache>]`.
    """
    compared = []
    for row in rows:
        fast = [
            other
            for other in rows
            if not other.cache
            and (other.task, other.backend) == (row.task, row.backend)
            and other.ms <= SAME_TIME * row.ms
        ]
        if not row.cache or not fast:
            continue
        rival = max(fast, key=lambda other: (other.success.rate, -other.ms))
        ours, theirs = (outcomes[one.name.partition("@")[0]] for one in (row, rival))
        paired = Success.of(ours, theirs)
        compared.append(
            Rival(
                ours=row.name,
                rival=rival.name,
                ours_ms=row.ms,
                rival_ms=rival.ms,
                difference=paired.difference,
                difference_ci=paired.difference_ci,
                n=paired.n,
            )
        )
    return compared


def _pair(interval: Interval) -> tuple[float, float]:
    return interval.lower, interval.upper
