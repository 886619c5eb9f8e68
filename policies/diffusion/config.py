"""Sizes of the networks of diffusion policies; saved beside their weights."""

from __future__ import annotations

from msgspec import Struct

from policies.common.vision_config import VisionConfig
from robot_stack.core.errors import ConfigError


class TransformerConfig(Struct, frozen=True, kw_only=True, tag="transformer"):
    """A transformer decoder over the chunk (Diffusion Policy's): width, layers, heads, and dropout while training.

    `vision`: encoder of the camera images, if the policy reads any. `detail`: octaves in which the numbers observed
    are given to it, see `ObservationTokens`.
    """

    embed_dim: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    detail: int = 0
    vision: VisionConfig = VisionConfig()

    def __post_init__(self) -> None:
        for name in ("embed_dim", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"net.{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.embed_dim % (2 * self.heads):
            raise ConfigError(f"net.embed_dim {self.embed_dim} must be a multiple of twice the {self.heads} heads")
        if self.detail < 0:
            raise ConfigError(f"net.detail is {self.detail}; allowed: 0 or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"net.dropout is {self.dropout}; allowed: 0 up to 1")


class UNetConfig(Struct, frozen=True, kw_only=True, tag="unet"):
    """A one-dimensional U-Net over the chunk (Diffusion Policy's): channels of each level, kernel and groups.

    The horizon has to be a multiple of 2 ** (levels - 1). `time_dim`: width of the embedded diffusion time.
    `detail`: as of `TransformerConfig`.
    """

    channels: tuple[int, ...] = (64, 128)
    kernel: int = 5
    groups: int = 8
    time_dim: int = 64
    detail: int = 0
    vision: VisionConfig = VisionConfig()

    def __post_init__(self) -> None:
        if not self.channels or any(channel < 1 or channel % self.groups for channel in self.channels):
            raise ConfigError(f"net.channels is {self.channels}; allowed: multiples of the {self.groups} groups")
        if self.kernel % 2 == 0 or self.kernel < 1:
            raise ConfigError(f"net.kernel is {self.kernel}; allowed: odd numbers")
        if self.detail < 0:
            raise ConfigError(f"net.detail is {self.detail}; allowed: 0 or more")
        if self.time_dim < 2 or self.time_dim % 2:
            raise ConfigError(f"net.time_dim is {self.time_dim}; allowed: even numbers from 2")
