"""One file of the durable log: its format, and how it is read back.

    file   = header, record, record, ...
    header = magic, format version, schema version of the records, index of the first record, CRC-32C
    record = magic, index, synced, length, CRC-32C over these and the payload, payload

`synced` says that all records before that index were on the disk when this one was written. It tells two kinds of
damage apart when a record does not verify: a write that the machine never finished (cut it off, nobody was promised
it), and data that was acknowledged and is now wrong (never cut that silently). All integers are little-endian.
"""

from __future__ import annotations

import io
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from robot_stack.core.errors import CorruptDataError, StorageError
from robot_stack.core.messages import STEP_SCHEMA_VERSION

FORMAT_VERSION = 1
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
READ_AHEAD_BYTES = 1024 * 1024

_FILE_MAGIC = b"RSTKLOG\n"
_FILE_FIELDS = struct.Struct("<8sIIQ")
_RECORD_MAGIC = b"\xd7RS\x9c"
_RECORD_FIELDS = struct.Struct("<4sQQI")
_CRC = struct.Struct("<I")
FILE_HEADER_BYTES = _FILE_FIELDS.size + _CRC.size
RECORD_HEADER_BYTES = _RECORD_FIELDS.size + _CRC.size

Visitor = Callable[[int, bytes], None]  # is shown (index, payload) of each record that verified


@dataclass(frozen=True, slots=True)
class Record:
    index: int
    synced: int
    payload: bytes

    @property
    def size(self) -> int:
        return RECORD_HEADER_BYTES + len(self.payload)


@dataclass(slots=True)
class Segment:
    """Where the records of one file lie: `offsets[i]` is the byte offset of record `first_index + i`."""

    path: Path
    first_index: int
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    end: int = FILE_HEADER_BYTES

    @property
    def next_index(self) -> int:
        return self.first_index + len(self.offsets)

    def extent(self, index: int) -> tuple[int, int]:
        """Byte offset and size of record `index` with its header."""
        position = index - self.first_index
        start = self.offsets[position]
        stop = self.offsets[position + 1] if position + 1 < len(self.offsets) else self.end
        return start, stop - start


def crc32c(fields: bytes, payload: bytes = b"") -> bytes:
    return _CRC.pack(google_crc32c.extend(google_crc32c.value(fields), payload))


def file_header(first_index: int) -> bytes:
    fields = _FILE_FIELDS.pack(_FILE_MAGIC, FORMAT_VERSION, STEP_SCHEMA_VERSION, first_index)
    return fields + crc32c(fields)


def record_header(index: int, synced: int, payload: bytes) -> bytes:
    fields = _RECORD_FIELDS.pack(_RECORD_MAGIC, index, synced, len(payload))
    return fields + crc32c(fields, payload)


def read_record(file: BinaryIO) -> Record | None:
    """The record at the file's position, or None if there is no complete one that verifies."""
    header = file.read(RECORD_HEADER_BYTES)
    if len(header) < RECORD_HEADER_BYTES:
        return None
    fields = header[: _RECORD_FIELDS.size]
    magic, index, synced, length = _RECORD_FIELDS.unpack(fields)
    if magic != _RECORD_MAGIC or length > MAX_PAYLOAD_BYTES:
        return None
    payload = file.read(length)
    if len(payload) < length or crc32c(fields, payload) != header[_RECORD_FIELDS.size :]:
        return None
    return Record(index, synced, payload)


def segment_path(directory: Path, first_index: int) -> Path:
    return directory / f"segment-{first_index:020d}.log"


def list_segments(directory: Path) -> list[tuple[int, Path]]:
    """(first index, path) of each segment file, in order."""
    return sorted((int(path.stem.removeprefix("segment-")), path) for path in directory.glob("segment-*.log"))


def read_file_header(file: BinaryIO, path: Path, first_index: int) -> bool:
    """Whether the header at the start of `file` verifies; StorageError if another version wrote it."""
    header = file.read(FILE_HEADER_BYTES)
    fields = header[: _FILE_FIELDS.size]
    if len(header) < FILE_HEADER_BYTES or crc32c(fields) != header[_FILE_FIELDS.size :]:
        return False
    magic, version, schema, first = _FILE_FIELDS.unpack(fields)
    if magic != _FILE_MAGIC or first != first_index:
        raise CorruptDataError(
            f"{path} says it begins at record {first}, its name says {first_index}: it was renamed or is not ours. "
            "Give it its name back, or move the directory aside and start with an empty one."
        )
    if (version, schema) != (FORMAT_VERSION, STEP_SCHEMA_VERSION):
        raise StorageError(
            f"{path} has log format {version} and record schema {schema}; this program reads {FORMAT_VERSION} and "
            f"{STEP_SCHEMA_VERSION}. Use the release that wrote it, or start with an empty directory."
        )
    return True


def scan_segment(path: Path, first_index: int, *, is_last: bool, visit: Visitor | None = None) -> Segment:
    """Verify every record of a file and show it to `visit`. `end` is the offset behind the last good one; 0 if even
    the header is torn.

    What lies behind `end` in the last file is an unfinished write that the caller cuts off. Anything else that does
    not verify is CorruptDataError.
    """
    segment = Segment(path, first_index)
    size = path.stat().st_size
    with path.open("rb", buffering=READ_AHEAD_BYTES) as file:
        if read_file_header(file, path, first_index):
            while (record := read_record(file)) is not None:
                if record.index != segment.next_index:
                    raise _corrupt(path, segment, f"holds record {record.index} where {segment.next_index} belongs")
                segment.offsets.append(segment.end)
                segment.end += record.size
                if visit is not None:
                    visit(record.index, record.payload)
        else:
            segment.end = 0
        if segment.end == size:
            return segment
        if not is_last:
            raise _corrupt(path, segment, "does not verify, and later records exist")
        file.seek(segment.end)
        if _acknowledged_data_follows(file.read(), segment.next_index):
            raise _corrupt(path, segment, "does not verify, and it had been acknowledged")
    return segment


def _acknowledged_data_follows(data: bytes, index: int) -> bool:
    """Whether a good record in `data` testifies that record `index`, which is bad, had reached the disk."""
    file, position = io.BytesIO(data), data.find(_RECORD_MAGIC)
    while position >= 0:
        file.seek(position)
        record = read_record(file)
        if record is not None and record.synced > index:
            return True
        position = data.find(_RECORD_MAGIC, position + 1)
    return False


def _corrupt(path: Path, segment: Segment, what: str) -> CorruptDataError:
    return CorruptDataError(
        f"{path} at byte offset {segment.end}: record {segment.next_index} {what}. The disk or another program "
        f"damaged it; records before {segment.next_index} are good. Nothing was changed. Restore this file from a "
        "copy, or move the whole directory aside and start with an empty one."
    )
