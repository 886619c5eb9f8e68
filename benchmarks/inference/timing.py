"""How long one chunk takes, for many ways of computing it, measured in turn so that all see the same machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

MOST_CALLS = 50


def interleaved_medians(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    shortest_s: float = 0.05,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of one call of each, over `rounds` in which each has its turn.

    A turn repeats a call for about `shortest_s` and counts the median of the repetitions; the first turn, in which
    caches and branches are cold, is not counted.
    """
    turns: dict[str, list[float]] = {name: [] for name in calls}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call()
        once_s = _timed(call)
        repeats[name] = max(1, min(MOST_CALLS, round(shortest_s / max(once_s, 1e-6))))
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                turns[name].append(statistics.median(_timed(call) for _ in range(repeats[name])))
            on_round()
    finally:
        gc.enable()
    return {name: statistics.median(taken) for name, taken in turns.items()}


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
