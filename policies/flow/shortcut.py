"""Shortcut models: one network that knows how far its step goes, so that few steps do (Frans et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.common.blocks import EVERY_BLOCK
from policies.common.denoiser import Denoiser, Tensors

_HALVINGS = 7
SHORTEST_STRIDE = 2.0**-_HALVINGS
"""The stride that plain flow matching is trained under: as good as no distance."""


def draw_long_steps(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times and strides (count,): a stride of 1, 1/2, ... 1/64, and a time that is a multiple of it below 1."""
    device = generator.device
    parts = 2.0 ** torch.randint(_HALVINGS, (count,), generator=generator, device=device)
    which = (torch.rand(count, generator=generator, device=device) * parts).floor()
    return which / parts, 1.0 / parts


@torch.no_grad()
def two_half_steps(net: Denoiser, noisy: Tensor, times: Tensor, strides: Tensor, context: Tensors) -> Tensor:
    """Average velocity (B, H, A) of two steps of half the stride: what one whole step has to learn."""
    half = strides / 2
    first = net.step(noisy, net.clock(times, half), context, EVERY_BLOCK)
    middle = noisy + half[:, None, None] * first
    second = net.step(middle, net.clock(times + half, half), context, EVERY_BLOCK)
    return (first + second) / 2
