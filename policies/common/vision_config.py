"""Settings of the image encoder, apart from its code: reading a configuration loads no torch."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class VisionConfig(Struct, frozen=True, kw_only=True):
    """A ResNet with GroupNorm and a spatial softmax for each camera.

    Attributes:
        channels: of each stage; every stage but the first halves the image.
        keypoints: points of the spatial softmax; the encoding of an image has twice as many numbers.
        crop: side of the crop (random while training, central otherwise) as a share of the image; 1 keeps it whole.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    keypoints: int = 16
    crop: float = 0.9

    def __post_init__(self) -> None:
        if not self.channels or any(channel < 8 or channel % 8 for channel in self.channels):
            raise ConfigError(f"vision.channels is {self.channels}; allowed: multiples of 8")
        if self.keypoints < 1:
            raise ConfigError(f"vision.keypoints is {self.keypoints}; allowed: 1 or more")
        if not 0.0 < self.crop <= 1.0:
            raise ConfigError(f"vision.crop is {self.crop}; allowed: above 0, up to 1")
