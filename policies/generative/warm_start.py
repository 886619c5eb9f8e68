"""Warm starts: a chunk sampled from the previous one instead of from noise alone.

The previous chunk, shifted to now and its last action repeated, is noised to where a later call of the solver begins,
and only the calls from there on are made: RTI-DP (arXiv 2508.05396), Falcon (ICML 2025), STEP. All calls are plain
sampling; none repeats the old chunk. A few calls follow the old chunk closely and notice a change of the scene late.

Streaming (SDP, arXiv 2406.04806) is not possible here: it needs a network with a noise level for every action.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from policies.acceleration.schedule import CacheSchedule, ScheduledBlocks
from policies.common.blocks import Blocks
from policies.common.denoiser import Tensors
from policies.generative.guidance import check_previous, sample_chunk
from policies.generative.policy import GenerativePolicy
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.specs import PolicySpec


def warm_sample(
    sampler: ChunkSampler,
    noise: Tensor,
    step_noise: Tensor | None,
    condition: Tensors,
    start: Tensor,
    calls: int,
) -> Tensor:
    """Clean actions (B, H, A) by the last `calls` calls of the solver, from `start` (B, H, A) in normalised units.

    With all T calls the bits of `sampler(noise, step_noise, *condition)`; with none `start` itself. Under a cache
    schedule the first call that is made computes every block.
    """
    total = len(sampler.calls)
    if not 0 <= calls <= total:
        raise PolicyError(f"a warm start of {calls} calls; allowed: 0 to the solver's {total}")
    if calls == 0:
        return start
    first = total - calls
    with torch.inference_mode(False), torch.no_grad():
        context, clock = sampler.prepare(condition)
        blocks = _blocks(sampler, first)
        alpha, sigma = sampler.levels[first]
        noisy = noise if first == 0 else alpha * start + sigma * noise
        previous: Tensor | None = None
        for index in range(first, total):
            clean = sampler.estimate(index, noisy, clock, context, blocks)
            # A solver of second order begins with a step of first order: there is no estimate before.
            before = clean if previous is None else previous
            noisy, previous = sampler.advance(index, noisy, clean, before, step_noise), clean
        return noisy


def schedule_from(schedule: CacheSchedule, first: int) -> CacheSchedule:
    """The part of a schedule from call `first` on, its calls counted from there; every block is computed at `first`."""
    updates = tuple((0, *(call - first for call in row if call > first)) for row in schedule.updates)
    return replace(schedule, calls=schedule.calls - first, updates=updates)


def _blocks(sampler: ChunkSampler, first: int) -> Blocks:
    return sampler.blocks() if sampler.schedule is None else ScheduledBlocks(schedule_from(sampler.schedule, first))


class WarmStartPolicy:
    """A generative policy whose chunks start from what is already planned; a `GuidedChunkPolicy`.

    `calls`: calls of the solver for a chunk with a previous one; all of them are made where nothing is planned. Sampled
    in PyTorch, whatever the policy's back-end.
    """

    def __init__(self, policy: GenerativePolicy, calls: int) -> None:
        total = len(policy.sampler.calls)
        if not 1 <= calls <= total:
            raise PolicyError(f"a warm start of {calls} calls; allowed: 1 to the solver's {total}")
        self.policy = policy
        self._calls = calls

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    @property
    def version(self) -> int:
        return self.policy.version

    def predict(self, observation: Observation) -> ActionChunk:
        return self.policy.predict(observation)

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        """The chunk from `observation.index` on; `previous` (K, A) is planned for the steps from there on.

        Delay and executed steps make no difference to it.
        """
        planned = check_previous(self.spec, previous)
        if len(planned) == 0:
            return self.policy.predict(observation)
        tail = np.repeat(planned[-1:], self.spec.horizon - len(planned), axis=0)
        start = self.policy.to_samples(np.concatenate((planned, tail)))[None].astype(np.float32, copy=False)
        begin = torch.from_numpy(start).to(self.policy.sampler.times.device)
        warm = partial(warm_sample, start=begin, calls=self._calls)
        return sample_chunk(self.policy, observation, warm)
