"""Size of the vision-language-action policy; saved beside its weights."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class VlaConfig(Struct, frozen=True, kw_only=True, tag="vla"):
    """A vision-language prefix and an action expert, layer by layer side by side (pi0, SmolVLA).

    Attributes:
        model: '' for the small vision-language model of ours, trained from scratch; else the folder or hub name of one
            that transformers loads, whose weights stay frozen.
        patch: side of the square image patches of ours, in pixels: a power of two.
        prefix_dim: width of the prefix and, in all heads together, of the attention. With a frozen model: of the
            attention only.
        expert_dim: width of the action expert.
        layers, heads: of both. With a frozen model: of the expert, whose layers look at the model's first `layers`.
        max_words: instructions are filled up to so many tokens; longer ones are refused.
    """

    model: str = ""
    patch: int = 8
    prefix_dim: int = 96
    expert_dim: int = 64
    layers: int = 4
    heads: int = 4
    max_words: int = 12

    def __post_init__(self) -> None:
        for name in ("patch", "prefix_dim", "expert_dim", "layers", "heads", "max_words"):
            if getattr(self, name) < 1:
                raise ConfigError(f"net.{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.patch < 2 or self.patch & (self.patch - 1):
            raise ConfigError(f"net.patch is {self.patch}; allowed: 2, 4, 8, 16, ...")
        if self.prefix_dim % (4 * self.heads) or self.prefix_dim % 8:
            raise ConfigError(
                f"net.prefix_dim {self.prefix_dim} must be a multiple of 8 and of four times the {self.heads} heads"
            )
        if self.expert_dim % 2:
            raise ConfigError(f"net.expert_dim is {self.expert_dim}; allowed: even numbers")
