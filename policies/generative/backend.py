"""Where a sampler runs. All back-ends give the same chunks, within rounding."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray

Arrays = tuple[Array, ...]
Device = Literal["cpu", "cuda"]

MAX_DIFFERENCE = 5e-3
"""Of two back-ends' chunks in normalised units, where the whole range is 2. Rounding alone stays far below."""


class Backend(Protocol):
    """Samples chunks in normalised units; owned by one thread."""

    def sample(self, noise: FloatArray, step_noise: FloatArray | None, condition: Arrays) -> FloatArray:
        """(N, H, A) from noise (N, H, A), fresh noise (T, N, H, A) of a stochastic solver, and N rows of condition."""


class FixedSampler(nn.Module):
    """A sampler together with its clock: what depends on the times alone is computed here, once, and in a graph stands
    as constants. Neither weights nor device of the sampler may change afterwards."""

    def __init__(self, sampler: ChunkSampler) -> None:
        super().__init__()
        self.sampler = sampler.eval().requires_grad_(False)
        with torch.no_grad():
            clock = sampler.denoiser.clock(sampler.times, sampler.strides)
        self._parts = len(clock)
        for number, part in enumerate(clock):
            self.register_buffer(f"clock_{number}", part.contiguous(), persistent=False)

    def forward(self, noise: Tensor, step_noise: Tensor | None, *condition: Tensor) -> Tensor:
        """As `ChunkSampler.forward`."""
        sampler = self.sampler
        context = sampler.denoiser.context(condition)
        clock = tuple(self.get_buffer(f"clock_{number}") for number in range(self._parts))
        blocks = sampler.blocks()
        noisy, previous = noise, noise
        for index in range(len(sampler.calls)):
            clean = sampler.estimate(index, noisy, clock, context, blocks)
            noisy, previous = sampler.advance(index, noisy, clean, previous, step_noise), clean
        return noisy


class EagerBackend:
    """PyTorch, operation by operation, for any number of rows. The sampler moves to `device`."""

    def __init__(self, sampler: ChunkSampler, device: Device = "cpu") -> None:
        self.module = FixedSampler(sampler.to(device))
        self.device = torch.device(device)

    @torch.inference_mode()
    def sample(self, noise: FloatArray, step_noise: FloatArray | None, condition: Arrays) -> FloatArray:
        chunks: FloatArray = self.module(*tensors(noise, step_noise, condition, self.device)).cpu().numpy()
        return chunks


def tensors(
    noise: FloatArray, step_noise: FloatArray | None, condition: Arrays, device: torch.device
) -> tuple[Tensor | None, ...]:
    """The arguments of a sampler's `forward`."""
    fresh = None if step_noise is None else torch.from_numpy(step_noise).to(device)
    return (torch.from_numpy(noise).to(device), fresh, *(torch.from_numpy(part).to(device) for part in condition))


def check_against_eager(name: str, found: FloatArray, expected: FloatArray) -> None:
    """PolicyError unless a back-end's chunks are those of eager PyTorch within `MAX_DIFFERENCE`."""
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= MAX_DIFFERENCE:
        raise PolicyError(
            f"the back-end '{name}' gives another chunk than PyTorch: they differ by {difference:.2g}, allowed: "
            f"{MAX_DIFFERENCE:g} (of a range of 2); run this policy with backend=eager"
        )
