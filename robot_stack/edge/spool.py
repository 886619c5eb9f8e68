"""The edge's outbox: records wait here until the learner says that they are durable there."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from types import TracebackType

import google_crc32c

from robot_stack.buffer.log import DurableLog
from robot_stack.buffer.segment import RECORD_HEADER_BYTES
from robot_stack.core.errors import ConfigError, StorageError
from robot_stack.core.files import write_atomically
from robot_stack.transport.services import SERVICES

_CURSOR = struct.Struct("<QI")
MIN_CAPACITY_BYTES = 512 * 1024
MAX_RECORD_BYTES = SERVICES["learner.request"].max_message_bytes - 4096  # a larger one could never be shipped
_MAX_SEGMENT_BYTES = 64 * 1024 * 1024


class Spool:
    """Records in order, each kept until it is acknowledged; survives `kill -9` of the edge at any instant.

    The outbox's thread calls `put`, a shipping thread `pending` and `acknowledge`; neither waits for the other's disk
    reads. The counters can be read at any time, from any thread, without waiting. A crash between the learner's answer
    and the writing of the cursor, or the loss of the cursor, only makes records go out twice; the learner counts them
    once. `put` does not sync: a loss of power on the edge may take the last records with it.

    A record that the learner refuses for good is set aside in the folder `refused`, so that it does not block the
    others; nothing deletes it there. It goes on counting towards the capacity.

    `cursor_failures` counts cursors that could not be written (a full disk): they too only cost a repetition.
    `refused` counts the records set aside over all lives of this spool.
    """

    def __init__(self, directory: Path, capacity_bytes: int) -> None:
        if capacity_bytes < MIN_CAPACITY_BYTES:
            raise ConfigError(f"a spool needs capacity_bytes >= {MIN_CAPACITY_BYTES}; it was given {capacity_bytes}")
        segment_bytes = min(_MAX_SEGMENT_BYTES, capacity_bytes // 8)
        self.directory = directory
        self.capacity_bytes = capacity_bytes
        self.refused_directory = directory / "refused"
        self.cursor_failures = 0
        self.refused = 0
        self._log = DurableLog(directory, segment_bytes=segment_bytes, durability="process")
        self._write_lock = threading.Lock()  # the log's state
        self._ship_lock = threading.Lock()  # reading and the cursor; taken before _write_lock
        self._cursor = 0
        self._next = 0
        self._log_bytes = self._refused_bytes = 0

    def open(self) -> None:
        """Resume with everything that is not acknowledged."""
        with self._ship_lock, self._write_lock:
            self._open()

    def _open(self) -> None:
        self._log.open()
        cursor = self._read_cursor()
        self._cursor = min(max(cursor, self._log.first_index), self._log.next_index)
        if cursor > self._log.next_index:
            # Records were lost with the power, and new ones will take their numbers: they must not pass for shipped.
            self._cursor_path.unlink(missing_ok=True)
        aside = list(self.refused_directory.glob("*.step"))
        self.refused, self._refused_bytes = len(aside), sum(path.stat().st_size for path in aside)
        self._count()

    def mend(self) -> None:
        """After a refused `put`: take the log up again if the disk's failure has stopped it. StorageError if it stays.

        A full disk does not stop the log; this returns at once then.
        """
        with self._ship_lock, self._write_lock:
            try:
                self._log.sync()
            except StorageError:
                self._log.close()
                self._open()

    def close(self) -> None:
        with self._ship_lock, self._write_lock:
            self._log.close()

    def __enter__(self) -> Spool:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, record: bytes) -> int:
        """Keep one record and return its index. StorageError if the spool or the disk is full: then it is not kept.

        A record has at most a quarter of the capacity, and `MAX_RECORD_BYTES`.
        """
        largest = min(MAX_RECORD_BYTES, self.capacity_bytes // 4)  # else its file could fill the spool for ever
        if len(record) > largest:
            raise StorageError(
                f"a record of {len(record)} bytes is too large for the spool in {self.directory}: allowed are {largest}"
                f", at most a quarter of its capacity_bytes {self.capacity_bytes} and at most {MAX_RECORD_BYTES}. Give "
                "the spool a larger capacity_bytes, or record smaller images."
            )
        with self._write_lock:
            used = self._log.size_bytes + self._refused_bytes
            if used + len(record) + RECORD_HEADER_BYTES > self.capacity_bytes:
                raise StorageError(
                    f"the spool in {self.directory} is full: {used} of {self.capacity_bytes} bytes wait for the "
                    "learner. Start the learner or mend the link to it; begin no new episode until it drained. If the "
                    "link is often down for long, give the spool a larger capacity_bytes."
                )
            index = self._log.append(record)
            self._count()
            return index

    def pending(self, max_records: int, max_bytes: int) -> tuple[int, list[bytes]]:
        """(index of the first, records) from the first unacknowledged one on; empty if there is none.

        At most `max_records` and `max_bytes`, but always one record: a large one must not block the spool for ever.
        """
        records: list[bytes] = []
        size = 0
        with self._ship_lock:
            with self._write_lock:
                waiting = self._log.iterate(self._cursor)
            for _, record in waiting:
                size += len(record)
                if records and (size > max_bytes or len(records) >= max_records):
                    break
                records.append(record)
            return self._cursor, records

    def acknowledge(self, through_index: int) -> None:
        """The learner has everything up to and including this index; older answers change nothing."""
        with self._ship_lock:
            with self._write_lock:
                if through_index >= self._log.next_index:
                    raise StorageError(
                        f"record {through_index} was acknowledged, the spool in {self.directory} ends at "
                        f"{self._log.next_index - 1}: the answer belongs to another spool"
                    )
                if through_index < self._cursor:
                    return
                self._cursor = through_index + 1
                try:
                    self._log.drop_before(self._cursor)
                finally:
                    self._count()
            self._write_cursor()

    def set_aside(self, index: int, reason: str) -> Path:
        """Take the first unacknowledged record out of the way, because the learner refused it for good.

        It lies in the returned file, synced, with the reason in words beside it, before it is acknowledged here.
        StorageError if that cannot be written: then it stays in the spool.
        """
        first, records = self.pending(1, 0)
        if first != index or not records:
            raise StorageError(f"record {index} cannot be set aside: the spool in {self.directory} begins at {first}")
        name = f"{index:012d}-{google_crc32c.value(records[0]):08x}"  # an index comes again after a loss of power
        path = self.refused_directory / f"{name}.step"
        write_atomically(path.with_suffix(".txt"), reason.encode())
        new = not path.exists()
        write_atomically(path, records[0])
        if new:
            self.refused += 1
            self._refused_bytes += len(records[0])
        self.acknowledge(index)
        return path

    @property
    def acknowledged(self) -> int:
        """Records that the learner has taken, over all lives of this spool."""
        return max(0, self._cursor - self.refused)

    @property
    def unacknowledged(self) -> int:
        """Records that wait."""
        return max(0, self._next - self._cursor)  # each may have moved on between the two readings

    @property
    def bytes_used(self) -> int:
        """Bytes on the disk; acknowledged records count until their whole file can go."""
        return self._log_bytes + self._refused_bytes

    def _count(self) -> None:
        """Under the write lock: note what the log holds now, for those who must not wait for the lock."""
        self._next = self._log.next_index
        self._log_bytes = self._log.size_bytes

    @property
    def _cursor_path(self) -> Path:
        return self.directory / "acknowledged"

    def _read_cursor(self) -> int:
        try:
            data = self._cursor_path.read_bytes()
        except FileNotFoundError:
            return 0
        if len(data) != _CURSOR.size or google_crc32c.value(data[:8]) != _CURSOR.unpack(data)[1]:
            return 0  # everything still here goes out again
        return int(_CURSOR.unpack(data)[0])

    def _write_cursor(self) -> None:
        value = struct.pack("<Q", self._cursor)
        aside = self._cursor_path.with_suffix(".new")
        try:
            aside.write_bytes(value + struct.pack("<I", google_crc32c.value(value)))
            aside.replace(self._cursor_path)
        except OSError:
            self.cursor_failures += 1
