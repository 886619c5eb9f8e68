"""An append-only log of byte records that survives `kill -9` and, where asked, the loss of power.

The rule that everything rests on: a record may be acknowledged once `sync()` has returned after its `append`.
Such a record is never lost and never changes. A record that was not synced is either there whole or not at all.

A directory holds segment files (see `segment.py` for the format) and a lock file. The writer fills the last
segment; when it is full it is sealed and a new one begins, so old data can be dropped file by file.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from robot_stack.buffer.segment import (
    FILE_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    READ_AHEAD_BYTES,
    RECORD_HEADER_BYTES,
    Record,
    Segment,
    Visitor,
    file_header,
    list_segments,
    read_record,
    record_header,
    scan_segment,
    segment_path,
)
from robot_stack.core.errors import CorruptDataError, DataInUseError, StorageError

Durability = Literal["process", "power"]


class DroppedError(StorageError):
    """The record was there once; its segment has been dropped."""


class DurableLog:
    """The log's only writer. One thread appends; `read`, `read_each` and `iterate` may run in other threads meanwhile,
    and so may one call of `drop_before` at a time. A reader whose record is dropped before it came to it gets
    DroppedError.

    Args:
        directory: made if missing. A second writer of the same directory gets StorageError.
        segment_bytes: a segment that has reached this size is sealed.
        durability: `power`: `sync` returns when the data is on the disk. `process`: it returns when the kernel has the
            data, which survives the death of any process. After a loss of power such a log keeps what the kernel had
            written by itself; if that is not a clean prefix over several segments, opening raises CorruptDataError.

    `cut_bytes` is what `open` cut off as an unfinished write. Damage to the very last synced group of records looks
    the same, so show it where it is not 0.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = 64 * 1024 * 1024, durability: Durability = "power"
    ) -> None:
        self.directory = directory
        self.cut_bytes = 0
        self._segment_bytes = segment_bytes
        self._durability = durability
        self._segments: list[Segment] = []
        self._lock_fd = -1
        self._fd = -1
        self._synced = 0
        self._directory_changed = False
        self._refusal = "is not open"

    # ---- life -----------------------------------------------------------------------------------------------

    def open(self, visit: Visitor | None = None, *, first_index: int = 0) -> None:
        """Verify every record, cut an unfinished tail, and get ready to append.

        `visit` is shown every record on the way, which saves reading them again. `first_index`: where a log begins
        that does not exist yet.
        """
        if self._lock_fd >= 0:
            raise StorageError(f"the log in {self.directory} is already open")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock_fd = lock_directory(self.directory)
            self._load(visit, first_index)
        except OSError as error:
            self.close()
            raise StorageError(f"the log in {self.directory} cannot be opened: {error}") from error
        except BaseException:
            self.close()
            raise
        self._refusal = ""

    def close(self) -> None:
        """Release the directory. Does not sync: what was not synced was not promised."""
        self._refusal = "is not open"
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock_fd = -1
        self._segments = []

    def __enter__(self) -> DurableLog:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- writing --------------------------------------------------------------------------------------------

    def append(self, payload: bytes) -> int:
        """Write one record and return its index. It counts once `sync` has returned."""
        return self.append_many((payload,)).start

    def append_many(self, payloads: Sequence[bytes]) -> range:
        """Write records with one write call; all of them or, with StorageError, none (no index is used up)."""
        self._check_writable()
        for payload in payloads:
            if len(payload) > MAX_PAYLOAD_BYTES:
                raise StorageError(f"a record has at most {MAX_PAYLOAD_BYTES} bytes, this one has {len(payload)}")
        if self._tail.end >= self._segment_bytes:
            self._roll()
        tail, start, before = self._tail, self.next_index, self._tail.end
        parts: list[bytes] = []
        offsets: list[int] = []
        end = before
        for index, payload in enumerate(payloads, start):
            parts += (record_header(index, self._synced, payload), payload)
            offsets.append(end)
            end += RECORD_HEADER_BYTES + len(payload)
        try:
            _write_all(self._fd, b"".join(parts), before)
            tail.offsets.extend(offsets)
            tail.end = end
        except BaseException as error:
            self._cut_tail(start, before)
            if isinstance(error, OSError):
                raise self._write_error(error) from error
            raise
        return range(start, self.next_index)

    def sync(self) -> None:
        """Make everything appended so far durable.

        If the disk refuses, the log takes back what was not synced and takes no more: after a failed fsync the kernel
        may show data that is not on the disk, so nothing written since can be trusted. Check the disk and open again.
        """
        self._check_writable()
        if self._durability == "process" or (self._synced == self.next_index and not self._directory_changed):
            return
        try:
            os.fsync(self._fd)
            if self._directory_changed:
                sync_directory(self.directory)
        except OSError as error:
            self._refusal = f"stopped after the disk failed to store it ({error})"
            self._cut_tail(self._synced, self._offset_of(self._synced))
            raise StorageError(
                f"the disk failed to store the log in {self.directory}: {error}. What was not acknowledged was taken "
                "back. Check the disk (dmesg, smartctl), then restart this process."
            ) from error
        self._directory_changed = False
        self._synced = self.next_index

    def drop_before(self, index: int) -> None:
        """Delete the sealed segments all of whose records are before `index`, oldest first."""
        self._check_writable()
        while len(self._segments) > 1 and self._segments[0].next_index <= index:
            dropped = self._segments.pop(0)  # first: a reader that finds no file must find that it was dropped
            try:
                dropped.path.unlink(missing_ok=True)
                if self._durability == "power":  # in order on the disk too: a gap would be corruption
                    sync_directory(self.directory)
            except OSError as error:
                self._segments.insert(0, dropped)
                raise StorageError(f"{dropped.path} could not be dropped: {error}. Check that disk.") from error

    def roll(self) -> None:
        """Seal the segment being written, unless it is empty, so that `drop_before` can take it too."""
        self._check_writable()
        if self._tail.offsets:
            self._roll()
            self.sync()

    def restart_at(self, index: int) -> None:
        """Drop every record and go on with `index`, which is no smaller than `next_index`. Not beside readers."""
        self._check_writable()
        if index < self.next_index:
            raise StorageError(f"the log in {self.directory} is at {self.next_index}; it cannot go back to {index}")
        for segment in self._segments:
            segment.path.unlink()
            sync_directory(self.directory)
        self._segments = []
        self._start_segment(index)
        self._synced = index
        self.sync()

    # ---- reading --------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self._segments[0].first_index if self._segments else 0

    @property
    def next_index(self) -> int:
        return self._tail.next_index if self._segments else 0

    @property
    def size_bytes(self) -> int:
        return sum(segment.end for segment in self._segments)

    def read(self, index: int) -> bytes:
        """The payload of one record; one seek, one checksum."""
        return next(self.read_each((index,)))

    def read_each(self, indices: Iterable[int]) -> Iterator[bytes]:
        """The payload of each of these records, in the order given; quick where they rise."""
        segment: Segment | None = None
        fd = -1
        try:
            for index in indices:
                if segment is None or not segment.first_index <= index < segment.next_index:
                    segment = self._segment_of(index)
                    if fd >= 0:
                        os.close(fd)
                        fd = -1
                    fd = _open_segment(segment)
                start, size = segment.extent(index)
                yield _expect(read_record(io.BytesIO(os.pread(fd, size, start))), index, segment)
        finally:
            if fd >= 0:
                os.close(fd)

    def iterate(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(index, payload) from `start` up to what was appended when this was called."""
        if start != self.next_index:
            self._segment_of(start)
        return _iterate(list(self._segments), start, self.next_index)

    # ---- inside ---------------------------------------------------------------------------------------------

    @property
    def _tail(self) -> Segment:
        return self._segments[-1]

    def _segment_of(self, index: int) -> Segment:
        segments = list(self._segments)
        first, stop = (segments[0].first_index, segments[-1].next_index) if segments else (0, 0)
        if first <= index < stop:
            return segments[bisect_right([segment.first_index for segment in segments], index) - 1]
        if index == stop:
            raise StorageError(f"the log in {self.directory} has no record {index} yet")
        kind = DroppedError if 0 <= index < first else StorageError
        raise kind(f"the log in {self.directory} holds records {first} to {stop - 1}; it has no record {index}")

    def _offset_of(self, index: int) -> int:
        position = index - self._tail.first_index
        return self._tail.offsets[position] if position < len(self._tail.offsets) else self._tail.end

    def _check_writable(self) -> None:
        if self._refusal:
            raise StorageError(f"the log in {self.directory} {self._refusal}")

    def _load(self, visit: Visitor | None, new_first_index: int) -> None:
        found = list_segments(self.directory)
        for position, (first_index, path) in enumerate(found):
            if self._segments and first_index != self.next_index:
                raise CorruptDataError(
                    f"{path} begins at record {first_index}, but the segment before it ends at {self.next_index}: "
                    "a file is missing or was cut. Restore it from a copy, or move the whole directory aside."
                )
            self._segments.append(scan_segment(path, first_index, is_last=position == len(found) - 1, visit=visit))
        if self._segments:
            self._fd = os.open(self._tail.path, os.O_RDWR)
            self._repair_tail()
        else:
            self._start_segment(new_first_index)
        if self._durability == "power":
            self._sync_everything()

    def _repair_tail(self) -> None:
        size = os.fstat(self._fd).st_size
        self.cut_bytes = size - self._tail.end
        if self._tail.end == 0:
            _write_all(self._fd, file_header(self._tail.first_index), 0)
            self._tail.end = FILE_HEADER_BYTES
        os.ftruncate(self._fd, self._tail.end)

    def _sync_everything(self) -> None:
        # A killed writer may have left records that no one synced; they are about to count as stored.
        for segment in self._segments:
            fd = os.open(segment.path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directory(self.directory)
        sync_directory(self.directory.parent)
        self._directory_changed = False
        self._synced = self.next_index

    def _roll(self) -> None:
        self.sync()
        try:
            self._start_segment(self.next_index)
        except OSError as error:
            raise self._write_error(error) from error

    def _start_segment(self, first_index: int) -> None:
        path = segment_path(self.directory, first_index)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write_all(fd, file_header(first_index), 0)
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._segments.append(Segment(path, first_index))
        self._directory_changed = True

    def _cut_tail(self, index: int, offset: int) -> None:
        """Take back the records from `index` on, which begin at `offset` of the tail."""
        tail = self._tail
        del tail.offsets[index - tail.first_index :]
        tail.end = offset
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            self._refusal = f"stopped because an unfinished write could not be taken back ({error})"

    def _write_error(self, error: OSError) -> StorageError:
        hint = "Free space on that disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check that disk"
        return StorageError(
            f"nothing could be appended to the log in {self.directory}: {error}. The log is unharmed. {hint}; "
            "appending works again as soon as there is room."
        )


def _iterate(segments: list[Segment], start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    index = start
    position = bisect_right(segments, start, key=lambda segment: segment.first_index) - 1
    for segment in segments[position:]:
        last = min(stop, segment.next_index)
        if index >= last:
            continue
        with os.fdopen(_open_segment(segment), "rb", buffering=READ_AHEAD_BYTES) as file:
            file.seek(segment.offsets[index - segment.first_index])
            while index < last:
                yield index, _expect(read_record(file), index, segment)
                index += 1


def _open_segment(segment: Segment) -> int:
    try:
        return os.open(segment.path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise DroppedError(f"{segment.path} has been dropped") from error
    except OSError as error:
        raise StorageError(f"{segment.path} cannot be read: {error}") from error


def _expect(record: Record | None, index: int, segment: Segment) -> bytes:
    if record is None or record.index != index:
        offset = segment.offsets[index - segment.first_index]
        raise CorruptDataError(
            f"{segment.path} at byte offset {offset}: record {index} no longer verifies. The disk or another program "
            "damaged it. Restore this file from a copy, or move the whole directory aside and start with an empty one."
        )
    return record.payload


def _write_all(fd: int, data: bytes, offset: int) -> None:
    """One write; goes on only where the kernel took less than asked, which ends in the error that made it so."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        if written == 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        view, offset = view[written:], offset + written


def lock_directory(directory: Path) -> int:
    """A descriptor that holds the directory for this process until it is closed; DataInUseError if another has it."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise DataInUseError(
            f"another process is writing the log in {directory}. Stop it, or give this one its own directory."
        ) from error
    return fd


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
