"""What generative networks are trained on: noise or actions of a chain, velocity of a flow, long steps of a flow.

Every random number comes from the caller's generator: a batch and the generator's state decide the loss.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from policies.common.blocks import EVERY_BLOCK
from policies.common.denoiser import Denoiser, Tensors
from policies.flow.consistency import draw_jumps, jump_velocity
from policies.flow.shortcut import SHORTEST_STRIDE, draw_long_steps, two_half_steps
from policies.generative.config import DiffusionChain, FlowPath, Process
from policies.generative.sampler import ChunkSampler
from policies.generative.solver import noise_levels
from robot_stack.core.errors import PolicyError

_LONG_SHARE = 4  # of a shortcut model's batch, one row in so many trains long steps
_LEAST_NOISE = 0.001  # 1 - t of a flow is squeezed into [this, 1]: what is left to learn at t = 1 is nothing (pi0)


def training_loss(
    net: Denoiser,
    process: Process,
    actions: Tensor,
    condition: Tensors,
    generator: torch.Generator,
    teacher: Denoiser | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean loss of normalised actions (B, H, A) float32 under their condition: a scalar with a gradient.

    `weight` (B, H) float32, not all 0: how much each action counts; 0 beyond the end of an episode. None: all alike.

    Chain: squared error of the noise or of the clean actions at a step drawn uniformly. Flow: squared error of the
    velocity. Shortcut: of the velocity, and for every fourth row of that of a long step against two half steps of
    `teacher` (the moving average of the weights; None: the network itself). Consistency: of the velocity of a long step
    against one short step of `teacher` (a trained flow) and the rest by the network itself.
    PolicyError if a consistency model has no teacher.
    """
    if isinstance(process, DiffusionChain):
        return _chain_loss(net, process, actions, condition, generator, weight)
    if process.objective == "consistency":
        return _consistency_loss(net, actions, condition, generator, teacher, weight)
    noise = _normal(actions, generator)
    if process.objective == "shortcut":
        return _shortcut_loss(net, process, (noise, actions), condition, generator, teacher or net, weight)
    return flow_loss(net, process, noise, actions, condition, generator, weight)


def flow_loss(
    net: Denoiser,
    process: FlowPath,
    noise: Tensor,
    actions: Tensor,
    condition: Tensors,
    generator: torch.Generator,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the velocity between noise and actions (B, H, A) that belong together.

    `weight`: as of `training_loss`.

    With fresh noise: flow matching (Lipman et al., 2023). With pairs of `reflow_pairs`: rectified flow's second round
    (Liu et al., 2023), after which paths are straighter and need fewer steps.
    """
    times = flow_times(process, len(actions), generator).to(actions.device)
    estimate = net(mix(noise, actions, times), times, torch.zeros_like(times), condition)
    return _squared_error(estimate, actions - noise, weight)


@torch.no_grad()
def reflow_pairs(
    sampler: ChunkSampler, condition: Tensors, chunk: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise and the actions that a trained flow makes of it, both (B, H, A); `chunk` is (H, A)."""
    noise = _normal(condition[0].new_empty((len(condition[0]), *chunk)), generator)
    return noise, sampler(noise, None, *condition)


def flow_times(process: FlowPath, count: int, generator: torch.Generator) -> Tensor:
    """Times (count,) float32 in [0, 1): 1 - t is Beta-distributed."""
    # torch's Beta draws from the global generator only; a Beta is a ratio of Gammas.
    shapes = torch.tensor([process.time_alpha, process.time_beta], dtype=torch.float64, device=generator.device)
    gammas = torch._standard_gamma(shapes.expand(count, 2).contiguous(), generator)
    noise_share = gammas[:, 0] / gammas.sum(dim=1)
    return (1.0 - (noise_share * (1.0 - _LEAST_NOISE) + _LEAST_NOISE)).to(torch.float32)


def mix(noise: Tensor, actions: Tensor, times: Tensor) -> Tensor:
    """Where a flow is at times (B,) on its way from noise to actions (B, H, A)."""
    share = times[:, None, None]
    return share * actions + (1.0 - share) * noise


def _chain_loss(
    net: Denoiser,
    chain: DiffusionChain,
    actions: Tensor,
    condition: Tensors,
    generator: torch.Generator,
    weight: Tensor | None,
) -> Tensor:
    steps = torch.randint(chain.train_steps, (len(actions),), generator=generator, device=generator.device)
    levels = _level_table(chain)[steps.cpu()].to(actions)
    noise = _normal(actions, generator)
    noisy = levels[:, 0, None, None] * actions + levels[:, 1, None, None] * noise
    times = steps.to(actions.device, torch.float32)
    estimate = net(noisy, times, torch.zeros_like(times), condition)
    return _squared_error(estimate, noise if chain.prediction == "epsilon" else actions, weight)


def _shortcut_loss(
    net: Denoiser,
    process: FlowPath,
    ends: tuple[Tensor, Tensor],
    condition: Tensors,
    generator: torch.Generator,
    teacher: Denoiser,
    weight: Tensor | None,
) -> Tensor:
    noise, actions = ends
    times = flow_times(process, len(actions), generator)
    strides = torch.full_like(times, SHORTEST_STRIDE)
    rows = len(actions) // _LONG_SHARE
    times[:rows], strides[:rows] = draw_long_steps(rows, generator)
    times, strides = times.to(actions.device), strides.to(actions.device)
    noisy, target = mix(noise, actions, times), actions - noise
    if rows:
        with torch.no_grad():
            context = teacher.context(tuple(part[:rows] for part in condition))
        target[:rows] = two_half_steps(teacher, noisy[:rows], times[:rows], strides[:rows], context)
    return _squared_error(net(noisy, times, strides, condition), target, weight)


def _consistency_loss(
    net: Denoiser,
    actions: Tensor,
    condition: Tensors,
    generator: torch.Generator,
    teacher: Denoiser | None,
    weight: Tensor | None,
) -> Tensor:
    if teacher is None:
        raise PolicyError("a consistency model is distilled from a trained flow; give training_loss that `teacher`")
    times, strides = (part.to(actions.device) for part in draw_jumps(len(actions), generator))
    noisy = mix(_normal(actions, generator), actions, times)
    context = net.context(condition)
    with torch.no_grad():
        taught = teacher.context(condition)
    target = jump_velocity(net, context, teacher, taught, (noisy, times, strides))
    estimate = net.step(noisy, net.clock(times, strides), context, EVERY_BLOCK)
    return _squared_error(estimate, target, weight)


def _squared_error(estimate: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over everything, or the weighted mean: weight (B, H) of errors (B, H, A)."""
    if weight is None:
        return functional.mse_loss(estimate, target)
    return ((estimate - target).square().mean(dim=-1) * weight).sum() / weight.sum()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


@cache
def _level_table(chain: DiffusionChain) -> Tensor:
    """(train_steps, 2) float64: alpha and sigma of every step."""
    return torch.stack(noise_levels(chain), dim=1)
