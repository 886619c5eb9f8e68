"""Settings of imitation learning, apart from its code: reading a configuration loads no torch."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from policies.diffusion.config import TransformerConfig
from policies.generative.config import DiffusionChain, NetConfig, Process, SolverConfig
from robot_stack.core.errors import ConfigError


class ImitationConfig(Struct, frozen=True, kw_only=True):
    """Network, process and training of a generative policy.

    AdamW for `steps` of `batch_size` chunks, with a linear warm-up and a cosine to zero; what is kept is a moving
    average of the weights (power-law warm-up, Diffusion Policy).

    Attributes:
        solver: how the trained policy samples; it can be exchanged afterwards.
        weight_decay: of matrices and convolutions only, never of biases, norms and positions.
        clip_norm: gradients of a larger norm are scaled down to it; 0 for no limit.
        amp: compute in bfloat16 where that is safe; on a GPU only.
        device: `auto` takes the GPU if there is one. Only on the CPU is a training repeatable bit for bit.
        checkpoint_every: steps after which an interrupted training can go on.
        validation_share: part of the episodes that is held out, to measure the error of the sampled actions on.
        validate_every, rollout_every: steps between these measurements; 0 for none.
    """

    net: NetConfig = TransformerConfig()
    process: Process = DiffusionChain(train_steps=20, prediction="sample")
    solver: SolverConfig = SolverConfig(kind="ddim", steps=2)
    steps: int = 3_500
    batch_size: int = 128
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    ema_power: float = 0.75
    ema_max: float = 0.999
    clip_norm: float = 0.0
    amp: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = 500
    validation_share: float = 0.0
    validate_every: int = 500
    rollout_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.solver.check(self.process)
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "validate_every", "rollout_every", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; allowed: 0 or more")
        for name, value in (("ema_max", self.ema_max), ("betas", max(self.betas)), ("betas", min(self.betas))):
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; allowed: 0 up to 1, 1 excluded")
        if not 0.0 <= self.validation_share <= 0.5:
            raise ConfigError(f"training.validation_share is {self.validation_share}; allowed: 0 to 0.5")
        if self.lr <= 0 or self.ema_power <= 0:
            raise ConfigError(f"training.lr is {self.lr}, ema_power {self.ema_power}; allowed: above 0")
