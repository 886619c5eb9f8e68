"""Sines and cosines of a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal(times: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """(T,) -> (T, width): sines, then cosines, with periods from 2 pi to 2 pi * `longest` (Vaswani et al., 2017)."""
    half = width // 2
    exponents = torch.arange(half, device=times.device, dtype=torch.float32) / max(half - 1, 1)
    angles = times[:, None].to(torch.float32) * torch.exp(-math.log(longest) * exponents)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
