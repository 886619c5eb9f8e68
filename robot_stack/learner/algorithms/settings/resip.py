"""Settings of `robot_stack.learner.algorithms.resip`."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from msgspec import Struct

from policies.residual.config import ExplorationConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.base import ResidualSettings

_SIGMA = 0.05
_SPREAD_OF_UNIFORM = math.sqrt(3.0)  # U(-b, b) has the standard deviation b / sqrt(3)


class ResipConfig(Struct, frozen=True, kw_only=True):
    """Settings of the updates. In brackets: what was published for 1024 simulated robots at once (arXiv 2407.16677).

    Attributes:
        rollout_steps: steps of one version of the weights that an update is made from, at least: it waits for the end
            of an episode (1024 x 700).
        epochs: passes over these steps (50).
        trace: lambda of the advantages (0.95).
        clip: the ratio of new to old probability counts between 1 - clip and 1 + clip (0.2).
        target_kl: the actor stays as it is for the rest of an update once it has moved so far (0.1).
        actor_lr, critic_lr: AdamW learning rates (3e-4, 5e-3).
        critic_hidden: widths of the critic's hidden layers (256, 256).
        reward_clip: of rewards in units of the standard deviation of returns (5).
        max_gradient_norm: gradients are scaled down to it (1).
    """

    rollout_steps: int = 1_000
    epochs: int = 10
    trace: float = 0.95
    clip: float = 0.2
    target_kl: float = 0.1
    actor_lr: float = 3e-4
    critic_lr: float = 1e-3
    critic_hidden: tuple[int, ...] = (128, 128)
    reward_clip: float = 5.0
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.rollout_steps < 1 or self.epochs < 1:
            raise ConfigError("algorithm.rollout_steps and epochs must be 1 or more")
        if not 0.0 <= self.trace <= 1.0 or not 0.0 < self.clip < 1.0:
            raise ConfigError(f"algorithm.trace is {self.trace} (allowed: 0 to 1), clip {self.clip} (between 0 and 1)")
        for name in ("target_kl", "actor_lr", "critic_lr", "reward_clip", "max_gradient_norm"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"algorithm.{name} is {getattr(self, name)}; allowed: above 0")


class ResipSettings(ResidualSettings, frozen=True, kw_only=True, tag_field="kind", tag="resip"):
    """On-policy residual RL: actor, updates, exploration.

    Actions are uncertain by `exploration.sigma` alone, and the learner reckons with that number (published: exp(-1) x
    action_scale 0.1 = 0.037). Version 0, the warm-up, acts with uniform noise of the same spread for
    `exploration.warmup_steps`, which only the critic learns from.

    Demonstrations are not used, nor are `updates_per_step`, `n_step` and `replay_capacity`. `batch_size`: steps of a
    minibatch (published: the whole rollout); `discount` published: 0.999. Steps of older weights are of no use, so
    let a simulated robot wait for the learner: `edge.max_lead_steps=0`. While an edge refuses the newest weights (its
    alarm says why; see `edge.canary_max_change`), none of its steps are learned from.
    """

    module: ClassVar[str] = "resip"

    exploration: ExplorationConfig = ExplorationConfig(
        warmup_steps=1_000, warmup_noise=_SPREAD_OF_UNIFORM * _SIGMA, sigma=_SIGMA
    )
    demonstration_share: float = 0.0
    update: ResipConfig = ResipConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exploration.sigma > 0.0:
            raise ConfigError("algorithm.exploration.sigma is 0; allowed for on-policy learning: above 0")
        if self.exploration.warmup != "base":
            raise ConfigError("algorithm.exploration.warmup is not 'base': a residual learns around its base policy")

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {"resip": cls()}
