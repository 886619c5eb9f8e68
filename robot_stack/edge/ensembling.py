"""Temporal ensembling: every step runs the average of what was predicted for it (Zhao et al., ACT, 2023)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import ActionChunk, FloatArray


class TemporalEnsemble:
    """Running weighted averages by control step; an `ActionPlan`.

    The i-th oldest prediction that was there in time has the weight exp(-decay * i): a decay above 0 trusts the oldest
    most. Equal predictions give exactly themselves.
    """

    def __init__(self, action_dim: int, decay: float) -> None:
        self._action_dim = action_dim
        self._decay = decay
        self.clear()

    @property
    def end(self) -> int:
        return self._begin + len(self._mean)

    def take(self, chunk: ActionChunk, index: int) -> None:
        first = max(chunk.index, index)
        self._keep(first, max(self.end, chunk.index + len(chunk.actions)) - first)
        news = chunk.actions[first - chunk.index :]
        count = len(news)
        weight = np.exp(-self._decay * self._count[:count])
        self._weight[:count] += weight
        share = (weight / self._weight[:count])[:, None]
        self._mean[:count] += share * (news - self._mean[:count])
        self._count[:count] += 1

    def action(self, index: int) -> FloatArray | None:
        return self._mean[index - self._begin].astype(np.float32) if self._begin <= index < self.end else None

    def rest(self, index: int) -> FloatArray:
        return self._mean[max(index - self._begin, 0) :].astype(np.float32)

    def clear(self) -> None:
        self._begin = 0
        self._mean: NDArray[np.float64] = np.zeros((0, self._action_dim))
        self._weight: NDArray[np.float64] = np.zeros(0)
        self._count: NDArray[np.int64] = np.zeros(0, np.int64)

    def _keep(self, begin: int, length: int) -> None:
        """Forget the steps before `begin`, and make room for `length` from there on."""
        gone = min(begin - self._begin, len(self._mean))
        room = length - (len(self._mean) - gone)
        self._mean = np.concatenate((self._mean[gone:], np.zeros((room, self._action_dim))))
        self._weight = np.concatenate((self._weight[gone:], np.zeros(room)))
        self._count = np.concatenate((self._count[gone:], np.zeros(room, np.int64)))
        self._begin = begin
