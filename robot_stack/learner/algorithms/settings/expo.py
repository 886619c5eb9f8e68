"""Settings of `robot_stack.learner.algorithms.expo`."""

from __future__ import annotations

from typing import ClassVar, Self

from msgspec import Struct

from policies.gaussian.config import GaussianConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.base import ChunkPolicySettings
from robot_stack.learner.algorithms.settings.critics import CriticsConfig
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining


class ExpoConfig(Struct, frozen=True, kw_only=True):
    """Settings of the updates.

    Attributes:
        candidates: samples of the base policy, N; with their edits 2N are compared.
        edit_scale: largest edit of an action, as a share of half its range; published: 0.05 where the base is to be
            refined, up to 0.7 where much is to be explored. 0: the best of N.
        decision_steps: so many first actions of a chunk are judged and edited as one; `policy.execute_steps` has to be
            the same.
        edit_lr, temperature_lr: AdamW learning rates.
        initial_temperature: of the entropy of edits; learned from there on.
        target_entropy: of edits, before they are scaled; None: minus half the number of their elements.
        edit_every: updates of the critics for one of the edits.
    """

    candidates: int = 4
    edit_scale: float = 0.2
    decision_steps: int = 1
    edit_lr: float = 3e-4
    temperature_lr: float = 3e-4
    initial_temperature: float = 0.1
    target_entropy: float | None = None
    edit_every: int = 2

    def __post_init__(self) -> None:
        if min(self.candidates, self.decision_steps, self.edit_every) < 1:
            raise ConfigError("algorithm.candidates, decision_steps and edit_every must be 1 or more")
        if not 0.0 <= self.edit_scale <= 1.0:
            raise ConfigError(f"algorithm.edit_scale is {self.edit_scale}; allowed: 0 to 1")
        if min(self.edit_lr, self.temperature_lr, self.initial_temperature) <= 0:
            raise ConfigError("algorithm.edit_lr, temperature_lr and initial_temperature must be above 0")


class ExpoSettings(ChunkPolicySettings, frozen=True, kw_only=True, tag_field="kind", tag="expo"):
    """Edits of a base policy's samples, and the best of them all: critics, base, edits, updates, replay.

    Every update samples `batch_size` * `candidates` chunks of the base policy: that is what an update costs.
    Published (arXiv 2507.07986): as RLPD, 10 critics with (256, 256), batches of 256, several updates for every step.
    """

    module: ClassVar[str] = "expo"
    near_base: ClassVar[bool] = False

    batch_size: int = 64
    n_step: int = 1
    discount: float = 0.99
    critics: CriticsConfig = CriticsConfig()
    base: BaseTraining = BaseTraining(lr=3e-4)
    edit: GaussianConfig = GaussianConfig()
    update: ExpoConfig = ExpoConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit.gripper is not None:
            raise ConfigError("algorithm.edit.gripper is set; edits are Gaussian only: leave it null")

    def executed_steps(self) -> int:
        return self.update.decision_steps

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {"expo": cls()}
