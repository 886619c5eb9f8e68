"""What is learned: tasks, and the settings of the algorithms on them, all as overrides of the stack's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from msgspec import Struct, field, structs

from robot_stack.config.compose import compose_config
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS

BASE = "base"
"""The base policy alone."""

COMMON = (
    "learner.durability=process",
    "learner.store.seal=false",
    "learner.store.background=false",
)

# What learns a whole policy begins without the base policy's help, but with the same demonstrations.
_ALONE = ("algorithm.exploration.warmup=uniform",)
# What judges single actions is asked for one at every step; q_chunking judges the 8 that are executed of a chunk.
_EVERY_STEP = ("policy.execute_steps=1",)
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "rlpd": _ALONE,
    "hil_serl": _ALONE,
    "sac": _ALONE,
    "expo": _EVERY_STEP,
    "pa_rl": _EVERY_STEP,
}
"""Overrides by algorithm on every task."""

_HANDS_BACK, _RECOVERS = ("edge.operator=scripted_hg_dagger",), ("edge.operator=scripted_rac",)
CORRECTED: Mapping[str, tuple[str, ...]] = {
    "hil_serl": _HANDS_BACK,
    "dagger": _HANDS_BACK,
    "hg_dagger": _HANDS_BACK,
    "iwr": _HANDS_BACK,
    "sirius": _HANDS_BACK,
    "rac": _RECOVERS,
}
"""Overrides of algorithms that learn from corrections, on tasks that have a scripted operator."""

LEARN_FROM_CORRECTIONS_ALONE = frozenset(CORRECTED) - {"hil_serl"}


class LearningTask(Struct, frozen=True, kw_only=True):
    """One task.

    Attributes:
        overrides: what the base policy and all algorithms have in common: robot, task, demonstrations, base policy.
        settings: further overrides by algorithm.
        success_reward: practice is paid 1 for success and else 0. For tasks whose own reward is paid for every step
            near the goal and ends with success, so that more is earned by never succeeding.
        operator: there is a scripted operator, who corrects where an algorithm learns from that.
        lanes: robots side by side in an evaluation.
    """

    name: str
    overrides: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    success_reward: bool = False
    operator: bool = False
    lanes: int = 32

    def offers(self, algorithm: str) -> bool:
        """Whether the algorithm has anything to learn from here."""
        return self.operator or algorithm not in LEARN_FROM_CORRECTIONS_ALONE

    def config(self, runs: Path, run: str, seed: int, algorithm: str, overrides: Sequence[str] = ()) -> StackConfig:
        """The configuration of one run; ConfigError says which override is wrong."""
        chosen = [] if algorithm == BASE else [f"algorithm={algorithm}"]
        corrected = CORRECTED.get(algorithm, ()) if self.operator else ()
        settings = (*SETTINGS.get(algorithm, ()), *corrected, *self.settings.get(algorithm, ()))
        composed = _composed((*COMMON, *self.overrides, *chosen, *settings, *overrides))
        return structs.replace(composed, run=run, runs_directory=str(runs), seed=seed)


@cache
def _composed(overrides: tuple[str, ...]) -> StackConfig:
    return compose_config(overrides)


_PEG = (
    "robot=franka",
    "task=peg_insertion",
    "policy=diffusion",
)
_HIL = (
    "robot=gym_hil",
    "task=panda_pick_cube",
    "task.demonstrations=20",
    "policy=diffusion",
)
_PUSHT = (
    "robot=gym_pusht",
    "task=pusht",
    "task.demonstrations=200",
    "policy=diffusion",
    "policy.horizon=16",
    "policy.training.steps=6000",
)

# The gripper's action opens, keeps or closes: three choices, as HIL-SERL has them.
_GRIPPER = ("algorithm.actor.gripper=3",)

TASKS = {
    task.name: task
    for task in (
        LearningTask(name="peg_insertion", overrides=_PEG, operator=True),
        LearningTask(
            name="panda_pick_cube",
            overrides=_HIL,
            settings=dict.fromkeys(("rlpd", "hil_serl", "sac"), _GRIPPER),
            lanes=4,
        ),
        LearningTask(
            name="pusht",
            overrides=_PUSHT,
            # The action is a place on a board of 512 pixels: half of half the range would be a quarter of the board.
            settings=dict.fromkeys(("residual_td3", "resip"), ("algorithm.residual.action_scale=0.1",)),
            success_reward=True,
        ),
    )
}
DEFAULT_TASKS = ("peg_insertion", "panda_pick_cube")

QUICK_COMMON = (
    "task.demonstrations=5",
    "policy.training.steps=60",
    "policy.training.net.embed_dim=16",
    "policy.training.net.layers=1",
    "policy.training.net.heads=2",
    "policy.training.solver.steps=2",
    "learner.publish_every_steps=50",
    "algorithm.exploration.warmup_steps=100",
    "algorithm.batch_size=32",
)
"""Too small to learn anything: they show that everything runs."""

QUICK_SETTINGS: Mapping[str, tuple[str, ...]] = {"residual_td3": ("algorithm.update.critic_only_updates=20",)}


def quick(task: LearningTask) -> LearningTask:
    """The task with tiny networks and hardly any data."""
    settings = {name: (*task.settings.get(name, ()), *QUICK_SETTINGS.get(name, ())) for name in (*ALGORITHM_PRESETS,)}
    return structs.replace(task, overrides=(*task.overrides, *QUICK_COMMON), settings=settings, lanes=4)


def task_of(name: str) -> LearningTask:
    """The task of that name; ConfigError for an unknown one."""
    if name not in TASKS:
        raise ConfigError(f"there is no learning task '{name}'; choose from {', '.join(TASKS)}")
    return TASKS[name]


def check_algorithm(name: str) -> str:
    """The name itself; ConfigError if nothing is called so."""
    if name != BASE and name not in ALGORITHM_PRESETS:
        raise ConfigError(
            f"there is no algorithm '{name}'; choose from {', '.join((BASE, *sorted(ALGORITHM_PRESETS)))}"
        )
    return name
