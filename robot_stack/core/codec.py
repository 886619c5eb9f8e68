"""Messages to bytes and back: one msgpack header, then one raw frame per array.

Used on the wire (a ZeroMQ multipart message) and on disk (`pack`/`unpack` join the frames into one blob). Only
plain numeric dtypes pass; nothing is ever executed by decoding. Sizes are checked before anything is decoded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from robot_stack.core.errors import MessageError

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

_DTYPES = frozenset(
    ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
)
_MAX_FRAMES = 1024
_MAX_DIMENSIONS = 8


def encode(message: object) -> list[Buffer]:
    """Header frame followed by one frame per array, in the order met. Arrays are not copied if contiguous."""
    frames: list[Buffer] = [b""]

    def hook(value: object) -> object:
        if isinstance(value, np.ndarray):
            if value.dtype.name not in _DTYPES:
                raise MessageError(
                    f"an array of dtype {value.dtype} cannot be sent; allowed: {', '.join(sorted(_DTYPES))}"
                )
            if not value.dtype.isnative:  # the header names no byte order
                value = value.astype(value.dtype.newbyteorder("="))
            frames.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
            return (len(frames) - 1, value.dtype.name, value.shape)
        raise MessageError(f"a value of type {type(value).__name__} cannot be sent")

    frames[0] = msgspec.msgpack.Encoder(enc_hook=hook).encode(message)
    return frames


def decode(frames: Sequence[Buffer], message_type: type[T] | Any) -> T:
    """The message of `message_type` in these frames; MessageError for anything malformed.

    Arrays are read-only views of the frames.
    """
    if not 1 <= len(frames) <= _MAX_FRAMES:
        raise MessageError(f"a message has 1 to {_MAX_FRAMES} frames, this one has {len(frames)}")

    def hook(expected: type, value: object) -> object:
        return _array(frames, value)

    try:
        decoded: T = msgspec.msgpack.decode(frames[0], type=message_type, dec_hook=hook)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise MessageError(f"malformed message: {error}") from error
    return decoded


def _array(frames: Sequence[Buffer], value: object) -> np.ndarray[Any, Any]:
    index, dtype, shape = _array_reference(value)
    if not 1 <= index < len(frames):
        raise ValueError(f"array refers to frame {index} of {len(frames)}")
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    frame = memoryview(frames[index])
    if frame.nbytes != expected:
        raise ValueError(f"array {dtype}{list(shape)} needs {expected} bytes, its frame has {frame.nbytes}")
    array = np.frombuffer(frame, dtype=dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _array_reference(value: object) -> tuple[int, str, tuple[int, ...]]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError("an array reference is [frame, dtype, shape]")
    index, dtype, shape = value
    if not isinstance(index, int) or not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"array of dtype {dtype!r} is not allowed")
    if not isinstance(shape, (list, tuple)) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"an array has at most {_MAX_DIMENSIONS} dimensions")
    if not all(isinstance(size, int) and 0 <= size < 2**31 for size in shape):
        raise ValueError(f"array shape {shape!r} is not allowed")
    return index, dtype, tuple(shape)


def pack(message: object) -> bytes:
    """The message as one blob: frame count, frame sizes, frames. For disk and for records inside messages."""
    frames = encode(message)
    sizes = [memoryview(frame).nbytes for frame in frames]
    return b"".join([struct.pack(f"<I{len(sizes)}I", len(sizes), *sizes), *frames])


def unpack(blob: Buffer, message_type: type[T] | Any) -> T:
    """Inverse of `pack`; MessageError for anything malformed."""
    view = memoryview(blob)
    try:
        (count,) = struct.unpack_from("<I", view)
        if not 1 <= count <= _MAX_FRAMES:
            raise MessageError(f"a message has 1 to {_MAX_FRAMES} frames, this one has {count}")
        sizes = struct.unpack_from(f"<{count}I", view, 4)
    except struct.error as error:
        raise MessageError(f"malformed record: {error}") from error
    offset = 4 + 4 * count
    if offset + sum(sizes) != view.nbytes:
        raise MessageError(f"malformed record: {view.nbytes} bytes where {offset + sum(sizes)} are announced")
    frames: list[Buffer] = []
    for size in sizes:
        frames.append(view[offset : offset + size])
        offset += size
    message: T = decode(frames, message_type)
    return message
