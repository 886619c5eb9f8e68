"""Settings of `robot_stack.learner.algorithms.hil_serl`."""

from __future__ import annotations

from typing import ClassVar, Self

from policies.residual.config import ExplorationConfig
from robot_stack.learner.algorithms.settings.gaussian import GaussianSettings
from robot_stack.learner.algorithms.settings.sac import GraspConfig, SacConfig


class HilSerlSettings(GaussianSettings, frozen=True, kw_only=True, tag_field="kind", tag="hil_serl"):
    """RL with human corrections (HIL-SERL, arXiv 2410.21845). The settings are the published ones, except that
    networks are 128x128 instead of 256x256 with tanh, and that steps before the first weights are the base policy's.

    For every step one critic-only update and one of all (`cta_ratio` 2). Set `actor.gripper` for a gripper that opens,
    closes or keeps as it is.
    """

    module: ClassVar[str] = "hil_serl"
    reads_images: ClassVar[bool] = True

    exploration: ExplorationConfig = ExplorationConfig(warmup_steps=100, warmup_noise=0.0)
    updates_per_step: float = 2.0
    n_step: int = 1
    discount: float = 0.97
    update: SacConfig = SacConfig(actor_every=2, initial_temperature=1e-2, backup_entropy=False)
    grasp: GraspConfig = GraspConfig()

    def warmup_updates(self) -> int:
        return self.update.critic_only_updates

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {"hil_serl": cls()}
