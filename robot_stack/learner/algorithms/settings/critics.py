"""Settings of critics, and of what keeps them conservative, which several algorithms share."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class CriticsConfig(Struct, frozen=True, kw_only=True):
    """An ensemble of critics.

    Attributes:
        critics: size of the ensemble; the target is the lower one of two that are drawn at random.
        hidden: widths of each critic's hidden layers.
        lr: AdamW learning rate.
        polyak: share of the new parameters in the target's moving average, per update.
        max_gradient_norm: gradients are scaled down to it.
    """

    critics: int = 4
    hidden: tuple[int, ...] = (128, 128)
    lr: float = 3e-4
    polyak: float = 0.005
    max_gradient_norm: float = 10.0

    def __post_init__(self) -> None:
        if self.critics < 1 or not self.hidden or min(self.hidden) < 1:
            raise ConfigError(
                f"there are {self.critics} critics with hidden layers {self.hidden}; allowed: 1 or more of each"
            )
        if min(self.lr, self.max_gradient_norm) <= 0 or not 0 < self.polyak <= 1:
            raise ConfigError("critics: lr and max_gradient_norm must be above 0, polyak in (0, 1]")


class ConservativeConfig(Struct, frozen=True, kw_only=True):
    """What pushes values of actions that are not in the data down (CQL, Cal-QL).

    Attributes:
        weight: of the gap between the values of all actions and of those in the data, for every critic.
        calibrated: values of the policy's actions count at least as much as the Monte-Carlo return; False: CQL.
        action_samples: random actions in the gap; of Cal-QL also the actor's, here and at the next state.
        failed_reward: the reward of every step that is no success. An episode in which nothing else came is counted
            as if it went on so for ever, whatever ended it. None: returns stay as they were recorded. Only for rewards
            where a success brings another one.
    """

    weight: float = 5.0
    calibrated: bool = True
    action_samples: int = 4
    failed_reward: float | None = None

    def __post_init__(self) -> None:
        if self.weight < 0 or self.action_samples < 1:
            raise ConfigError("algorithm.conservative: weight must be 0 or more, action_samples 1 or more")
