"""Settings of `robot_stack.learner.algorithms.residual_td3`."""

from __future__ import annotations

from typing import ClassVar, Self

from msgspec import Struct

from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.base import ResidualSettings


class ResidualTd3Config(Struct, frozen=True, kw_only=True):
    """Settings of the updates.

    Attributes:
        critics: size of the ensemble.
        critic_hidden: widths of each critic's hidden layers.
        critic_lr, actor_lr: AdamW learning rates.
        polyak: share of the new parameters in the target's moving average, per update.
        target_noise, target_noise_clip: smoothing of the target action, normalised units.
        critic_only_updates: updates before the actor begins to learn.
        actor_every: critic updates per actor update.
        max_gradient_norm: gradients are scaled down to it.
    """

    critics: int = 5
    critic_hidden: tuple[int, ...] = (128, 128)
    critic_lr: float = 3e-4
    actor_lr: float = 3e-4
    polyak: float = 0.005
    target_noise: float = 0.05
    target_noise_clip: float = 0.1
    critic_only_updates: int = 1_000
    actor_every: int = 1
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.critics < 2:
            raise ConfigError(f"algorithm.critics is {self.critics}; allowed: 2 or more")
        if self.actor_every < 1 or self.critic_only_updates < 0:
            raise ConfigError("algorithm.actor_every must be 1 or more, critic_only_updates 0 or more")
        if min(self.critic_lr, self.actor_lr, self.max_gradient_norm) <= 0 or not 0 < self.polyak <= 1:
            raise ConfigError("algorithm: learning rates and max_gradient_norm must be above 0, polyak in (0, 1]")


class ResidualTd3Settings(ResidualSettings, frozen=True, kw_only=True, tag_field="kind", tag="residual_td3"):
    """Residual off-policy RL: actor, updates, exploration, replay."""

    module: ClassVar[str] = "residual_td3"
    reads_images: ClassVar[bool] = True

    n_step: int = 5
    update: ResidualTd3Config = ResidualTd3Config()

    def warmup_updates(self) -> int:
        return self.update.critic_only_updates

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {"residual_td3": cls()}
