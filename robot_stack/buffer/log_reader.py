"""Following a durable log from another process while its writer goes on."""

from __future__ import annotations

import contextlib
from pathlib import Path

from robot_stack.buffer.segment import (
    FILE_HEADER_BYTES,
    READ_AHEAD_BYTES,
    list_segments,
    read_file_header,
    read_record,
)
from robot_stack.core.errors import CorruptDataError


class LogReader:
    """Follows a log from another process while its writer goes on. Takes no lock, changes nothing.

    It returns records as soon as they are whole, synced or not. Records dropped before it came to them are skipped
    and counted in `skipped`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.next_index = 0
        self.skipped = 0
        self._path: Path | None = None
        self._offset = 0

    def poll(self, max_records: int = 4096) -> list[tuple[int, bytes]]:
        """(index, payload) of the next records, at most `max_records`; empty when there is nothing new."""
        records: list[tuple[int, bytes]] = []
        # Listed before reading: a file that has a successor here was complete before we read it.
        segments = list_segments(self.directory)
        for position, (first_index, path) in enumerate(segments):
            if path != self._path and first_index < self.next_index:
                continue
            if path != self._path and not self._begin(first_index, path):
                return records
            with contextlib.suppress(FileNotFoundError):  # dropped since: the next segment tells how much
                self._read_on(path, records, max_records)
            if len(records) >= max_records:
                return records
            if position + 1 < len(segments) and segments[position + 1][0] != self.next_index and path.exists():
                raise CorruptDataError(
                    f"{path} at byte offset {self._offset}: record {self.next_index} does not verify although the "
                    "segment is sealed. Open the log with its writer to see what is wrong, or restore the file."
                )
        return records

    def _begin(self, first_index: int, path: Path) -> bool:
        """Enter a segment at its first record; False while its header is still being written or it was dropped."""
        try:
            with path.open("rb") as file:
                if not read_file_header(file, path, first_index):
                    return False
        except FileNotFoundError:
            return False
        self.skipped += first_index - self.next_index
        self._path, self._offset, self.next_index = path, FILE_HEADER_BYTES, first_index
        return True

    def _read_on(self, path: Path, records: list[tuple[int, bytes]], max_records: int) -> None:
        with path.open("rb", buffering=READ_AHEAD_BYTES) as file:
            file.seek(self._offset)
            while len(records) < max_records and (record := read_record(file)) is not None:
                if record.index != self.next_index:
                    raise CorruptDataError(
                        f"{path} at byte offset {self._offset}: record {record.index} where {self.next_index} belongs. "
                        "The log was cut behind this reader; start the reading process again."
                    )
                records.append((record.index, record.payload))
                self._offset += record.size
                self.next_index += 1
