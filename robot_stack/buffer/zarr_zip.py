"""The container of an episode file: a ZIP archive (see `stored_zip.py`) that is a zarr v3 hierarchy.

    member = `<node>/zarr.json` (metadata of a group or an array), or `<array>/c/<i>/0/...` (chunk i, along axis 0)
    chunk  = values in C order, little-endian, the last chunk filled up with zeros, then their CRC-32C

Any zarr v3 reader opens it; this module neither needs one nor goes through one, because reading single frames that
way is a hundred times slower. All metadata follows from the names, dtypes and shapes of the arrays, so the reader
builds it again and compares. Sizes, shapes and dtypes are checked against the length of the file before anything is
allocated.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.buffer.stored_zip import Bytes, Member, StoredZipWriter, corrupt, map_file, read_members

DATA_TYPES = frozenset(
    ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
)
_MAX_DOCUMENT_BYTES = 1024 * 1024
_MAX_DIMENSIONS = 9
_MAX_EMPTY_BYTES = 2**48  # of an array without values, were its sizes of 0 sizes of 1: numpy refuses far larger ones

_DOCUMENT = "zarr.json"
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Dtype, shape and chunks of an array; it is cut into chunks of `chunk_rows` rows along its first axis only."""

    dtype: str
    shape: tuple[int, ...]
    chunk_rows: int

    @classmethod
    def of(cls, dtype: str, shape: tuple[int, ...], most_rows: int) -> ArrayLayout:
        """Chunks of equal size of at most `most_rows` rows, as few as possible: little of the last is filling."""
        rows = shape[0] if shape else 1
        count = max(1, math.ceil(rows / max(1, most_rows)))
        return cls(dtype, shape, max(1, math.ceil(rows / count)))

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.chunk_rows, *(max(1, size) for size in self.shape[1:])) if self.shape else ()

    @property
    def chunk_bytes(self) -> int:
        """Of the values; the member has four bytes more."""
        return math.prod(self.chunk_shape) * self.itemsize

    @property
    def chunks(self) -> int:
        if 0 in self.shape:
            return 0
        return math.ceil(self.shape[0] / self.chunk_rows) if self.shape else 1

    def chunk_key(self, chunk: int) -> str:
        return "/".join(("c", str(chunk), *("0" * (len(self.shape) - 1)))) if self.shape else "c"

    def document(self) -> bytes:
        """The array's `zarr.json`."""
        fill: object = False if self.dtype == "bool" else 0.0 if self.dtype.startswith("float") else 0
        grid = {"name": "regular", "configuration": {"chunk_shape": self.chunk_shape}}
        keys = {"name": "default", "configuration": {"separator": "/"}}
        codecs = ({"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"})
        return msgspec.json.encode(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": self.shape,
                "data_type": self.dtype,
                "chunk_grid": grid,
                "chunk_key_encoding": keys,
                "fill_value": fill,
                "codecs": codecs,
                "attributes": {},
            }
        )


class ZarrZipWriter:
    """Writes groups and arrays one after another into `file`, which the caller opened empty, then the directory."""

    def __init__(self, file: BinaryIO) -> None:
        self._archive = StoredZipWriter(file)

    def add_group(self, path: str, attributes: Struct | None = None) -> None:
        """`path` is "" for the root; `attributes` become the group's attributes."""
        raw = msgspec.Raw(b"{}" if attributes is None else msgspec.json.encode(attributes))
        self._archive.add(_document_name(path), np.frombuffer(_group_document(raw), np.uint8))

    def add_array(self, path: str, layout: ArrayLayout, values: Iterable[NDArray[Any]]) -> None:
        """`values`: arrays whose values in C order, one array after the other, are those of the array."""
        self._archive.add(_document_name(path), np.frombuffer(layout.document(), np.uint8))
        if layout.chunks == 0:
            return
        buffer = np.empty(layout.chunk_bytes + _CRC.size, np.uint8)
        chunks = _fill(buffer[: layout.chunk_bytes], (_little_endian_bytes(value) for value in values))
        for chunk, content in enumerate(chunks):
            buffer[layout.chunk_bytes :] = np.frombuffer(_CRC.pack(google_crc32c.value(content)), np.uint8)
            self._archive.add(f"{path}/{layout.chunk_key(chunk)}", buffer)

    def finish(self) -> None:
        """Write what ends the file. The caller flushes and syncs it."""
        self._archive.finish()


class ZarrArray:
    """An array of an open file. A chunk is compared with its CRC-32C once, before its first use."""

    def __init__(self, path: Path, name: str, layout: ArrayLayout, data: Bytes, starts: list[int]) -> None:
        self.name = name
        self.layout = layout
        self._path = path
        self._data = data
        self._starts = starts
        self._verified: list[NDArray[Any] | None] = [None] * len(starts)

    def read(self) -> NDArray[Any]:
        """A copy of the whole array, read-only."""
        result = np.empty(self.layout.shape, self.layout.dtype)
        if not self.layout.shape and self._starts:
            result[...] = self.chunk(0)
        rows = self.layout.chunk_rows
        for chunk in range(len(self._starts) if self.layout.shape else 0):
            part = result[chunk * rows : (chunk + 1) * rows]
            part[...] = self.chunk(chunk)[: len(part)]
        result.flags.writeable = False
        return result

    def read_rows(self, rows: Iterable[int], out: NDArray[Any]) -> None:
        """`out[i]` = row `rows[i]`; the caller checked that the rows exist and that `out` fits."""
        verified, chunk_rows = self._verified, self.layout.chunk_rows
        if not self._starts:
            return
        for target, position in enumerate(rows):
            chunk, row = divmod(position, chunk_rows)
            view = verified[chunk]
            if view is None:
                view = self.chunk(chunk)
            out[target] = view[row]

    def read_slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop` as a copy; the caller checked that they exist."""
        result = np.empty((stop - start, *self.layout.shape[1:]), self.layout.dtype)
        rows, done = self.layout.chunk_rows, start
        while done < stop and self._starts:
            chunk, row = divmod(done, rows)
            part = self.chunk(chunk)[row : row + stop - done]
            result[done - start : done - start + len(part)] = part
            done += len(part)
        return result

    def chunk(self, chunk: int) -> NDArray[Any]:
        """The verified chunk as it lies in the file (a view), with the filling of the last one."""
        view = self._verified[chunk]
        if view is None:
            view = self.check(chunk)
            self._verified[chunk] = view
        return view

    def check(self, chunk: int) -> NDArray[Any]:
        """Compare one chunk with its CRC-32C, whether that was done before or not; CorruptDataError."""
        start, size = self._starts[chunk], self.layout.chunk_bytes
        content = self._data[start : start + size]
        expected = _CRC.unpack_from(self._data.data, start + size)[0]
        if google_crc32c.value(content) != expected:
            raise corrupt(self._path, f"chunk {chunk} of array '{self.name}' does not verify (CRC-32C)")
        return content.view(np.dtype(self.layout.dtype).newbyteorder("<")).reshape(self.layout.chunk_shape)

    def check_all(self) -> None:
        for chunk in range(len(self._starts)):
            self.check(chunk)


class ZarrZipFile:
    """An archive that `ZarrZipWriter` wrote, mapped into memory. The constructor opens it and checks all of its
    structure and metadata, but reads no chunk. The mapping goes with the last of this object and its arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups: dict[str, msgspec.Raw] = {}
        self.arrays: dict[str, ZarrArray] = {}
        self._data = map_file(path)
        self._members = {member.name: member for member in read_members(path, self._data)}
        self._read_nodes()

    @property
    def size_bytes(self) -> int:
        return self._data.size

    def verify(self) -> None:
        """Compare every byte with its checksums: CRC-32C of each chunk, CRC-32 of each member. CorruptDataError."""
        for array in self.arrays.values():
            array.check_all()
        for member in self._members.values():
            self._content(member)

    def _content(self, member: Member) -> Bytes:
        content = self._data[member.start : member.stop]
        if zlib.crc32(content.data) != member.crc32:
            raise corrupt(self.path, f"member '{member.name}' does not verify (CRC-32)")
        return content

    def _read_nodes(self) -> None:
        chunks = set(self._members)
        for name, member in self._members.items():
            if name != _DOCUMENT and not name.endswith("/" + _DOCUMENT):
                continue
            chunks.discard(name)
            if member.size > _MAX_DOCUMENT_BYTES:
                raise corrupt(self.path, f"'{name}' has {member.size} bytes, allowed are {_MAX_DOCUMENT_BYTES}")
            node, document = name.removesuffix(_DOCUMENT).removesuffix("/"), self._content(member).tobytes()
            if document == _group_document(attributes := _group_attributes(document)):
                self.groups[node] = attributes
            else:
                layout = _parse_layout(self.path, node, document, self._data.size)
                self.arrays[node] = ZarrArray(self.path, node, layout, self._data, self._starts(node, layout, chunks))
        if chunks:
            raise corrupt(self.path, f"member '{min(chunks)}' belongs to no array")

    def _starts(self, node: str, layout: ArrayLayout, unclaimed: set[str]) -> list[int]:
        """Where each chunk of an array begins."""
        starts = []
        for chunk in range(layout.chunks):
            name = f"{node}/{layout.chunk_key(chunk)}"
            member = self._members.get(name)
            if member is None or name not in unclaimed or member.size != layout.chunk_bytes + _CRC.size:
                found = "is missing" if member is None else f"has {member.size} bytes"
                raise corrupt(self.path, f"chunk {chunk} of array '{node}' {found}")
            unclaimed.remove(name)
            starts.append(member.start)
        return starts


# ---- metadata ---------------------------------------------------------------------------------------------------


class _Group(Struct, frozen=True):
    attributes: msgspec.Raw


class _ChunkShape(Struct, frozen=True):
    chunk_shape: tuple[int, ...]


class _ChunkGrid(Struct, frozen=True):
    configuration: _ChunkShape


class _Array(Struct, frozen=True):
    shape: tuple[int, ...]
    data_type: str
    chunk_grid: _ChunkGrid


def _document_name(path: str) -> str:
    return f"{path}/{_DOCUMENT}" if path else _DOCUMENT


def _group_document(attributes: msgspec.Raw) -> bytes:
    return msgspec.json.encode({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _group_attributes(document: bytes) -> msgspec.Raw:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(document, type=_Group).attributes.copy()
    return msgspec.Raw(b"{}")


def _parse_layout(path: Path, node: str, document: bytes, file_bytes: int) -> ArrayLayout:
    try:
        array = msgspec.json.decode(document, type=_Array)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt(path, f"the metadata of '{node}' cannot be read ({error})") from error
    sizes = (*array.shape, *array.chunk_grid.configuration.chunk_shape)
    if (
        array.data_type not in DATA_TYPES
        or len(array.shape) > _MAX_DIMENSIONS
        or not all(0 <= size <= file_bytes for size in sizes)
    ):
        raise corrupt(path, f"array '{node}' has dtype {array.data_type!r}, shape and chunks {sizes}")
    rows = array.chunk_grid.configuration.chunk_shape[:1]
    layout = ArrayLayout(array.data_type, array.shape, max((1, *rows)))
    limit = file_bytes if layout.chunks else _MAX_EMPTY_BYTES
    if layout.document() != document or layout.chunk_bytes * max(1, layout.chunks) > limit:
        raise corrupt(path, f"the metadata of array '{node}' is not what this program writes: {document[:400]!r}")
    return layout


# ---- bytes ------------------------------------------------------------------------------------------------------


def _little_endian_bytes(values: NDArray[Any]) -> Bytes:
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8)


def _fill(chunk: Bytes, parts: Iterable[Bytes]) -> Iterator[Bytes]:
    """The bytes of all parts in pieces of the size of `chunk`, which each piece overwrites; zeros fill the last."""
    filled = 0
    for part in parts:
        rest = part
        while rest.size:
            taken = rest[: chunk.size - filled]
            chunk[filled : filled + taken.size] = taken
            filled, rest = filled + taken.size, rest[taken.size :]
            if filled == chunk.size:
                yield chunk
                filled = 0
    if filled:
        chunk[filled:] = 0
        yield chunk
