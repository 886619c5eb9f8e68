"""Settings of `robot_stack.learner.algorithms.q_chunking`."""

from __future__ import annotations

from typing import ClassVar, Self

from msgspec import Struct

from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.base import ChunkPolicySettings
from robot_stack.learner.algorithms.settings.critics import CriticsConfig
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining


class QChunkingConfig(Struct, frozen=True, kw_only=True):
    """Settings of the updates.

    Attributes:
        decision_steps: h, so many first actions of a chunk are valued as one and executed without another look;
            `policy.execute_steps` has to be the same (published: 5).
        candidates: N, chunks of the base policy that the best is taken of, on the edge and in targets (published: 32).
        warmup_updates: updates before what was learned takes part in practice (published: a million, offline).
    """

    decision_steps: int = 8
    candidates: int = 4
    warmup_updates: int = 1_000

    def __post_init__(self) -> None:
        if min(self.decision_steps, self.candidates) < 1 or self.warmup_updates < 0:
            raise ConfigError(
                f"algorithm.update has decision_steps {self.decision_steps}, candidates {self.candidates} (allowed: 1 "
                f"or more) and warmup_updates {self.warmup_updates} (allowed: 0 or more)"
            )


class QChunkingSettings(ChunkPolicySettings, frozen=True, kw_only=True, tag_field="kind", tag="q_chunking"):
    """Values of whole chunks, and the best of the base policy's samples: critics, base, updates, replay.

    Every update samples `batch_size` * `candidates` chunks of the base policy: that is what an update costs.
    Published (arXiv 2507.07969): batches of 256 for critics and base, 2 critics with (512, 512, 512, 512), one update
    of the base for every one of the critics, at the same learning rate, discount 0.99. `n_step` is not used: the
    returns are those of `decision_steps`.
    """

    module: ClassVar[str] = "q_chunking"
    near_base: ClassVar[bool] = False

    batch_size: int = 64
    n_step: int = 1
    discount: float = 0.99
    critics: CriticsConfig = CriticsConfig(critics=2)
    base: BaseTraining = BaseTraining(lr=3e-4)
    update: QChunkingConfig = QChunkingConfig()

    def warmup_updates(self) -> int:
        return self.update.warmup_updates

    def executed_steps(self) -> int:
        return self.update.decision_steps

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {"q_chunking": cls()}
