"""What a diffusion policy is built from; saved beside its weights."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from policies.common.normalization import MinMaxNormalizer
from robot_stack.core.errors import ConfigError


class DiffusionConfig(Struct, frozen=True, kw_only=True):
    """Size of the network and of the diffusion chain.

    Attributes:
        horizon: actions predicted at once, H.
        train_steps: length K of the noising chain in training.
        inference_steps: DDIM steps at prediction; divides `train_steps`.
        prediction: what the network estimates, the noise or the clean action.
    """

    horizon: int = 8
    embed_dim: int = 64
    layers: int = 2
    heads: int = 4
    train_steps: int = 20
    inference_steps: int = 5
    prediction: Literal["epsilon", "sample"] = "sample"

    def __post_init__(self) -> None:
        for name in ("horizon", "embed_dim", "layers", "heads", "train_steps", "inference_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"diffusion.{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.embed_dim % (2 * self.heads):
            raise ConfigError(
                f"diffusion.embed_dim {self.embed_dim} must be a multiple of twice the {self.heads} heads"
            )
        if self.train_steps % self.inference_steps:
            raise ConfigError(
                f"diffusion.inference_steps is {self.inference_steps}; allowed: divisors of train_steps, "
                f"{self.train_steps}"
            )


class DiffusionPolicyConfig(Struct, frozen=True, kw_only=True):
    """Everything beside the weights that prediction depends on."""

    net: DiffusionConfig
    observation: MinMaxNormalizer
    action: MinMaxNormalizer
