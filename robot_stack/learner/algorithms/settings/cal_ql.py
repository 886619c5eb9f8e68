"""Settings of `robot_stack.learner.algorithms.cal_ql`."""

from __future__ import annotations

from typing import ClassVar, Self

from msgspec import Struct

from policies.residual.config import ExplorationConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.critics import ConservativeConfig, CriticsConfig
from robot_stack.learner.algorithms.settings.gaussian import GaussianSettings


class CalQlConfig(Struct, frozen=True, kw_only=True):
    """Settings of the updates.

    Attributes:
        actor_lr, temperature_lr: AdamW learning rates.
        initial_temperature: of the entropy in the actor's loss; learned from there on.
        target_entropy: of the actor; None: minus the number of action elements.
        imitation_weight: of behaviour cloning of demonstrations and human steps in the actor's loss, in units of the
            values' size, so that at 1 both terms have a similar scale (RoboFuME, arXiv 2310.15145); 0: none.
        offline_updates: made on the demonstrations alone, before practice; published: 20 000 on Adroit, 1 000 000 on
            AntMaze.
    """

    actor_lr: float = 1e-4
    temperature_lr: float = 1e-4
    initial_temperature: float = 1.0
    target_entropy: float | None = None
    imitation_weight: float = 0.0
    offline_updates: int = 5_000

    def __post_init__(self) -> None:
        if min(self.imitation_weight, self.offline_updates) < 0:
            raise ConfigError("algorithm.imitation_weight and offline_updates must be 0 or more")
        if min(self.actor_lr, self.temperature_lr, self.initial_temperature) <= 0:
            raise ConfigError("algorithm.actor_lr, temperature_lr and initial_temperature must be above 0")


class CalQlSettings(GaussianSettings, frozen=True, kw_only=True, tag_field="kind", tag="cal_ql"):
    """Conservative offline learning that goes on online without a dip: critics, updates, exploration, replay.

    There are no warm-up steps: the offline updates are made before the first step of practice is learned from. Until
    the first weights are published, the base policy acts, with the warm-up's noise.
    Published (arXiv 2303.05479): a conservative weight of 5, or 1 on Adroit, with 10 action samples; 2 critics.
    """

    module: ClassVar[str] = "cal_ql"

    exploration: ExplorationConfig = ExplorationConfig(warmup_steps=0)
    n_step: int = 1
    discount: float = 0.99
    critics: CriticsConfig = CriticsConfig(critics=2)
    conservative: ConservativeConfig = ConservativeConfig()
    update: CalQlConfig = CalQlConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discount >= 1.0:
            raise ConfigError(f"algorithm.discount is {self.discount}; allowed: above 0, below 1")
        if self.actor.gripper is not None:
            raise ConfigError("algorithm.actor.gripper is set; Cal-QL has Gaussian actions only: leave it null")

    def warmup_updates(self) -> int:
        return self.update.offline_updates

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {"cal_ql": cls(), "cql": cls(conservative=ConservativeConfig(calibrated=False))}
