"""Demonstrations as arrays, and the windows that a policy is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.generative.config import GenerativeConfig
from policies.vla.config import VlaConfig
from policies.vla.words import token_ids
from robot_stack.buffer.images import decode_image, image_shape
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray

Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]

IMAGE_BUDGET_BYTES = 2 << 30


class ImageRows(Protocol):
    """The pictures of one camera, one for each step."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""

    def take(self, rows: Indices) -> Pixels:
        """Pictures (..., height, width, 3) uint8 of rows (...)."""

    def update(self, digest: hashlib._Hash) -> None:
        """Feed every byte into a hash."""


class DecodedImages:
    """Pixels (T, height, width, 3) uint8 in the memory."""

    def __init__(self, pixels: Pixels) -> None:
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[3] != 3:
            raise PolicyError(f"images are uint8 (T, height, width, 3), these are {pixels.dtype}{list(pixels.shape)}")
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def shape(self) -> tuple[int, int]:
        return self._pixels.shape[1], self._pixels.shape[2]

    def take(self, rows: Indices) -> Pixels:
        taken: Pixels = self._pixels[rows]
        return taken

    def update(self, digest: hashlib._Hash) -> None:
        digest.update(np.ascontiguousarray(self._pixels).data)


class EncodedImages:
    """Pictures as they were stored (`robot_stack.buffer.images`); decoded when they are taken."""

    def __init__(self, stored: Sequence[Pixels]) -> None:
        shapes = {image_shape(one)[:2] for one in stored}
        if len(shapes) != 1:
            raise PolicyError(f"the pictures of one camera have the sizes {sorted(shapes)}; they must all be alike")
        self._stored = stored
        self._shape = shapes.pop()

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def take(self, rows: Indices) -> Pixels:
        distinct, where = np.unique(rows, return_inverse=True)
        pixels = np.empty((len(distinct), *self._shape, 3), np.uint8)
        for row, out in zip(distinct, pixels, strict=True):
            decode_image(self._stored[row], out=out)
        taken: Pixels = pixels[where.reshape(rows.shape)]
        return taken

    def update(self, digest: hashlib._Hash) -> None:
        for one in self._stored:
            digest.update(np.ascontiguousarray(one).data)


def image_rows(stored: Sequence[Pixels], budget_bytes: int = IMAGE_BUDGET_BYTES) -> ImageRows:
    """The pictures of one camera: decoded once if they then fit into the budget, else batch by batch."""
    encoded = EncodedImages(stored)
    if len(stored) * encoded.shape[0] * encoded.shape[1] * 3 > budget_bytes:
        return encoded
    return DecodedImages(encoded.take(np.arange(len(stored))))


@dataclass(frozen=True, slots=True)
class DemonstrationArrays:
    """Episodes one after the other.

    Attributes:
        vector: (T, D) float32, the vector features in the order of the policy's spec.
        action: (T, A) float32, the expert's intended action, without the noise it was executed with.
        episode_ends: (E,) int64, index one past each episode's last step, increasing, the last one T.
        images: of each camera, in the order of the policy's spec.
        instruction: (T,) int64, which of `instructions` each step belongs to; empty where there are none.
    """

    vector: FloatArray
    action: FloatArray
    episode_ends: Indices
    images: tuple[ImageRows, ...] = ()
    instruction: Indices | None = None
    instructions: tuple[str, ...] = ()

    def check(self) -> None:
        """PolicyError unless all parts have one row for each step."""
        steps, ends = len(self.vector), self.episode_ends
        lengths = [len(self.action), *(len(one) for one in self.images)]
        if self.instruction is not None:
            lengths.append(len(self.instruction))
        whole = len(ends) > 0 and ends[-1] == steps and bool((np.diff(ends, prepend=0) >= 1).all())
        if not whole or any(length != steps for length in lengths):
            raise PolicyError(
                f"demonstrations do not add up: {steps} observations, {lengths} actions, images and instructions, "
                f"episodes end at {ends.tolist()[-3:]}; record at least one demonstration"
            )

    def sha256(self) -> str:
        """Of everything in here."""
        digest = hashlib.sha256()
        for array in (self.vector, self.action, self.episode_ends):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        for one in self.images:
            digest.update(str((len(one), one.shape)).encode())
            one.update(digest)
        if self.instruction is not None:
            digest.update(np.ascontiguousarray(self.instruction).data)
            digest.update("\n".join(self.instructions).encode())
        return digest.hexdigest()


class EpisodeIndex:
    """Which rows belong to the window of a step; none ever reaches into another episode."""

    def __init__(self, episode_ends: Indices) -> None:
        lengths = np.diff(episode_ends, prepend=0)
        self._first = np.repeat(episode_ends - lengths, lengths)
        self._last = np.repeat(episode_ends - 1, lengths)
        self.episode = np.repeat(np.arange(len(episode_ends)), lengths)

    def past(self, rows: Indices, history: int) -> Indices:
        """(B, history): the newest rows up to each of `rows` (B,), oldest first; at first the first one stands in."""
        wanted: Indices = np.maximum(rows[:, None] + np.arange(1 - history, 1), self._first[rows][:, None])
        return wanted

    def ahead(self, rows: Indices, horizon: int) -> Indices:
        """(B, horizon): each of `rows` (B,) and those after it; past the episode's end its last one is repeated."""
        wanted: Indices = np.minimum(rows[:, None] + np.arange(horizon), self._last[rows][:, None])
        return wanted


class Windows:
    """Batches of (normalised chunks (B, H, A), condition as `Denoiser` takes it), gathered on `device`."""

    def __init__(
        self, data: DemonstrationArrays, config: GenerativeConfig, history: int, horizon: int, device: torch.device
    ) -> None:
        self._index = EpisodeIndex(data.episode_ends)
        self._history, self._horizon, self._device = history, horizon, device
        vector = config.observation.normalize(data.vector).clip(-1.0, 1.0).astype(np.float32, copy=False)
        self._vector = torch.from_numpy(vector).to(device)
        self._action = torch.from_numpy(config.action.normalize(data.action)).to(device)
        self._images = data.images
        self._words = self._instruction = None
        if isinstance(config.net, VlaConfig):
            if data.instruction is None or not data.instructions:
                raise PolicyError("this policy reads instructions and the demonstrations have none; give the task one")
            words = config.vocabulary
            tokens = np.stack([token_ids(config.net, text, words) for text in data.instructions])
            self._words = torch.from_numpy(tokens).to(device)
            self._instruction = torch.from_numpy(data.instruction).to(device)

    def batch(self, rows: Indices) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The windows of `rows` (B,)."""
        past = self._index.past(rows, self._history)
        seen = torch.from_numpy(past).to(self._device)
        chunk = torch.from_numpy(self._index.ahead(rows, self._horizon)).to(self._device)
        condition = [self._vector[seen]]
        condition += [torch.from_numpy(camera.take(past)).to(self._device) for camera in self._images]
        if self._words is not None and self._instruction is not None:
            condition.append(self._words[self._instruction[seen[:, -1]]])
        return self._action[chunk], tuple(condition)
