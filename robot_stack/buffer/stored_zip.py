"""A ZIP archive of stored members of which every byte is determined by the members: the file below `zarr_zip`.

    archive = member, member, ..., central directory, end record       (no comments, no extra fields, no gaps)

Times and modes are constants, so the reader builds every header again from names, sizes and checksums and compares:
whatever was changed is found. Any ZIP program opens it.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import ConfigError, CorruptDataError, StorageError

Bytes = NDArray[np.uint8]

MAX_FILE_BYTES = 2**32 - 2**16  # larger archives would need the ZIP64 extension, which is not written
MAX_MEMBERS = 2**16 - 2**8
MAX_NAME_BYTES = 1024

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION = 20  # of the ZIP format: 2.0, stored members
_UNIX = 3 << 8
_DATE = 0x21  # 1980-01-01, the first day that ZIP knows
_MODE = 0o100644 << 16


class Member(NamedTuple):
    """A stored member: `offset` is that of its header; its bytes begin at `start`."""

    name: str
    crc32: int
    size: int
    offset: int

    @property
    def start(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def stop(self) -> int:
        return self.start + self.size

    def local_header(self) -> bytes:
        fields = (_VERSION, 0, 0, 0, _DATE, self.crc32, self.size, self.size, len(self.name), 0)
        return _LOCAL.pack(b"PK\x03\x04", *fields) + self.name.encode("ascii")

    def central_header(self) -> bytes:
        fields = (_VERSION | _UNIX, _VERSION, 0, 0, 0, _DATE, self.crc32, self.size, self.size, len(self.name))
        return _CENTRAL.pack(b"PK\x01\x02", *fields, 0, 0, 0, 0, _MODE, self.offset) + self.name.encode("ascii")


class StoredZipWriter:
    """Writes members one after another into `file`, which the caller opened empty, then their directory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[Member] = []
        self._end = 0

    def add(self, name: str, content: Bytes) -> None:
        """ConfigError if the archive would get too large."""
        member = Member(name, zlib.crc32(content.data), content.size, self._end)
        if member.stop + (len(self._members) + 1) * (_CENTRAL.size + MAX_NAME_BYTES) > MAX_FILE_BYTES:
            raise ConfigError(
                f"an episode file has at most {MAX_FILE_BYTES} bytes, and this one would get more. Split the stretch."
            )
        if len(self._members) == MAX_MEMBERS or len(name) > MAX_NAME_BYTES or not name.isascii():
            raise ConfigError(
                f"an episode file has at most {MAX_MEMBERS} members with names of up to {MAX_NAME_BYTES} bytes; "
                f"'{name[:64]}' is one too many, too long or not ASCII. Split the stretch, or shorten the "
                "names of its features."
            )
        self._write(member.local_header())
        self._write(content.data)
        self._members.append(member)
        self._end = member.stop

    def finish(self) -> None:
        """Write the directory of members. The caller flushes and syncs the file."""
        directory = b"".join(member.central_header() for member in self._members)
        self._write(directory + _end_record(len(self._members), len(directory), self._end))

    def _write(self, data: bytes | memoryview) -> None:
        if self._file.write(data) != len(data):
            raise OSError("the disk took only a part of what was written")


def _end_record(members: int, directory_bytes: int, directory_offset: int) -> bytes:
    return _END.pack(b"PK\x05\x06", 0, 0, members, members, directory_bytes, directory_offset, 0)


def map_file(path: Path) -> Bytes:
    """The bytes of a file, mapped into memory; the mapping lives as long as anything that was cut from it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if _END.size < size <= MAX_FILE_BYTES:
                return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:  # ValueError: it shrank since its size was asked
        raise StorageError(f"{path} cannot be opened: {error}") from error
    raise corrupt(path, f"it has {size} bytes, an episode file has {_END.size + 1} to {MAX_FILE_BYTES}")


def read_members(path: Path, data: Bytes) -> Sequence[Member]:
    """The members, once all headers are exactly those that the writer gives to members of these names and sizes."""
    directory_end = data.size - _END.size
    count, directory_bytes, directory = _END.unpack_from(data.data, directory_end)[4:7]
    if (
        data[directory_end:].tobytes() != _end_record(count, directory_bytes, directory)
        or directory + directory_bytes != directory_end
        or not 0 < count <= MAX_MEMBERS
    ):
        raise corrupt(path, "it does not end with the directory of an episode file: it was cut off or is none")
    members: list[Member] = []
    position, end = directory, 0
    while position < directory_end:
        member = _read_member(data, position, directory_end)
        if member is None or member.offset != end or member.stop > directory:
            raise corrupt(path, f"entry {len(members)} of its directory, at byte offset {position}, is damaged")
        if data[member.offset : member.start].tobytes() != member.local_header():
            raise corrupt(path, f"the header of member '{member.name}', at byte offset {end}, is damaged")
        members.append(member)
        position, end = position + _CENTRAL.size + len(member.name), member.stop
    if end != directory or len(members) != count or len({member.name for member in members}) != count:
        raise corrupt(path, f"its directory announces {count} members, {len(members)} were found")
    return members


def _read_member(data: Bytes, position: int, end: int) -> Member | None:
    """The member described at `position` of the central directory; None if no such entry could have been written."""
    if position + _CENTRAL.size > end:
        return None
    fields = _CENTRAL.unpack_from(data.data, position)
    name = data[position + _CENTRAL.size : position + _CENTRAL.size + fields[10]].tobytes()
    if len(name) > MAX_NAME_BYTES or not name.isascii():
        return None
    member = Member(name.decode("ascii"), fields[7], fields[8], fields[16])
    entry = member.central_header()
    return member if data[position : min(end, position + len(entry))].tobytes() == entry else None


def corrupt(path: Path, what: str) -> CorruptDataError:
    return CorruptDataError(
        f"{path}: {what}. The disk or another program damaged it. Nothing was changed. Restore this file from a copy, "
        "or move it aside and do without its steps."
    )
