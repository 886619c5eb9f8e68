"""Priorities of rows, and draws in proportion to them (arXiv 1511.05952)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.buffer.batches import Rows
from robot_stack.buffer.replay import Replay, Stratum
from robot_stack.core.errors import StorageError
from robot_stack.core.messages import FloatArray

Sums = NDArray[np.float64]


class SumTree:
    """Sums over a row of values, in pairs, pairs of pairs, and so on; all access is for many leaves at a time.

    Every inner value is computed from its two children, never adjusted by a difference. So the tree is a function of
    its leaves, whatever the order in which they were set, and errors do not add up.
    """

    def __init__(self, size: int) -> None:
        levels = max(1, (size - 1).bit_length())
        self._levels: list[Sums] = [np.zeros(1 << level, np.float64) for level in range(levels + 1)]

    @property
    def total(self) -> float:
        return float(self._levels[0][0])

    @property
    def leaves(self) -> Sums:
        return self._levels[-1]

    def set(self, leaves: Rows, values: Sums) -> None:
        """Set these leaves (n,); where one is named twice its last value stays."""
        self._levels[-1][leaves] = values
        nodes = leaves
        for children, parents in pairwise(reversed(self._levels)):
            nodes = nodes >> 1
            parents[nodes] = children[2 * nodes] + children[2 * nodes + 1]

    def find(self, amounts: Sums) -> Rows:
        """For each amount (n,) in [0, total): the leaf at which the sum of all leaves up to it first exceeds it.

        Never a leaf with the value 0, also where rounding would lead there.
        """
        nodes: Rows = np.zeros(len(amounts), np.int64)
        left_over = amounts.astype(np.float64)
        for children in self._levels[1:]:
            left = children[2 * nodes]
            right = (left_over >= left) & (children[2 * nodes + 1] > 0.0)
            left_over -= np.where(right, left, 0.0)
            nodes = 2 * nodes + right
        return nodes


class PriorityState(Struct, frozen=True):
    """Priorities of rows `first_row` .. `first_row` + n - 1 as little-endian float32; 0 for a row that has none."""

    first_row: int
    largest: float
    values: bytes


class Priorities:
    """Priorities of the eligible rows of one stratum (None: of all). Draws are in proportion to priority^alpha.

    A row that becomes eligible gets the largest priority that was set until then.
    """

    def __init__(self, replay: Replay, stratum: Stratum | None, alpha: float) -> None:
        capacity = replay.config.capacity
        self._replay = replay
        self._stratum = stratum
        self._alpha = alpha
        self._largest = 1.0
        self._values: FloatArray = np.zeros(capacity, np.float32)
        self._entered: Rows = np.full(capacity, -1, np.int64)  # as `Replay.entered` when the slot was last looked at
        self._tree = SumTree(capacity)
        self._changes = replay.watch()
        self._changes.overflowed = True

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Rows, FloatArray]:
        """`count` slots, one from each of `count` equal slices of the sum, and p(slot) * N for each.

        Taking one per slice keeps every slot's expected number of draws and lowers its variance.
        """
        self._follow()
        slices = (np.arange(count) + rng.random(count)) / count
        slots = self._tree.find(slices * self._tree.total)
        held = self._replay.size(self._stratum)
        return slots, (self._tree.leaves[slots] * (held / self._tree.total)).astype(np.float32)

    def set(self, rows: Rows, values: FloatArray) -> None:
        """Set the priorities of rows by number; forgotten ones are passed over, of a row named twice the last stays."""
        self._follow()
        self._largest = max(self._largest, float(values.max()))
        slots = rows % self._replay.config.capacity
        known = (self._replay.row_number[slots] == rows) & (self._entered[slots] >= 0)
        self._store(slots[known], values[known])

    def state(self) -> PriorityState:
        self._follow()
        first = self._replay.first_row
        rows = np.arange(first, self._replay.next_row_number)
        values = self._values[rows % self._replay.config.capacity]
        return PriorityState(first, self._largest, values.astype("<f4").tobytes())

    def load_state(self, state: PriorityState) -> None:
        """StorageError unless the replay holds the same rows, the same of them eligible."""
        self._follow()
        rows = np.arange(self._replay.first_row, self._replay.next_row_number)
        slots = rows % self._replay.config.capacity
        same = state.first_row == self._replay.first_row and len(state.values) == 4 * len(rows)
        values = np.frombuffer(state.values, "<f4").astype(np.float32) if same else np.zeros(0, np.float32)
        if not same or not np.array_equal(values > 0.0, self._entered[slots] >= 0):
            raise StorageError(
                f"priorities of {len(state.values) // 4} rows from row {state.first_row} on do not fit a replay that "
                f"holds {len(rows)} from {self._replay.first_row} on: refill it up to the same step before"
            )
        self._largest = state.largest
        self._store(slots, values)

    def _follow(self) -> None:
        """Take over what became eligible or was forgotten since the last look."""
        slots = self._changes.take()
        entered = self._replay.entered[slots]
        if self._stratum is not None:
            entered = np.where(self._replay.stratum[slots] == self._stratum, entered, -1)
        changed = entered != self._entered[slots]
        slots, entered = slots[changed], entered[changed]
        if len(slots):
            self._entered[slots] = entered
            self._store(slots, np.where(entered >= 0, np.float32(self._largest), np.float32(0.0)))

    def _store(self, slots: Rows, values: FloatArray) -> None:
        self._values[slots] = values
        self._tree.set(slots, np.where(values > 0.0, values.astype(np.float64) ** self._alpha, 0.0))
