"""From samples of a policy to better ones: the best of several, and ascent of a value within the action's bounds.

Actions are in normalised units, [-1, 1] = the action's bounds. B: observations, N: candidates of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from policies.steering.candidates import SampledPolicy, sample_candidates
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.specs import Feature, PolicySpec

EDITS = 3
"""The stream of random numbers (`policies.steering.seeds`) that edits of candidates are drawn from."""

Value = Callable[[Tensor], Tensor]
"""Values (B, N) of actions (B, N, A), each by itself."""

Improve = Callable[[Observation, FloatArray], FloatArray]
"""One chunk (H, A), out of candidates (N, H, A) for the observation; in the action's units, inside its bounds."""


class ImprovedPolicy:
    """Samples `count` chunks and executes what `improve` makes of them; a `Policy`, deterministic like the one inside.

    With `count` 1 and an `improve` that changes nothing it is the policy itself, bit for bit.
    """

    def __init__(self, policy: SampledPolicy, count: int, improve: Improve) -> None:
        self._policy, self._count, self._improve = policy, count, improve

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    @property
    def version(self) -> int:
        return self._policy.version

    def predict(self, observation: Observation) -> ActionChunk:
        """The chunk for the steps from `observation.index` on; PolicyError for an unusable observation or a value that
        is not finite."""
        return ActionChunk(
            observation_id=observation.id,
            index=observation.index,
            weights_version=self._policy.version,
            actions=self._improve(observation, sample_candidates(self._policy, observation, self._count)),
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A): `predict` of one observation after the other."""
        return np.stack([self.predict(observation).actions for observation in observations])


class FirstActions:
    """The first K actions of chunks as one decision, normalised to the bounds, and back."""

    def __init__(self, action: Feature, count: int) -> None:
        self._lower, self._upper = action.lower_array(), action.upper_array()
        self._centre, self._half_range = (self._upper + self._lower) / 2, (self._upper - self._lower) / 2
        self._count = count

    def of(self, chunks: FloatArray) -> Tensor:
        """(1, N, K * A) in [-1, 1] of chunks (N, H, A) in the action's units."""
        first = (chunks[:, : self._count] - self._centre) / self._half_range
        return torch.from_numpy(first.reshape(1, len(chunks), -1)).clamp_(-1.0, 1.0)

    def put(self, chunk: FloatArray, decision: Tensor) -> FloatArray:
        """The chunk (H, A) that begins with a decision (K * A,); a copy, inside the bounds."""
        changed: FloatArray = chunk.copy()
        first = decision.numpy().reshape(self._count, -1) * self._half_range + self._centre
        changed[: self._count] = np.clip(first, self._lower, self._upper)
        return changed


def ascend(value: Value, actions: Tensor, steps: int, step_size: float) -> tuple[Tensor, Tensor]:
    """Climb `steps` times along the gradient of the value, inside [-1, 1]; the best point of each way, and its value.

    Actions (B, N, A) and values (B, N), without gradients. A value never decreases: the way begins at the action
    itself. PA-RL, arXiv 2412.06685.
    """
    now = best = actions.detach()
    with torch.no_grad():
        highest = value(now)
    for _ in range(steps):
        probe = now.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(value(probe).sum(), probe)
        now = (now + step_size * gradient).clamp_(-1.0, 1.0)
        with torch.no_grad():
            reached = value(now)
        better = reached > highest
        best = torch.where(better[..., None], now, best)
        highest = torch.where(better, reached, highest)
    return best, highest


def keep_top(values: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the highest values (B, N), best first; all of them if there are not more."""
    return torch.topk(values, min(count, values.shape[1]), dim=1).indices


def take(candidates: Tensor, index: Tensor) -> Tensor:
    """Candidates (B, N, ...) at indices (B, K): (B, K, ...)."""
    return candidates[torch.arange(len(candidates))[:, None], index]


def choose_rows(values: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Of every row of values (B, N), an index drawn from softmax(values / temperature), or at temperature 0 the best:
    (B,)."""
    if temperature == 0.0:
        return values.argmax(dim=1)
    if math.isinf(temperature):
        return torch.randint(values.shape[1], (len(values),), generator=generator)
    return torch.multinomial(torch.softmax(values / temperature, dim=1), 1, generator=generator)[:, 0]
