"""How far inside the demonstrations' distribution the present state is, in one number.

The distance to the nearest demonstrated state, over the distance within which 95 % of the demonstrated states have a
neighbour from another episode: 1 is the edge of what was demonstrated. Nearest neighbours on standardised features, as
in out-of-distribution detection with deep nearest neighbours (arXiv 2204.06507), on the state itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import FloatArray

MAX_STATES = 4096
_QUANTILE = 0.95
_SMALLEST_STD = 1e-3  # what varied by less than a millimetre or a milliradian is noise


class Familiarity:
    """Of flattened states (D,), against demonstrated ones.

    Args:
        episodes: for each demonstration its states (T, D). Of more than `MAX_STATES` in all an even share is kept.
            ValueError for no state at all.
    """

    def __init__(self, episodes: Sequence[FloatArray]) -> None:
        if not any(len(states) for states in episodes):
            raise ValueError("there is no demonstrated state to compare with; leave familiarity out")
        owner = np.repeat(np.arange(len(episodes)), [len(states) for states in episodes])
        every = max(1, -(-len(owner) // MAX_STATES))
        states, owner = np.concatenate(list(episodes))[::every], owner[::every]
        self._mean = states.mean(axis=0)
        self._std = np.maximum(states.std(axis=0), _SMALLEST_STD)
        self._known: NDArray[np.float32] = ((states - self._mean) / self._std).astype(np.float32)
        self._squares = np.square(self._known).sum(axis=1)
        self._edge = self._edge_of(owner)

    def of(self, state: FloatArray) -> float:
        """0 at a demonstrated state, 1 at the edge, more outside."""
        wanted = ((state - self._mean) / self._std).astype(np.float32)
        distances = self._squares - 2.0 * (self._known @ wanted) + float(wanted @ wanted)
        return float(np.sqrt(max(0.0, float(distances.min()))) / self._edge)

    def _edge_of(self, owner: NDArray[np.int64]) -> float:
        nearest = []
        for index in range(0, len(owner), max(1, len(owner) // 512)):
            others = owner != owner[index]
            if others.any():
                nearest.append(np.square(self._known[others] - self._known[index]).sum(axis=1).min())
        return max(1e-6, float(np.sqrt(np.quantile(nearest, _QUANTILE)))) if nearest else 1.0
