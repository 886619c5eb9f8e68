"""Settings of `robot_stack.learner.algorithms.imitation`."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, get_args

from msgspec import Struct

from policies.residual.config import ExplorationConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.base import ChunkPolicySettings

RuleName = Literal["bc", "dagger", "hg_dagger", "iwr", "sirius", "rac"]


class FineTuningConfig(Struct, frozen=True, kw_only=True):
    """Settings of the gradient steps.

    AdamW at a constant rate after a linear warm-up, because nobody knows beforehand how long the run will be; what is
    published is a moving average of the weights (power-law warm-up).

    Attributes:
        weight_decay: of matrices and convolutions only, never of biases, norms and positions.
        clip_norm: gradients of a larger norm are scaled down to it; 0 for no limit.
    """

    lr: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    ema_power: float = 0.75
    ema_max: float = 0.995

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.ema_power <= 0:
            raise ConfigError(f"update.lr is {self.lr}, ema_power {self.ema_power}; allowed: above 0")
        if min(self.warmup_steps, self.weight_decay, self.clip_norm) < 0:
            raise ConfigError("update.warmup_steps, weight_decay and clip_norm must be 0 or more")
        for name, value in (("ema_max", self.ema_max), ("betas", max(self.betas)), ("betas", min(self.betas))):
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"update.{name} is {getattr(self, name)}; allowed: 0 up to 1, 1 excluded")


class ImitationSettings(ChunkPolicySettings, frozen=True, kw_only=True, tag_field="kind", tag="imitation"):
    """The base policy goes on learning by imitation while the robot works: from which steps is the rule's matter.

    bc: full demonstrations. dagger: every step that an expert labelled. hg_dagger: whatever a person drove. iwr: every
    step, half of each batch from interventions. sirius: every step, by classes. rac: recoveries and corrections, and
    the policy's own steps only of episodes that succeeded without help. Demonstrations always count too.

    Attributes:
        intervention_share: of each batch (iwr, sirius), once there are interventions.
        pre_intervention_share, pre_intervention_steps: of each batch, and how many steps before an intervention are
            such (sirius).
    """

    module: ClassVar[str] = "imitation"

    rule: RuleName = "rac"
    update: FineTuningConfig = FineTuningConfig()
    intervention_share: float = 0.5
    pre_intervention_share: float = 0.002
    pre_intervention_steps: int = 15

    exploration: ExplorationConfig = ExplorationConfig(warmup_steps=0, warmup_noise=0.0, sigma=0.0)
    batch_size: int = 128
    updates_per_step: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("intervention_share", "pre_intervention_share"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"algorithm.{name} is {getattr(self, name)}; allowed: between 0 and 1")
        if self.intervention_share + self.pre_intervention_share >= 1.0:
            raise ConfigError("algorithm.intervention_share and pre_intervention_share must be less than 1 together")
        if self.pre_intervention_steps < 0:
            raise ConfigError(f"algorithm.pre_intervention_steps is {self.pre_intervention_steps}; allowed: 0 or more")

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {rule: cls(rule=rule) for rule in get_args(RuleName)}
