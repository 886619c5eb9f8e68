"""What block-wise adaptive caching is compared with: schedules that need little or no calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policies.acceleration.adaptive import check_budget
from robot_stack.core.errors import PolicyError


def uniform_updates(calls: int, budget: int) -> tuple[int, ...]:
    """`budget` of `calls` calls, evenly spread, the first one 0 (FORA, Selvaraju et al., 2024: every N-th).

    PolicyError for a budget outside 1..`calls`.
    """
    check_budget(budget, calls)
    return tuple(index * calls // budget for index in range(budget))


def teacache_updates(changes: NDArray[np.float64], threshold: float) -> tuple[int, ...]:
    """Call 0, then every call at which the changes since the last update have added up to `threshold`.

    The rule of TeaCache (Liu et al., CVPR 2025), applied beforehand to the changes (T,) measured in calibration; the
    change at call 0 is not looked at. PolicyError for a threshold that is not above 0.
    """
    if not threshold > 0.0:
        raise PolicyError(f"the threshold of the change is {threshold}; allowed: above 0")
    updates, changed = [0], 0.0
    for call in range(1, len(changes)):
        changed += float(changes[call])
        if changed >= threshold:
            updates.append(call)
            changed = 0.0
    return tuple(updates)


def teacache_for_budget(changes: NDArray[np.float64], budget: int) -> tuple[int, ...]:
    """`teacache_updates` with the lowest threshold that gives at most `budget` updates, then filled up to `budget`:
    each further update halves the change between the two updates that lie furthest apart.

    PolicyError for a budget outside 1..T.
    """
    check_budget(budget, len(changes))
    steps = np.asarray(changes, np.float64)
    lowest, highest = 0.0, float(steps[1:].sum()) + 1.0  # the highest leaves call 0 alone
    for _ in range(60):
        middle = 0.5 * (lowest + highest)
        if middle > 0.0 and len(teacache_updates(steps, middle)) <= budget:
            highest = middle
        else:
            lowest = middle
    updates = list(teacache_updates(steps, highest))
    while len(updates) < budget:
        updates = sorted([*updates, _halving(steps, updates)])
    return tuple(updates)


def _halving(changes: NDArray[np.float64], updates: list[int]) -> int:
    """The call that splits the span with the largest change inside in two spans of about the same change."""
    spans = [span for span in zip(updates, [*updates[1:], len(changes)], strict=True) if span[1] - span[0] > 1]
    first, end = max(spans, key=lambda span: float(changes[span[0] + 1 : span[1]].sum()))
    inside = changes[first + 1 : end].cumsum()
    return first + 1 + int(np.searchsorted(inside, 0.5 * inside[-1]))
