"""What the settings of all algorithms share. Nothing here loads torch: reading a configuration must stay quick."""

from __future__ import annotations

from typing import ClassVar, Self

from policies.pixels.config import PixelsConfig
from policies.residual.config import ExplorationConfig, ResidualConfig
from robot_stack.core.checked import Checked
from robot_stack.core.errors import ConfigError

ALL_CAMERAS = "all"


class AlgorithmSettings(Checked, frozen=True, kw_only=True):
    """Base of every algorithm's settings: what the learner's loop needs to know whatever the algorithm is.

    A subclass names its own tag (`tag_field="kind"`), its `module` with a function `build(settings, ingredients)`, and
    its `presets`. What its weights are on the edge is told by the class that it derives from: `ResidualSettings`
    or `ChunkPolicySettings`.

    Attributes:
        near_base: whether new weights change the actions little at once. An actor that goes where the values lead it
            does not, nor does another choice among samples; the edge's canary limits the others.
        exploration: noise on the edge while collecting.
        batch_size: samples of one batch.
        updates_per_step: learner updates for every environment step after the warm-up.
        n_step, discount: of the returns.
        demonstration_share: part of each batch that comes from demonstrations.
        replay_capacity: steps kept for sampling.
    """

    module: ClassVar[str]
    near_base: ClassVar[bool] = True

    exploration: ExplorationConfig = ExplorationConfig()
    batch_size: int = 256
    updates_per_step: float = 1.0
    n_step: int = 3
    discount: float = 0.98
    demonstration_share: float = 0.5
    replay_capacity: int = 200_000

    def positive(self) -> tuple[str, ...]:
        return ("batch_size", "updates_per_step", "n_step", "discount", "replay_capacity")

    def warmup_updates(self) -> int:
        """Updates that are made at once when the warm-up steps are there, before practice goes on."""
        return 0

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """Choices of `algorithm=...` that this class offers."""
        return {}


class StepSettings(AlgorithmSettings, frozen=True, kw_only=True):
    """An algorithm whose weights act at every step.

    Attributes:
        images: names of the cameras whose pictures its networks read beside the vectors; [all]: those that the task's
            features name. Not every algorithm can (`reads_images`). See docs/images-in-rl.md.
        vision: their encoder.
        image_memory_bytes: memory for the newest pictures of practice; older ones are read from the learner's log.
    """

    reads_images: ClassVar[bool] = False

    images: tuple[str, ...] = ()
    vision: PixelsConfig = PixelsConfig()
    image_memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and not self.reads_images:
            raise ConfigError(
                f"algorithm.images is {self.images}, and {self.module} reads vectors only: leave it out, or choose "
                "algorithm=residual_td3, sac, rlpd or hil_serl"
            )
        if len(set(self.images)) < len(self.images) or (ALL_CAMERAS in self.images and len(self.images) > 1):
            raise ConfigError(f"algorithm.images is {self.images}; allowed: every camera once, or [{ALL_CAMERAS}]")
        if self.image_memory_bytes < 0:
            raise ConfigError(f"algorithm.image_memory_bytes is {self.image_memory_bytes}; allowed: 0 or more")


class ResidualSettings(StepSettings, frozen=True, kw_only=True):
    """An algorithm whose weights are a residual actor's (`policies.residual`): a small correction at every step."""

    residual: ResidualConfig = ResidualConfig()


class ChunkPolicySettings(AlgorithmSettings, frozen=True, kw_only=True):
    """An algorithm whose weights predict chunks in the place of the base policy.

    Its file has, beside `build`, a function `chunk_policy(settings, base, version, tensors)` that makes a `Policy` of
    published tensors (`actor_tensors`) and the run's base policy.
    """

    def executed_steps(self) -> int | None:
        """Actions of a chunk that are valued as one, which the edge has to execute; None: any number."""
        return None
