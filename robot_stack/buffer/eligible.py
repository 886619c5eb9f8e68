"""Which rows may be drawn, in the order in which they became so."""

from __future__ import annotations

import numpy as np

from robot_stack.buffer.batches import Rows


class EligibleRows:
    """A queue of distinct slots (0 .. capacity - 1) with uniform access, the oldest first.

    Slots leave from anywhere, but in practice from close to the front: rows are forgotten in the order of their
    arrival, and become eligible in nearly that order. Taking one out moves only the slots in front of it.
    `places` (capacity,) int64 is the queue's note of where each slot is; queues without a slot in common may share it.
    """

    def __init__(self, capacity: int, places: Rows) -> None:
        self._slots: Rows = np.zeros(capacity, np.int64)
        self._places = places
        self._capacity = capacity
        self._head = 0  # counts up for ever; a place is found at its number modulo the capacity
        self._tail = 0

    def __len__(self) -> int:
        return self._tail - self._head

    def append(self, slot: int) -> None:
        self._slots[self._tail % self._capacity] = slot
        self._places[slot] = self._tail
        self._tail += 1

    def remove(self, slot: int) -> None:
        """Take out a slot that is in the queue; the others keep their order."""
        place = int(self._places[slot])
        if place > self._head:
            before = np.arange(self._head, place)
            moved = self._slots[before % self._capacity]
            self._slots[(before + 1) % self._capacity] = moved
            self._places[moved] += 1
        self._head += 1

    def pick(self, offsets: Rows) -> Rows:
        """The slots at these offsets, counted from the oldest on; all within 0 .. len - 1."""
        return self._slots.take((offsets + self._head) % self._capacity)

    def all(self) -> Rows:
        return self.pick(np.arange(len(self)))
