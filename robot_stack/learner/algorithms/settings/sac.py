"""Settings of `robot_stack.learner.algorithms.sac`: soft actor-critic, and RLPD."""

from __future__ import annotations

from typing import ClassVar, Self

from msgspec import Struct

from policies.residual.config import ExplorationConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.gaussian import GaussianSettings


class SacConfig(Struct, frozen=True, kw_only=True):
    """Settings of the updates.

    Attributes:
        critics: size of the ensemble.
        subset: the target is the minimum over so many of them, chosen anew for every update.
        critic_hidden: widths of each critic's hidden layers.
        bins: values are histograms of so many bins over [value_min, value_max] and learned by cross-entropy (HL-Gauss,
            arXiv 2403.03950); 0: they are numbers and learned by the squared error.
        value_min, value_max: range of the histograms; targets outside are moved to its ends.
        critic_lr, actor_lr: AdamW learning rates.
        polyak: share of the new parameters in the target's moving average, per update.
        initial_temperature: weight of the entropy at the beginning.
        temperature_lr: AdamW learning rate of its logarithm; 0: it stays as it is.
        target_entropy: for every continuous element of the action; the temperature moves the actor's entropy there.
        backup_entropy: the entropy of the next action is part of the target.
        critic_only_updates: updates before the actor begins to learn.
        actor_every: critic updates per actor update.
        max_gradient_norm: gradients are scaled down to it.
    """

    critics: int = 2
    subset: int = 2
    critic_hidden: tuple[int, ...] = (128, 128)
    bins: int = 0
    value_min: float = 0.0
    value_max: float = 1.0
    critic_lr: float = 3e-4
    actor_lr: float = 3e-4
    polyak: float = 0.005
    initial_temperature: float = 1.0
    temperature_lr: float = 3e-4
    target_entropy: float = -0.5
    backup_entropy: bool = True
    critic_only_updates: int = 0
    actor_every: int = 1
    max_gradient_norm: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.subset <= self.critics:
            raise ConfigError(f"algorithm.update.subset is {self.subset}; allowed: 1 to critics, {self.critics}")
        if self.bins and (self.bins < 2 or not self.value_min < self.value_max):
            raise ConfigError(
                f"algorithm.update.bins is {self.bins} over [{self.value_min}, {self.value_max}]; allowed: 0, or 2 and "
                "more over a rising range"
            )
        if self.actor_every < 1 or self.critic_only_updates < 0:
            raise ConfigError("algorithm.update.actor_every must be 1 or more, critic_only_updates 0 or more")
        above_zero = (self.critic_lr, self.actor_lr, self.max_gradient_norm, self.initial_temperature)
        if min(above_zero) <= 0 or self.temperature_lr < 0 or not 0 < self.polyak <= 1:
            raise ConfigError(
                "algorithm.update: critic_lr, actor_lr, max_gradient_norm and initial_temperature must be above 0, "
                "temperature_lr 0 or more, polyak in (0, 1]"
            )


class GraspConfig(Struct, frozen=True, kw_only=True):
    """Settings of the gripper's own critic, which exists where `actor.gripper` is set.

    Attributes:
        lr: AdamW learning rate.
        penalty: taken from the reward of a step that tells the gripper to open or close.
    """

    lr: float = 3e-4
    penalty: float = 0.02

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.penalty < 0:
            raise ConfigError(f"algorithm.grasp: lr is {self.lr}, penalty {self.penalty}; allowed: above 0, 0 or more")


class SacSettings(GaussianSettings, frozen=True, kw_only=True, tag_field="kind", tag="sac"):
    """Off-policy RL of a whole policy, without and with demonstrations.

    `sac` (arXiv 1812.05905; published: networks of 256x256, initial temperature 1) learns from practice alone. `rlpd`
    (arXiv 2302.02948) takes half of every batch from demonstrations. Published: 10 critics, subset 2, networks of
    256x256, 20 updates per step with the actor's once in 20, discount .99, n_step 1, initial temperature 1 (0.1 from
    pixels), entropy in the target except for sparse rewards and pixels. Here the networks are smaller and there are 4
    updates per step, which one CPU core keeps up with. For rewards of 0 and 1 the temperature begins at .01, as SERL's
    (arXiv 2401.16013): at 1 the values would be those of the entropy for thousands of updates. n_step is 3.
    """

    module: ClassVar[str] = "sac"
    reads_images: ClassVar[bool] = True

    update: SacConfig = SacConfig()
    grasp: GraspConfig = GraspConfig()

    def warmup_updates(self) -> int:
        return self.update.critic_only_updates

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {
            "sac": cls(
                exploration=ExplorationConfig(warmup="uniform"),
                update=SacConfig(initial_temperature=0.01),
                n_step=1,
                discount=0.99,
                demonstration_share=0.0,
            ),
            "rlpd": cls(
                updates_per_step=4.0,
                update=SacConfig(critics=10, actor_every=4, initial_temperature=0.01, backup_entropy=False),
            ),
        }
