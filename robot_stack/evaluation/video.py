"""Short rollouts as GIF, small enough to sit inside a report."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robot_stack.core.errors import StorageError
from robot_stack.core.files import write_atomically

Frames = NDArray[np.uint8]
MAX_BYTES = 2_000_000
_GAP_PX = 8
_MAX_WIDTH_PX = 640
_MAX_RATE_HZ = 50.0  # browsers slow down anything faster


def write_gif(path: Path, frames: Frames, rate_hz: float, max_bytes: int = MAX_BYTES) -> None:
    """Write frames (T, H, W, 3), recorded at `rate_hz`, as a looping GIF of at most `max_bytes`, atomically.

    A GIF that is too large is made again with half the frames or smaller images until it fits; it always plays at
    the speed of the recording.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype}{list(frames.shape)}")
    while rate_hz > _MAX_RATE_HZ:
        frames, rate_hz = frames[::2], rate_hz / 2.0
    scale = min(1.0, _MAX_WIDTH_PX / frames.shape[2])
    content = _encode(frames, rate_hz, scale)
    while len(content) > max_bytes:
        if rate_hz > 10.0 and len(frames) > 1:
            frames, rate_hz = frames[::2], rate_hz / 2.0
        else:
            scale *= 0.8
        if min(frames.shape[1:3]) * scale < 32:
            raise StorageError(f"{path}: {len(frames)} frames do not fit into {max_bytes} bytes; record fewer")
        content = _encode(frames, rate_hz, scale)
    write_atomically(path, content)


def side_by_side(left: Frames, right: Frames) -> Frames:
    """Both rollouts in one image; the shorter one stands still at its end. Heights must be equal."""
    length = max(len(left), len(right))
    left, right = (frames[np.minimum(np.arange(length), len(frames) - 1)] for frames in (left, right))
    gap = np.full((length, left.shape[1], _GAP_PX, 3), 255, dtype=np.uint8)
    return np.concatenate([left, gap, right], axis=2)


def _encode(frames: Frames, rate_hz: float, scale: float) -> bytes:
    height, width = (max(1, round(size * scale)) for size in frames.shape[1:3])
    images = [Image.fromarray(frame) for frame in frames]
    if scale != 1.0:
        images = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images]
    # One palette for all frames and no dithering: still parts stay still and compress well.
    samples = [images[index] for index in np.linspace(0, len(images) - 1, 4).astype(int)]
    palette = Image.fromarray(np.concatenate([np.asarray(sample) for sample in samples])).quantize(128)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = BytesIO()
    ends_ms = np.round(np.arange(1, len(frames) + 1) * 100.0 / rate_hz).astype(int) * 10
    durations_ms = np.diff(ends_ms, prepend=0).tolist()
    indexed[0].save(buffer, "GIF", save_all=True, append_images=indexed[1:], duration=durations_ms, loop=0)
    return buffer.getvalue()
