"""Sizes of the networks that judge chunks, apart from their code."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from policies.common.normalization import Standardizer
from robot_stack.core.errors import ConfigError

FeatureKind = Literal["vector", "hidden"]


class CriticConfig(Struct, frozen=True, kw_only=True, tag="critic"):
    """Value of a chunk: `members` independent MLPs, averaged; `discount` of the return for each control step."""

    hidden: tuple[int, ...] = (128, 128)
    members: int = 2
    discount: float = 0.98

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1 or self.members < 1:
            raise ConfigError(f"critic has hidden {self.hidden}, {self.members} members; allowed: 1 or more of each")
        if not 0.0 < self.discount <= 1.0:
            raise ConfigError(f"critic.discount is {self.discount}; allowed: above 0, up to 1")


class CountConfig(Struct, frozen=True, kw_only=True, tag="counts"):
    """A Coin-Flip Network: width, residual blocks (4x wide inside), and how many coins each item flips.

    `gain` multiplies the standardised input, `dropout` is used while training. TACO uses 1536, 3, 20, 10 and 0.1.
    """

    width: int = 128
    blocks: int = 2
    flips: int = 20
    gain: float = 10.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "flips"):
            if getattr(self, name) < 1:
                raise ConfigError(f"counts.{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.gain <= 0.0 or not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"counts.gain {self.gain} has to be above 0, counts.dropout {self.dropout} in [0, 1)")


class JudgeConfig(Struct, frozen=True, kw_only=True):
    """What is saved beside the weights of a network that judges chunks.

    Attributes:
        net: its sizes.
        features: what it reads, `vector` or `hidden`.
        statistics: of those features.
        belongs_to: digest of the policy whose hidden state it reads; empty where it reads none.
    """

    net: CriticConfig | CountConfig
    features: FeatureKind
    statistics: Standardizer
    belongs_to: str = ""
