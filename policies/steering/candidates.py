"""Several chunks for one observation, whose condition is encoded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from policies.common.denoiser import Tensors
from policies.generative.backend import Arrays
from policies.generative.sampler import ChunkSampler
from policies.steering import seeds
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.specs import PolicySpec


class SampledPolicy(Protocol):
    """What steering asks of a policy: `GenerativePolicy` has it, and so has `ComposedPolicy`."""

    version: int
    sampler: ChunkSampler

    @property
    def spec(self) -> PolicySpec: ...

    def predict(self, observation: Observation) -> ActionChunk:
        """One chunk."""

    def condition(self, observations: Sequence[Observation]) -> Arrays:
        """The denoiser's condition, N rows."""

    def noise(self, observations: Sequence[Observation]) -> tuple[FloatArray, FloatArray | None]:
        """Noise (N, H, A) to start from and, for a stochastic solver, fresh noise (T, N, H, A)."""

    def to_actions(self, sample: FloatArray) -> FloatArray:
        """Normalised samples in the action's units, inside its bounds."""

    def to_samples(self, actions: FloatArray) -> FloatArray:
        """Actions in normalised units."""


@torch.inference_mode()
def sample_candidates(policy: SampledPolicy, observation: Observation, count: int) -> FloatArray:
    """Chunks (count, H, A) in the action's units, inside its bounds; the policy's cache schedule holds for all.

    The first one starts from the policy's own noise: it is the policy's own chunk (bit for bit where count is 1 and the
    policy runs on PyTorch; batched matrix products round differently). The others are a pure function of the
    observation too. The loop runs in PyTorch whatever back-end the policy has.
    """
    noise, step_noise = candidate_noise(policy, observation, count)
    sampler = policy.sampler
    context, clock = sampler.prepare(tuple(torch.from_numpy(part) for part in policy.condition([observation])))
    shared, blocks = share(context, count), sampler.blocks()
    fresh = None if step_noise is None else torch.from_numpy(step_noise)
    noisy = previous = torch.from_numpy(noise)
    for index in range(len(sampler.calls)):
        clean = sampler.estimate(index, noisy, clock, shared, blocks)
        noisy, previous = sampler.advance(index, noisy, clean, previous, fresh), clean
    return policy.to_actions(noisy.numpy())


def candidate_noise(
    policy: SampledPolicy, observation: Observation, count: int
) -> tuple[FloatArray, FloatArray | None]:
    """Noise (count, H, A) and fresh noise (T, count, H, A); PolicyError unless `count` is 1 or more."""
    if count < 1:
        raise PolicyError(f"{count} candidates were asked for; allowed: 1 or more")
    noise, fresh = policy.noise([observation])
    rows, calls = noise.shape[1:], 0 if fresh is None else len(fresh)
    drawn = [
        seeds.generator(observation, seeds.CANDIDATES, number).standard_normal((calls + 1, *rows), dtype=np.float32)
        for number in range(1, count)
    ]
    starts = np.stack([noise[0], *(draw[0] for draw in drawn)])
    if fresh is None:
        return starts, None
    return starts, np.stack([fresh[:, 0], *(draw[1:] for draw in drawn)], axis=1)


def share(context: Tensors, count: int) -> Tensors:
    """A context of one row, given to `count` candidates."""
    return tuple(part.expand(count, *part.shape[1:]).contiguous() for part in context)
