"""What a residual policy is built from: the same on the edge, where it acts, and in the learner that trains it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class ResidualConfig(Struct, frozen=True, kw_only=True):
    """Size of the actor and bound of its correction.

    Attributes:
        hidden: widths of the hidden layers.
        action_scale: largest correction per action element, as a fraction of half the action's range. No larger than
            the noise that the warm-up tried (`ExplorationConfig.warmup_noise`): about larger corrections the critics
            know nothing yet when the actor begins to follow them.
    """

    hidden: tuple[int, ...] = (128, 128)
    action_scale: float = 0.2

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"residual.hidden is {self.hidden}; allowed: one or more widths of 1 or more")
        if not 0.0 <= self.action_scale <= 1.0:
            raise ConfigError(f"residual.action_scale is {self.action_scale}; allowed: 0 to 1")


class ExplorationConfig(Struct, frozen=True, kw_only=True):
    """Noise added on the edge while collecting, as fractions of half the action's range.

    Attributes:
        warmup_steps: environment steps before what is learned takes part.
        warmup: what acts during them: the `base` policy plus noise, or `uniform` noise over the whole range.
        warmup_noise: bound of the uniform noise on the base policy.
        sigma: standard deviation of the Gaussian noise afterwards; actors that explore by themselves need none.
    """

    warmup_steps: int = 2_000
    warmup: Literal["base", "uniform"] = "base"
    warmup_noise: float = 0.2
    sigma: float = 0.05

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "warmup_noise", "sigma"):
            if getattr(self, name) < 0:
                raise ConfigError(f"exploration.{name} is {getattr(self, name)}; allowed: 0 or more")
