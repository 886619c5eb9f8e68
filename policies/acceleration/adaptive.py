"""Block-wise adaptive caching (Ji et al., BAC, ICLR 2026): when each block is computed anew, found once beforehand.

The outputs of a block change slowly over many calls of the solver and quickly over some. The scheduler spends a budget
of updates where they keep the block's kept output most similar to what it would have computed. A feed-forward block
that is computed anew reads what blocks before it have kept; the bubbling union makes those with the largest error be
computed anew whenever it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import PolicyError

Similarity = NDArray[np.float64]
FEED = "feed"


def adaptive_updates(similarity: Similarity, budget: int) -> tuple[int, ...]:
    """The `budget` calls, the first one 0, at which a block is computed so that the sum over all calls of the
    similarity between what is kept and what would be computed is the largest possible.

    `similarity` (T, T): [i, j] of the block's outputs at calls i and j. An exact dynamic program, O(budget * T^2).
    PolicyError for a budget outside 1..T.
    """
    calls = len(similarity)
    check_budget(budget, calls)
    # value[i, j]: an output kept from call i serves up to call j
    value = np.where(np.tri(calls, k=-1, dtype=bool), 0.0, similarity).cumsum(axis=1)
    value[np.tri(calls, k=-1, dtype=bool)] = -np.inf
    best = value[0]
    starts = np.zeros((budget, calls), np.int64)  # where the last of so many segments begins, for each last call
    for segment in range(1, budget):
        # row i: the segments before end at i - 1, this one begins at i
        totals = np.concatenate(([-np.inf], best[:-1]))[:, None] + value
        starts[segment] = totals.argmax(axis=0)
        best = np.take_along_axis(totals, starts[segment][None], axis=0)[0]
    updates, last = [], calls - 1
    for segment in range(budget - 1, 0, -1):
        first = int(starts[segment, last])
        updates.append(first)
        last = first - 1
    return (0, *reversed(updates))


def consecutive(similarity: Similarity) -> Similarity:
    """The similarity matrix (T, T) of the paper's text, which looks at consecutive calls only: what is kept serves
    call j as well as the outputs of calls j - 1 and j are alike, whatever call it was kept from.

    `adaptive_updates` then takes, beside call 0, the calls whose output is least like the one before.
    """
    changes = np.concatenate(([1.0], np.diagonal(similarity, offset=1)))
    matrix: Similarity = np.broadcast_to(changes, similarity.shape).copy()
    np.fill_diagonal(matrix, 1.0)
    return matrix


def bubbling_union(
    blocks: Sequence[str], updates: Sequence[tuple[int, ...]], errors: NDArray[np.float64], count: int
) -> tuple[tuple[int, ...], ...]:
    """The `count` blocks with the largest error are computed also whenever a feed-forward block after them is.

    `errors`: for each block how much its output changes over the calls (`Recording.errors`). A block `<layer>.feed` is
    a feed-forward block. In a network without any (a U-Net), every block after counts as one: each of them reads what
    the blocks before it have kept. Only the given updates are spread, never those that another union added, so the
    order does not matter. PolicyError for a negative count.
    """
    if count < 0:
        raise PolicyError(f"the union is of {count} blocks; allowed: 0 or more")
    feeds = [number for number, name in enumerate(blocks) if name.rpartition(".")[2] == FEED]
    sources = feeds or list(range(len(blocks)))
    largest = set(np.argsort(-errors, kind="stable")[:count].tolist())
    spread = []
    for number, row in enumerate(updates):
        after = [updates[source] for source in sources if source > number] if number in largest else []
        spread.append(tuple(sorted(set(row).union(*after))))
    return tuple(spread)


def check_budget(budget: int, calls: int) -> None:
    """PolicyError unless a block can be computed at `budget` of `calls` calls."""
    if not 1 <= budget <= calls:
        raise PolicyError(f"the budget is {budget} updates; allowed: 1 to {calls}, the solver's calls")
