"""Blocks of bytes as the difference to a base of the same length: for weights that changed a little.

A block is XORed with its base. Neighbouring float32 numbers then have zeros in the same places (sign, exponent, first
digits), so the bytes are sorted by their place in the number into four planes, and each plane is deflated on its own.
The last digits are noise, which deflate would read in vain: a plane whose sample does not shrink is stored as it is.

    4 x [mode: 1 byte, 0 stored, 1 deflated][length: 4 bytes little endian][data]
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import MessageError

BLOCK_BYTES = 4 << 20  # the largest block: keeps the time for one block below about 50 ms

_PLANES = 4
_LEVEL = 1
_SAMPLE_BYTES = 4096
_WORTHWHILE = 0.9
_STORED, _DEFLATED = 0, 1
_HEADER = struct.Struct("<BI")


def encode_delta(block: bytes | memoryview, base: bytes | memoryview) -> bytes:
    """What turns `base` into `block`; both of the same length. At most 20 bytes longer than the block."""
    difference = np.frombuffer(block, np.uint8) ^ np.frombuffer(base, np.uint8)
    parts: list[bytes] = []
    for place in range(_PLANES):
        plane = np.ascontiguousarray(difference[place::_PLANES])
        mode, data = _STORED, plane.tobytes()
        if _shrinks(plane):
            deflated = zlib.compress(data, _LEVEL)
            if len(deflated) < len(data):
                mode, data = _DEFLATED, deflated
        parts += [_HEADER.pack(mode, len(data)), data]
    return b"".join(parts)


def decode_delta(data: bytes, base: bytes | memoryview) -> bytes:
    """Inverse of `encode_delta`; MessageError for anything malformed. Never takes more memory than a few bases."""
    before = np.frombuffer(base, np.uint8)
    difference = np.empty(before.size, np.uint8)
    offset = 0
    for place in range(_PLANES):
        target = difference[place::_PLANES]
        if offset + _HEADER.size > len(data):
            raise MessageError(f"a delta of {len(data)} bytes ends within its plane {place}")
        mode, length = _HEADER.unpack_from(data, offset)
        offset += _HEADER.size
        target[:] = _plane(mode, data[offset : offset + length], length, target.size)
        offset += length
    if offset != len(data):
        raise MessageError(f"a delta of {len(data)} bytes has {len(data) - offset} bytes too many")
    return (difference ^ before).tobytes()


def _plane(mode: int, data: bytes, announced: int, size: int) -> NDArray[np.uint8]:
    if len(data) != announced:
        raise MessageError(f"a plane of a delta announces {announced} bytes and has {len(data)}")
    if mode == _DEFLATED:
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(data, size + 1)
        except zlib.error as error:
            raise MessageError(f"a plane of a delta cannot be inflated: {error}") from error
        if not inflater.eof or inflater.unused_data:
            raise MessageError("a plane of a delta is not one whole deflated stream of its size")
    elif mode != _STORED:
        raise MessageError(f"a plane of a delta has the mode {mode}; known: {_STORED} (stored), {_DEFLATED} (deflated)")
    if len(data) != size:
        raise MessageError(f"a plane of a delta has {len(data)} bytes where {size} are due")
    return np.frombuffer(data, np.uint8)


def _shrinks(plane: NDArray[np.uint8]) -> bool:
    """Whether bytes from all over the plane deflate; decides for the whole, at the price of a few kilobytes."""
    runs = 8
    length = _SAMPLE_BYTES // runs
    if plane.size <= 2 * _SAMPLE_BYTES:
        return True
    starts = np.linspace(0, plane.size - length, runs).astype(np.int64)
    sample = b"".join(plane[start : start + length].tobytes() for start in starts)
    return len(zlib.compress(sample, _LEVEL)) < _WORTHWHILE * len(sample)
