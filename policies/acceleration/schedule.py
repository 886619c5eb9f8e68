"""Which blocks of a denoiser are computed at which call of the solver, and what that belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from msgspec import Struct

from robot_stack.core.errors import PolicyError

if TYPE_CHECKING:
    from torch import Tensor


class CacheSchedule(Struct, frozen=True, kw_only=True):
    """For every block the calls (0: the noisiest) at which it is computed; in between its last output is taken.

    Attributes:
        method: how it was found (`adaptive`, `uniform`, ...), for people.
        calls: calls of the solver, T.
        blocks: names of the blocks, in the order of their numbers.
        updates: for each block ascending calls in [0, T), the first one 0.
        belongs_to: fingerprint of architecture, process and solver; the schedule means nothing elsewhere.
    """

    method: str
    calls: int
    blocks: tuple[str, ...]
    updates: tuple[tuple[int, ...], ...]
    belongs_to: str

    def __post_init__(self) -> None:
        if len(self.updates) != len(self.blocks):
            raise PolicyError(
                f"a cache schedule has {len(self.updates)} rows for {len(self.blocks)} blocks; make it anew"
            )
        for name, row in zip(self.blocks, self.updates, strict=True):
            ascending = all(before < after for before, after in pairwise(row))
            if not row or row[0] != 0 or row[-1] >= self.calls or not ascending:
                raise PolicyError(
                    f"cache schedule of block {name}: {list(row)}; allowed: ascending calls from 0 to "
                    f"{self.calls - 1}, the first one 0"
                )

    @property
    def block_calls(self) -> int:
        """How many blocks one chunk computes."""
        return sum(len(row) for row in self.updates)

    def check(self, belongs_to: str, blocks: Sequence[str], calls: int) -> None:
        """PolicyError unless it was made for this architecture, solver and number of calls."""
        if (self.belongs_to, self.blocks, self.calls) != (belongs_to, tuple(blocks), calls):
            raise PolicyError(
                f"the cache schedule ({self.method}, {len(self.blocks)} blocks, {self.calls} calls) was made for "
                f"another network or solver than this one ({len(blocks)} blocks, {calls} calls); make it anew: "
                "robot-stack accelerate"
            )


class ScheduledBlocks:
    """The blocks of one chunk under a schedule; a `Blocks`. `next_call` before every call of the denoiser."""

    def __init__(self, schedule: CacheSchedule) -> None:
        self._updates = [frozenset(row) for row in schedule.updates]
        self._kept: dict[int, Tensor] = {}
        self._call = -1

    def next_call(self) -> None:
        self._call += 1

    def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        if self._call in self._updates[block]:
            self._kept[block] = compute()
        return self._kept[block]
