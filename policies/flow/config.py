"""Size of the action expert of flow-matching policies; saved beside its weights."""

from __future__ import annotations

from msgspec import Struct

from policies.common.vision_config import VisionConfig
from robot_stack.core.errors import ConfigError


class ExpertConfig(Struct, frozen=True, kw_only=True, tag="expert"):
    """A DiT-style action expert: action tokens attend to each other and to the observation's tokens; the time enters by
    adaptive layer norms with gates that start at zero (Peebles and Xie, DiT, 2023).

    `step_conditioned`: the network is also told how far a step will take it, which shortcut and consistency training
    need. `detail`: octaves in which the observation's numbers are given to it, see `ObservationTokens`.
    """

    embed_dim: int = 64
    layers: int = 4
    heads: int = 4
    step_conditioned: bool = False
    detail: int = 0
    vision: VisionConfig = VisionConfig()

    def __post_init__(self) -> None:
        for name in ("embed_dim", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"net.{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.detail < 0:
            raise ConfigError(f"net.detail is {self.detail}; allowed: 0 or more")
        if self.embed_dim % (2 * self.heads):
            raise ConfigError(f"net.embed_dim {self.embed_dim} must be a multiple of twice the {self.heads} heads")
