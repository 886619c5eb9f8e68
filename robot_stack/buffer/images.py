"""Images in recorded steps: raw pixels, or one JPEG file each.

A stored image is a uint8 array: (H, W, 3) RGB as it is, or 1-D with the bytes of one JPEG file (ITU-T T.81). JPEG is
lossy: about a ninth of the size at `JPEG_QUALITY`, in full colour resolution (4:4:4).

Stored images come from other machines. What a JPEG header promises is checked before a pixel is decoded: at most
`MAX_PIXELS`, and baseline only, with one scan for each colour at most: a progressive file of a megabyte can ask for
hours of decoding.
"""

from __future__ import annotations

import enum
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import MessageError, MissingDependencyError

JPEG_QUALITY = 90
MAX_PIXELS = 1 << 24

_START_OF_IMAGE = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"
_BASELINE_FRAME = 0xC0
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are tables and a reserved code
_SEGMENTS = frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))  # what may stand before a frame
_LARGEST_SIDE = (1 << 16) - 1


class ImageCodec(enum.Enum):
    RAW = "raw"
    JPEG = "jpeg"


def encode_image(image: NDArray[np.uint8], codec: ImageCodec) -> NDArray[np.uint8]:
    """An image (H, W, 3) as it is to be stored: itself for RAW, a 1-D JPEG file for JPEG.

    MessageError for anything that is no uint8 RGB image of 1 to `MAX_PIXELS` pixels, MissingDependencyError without
    simplejpeg.
    """
    _check_raw(image)
    if codec is ImageCodec.RAW:
        return image
    data = _simplejpeg().encode_jpeg(np.ascontiguousarray(image), quality=JPEG_QUALITY, colorsubsampling="444")
    return np.frombuffer(data, dtype=np.uint8)


def decode_image(stored: NDArray[np.uint8], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of a stored image; in `out`, where that is given, else perhaps `stored` itself.

    MessageError if the bytes are no JPEG file that we decode, are damaged, or do not have the size of `out`;
    MissingDependencyError without simplejpeg.
    """
    shape = image_shape(stored)
    if out is not None and (out.shape != shape or out.dtype != np.uint8):
        raise MessageError(f"an image {list(shape)} was stored where {out.dtype}{list(out.shape)} is expected")
    if stored.ndim == 3:
        if out is None:
            return stored
        out[...] = stored
        return out
    if out is not None and out.flags.c_contiguous and out.flags.writeable:
        _decode(stored, out)
        return out
    image = np.empty(shape, dtype=np.uint8)
    _decode(stored, image)
    if out is None:
        return image
    out[...] = image
    return out


def image_shape(stored: NDArray[np.uint8]) -> tuple[int, int, int]:
    """(H, W, 3) of a stored image, from its header alone; MessageError if it is none, or larger than allowed."""
    if stored.ndim != 1:
        _check_raw(stored)
        return stored.shape[0], stored.shape[1], 3
    if stored.dtype != np.uint8:
        raise MessageError(f"an encoded image is a 1-D uint8 array, this one is {stored.dtype}{list(stored.shape)}")
    height, width = _jpeg_size(np.ascontiguousarray(stored).data)
    return height, width, 3


def _check_raw(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise MessageError(
            f"an image is a uint8 array (height, width, 3), this one is {image.dtype}{list(image.shape)}"
        )
    _check_size(image.shape[0], image.shape[1])


def _check_size(height: int, width: int) -> None:
    if not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE) or height * width > MAX_PIXELS:
        raise MessageError(
            f"an image of {height} x {width} pixels is not taken: allowed are sides of 1 to {_LARGEST_SIDE} and "
            f"{MAX_PIXELS} pixels in all. Let the camera send smaller images."
        )


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """(height, width) from the frame header, with every check that decoding relies on."""
    if data[:2] != _START_OF_IMAGE:
        raise MessageError(f"{len(data)} bytes are no JPEG file: they do not begin with the mark of one")
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        code = data[position + 1]
        if code == 0xFF:  # a fill byte
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if code in _FRAMES:
            return _frame_size(data, position, code)
        if code not in _SEGMENTS or length < 2:
            break
        position += 2 + length
    raise MessageError(f"{len(data)} bytes are no JPEG file: no frame header was found up to byte {position}")


def _frame_size(data: memoryview, position: int, code: int) -> tuple[int, int]:
    header = bytes(data[position : position + 10])
    if len(header) < 10:
        raise MessageError(f"a JPEG file of {len(data)} bytes ends within its frame header")
    bits, colours = header[4], header[9]
    if code != _BASELINE_FRAME or bits != 8 or colours not in (1, 3):
        raise MessageError(
            f"a JPEG file of kind {code - _BASELINE_FRAME} with {colours} colours of {bits} bits is not taken; allowed "
            "are baseline files (kind 0) with 1 or 3 colours of 8 bits. Let the camera or the encoder write those."
        )
    scans = bytes(data[position:]).count(_START_OF_SCAN)
    if scans > colours:
        raise MessageError(f"a JPEG file with {scans} scans is not taken; {colours} colours have {colours} at most")
    height, width = int.from_bytes(header[5:7], "big"), int.from_bytes(header[7:9], "big")
    _check_size(height, width)
    return height, width


def _decode(stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    simplejpeg = _simplejpeg()
    try:
        simplejpeg.decode_jpeg(np.ascontiguousarray(stored), colorspace="RGB", buffer=out)
    except ValueError as error:
        raise MessageError(f"a JPEG file of {stored.size} bytes cannot be decoded: {error}") from error


def _simplejpeg() -> ModuleType:
    try:
        import simplejpeg
    except ImportError as error:
        raise MissingDependencyError("simplejpeg", "", "images stored as JPEG") from error
    module: ModuleType = simplejpeg
    return module
