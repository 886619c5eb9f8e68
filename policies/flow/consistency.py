"""Distilling a trained flow into a network that jumps anywhere along its path in one step.

Consistency Policy (Prasad et al., RSS 2024) after consistency trajectory models (Kim et al., 2024), here for straight
paths: a jump by `stride` is noisy + stride * output, so the student samples as any flow does, in one step or more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policies.common.blocks import EVERY_BLOCK
from policies.common.denoiser import Denoiser, Tensors

_INTERVALS = 32  # of the path from noise to actions; the teacher goes one of them at a time


def draw_jumps(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times (count,) where jumps begin, multiples of 1/32 below 1, and strides (count,) of 1/32 up to what is left."""
    device = generator.device
    starts = torch.randint(_INTERVALS, (count,), generator=generator, device=device)
    room = _INTERVALS - starts
    spans = 1 + (torch.rand(count, generator=generator, device=device) * room).floor()
    return starts / _INTERVALS, spans / _INTERVALS


@torch.no_grad()
def jump_velocity(
    student: Denoiser,
    student_context: Tensors,
    teacher: Denoiser,
    teacher_context: Tensors,
    jump: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Average velocity (B, H, A) of a jump, given as (noisy actions, times, strides): the teacher goes its first
    interval (midpoint rule), the student the rest."""
    noisy, times, strides = jump
    interval = 1.0 / _INTERVALS
    short = torch.full_like(times, interval)
    first = teacher.step(noisy, teacher.clock(times, short), teacher_context, EVERY_BLOCK)
    middle = noisy + interval / 2 * first
    taught = teacher.step(middle, teacher.clock(times + interval / 2, short), teacher_context, EVERY_BLOCK)
    rest = strides - interval
    later = student.clock(times + interval, rest)
    continued = student.step(noisy + interval * taught, later, student_context, EVERY_BLOCK)
    share = (interval / strides)[:, None, None]
    return share * taught + (1.0 - share) * continued
