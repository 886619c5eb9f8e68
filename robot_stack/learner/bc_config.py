"""Settings of behaviour cloning, apart from its code: reading a configuration loads no torch."""

from __future__ import annotations

from msgspec import Struct

from policies.diffusion.config import DiffusionConfig
from robot_stack.core.errors import ConfigError


class BcConfig(Struct, frozen=True, kw_only=True):
    """Settings of the training.

    `steps` of `batch_size` chunks; AdamW with a linear warm-up and a cosine to zero; an exponential moving average of
    the weights (power-law warm-up, Diffusion Policy) is what is kept. `checkpoint_every` steps the run can be resumed.
    """

    net: DiffusionConfig = DiffusionConfig()
    steps: int = 3_500
    batch_size: int = 128
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-3
    ema_power: float = 0.75
    ema_max: float = 0.999
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"bc.{name} is {getattr(self, name)}; allowed: 1 or more")
