"""Settings of `robot_stack.learner.algorithms.pa_rl`."""

from __future__ import annotations

from typing import ClassVar, Self

from msgspec import Struct

from policies.residual.config import ExplorationConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings.base import ChunkPolicySettings
from robot_stack.learner.algorithms.settings.critics import ConservativeConfig, CriticsConfig
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining


class PaRlConfig(Struct, frozen=True, kw_only=True):
    """Settings of the updates; published values are in brackets where the defaults differ.

    Attributes:
        candidates: samples of the base policy [32].
        keep: so many of them, the best, are improved [10].
        ascent_steps, ascent_step_size: of gradient ascent on the critics' mean, in units of half the action's range
            [10 steps of 3e-4, with values between -100 and 0].
        decision_steps: so many first actions of a chunk are judged and improved as one; `policy.execute_steps` has to
            be the same.
        temperature: an improved action is chosen by softmax(value / temperature), to act and in the targets; 0: the
            best one.
        distil_temperature: the same for what the base policy learns, so that it keeps more than one way.
        offline_updates: made on the demonstrations alone, before practice.
    """

    candidates: int = 8
    keep: int = 4
    ascent_steps: int = 10
    ascent_step_size: float = 0.01
    decision_steps: int = 1
    temperature: float = 0.0
    distil_temperature: float = 0.1
    offline_updates: int = 1_000

    def __post_init__(self) -> None:
        if min(self.candidates, self.keep, self.decision_steps) < 1 or min(self.ascent_steps, self.offline_updates) < 0:
            raise ConfigError(
                "algorithm.candidates, keep and decision_steps must be 1 or more, ascent_steps and offline_updates 0 "
                "or more"
            )
        if min(self.ascent_step_size, self.temperature, self.distil_temperature) < 0:
            raise ConfigError("algorithm.ascent_step_size, temperature and distil_temperature must be 0 or more")


class PaRlSettings(ChunkPolicySettings, frozen=True, kw_only=True, tag_field="kind", tag="pa_rl"):
    """Improved samples of a base policy, distilled into it: critics, base, updates, replay.

    Every update samples `batch_size` * `candidates` chunks of the base policy, twice: that is what an update costs, and
    why they are sampled in few solver steps.
    There are no warm-up steps: the offline updates are made before the first step of practice is learned from.
    Published (arXiv 2412.06685): 10 critics of (256, 256) that learn histograms, batches of 256, a base of 5 diffusion
    steps with a learning rate of 5e-5.
    """

    module: ClassVar[str] = "pa_rl"
    near_base: ClassVar[bool] = False

    exploration: ExplorationConfig = ExplorationConfig(warmup_steps=0)
    batch_size: int = 64
    n_step: int = 1
    discount: float = 0.99
    critics: CriticsConfig = CriticsConfig()
    conservative: ConservativeConfig = ConservativeConfig(weight=0.005)
    base: BaseTraining = BaseTraining(solver_steps=4)
    update: PaRlConfig = PaRlConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discount >= 1.0:
            raise ConfigError(f"algorithm.discount is {self.discount}; allowed: above 0, below 1")

    def warmup_updates(self) -> int:
        return self.update.offline_updates

    def executed_steps(self) -> int:
        return self.update.decision_steps

    @classmethod
    def presets(cls) -> dict[str, Self]:
        return {"pa_rl": cls()}
