"""From noise to a chunk of actions: a solver's loop round a denoiser, with blocks kept as its schedule says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.acceleration.schedule import CacheSchedule, ScheduledBlocks
from policies.common.blocks import EVERY_BLOCK, Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.generative.config import Process, SolverConfig
from policies.generative.solver import clean_estimate, solver_calls


class ChunkSampler(nn.Module):
    """Samples chunks in normalised units.

    No decision in `forward` depends on the data: it can be unrolled into one graph, in which a block that the schedule
    skips does not exist.


    """

    levels: Tensor
    times: Tensor
    strides: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        process: Process,
        solver: SolverConfig,
        schedule: CacheSchedule | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = process
        self.calls = solver_calls(process, solver)
        self.schedule = schedule
        self.register_buffer("times", torch.tensor([call.time for call in self.calls]), persistent=False)
        self.register_buffer("strides", torch.tensor([call.stride for call in self.calls]), persistent=False)
        levels = [(call.alpha, call.sigma) for call in self.calls]
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)

    @property
    def is_stochastic(self) -> bool:
        """Whether `forward` takes fresh noise for every call."""
        return any(call.c_noise != 0.0 for call in self.calls)

    def forward(self, noise: Tensor, step_noise: Tensor | None, *condition: Tensor) -> Tensor:
        """Clean actions (B, H, A) from noise (B, H, A) and, for a stochastic solver, fresh noise (T, B, H, A)."""
        context, clock = self.prepare(condition)
        blocks = self.blocks()
        noisy, previous = noise, noise
        for index in range(len(self.calls)):
            clean = self.estimate(index, noisy, clock, context, blocks)
            noisy, previous = self.advance(index, noisy, clean, previous, step_noise), clean
        return noisy

    def prepare(self, condition: Tensors) -> tuple[Tensors, Tensors]:
        """(context, clock): what does not change from call to call."""
        return self.denoiser.context(condition), self.denoiser.clock(self.times, self.strides)

    def blocks(self) -> Blocks:
        """Fresh bookkeeping for one chunk."""
        return EVERY_BLOCK if self.schedule is None else ScheduledBlocks(self.schedule)

    def estimate(self, index: int, noisy: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        """Call number `index` of the network: its estimate of the clean actions (B, H, A)."""
        if isinstance(blocks, ScheduledBlocks):
            blocks.next_call()
        now = tuple(part[index : index + 1] for part in clock)
        output = self.denoiser.step(noisy, now, context, blocks)
        alpha, sigma = self.levels[index]
        return clean_estimate(self.process, output, noisy, alpha, sigma)

    def advance(self, index: int, noisy: Tensor, clean: Tensor, previous: Tensor, step_noise: Tensor | None) -> Tensor:
        """The noisy actions of the next call."""
        call = self.calls[index]
        following = call.c_noisy * noisy + call.c_clean * clean
        if call.c_previous != 0.0:
            following = following + call.c_previous * previous
        if call.c_noise != 0.0 and step_noise is not None:
            following = following + call.c_noise * step_noise[index]
        return following
