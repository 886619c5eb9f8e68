"""Guided sampling: a new chunk that goes on from actions that are already committed (real-time chunking).

While a chunk is computed the robot runs the old one. The first `delay_steps` actions of the new chunk will therefore
never run: they are frozen to what the old one says there, and the ones behind them are pulled towards it less and less.

Black, Galliker and Levine, Real-Time Execution of Action Chunking Flow Policies, 2025, after Pokle et al., 2024. There
it is a change of a flow's velocity. All solvers here work on clean estimates, so the estimate x0 is corrected instead:

    x0' = x0 + sigma * gain(t) * J^T [W * (y - x0)]        J = d x0 / d x,  t = alpha / (alpha + sigma)

y: the committed actions, W: weights of the prefix. x / (alpha + sigma) is the point of a flow at time t, so this is the
paper's formula on a flow, and the same thing on a chain: guided DDIM and guided Euler at the same times agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from policies.common.blocks import Blocks
from policies.common.denoiser import Tensors
from policies.generative.config import DiffusionChain
from policies.generative.guidance_config import GuidanceConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.specs import PolicySpec


@dataclass(frozen=True, slots=True)
class Guidance:
    """What a sample is pulled towards.

    Attributes:
        target: (B, H, A) in normalised units, finite also where the weight is 0.
        weights: (H,) or (B, H), in [0, 1].
    """

    target: Tensor
    weights: Tensor
    config: GuidanceConfig


def prefix_weights(horizon: int, delay_steps: int, execute_steps: int, ramp: str) -> FloatArray:
    """Weights (H,) of the committed prefix: 1 for the first `delay_steps` actions, falling to 0 at H - `execute_steps`.

    A delay beyond that end counts as the end. PolicyError for numbers outside [0, horizon].
    """
    for name, value in (("delay_steps", delay_steps), ("execute_steps", execute_steps)):
        if not 0 <= value <= horizon:
            raise PolicyError(f"{name} is {value}; allowed: 0 to the horizon, {horizon}")
    end = horizon - execute_steps
    start = min(delay_steps, end)
    steps = np.arange(horizon)
    weights = np.clip((start - 1 - steps) / (end - start + 1) + 1.0, 0.0, 1.0)
    if ramp == "exponential":
        weights = weights * np.expm1(weights) / np.expm1(1.0)
    return np.where(steps < end, weights, 0.0).astype(np.float32)


def guidance_gain(alpha: float, sigma: float, max_gain: float) -> float:
    """How strongly the velocity is pulled where the noisy actions are alpha * actions + sigma * noise."""
    time = alpha / (alpha + sigma)
    left = 1.0 - time
    if time == 0.0 or left == 0.0:
        return max_gain
    return min(max_gain, left / time * (left**2 + time**2) / left**2)


def guided_sample(
    sampler: ChunkSampler, noise: Tensor, step_noise: Tensor | None, condition: Tensors, guidance: Guidance
) -> Tensor:
    """`sampler(noise, step_noise, *condition)`, pulled; the same bits where all weights are 0.

    The cache schedule stays in force. Blocks that are not computed at a call pull nothing through their inputs there.
    """
    with torch.inference_mode(False), torch.no_grad():
        context, clock = sampler.prepare(condition)
        blocks = sampler.blocks()
        noisy, previous = noise, noise
        for index in range(len(sampler.calls)):
            clean = _guided_estimate(sampler, index, noisy, clock, context, blocks, guidance)
            noisy, previous = sampler.advance(index, noisy, clean, previous, step_noise), clean
        return noisy


def _guided_estimate(
    sampler: ChunkSampler,
    index: int,
    noisy: Tensor,
    clock: Tensors,
    context: Tensors,
    blocks: Blocks,
    guidance: Guidance,
) -> Tensor:
    call, config = sampler.calls[index], guidance.config
    full = config.jacobian == "full"
    point = noisy.detach().requires_grad_(full)
    with torch.set_grad_enabled(full):
        estimate = sampler.estimate(index, point, clock, context, blocks)
    clean = estimate.detach()
    wanted = guidance.weights[..., None] * (guidance.target - clean)
    gain = guidance_gain(call.alpha, call.sigma, config.max_gain) * call.sigma
    pull = wanted / (call.alpha + call.sigma)
    if full:
        (through,) = torch.autograd.grad(estimate, point, wanted, materialize_grads=True)
        # Nothing flows back through an estimate that was clipped: those are pulled as if the network were constant.
        pull = through + pull * (clean.abs() >= 1.0) if _is_chain(sampler) else through
    clean = clean + gain * pull
    return clean.clamp(-1.0, 1.0) if _is_chain(sampler) else clean


def _is_chain(sampler: ChunkSampler) -> bool:
    """Whether estimates are clipped to [-1, 1]."""
    return isinstance(sampler.process, DiffusionChain)


class GuidedPolicy:
    """A generative policy that can go on from committed actions; a `GuidedChunkPolicy`.

    Guided chunks are sampled in PyTorch, whatever the policy's back-end: gradients flow through nothing else. Chunks
    that nothing is committed for come from `policy` itself.
    """

    def __init__(self, policy: GenerativePolicy, config: GuidanceConfig | None = None) -> None:
        self.policy = policy
        self._config = config or GuidanceConfig()

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
        """The chunk from `observation.index` on, in the action's units, inside its bounds; float32 (H, A).

        Args:
            previous: (K, A), K <= H: what is still planned for the steps from `observation.index` on.
            delay_steps: so many of them will have run before this chunk is there.
            execute_steps: so many of the last actions are free, whatever `previous` says, but none that will have run.
        """
        committed, horizon = check_previous(self.spec, previous), self.spec.horizon
        delay = min(delay_steps, horizon)
        free = max(min(execute_steps, horizon - delay), horizon - len(committed))
        weights = prefix_weights(horizon, delay, free, self._config.ramp)
        if not weights.any():
            return self.policy.predict(observation)
        target = np.zeros((1, horizon, committed.shape[1]), np.float32)
        target[0, : len(committed)] = self.policy.to_samples(committed)
        device = self.policy.sampler.times.device
        guidance = Guidance(torch.from_numpy(target).to(device), torch.from_numpy(weights).to(device), self._config)
        return sample_chunk(self.policy, observation, partial(guided_sample, guidance=guidance))


def sample_chunk(
    policy: GenerativePolicy,
    observation: Observation,
    sample: Callable[[ChunkSampler, Tensor, Tensor | None, Tensors], Tensor],
) -> ActionChunk:
    """A policy's chunk, sampled in PyTorch by a function of (sampler, noise, step noise, condition)."""
    device = policy.sampler.times.device
    noise, step_noise = policy.noise([observation])
    drawn = sample(
        policy.sampler,
        torch.from_numpy(noise).to(device),
        None if step_noise is None else torch.from_numpy(step_noise).to(device),
        tuple(torch.from_numpy(part).to(device) for part in policy.condition([observation])),
    )
    return ActionChunk(
        observation_id=observation.id,
        index=observation.index,
        weights_version=policy.version,
        actions=policy.to_actions(drawn.cpu().numpy())[0],
    )


def check_previous(spec: PolicySpec, previous: FloatArray) -> FloatArray:
    """Committed actions (K, A); PolicyError unless there are at most H of the spec's size, all finite."""
    size = spec.action.shape[0]
    if previous.ndim != 2 or previous.shape[1] != size or len(previous) > spec.horizon:
        raise PolicyError(
            f"committed actions have shape {previous.shape}; allowed: up to {spec.horizon} actions of {size} numbers"
        )
    if not np.isfinite(previous).all():
        raise PolicyError("committed actions have NaN or infinity; give only those that are planned")
    return previous
