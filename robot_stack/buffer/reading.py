"""Reading steps wherever they lie, while sealing moves them from the log to files and retention drops files.

The log keeps a step until its file is whole and known. So whoever finds a step gone from the log finds it in a file,
and whoever finds a file gone knows that retention took it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.buffer.catalog import Catalog, SealedFile
from robot_stack.buffer.episode_file import EpisodeFile
from robot_stack.buffer.images import decode_image
from robot_stack.buffer.locations import NOT_SEALED, Indices
from robot_stack.buffer.log import DroppedError, DurableLog
from robot_stack.core.codec import unpack
from robot_stack.core.errors import CorruptDataError, MessageError, StorageError
from robot_stack.core.messages import Features, Step

_BLOCK = 4096


class OpenFiles:
    """Sealed files that stay open, the most recently used ones. For several threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._files: OrderedDict[str, EpisodeFile] = OrderedDict()

    def get(self, catalog: Catalog, sealed: SealedFile) -> EpisodeFile:
        """The open file; StorageError if it is gone, CorruptDataError if it is damaged or another one."""
        with self._lock:
            file = self._files.get(sealed.name)
            if file is not None:
                self._files.move_to_end(sealed.name)
                return file
        file = EpisodeFile(catalog.episodes / sealed.name)
        file.open()
        _check_same(file, sealed)
        with self._lock:
            self._files[sealed.name] = file
            while len(self._files) > self._capacity:
                self._files.popitem(last=False)  # not closed: a thread may be reading; it goes with its last user
        return file

    def forget(self, name: str) -> None:
        with self._lock:
            self._files.pop(name, None)

    def clear(self) -> None:
        with self._lock:
            self._files.clear()


def _check_same(file: EpisodeFile, sealed: SealedFile) -> None:
    if file.info != sealed.info:
        raise CorruptDataError(
            f"'{sealed.name}' is not the file that was sealed: somebody replaced it. Restore it from a copy, or delete "
            "the catalog if the change is meant."
        )


class StepReader:
    """Reads for a store. `lock` guards the catalog."""

    def __init__(self, log: DurableLog, catalog: Catalog, lock: threading.Lock, open_files: OpenFiles) -> None:
        self._log = log
        self._catalog = catalog
        self._lock = lock
        self._open_files = open_files

    # ---- steps in order -------------------------------------------------------------------------------------

    def iterate(self, start: int, stop: int) -> Iterator[tuple[int, Step]]:
        """(index, step) of what exists from `start` to `stop - 1`, in log order. In memory at a time: one step, and
        what one open file for each robot that recorded at that time needs."""
        index = start
        while index < stop:
            sealed_until = min(stop, self._log.first_index)
            if index < sealed_until:
                yield from self._iterate_files(index, sealed_until)
                index = sealed_until
                continue
            try:
                for position, payload in self._log.iterate(index):
                    if position >= stop:
                        return
                    yield position, unpack(payload, Step)
                    index = position + 1
                return
            except DroppedError:
                self._check_dropped(index)

    def _iterate_files(self, start: int, stop: int) -> Iterator[tuple[int, Step]]:
        cursors: dict[int, Iterator[tuple[int, Step]]] = {}
        for begin in range(start, stop, _BLOCK):
            indices = np.arange(begin, min(begin + _BLOCK, stop))
            with self._lock:
                numbers, _ = self._catalog.locations.find(indices)
            for index, number in zip(indices.tolist(), numbers.tolist(), strict=True):
                if number == NOT_SEALED:
                    continue
                if number not in cursors:
                    cursors[number] = self._steps_from(number, index)
                item = next(cursors[number], None)
                if item is None:
                    continue  # retention was quicker
                if item[0] != index:
                    raise CorruptDataError(f"file {number} of the catalog holds step {item[0]} where {index} belongs")
                yield item
                file = self._catalog.file(number)
                if file is not None and file.info.last_index == index:
                    cursors.pop(number)

    def _steps_from(self, number: int, index: int) -> Iterator[tuple[int, Step]]:
        sealed = self._catalog.file(number)
        if sealed is None:
            return
        try:
            with EpisodeFile(self._catalog.episodes / sealed.name) as file:
                _check_same(file, sealed)
                yield from (item for item in file.steps() if item[0] >= index)
        except StorageError:
            if self._catalog.file(number) is not None:
                raise

    def _check_dropped(self, index: int) -> None:
        if self._log.first_index <= index:
            raise CorruptDataError(
                f"a segment of the log in {self._log.directory} with record {index} has vanished although nothing "
                "dropped it. Restore it from a copy, then restart this process."
            )

    # ---- images ---------------------------------------------------------------------------------------------

    def read_images(self, feature: str, indices: Indices, final: NDArray[np.bool_], out: NDArray[np.uint8]) -> None:
        """Frames of steps by log index into `out` (n, H, W, 3); see `StepStore.read_images`."""
        rows = np.arange(indices.size)
        while rows.size:
            with self._lock:
                numbers, positions = self._catalog.locations.find(indices[rows])
            in_log = numbers == NOT_SEALED
            sealed = ~in_log
            self._read_from_files(feature, indices, rows[sealed], numbers[sealed], positions[sealed], final, out)
            rows = rows[in_log]
            rows = rows[self._read_from_log(feature, indices, rows, final, out) :]
            if rows.size:  # dropped from the log: it is sealed by now, or it is gone
                index = int(indices[rows[0]])
                self._check_dropped(index)
                with self._lock:
                    if self._catalog.locations.file_of(index) == NOT_SEALED:
                        raise _gone(index)

    def _read_from_files(
        self,
        feature: str,
        indices: Indices,
        rows: Indices,
        numbers: NDArray[np.int32],
        positions: NDArray[np.int32],
        final: NDArray[np.bool_],
        out: NDArray[np.uint8],
    ) -> None:
        order = np.argsort(numbers, kind="stable")
        rows, numbers, positions = rows[order], numbers[order], positions[order].astype(np.int64)
        bounds = np.flatnonzero(np.diff(numbers)) + 1
        for start, stop in zip([0, *bounds.tolist()], [*bounds.tolist(), rows.size], strict=True):
            if start == stop:
                continue
            sealed = self._catalog.file(int(numbers[start]))
            if sealed is None:
                raise _gone(int(indices[rows[start]]))
            group, wanted = rows[start:stop], positions[start:stop]
            is_final = final[group]
            if (wanted[is_final] != sealed.info.steps - 1).any():
                raise StorageError(
                    f"a final observation was asked of a step in {sealed.name} that is not its last: only the last "
                    "step of an episode has one"
                )
            file = self._open(sealed)
            self._read_group(file, feature, np.where(is_final, sealed.info.steps, wanted), group, out)

    def _open(self, sealed: SealedFile) -> EpisodeFile:
        try:
            return self._open_files.get(self._catalog, sealed)
        except CorruptDataError:
            raise
        except StorageError as error:
            with self._lock:
                is_there = self._catalog.file_at(sealed.info.first_index) is sealed
            if is_there:
                raise
            raise _gone(sealed.info.first_index) from error

    def _read_group(
        self, file: EpisodeFile, feature: str, positions: Indices, rows: Indices, out: NDArray[np.uint8]
    ) -> None:
        if rows[-1] - rows[0] + 1 == rows.size:  # rows rise: they are neighbours, no detour
            file.read_images(feature, positions, out[rows[0] : rows[-1] + 1])
            return
        for position, row in zip(positions, rows.tolist(), strict=True):
            file.read_images(feature, position[None], out[row : row + 1])

    def _read_from_log(
        self, feature: str, indices: Indices, rows: Indices, final: NDArray[np.bool_], out: NDArray[np.uint8]
    ) -> int:
        """Read rows until one has been dropped from the log; how many were read."""
        done = 0
        try:
            for payload in self._log.read_each(indices[rows].tolist()):
                row = int(rows[done])
                frames: _Frames = unpack(payload, _Frames)
                features = frames.final_observation if final[row] else frames.observation
                if features is None or feature not in features:
                    what = "final observation" if final[row] else "observation"
                    raise StorageError(
                        f"step {indices[row]} has no feature '{feature}' in its {what}; it has: "
                        f"{', '.join(sorted(features or {})) or 'none'}"
                    )
                _copy_image(features[feature], out[row], int(indices[row]), feature)
                done += 1
        except DroppedError:
            pass
        return done


class _Frames(Struct, frozen=True):
    """The part of a step that holds images."""

    observation: Features
    final_observation: Features | None = None


def _copy_image(stored: NDArray[np.uint8], out: NDArray[np.uint8], index: int, feature: str) -> None:
    try:
        decode_image(stored, out)
    except MessageError as error:
        raise StorageError(f"'{feature}' of step {index} cannot be read: {error}") from error


def _gone(index: int) -> StorageError:
    return StorageError(
        f"step {index} is no longer stored: retention dropped it. Keep more (keep_bytes, keep_age_s), or pin its "
        "episode."
    )
