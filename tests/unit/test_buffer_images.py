"""Stored images: what goes in comes out, and no header can make us decode what we did not agree to."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from robot_stack.buffer.images import MAX_PIXELS, ImageCodec, decode_image, encode_image, image_shape
from robot_stack.core.errors import MessageError

Pixels = NDArray[np.uint8]


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Pixels:
    """Smooth enough for JPEG to be near it, different everywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(5, 20) + y / rng.uniform(5, 20) + rng.uniform(0, 6)) for _ in range(3)]
    return np.stack([(127 + 120 * wave) for wave in waves], axis=-1).astype(np.uint8)


def jpeg(image: Pixels | None = None, **options: object) -> Pixels:
    """A JPEG file written by somebody else."""
    stream = io.BytesIO()
    Image.fromarray(picture() if image is None else image).save(stream, "JPEG", **options)  # type: ignore[arg-type]
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


def frame_header(data: Pixels) -> int:
    return data.tobytes().index(b"\xff\xc0")


def with_size(data: Pixels, height: int, width: int) -> Pixels:
    changed = data.copy()
    start = frame_header(data) + 5
    changed[start : start + 4] = np.frombuffer(height.to_bytes(2, "big") + width.to_bytes(2, "big"), dtype=np.uint8)
    return changed


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_raw_images_are_kept_as_they_are_and_jpeg_comes_near(height: int, width: int, seed: int) -> None:
    image = picture(height, width, seed)
    for codec in ImageCodec:
        stored = encode_image(image, codec)
        assert image_shape(stored) == image.shape
        decoded = decode_image(stored)
        assert decoded.shape == image.shape and decoded.dtype == np.uint8
        if codec is ImageCodec.RAW:
            assert np.array_equal(decoded, image)
        else:
            assert stored.ndim == 1
            assert np.abs(decoded.astype(int) - image).mean() < 4.0


def test_jpeg_is_smaller_and_its_colours_are_not_swapped() -> None:
    red = np.zeros((64, 64, 3), dtype=np.uint8)
    red[..., 0] = 250
    stored = encode_image(red, ImageCodec.JPEG)
    assert stored.size < red.size / 5
    assert np.abs(decode_image(stored).astype(int) - red).max() <= 3
    other = np.asarray(Image.open(io.BytesIO(stored.tobytes())))  # and other programs read the same
    assert np.abs(other.astype(int) - red).max() <= 3


def test_decoding_into_place_writes_there_and_nowhere_else() -> None:
    image = picture()
    for codec in ImageCodec:
        batch = np.full((3, *image.shape), 7, dtype=np.uint8)
        assert decode_image(encode_image(image, codec), batch[1]) is not None
        assert np.array_equal(batch[1], decode_image(encode_image(image, codec)))
        assert (batch[0] == 7).all() and (batch[2] == 7).all()
        strided = np.full((*image.shape[:2], 6), 7, dtype=np.uint8)
        decode_image(encode_image(image, codec), strided[..., ::2])
        assert np.array_equal(strided[..., ::2], batch[1]) and (strided[..., 1::2] == 7).all()


def test_a_view_with_gaps_is_encoded_like_its_copy() -> None:
    wide = picture(48, 128)
    assert np.array_equal(
        encode_image(wide[:, ::2], ImageCodec.JPEG), encode_image(wide[:, ::2].copy(), ImageCodec.JPEG)
    )


@pytest.mark.parametrize("shape", [(48, 63, 3), (48, 64, 4), (48, 64)])
def test_an_output_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    for codec in ImageCodec:
        with pytest.raises(MessageError, match="is expected"):
            decode_image(encode_image(picture(), codec), np.empty(shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4), (0, 4, 3), (4, 0, 3), (1, 70_000, 3)])
def test_what_is_no_rgb_image_is_refused(shape: tuple[int, ...]) -> None:
    for codec in ImageCodec:
        with pytest.raises(MessageError):
            encode_image(np.zeros(shape, dtype=np.uint8), codec)
    with pytest.raises(MessageError):
        image_shape(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(MessageError, match="uint8"):
        encode_image(np.zeros((4, 4, 3), dtype=np.float32), ImageCodec.RAW)  # type: ignore[arg-type]
    with pytest.raises(MessageError, match="uint8"):
        image_shape(np.zeros(100, dtype=np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"subsampling": 2}, {"exif": b"Exif\0\0" + bytes(500)}])
def test_baseline_files_of_other_encoders_are_read(options: dict[str, object]) -> None:
    stored = jpeg(**options)
    assert image_shape(stored) == (48, 64, 3)
    assert np.abs(decode_image(stored).astype(int) - picture()).mean() < 12.0


def test_a_grey_file_gives_three_equal_colours() -> None:
    decoded = decode_image(jpeg(picture()[..., 0]))
    assert decoded.shape == (48, 64, 3)
    assert np.array_equal(decoded[..., 0], decoded[..., 1]) and np.array_equal(decoded[..., 1], decoded[..., 2])


def test_a_header_that_promises_too_many_pixels_is_refused_before_decoding() -> None:
    for height, width in ((65535, 65535), (4097, 4096), (MAX_PIXELS, 1), (0, 64), (48, 0)):
        stored = with_size(jpeg(), height & 0xFFFF, width & 0xFFFF)
        with pytest.raises(MessageError, match="pixels is not taken"):
            image_shape(stored)
        with pytest.raises(MessageError, match="pixels is not taken"):
            decode_image(stored)


def test_files_that_take_long_to_decode_are_refused_by_their_header() -> None:
    with pytest.raises(MessageError, match="kind 2"):
        decode_image(jpeg(progressive=True))
    with pytest.raises(MessageError, match="4 colours"):
        cmyk = io.BytesIO()
        Image.new("CMYK", (8, 8)).save(cmyk, "JPEG")
        decode_image(np.frombuffer(cmyk.getvalue(), dtype=np.uint8))
    data = jpeg().tobytes()
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(MessageError, match="5 scans"):
        decode_image(np.frombuffer(data[:-2] + 4 * scan + data[-2:], dtype=np.uint8))


def test_a_file_cut_anywhere_is_refused() -> None:
    stored = encode_image(picture(16, 16), ImageCodec.JPEG)
    for size in range(stored.size):
        with pytest.raises(MessageError):
            decode_image(stored[:size])


def test_damaged_files_never_crash_and_never_change_size() -> None:
    """Wrong pixels are the business of the checksums around the image; here it must only stay harmless."""
    rng = random.Random(0)
    whole = encode_image(picture(32, 32), ImageCodec.JPEG)
    refused = 0
    for _ in range(3000):
        damaged = whole.copy()
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(damaged.size)] = rng.randrange(256)
        try:
            shape = image_shape(damaged)
            if shape[0] * shape[1] < 1 << 20:
                assert decode_image(damaged).shape == shape
        except MessageError:
            refused += 1
    assert refused > 300


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_rubbish_is_no_image(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_image(np.frombuffer(b"\xff\xd8" + data, dtype=np.uint8))
    with pytest.raises(MessageError):
        decode_image(np.frombuffer(b"\xff\xd9" + data, dtype=np.uint8))
