"""One append-only file of small checksummed records, in the format of a log segment (see `segment.py`).

For what is kept beside the steps: the catalog of sealed files and the ledger of retention. A torn tail is cut off;
damage before a later record is CorruptDataError and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from robot_stack.buffer.segment import FILE_HEADER_BYTES, file_header, record_header, scan_segment
from robot_stack.core.errors import StorageError
from robot_stack.core.files import write_atomically


class RecordFile:
    """Not for several threads at once, nor for several processes: its owner holds a lock.

    Args:
        sync: whether a record is on the disk when `append` returns. Without it a loss of power may cost records.
    """

    def __init__(self, path: Path, *, sync: bool) -> None:
        self.path = path
        self._sync = sync
        self._fd = -1
        self._count = 0
        self._end = 0

    def __len__(self) -> int:
        return self._count

    def open(self) -> list[bytes]:
        """The records, oldest first; the file is made if missing. CorruptDataError, StorageError."""
        self.close()
        try:
            if not self.path.exists():
                self.rewrite(())
                return []
            records = self._load()
            self._fd = os.open(self.path, os.O_RDWR)
            os.ftruncate(self._fd, self._end)
            if self._sync:  # a killed writer may have left a record that no one synced; it counts from now on
                os.fsync(self._fd)
        except OSError as error:
            self.close()
            raise StorageError(f"{self.path} cannot be opened: {error}") from error
        return records

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def append(self, payload: bytes) -> None:
        """Add one record. After StorageError the file is as before, or takes no more until it is opened again."""
        if self._fd < 0:
            raise StorageError(f"{self.path} is not open, or the disk failed to store it; open it again")
        data = record_header(self._count, self._count, payload) + payload
        try:
            if os.pwrite(self._fd, data, self._end) < len(data):
                raise OSError(28, "No space left on device")
            if self._sync:
                os.fsync(self._fd)
        except OSError as error:
            self._take_back()
            raise StorageError(f"nothing could be added to {self.path}: {error}. Free space on that disk.") from error
        self._count += 1
        self._end += len(data)

    def rewrite(self, payloads: Iterable[bytes]) -> None:
        """Replace all records at once: after a crash the file holds the old ones or the new ones."""
        parts = [file_header(0)]
        count = 0
        for payload in payloads:
            parts += (record_header(count, count, payload), payload)
            count += 1
        content = b"".join(parts)
        write_atomically(self.path, content)
        self.close()
        self._fd = os.open(self.path, os.O_RDWR)
        self._count, self._end = count, len(content)

    def _load(self) -> list[bytes]:
        records: list[bytes] = []
        segment = scan_segment(self.path, 0, is_last=True, visit=lambda _, payload: records.append(payload))
        if segment.end < FILE_HEADER_BYTES:  # made by an atomic write, so this is no torn beginning
            raise StorageError(f"{self.path} is damaged at its beginning. Restore it from a copy.")
        self._count, self._end = len(records), segment.end
        return records

    def _take_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._end)
            if self._sync:
                os.fsync(self._fd)
        except OSError:
            self.close()


def read_records(path: Path) -> list[bytes]:
    """The records of a file that another process may be writing; changes nothing. Empty where there is no file."""
    records: list[bytes] = []
    if path.exists():
        scan_segment(path, 0, is_last=True, visit=lambda _, payload: records.append(payload))
    return records
