"""What every network behind a generative policy has in common, whatever it is built from."""

from __future__ import annotations

import abc
from collections.abc import Callable

from torch import Tensor, nn

from policies.common.blocks import EVERY_BLOCK, Blocks

Tensors = tuple[Tensor, ...]


class Denoiser(nn.Module, abc.ABC):
    """Estimates noise, clean actions or velocity of a chunk of noisy actions (B, H, A), given a condition.

    What a prediction costs is split by how often it is needed: `context` once per chunk, `clock` once per solver,
    `step` at every call of the solver. `block_names` lists the parts of `step` that go through `Blocks.run`, in the
    order in which they are computed and numbered: `<layer>.<kind>`.

    condition: (vector (B, To, D) normalised float32, then one image tensor (B, To, height, width, 3) uint8 for each
    camera, then, for a policy that reads instructions, token ids (B, L) int64, 0 where there is no word). To:
    observations, oldest first.
    """

    block_names: tuple[str, ...]

    __call__: Callable[..., Tensor]

    @abc.abstractmethod
    def context(self, condition: Tensors) -> Tensors:
        """All that depends on the condition alone; leading dimension B."""

    @abc.abstractmethod
    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        """All that depends on the time alone, for times (T,) float32; leading dimension T.

        `strides` (T,) float32: how far in time the solver goes with this call; most networks need not know.
        """

    @abc.abstractmethod
    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        """The estimate (B, H, A) for noisy actions (B, H, A). `clock` has the leading dimension 1 or B."""

    def forward(self, actions: Tensor, times: Tensor, strides: Tensor, condition: Tensors) -> Tensor:
        """The estimate for a batch with a time and a stride (B,) of its own for each row: what training needs."""
        return self.step(actions, self.clock(times, strides), self.context(condition), EVERY_BLOCK)
