"""Where the step of each log index lies: in which sealed file, at which position. Eight bytes for each step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
NOT_SEALED = -1


def to_ranges(values: Indices) -> NDArray[np.int64]:
    """(n, 2) half-open ranges that hold the same rising numbers."""
    breaks = np.flatnonzero(np.diff(values) != 1) + 1
    starts = values[np.concatenate(([0], breaks))]
    stops = values[np.concatenate((breaks - 1, [values.size - 1]))] + 1
    return np.stack((starts, stops), axis=1)


def from_ranges(ranges: NDArray[np.int64]) -> Indices:
    """Inverse of `to_ranges`."""
    sizes = ranges[:, 1] - ranges[:, 0]
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(ranges[:, 0] - before, sizes)


class Locations:
    """(file number, position in the file) by log index. File numbers are the caller's, 0 or more.

    Memory covers the indices from the oldest that is still in a file to the newest. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._base = 0
        self._stop = 0
        self._files = np.full(0, NOT_SEALED, np.int32)
        self._positions = np.zeros(0, np.int32)

    @property
    def stop(self) -> int:
        """One more than the largest index that ever was in a file."""
        return self._stop

    def add(self, indices: Indices, file: int) -> bool:
        """Step `indices[i]` (rising) lies in `file` at position i. False, and nothing is done, if one of them lies in
        a file already."""
        if indices[0] < self._base or indices[-1] >= self._base + self._files.size:
            self._make_room(int(indices[0]), int(indices[-1]) + 1)
        slots = indices - self._base
        if (self._files[slots] != NOT_SEALED).any():
            return False
        self._files[slots] = file
        self._positions[slots] = np.arange(indices.size)
        self._stop = max(self._stop, int(indices[-1]) + 1)
        return True

    def remove(self, indices: Indices) -> None:
        self._files[indices - self._base] = NOT_SEALED

    def file_of(self, index: int) -> int:
        slot = index - self._base
        return int(self._files[slot]) if 0 <= slot < self._files.size else NOT_SEALED

    def find(self, indices: Indices) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """File number (NOT_SEALED where there is none) and position of each index."""
        slots = indices - self._base
        inside = (slots >= 0) & (slots < self._files.size)
        if inside.all():
            return self._files[slots], self._positions[slots]
        slots = np.where(inside, slots, 0)
        if not self._files.size:
            return np.full(indices.shape, NOT_SEALED, np.int32), np.zeros(indices.shape, np.int32)
        return np.where(inside, self._files[slots], np.int32(NOT_SEALED)), self._positions[slots]

    def first(self) -> int | None:
        """The smallest index that lies in a file."""
        if not (self._files != NOT_SEALED).any():
            return None
        return self._base + int(np.argmax(self._files != NOT_SEALED))

    def _make_room(self, start: int, stop: int) -> None:
        """Cover start .. stop - 1 too; what is no longer in any file at the beginning is let go."""
        first = self.first()
        new_base = start if first is None else min(start, first)
        end = max(stop, self._stop)
        room = max(1024, int(1.5 * (end - new_base)))
        files, positions = np.full(room, NOT_SEALED, np.int32), np.zeros(room, np.int32)
        if first is not None:
            kept = slice(first - self._base, self._stop - self._base)
            target = slice(first - new_base, self._stop - new_base)
            files[target], positions[target] = self._files[kept], self._positions[kept]
        self._base, self._files, self._positions = new_base, files, positions
