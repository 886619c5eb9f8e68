"""Settings of the encoder of pictures for reinforcement learning: the same on the edge and in the learner."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class PixelsConfig(Struct, frozen=True, kw_only=True):
    """A small convolutional network for each camera, and how its pictures are varied while it learns.

    Attributes:
        shrink: pictures are averaged over squares of so many pixels a side first; 1 keeps them as they are.
        channels: of each 3x3 convolution; every one halves the picture.
        embedding: numbers that a camera's picture becomes; published: 50 (DrQ-v2, arXiv 2107.09645) and 256 (SERL).
        shift: largest random shift of the learner's pictures, in pixels of the camera; published: 4 of 84; 0: none.
    """

    shrink: int = 1
    channels: tuple[int, ...] = (16, 32, 32, 32)
    embedding: int = 64
    shift: int = 4

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"vision.channels is {self.channels}; allowed: one or more widths of 1 or more")
        if min(self.shrink, self.embedding) < 1:
            raise ConfigError(
                f"vision.shrink is {self.shrink} and vision.embedding {self.embedding}; allowed: 1 or more"
            )
        if self.shift < 0:
            raise ConfigError(f"vision.shift is {self.shift}; allowed: 0 or more")
