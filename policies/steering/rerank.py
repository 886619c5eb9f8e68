"""The best of several chunks instead of the first one: a wrapper round any policy that can be sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from policies.steering import seeds
from policies.steering.candidates import SampledPolicy, sample_candidates
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.specs import PolicySpec


class ChunkScore(Protocol):
    """Judges chunks: a learned value (`ValueScore`), familiarity (`CountScore`), or any rule of a task."""

    def score(self, observation: Observation, chunks: FloatArray) -> FloatArray:
        """(N,), higher is better, for chunks (N, H, A) in the action's units."""


class Reranked:
    """Samples `count` chunks and executes one of them; a `Policy`.

    A chunk is drawn with probability softmax(score / temperature), by a random number that belongs to the observation;
    temperature 0 takes the best one, an infinite one any. With `count` 1 it is the policy itself, bit for bit.

    V-GPS (arXiv 2410.13816) where the score is a learned value; TACO (arXiv 2512.02834) where it is a pseudo-count and
    the temperature 0.
    """

    def __init__(self, policy: SampledPolicy, score: ChunkScore, *, temperature: float, count: int) -> None:
        if not temperature >= 0.0:
            raise PolicyError(f"temperature is {temperature}; allowed: 0 (the best chunk) or more")
        if count < 1:
            raise PolicyError(f"{count} candidates were asked for; allowed: 1 or more")
        self._policy, self._score = policy, score
        self._temperature, self._count = temperature, count

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    @property
    def version(self) -> int:
        return self._policy.version

    def predict(self, observation: Observation) -> ActionChunk:
        """The chosen chunk; PolicyError for an unusable observation or a score that is not finite."""
        if self._count == 1:
            return self._policy.predict(observation)
        chunks = sample_candidates(self._policy, observation, self._count)
        scores = self._score.score(observation, chunks)
        uniform = float(seeds.generator(observation, seeds.CHOICE).random())
        return ActionChunk(
            observation_id=observation.id,
            index=observation.index,
            weights_version=self._policy.version,
            actions=chunks[choose(scores, self._temperature, uniform)],
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A): `predict` of one observation after the other."""
        return np.stack([self.predict(observation).actions for observation in observations])


def choose(scores: FloatArray, temperature: float, uniform: float) -> int:
    """Which of N: drawn from softmax(scores / temperature) by a number in [0, 1)."""
    if not np.isfinite(scores).all():
        raise PolicyError(
            f"scores of candidate chunks are {scores.tolist()}; all have to be finite: retrain the scorer"
        )
    best = int(scores.argmax())
    if temperature == 0.0:
        return best
    if math.isinf(temperature):
        return int(uniform * len(scores))
    with np.errstate(over="ignore"):  # the smallest temperatures: weight 0 for all but the best
        weights = np.exp((scores.astype(np.float64) - float(scores[best])) / temperature)
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
