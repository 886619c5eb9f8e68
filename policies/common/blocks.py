"""The parts of a denoiser whose output may be kept from one solver call to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Blocks(Protocol):
    """Decides, block by block, whether a denoiser computes or takes what was kept."""

    def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        """The output of the block of that number; `compute` is called if it has to be computed."""


class EveryBlock:
    """Computes every block at every call: no caching."""

    def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


EVERY_BLOCK = EveryBlock()
