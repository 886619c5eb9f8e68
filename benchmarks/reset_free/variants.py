"""What is compared: one task, one algorithm, and who says that a goal is reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, structs

from benchmarks.learning.tasks import COMMON
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.rewards.settings import MedalSettings, RewardSettings, TaskPredicateSettings

BASE = "base"

TASK = (
    "robot=franka",
    "task=peg_cycle",
    "policy=diffusion",
    "policy.training.steps=3000",
    "task.max_attempts=900",
    *COMMON,
)
ALGORITHMS = {
    "residual_td3": ("algorithm=residual_td3", "algorithm.exploration.warmup_steps=1000"),
    "cal_ql": ("algorithm=cal_ql", "algorithm.update.imitation_weight=1.0"),
}
QUICK = (
    "task.demonstrations=6",
    "policy.training.steps=60",
    "policy.training.net.embed_dim=16",
    "policy.training.net.layers=1",
    "policy.training.net.heads=2",
    "policy.training.solver.steps=2",
    "learner.publish_every_steps=50",
    "algorithm.exploration.warmup_steps=50",
    "algorithm.batch_size=32",
)
QUICK_ALGORITHMS = {
    "residual_td3": ("algorithm.update.critic_only_updates=20",),
    "cal_ql": ("algorithm.update.offline_updates=20",),
}


class Variant(Struct, frozen=True, kw_only=True):
    """Who says in practice that a goal is reached.

    Attributes:
        words: for the table.
        reset_free: False: the scene is set up for every episode, forward only.
        learned: a classifier for each direction says when a goal is reached, and pays.
        false_positive_rate, consecutive: of the task's verdicts that are turned into successes, and how many positive
            ones in a row make a success.
        medal: backward is paid by MEDAL's discriminator, and ends after so many steps; 0: it is paid like forward.
    """

    words: str
    reset_free: bool = True
    learned: bool = False
    false_positive_rate: float = 0.0
    consecutive: int = 1
    medal: int = 0

    def reward(self) -> RewardSettings:
        """What the learner is told; whatever else is judged, is judged on the robot's side and recorded."""
        return MedalSettings() if self.medal else TaskPredicateSettings()


VARIANTS = {
    "oracle": Variant(words="task's own verdict"),
    "learned": Variant(words="classifier for each direction", learned=True),
    "fp5": Variant(words="5 % false positives", false_positive_rate=0.05),
    "fp20": Variant(words="20 % false positives", false_positive_rate=0.2),
    "medal": Variant(words="MEDAL backward", medal=30),
    "fp20_thrice": Variant(words="20 % false positives, three in a row", false_positive_rate=0.2, consecutive=3),
    "episodic": Variant(words="scene reset for every episode", reset_free=False),
}
DEFAULT_VARIANTS = ("oracle", "learned", "fp5", "fp20", "medal")


def variant_of(name: str) -> Variant:
    if name not in VARIANTS:
        raise ConfigError(f"there is no variant '{name}'; choose from {', '.join(VARIANTS)}")
    return VARIANTS[name]


def config_of(
    runs: Path, name: str, seed: int, algorithm: str, overrides: Sequence[str], *, quick: bool
) -> StackConfig:
    """The configuration of one run; `name` is BASE or a variant's."""
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"there is no algorithm '{algorithm}' here; choose from {', '.join(ALGORITHMS)}")
    small = (*QUICK, *QUICK_ALGORITHMS[algorithm]) if quick else ()
    composed = compose_config((*TASK, *ALGORITHMS[algorithm], *small, *overrides))
    config = structs.replace(composed, run=name, runs_directory=str(runs), seed=seed)
    if name == BASE:
        return config
    variant = variant_of(name)
    practice = structs.replace(
        config.practice,
        mode="reset_free" if variant.reset_free else "episodic",
        backward_limit_reaches=variant.medal > 0,
        backward_max_steps=variant.medal,
    )
    return structs.replace(config, practice=practice, reward=variant.reward())
