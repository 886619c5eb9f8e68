"""What an evaluation found, as typed records, and as JSON on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import ConfigError, CorruptDataError, StorageError
from robot_stack.core.files import write_atomically
from robot_stack.evaluation.statistics import Comparison, Interval, wilson_interval

RESULT_SCHEMA_VERSION = 1


class EpisodeOutcome(Struct, frozen=True, kw_only=True):
    """One evaluated episode. `return_` is the undiscounted sum of rewards; `duration_s` is wall time."""

    seed: int
    success: bool
    steps: int
    return_: float
    duration_s: float


class EvaluationSubject(Struct, frozen=True, kw_only=True):
    """What was evaluated: everything but the seeds that the outcome depends on.

    `policy` is the label people read; `weights_version` is 0 where nothing was learned online; `replan_every` is the
    number of control steps executed from each action chunk.
    """

    policy: str
    task: str
    robot: str
    weights_version: int
    replan_every: int

    def __str__(self) -> str:
        return (
            f"{self.policy} (weights {self.weights_version}, replanning every {self.replan_every} steps) "
            f"on {self.task} with {self.robot}"
        )


class EvaluationResult(Struct, frozen=True, kw_only=True):
    """All episodes of one subject, one per seed."""

    subject: EvaluationSubject
    episodes: tuple[EpisodeOutcome, ...]
    schema_version: int = RESULT_SCHEMA_VERSION

    def __post_init__(self) -> None:
        seeds = [episode.seed for episode in self.episodes]
        if len(set(seeds)) != len(seeds):
            raise ConfigError(f"the evaluation of {self.subject} counts a seed twice; give each seed once")

    @property
    def n(self) -> int:
        return len(self.episodes)

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of successful episodes; 0 without episodes."""
        return self.successes / self.n if self.n else 0.0

    @property
    def mean_return(self) -> float:
        return sum(episode.return_ for episode in self.episodes) / self.n if self.n else 0.0

    @property
    def mean_steps(self) -> float:
        return sum(episode.steps for episode in self.episodes) / self.n if self.n else 0.0

    def interval(self, confidence: float = 0.95) -> Interval:
        """Wilson's interval for the success rate."""
        return wilson_interval(self.successes, self.n, confidence)


def combined(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """One result of several of the same subject over different seeds; ConfigError if they do not belong together."""
    if not results:
        raise ConfigError("there are no results to combine")
    for result in results[1:]:
        if result.subject != results[0].subject:
            raise ConfigError(f"results of {results[0].subject} and of {result.subject} cannot be combined")
    return EvaluationResult(
        subject=results[0].subject, episodes=tuple(episode for result in results for episode in result.episodes)
    )


def compare(before: EvaluationResult, after: EvaluationResult) -> Comparison:
    """Pair the episodes by seed; ConfigError unless both saw exactly the same seeds of the same task."""
    outcomes_before = {episode.seed: episode.success for episode in before.episodes}
    outcomes_after = {episode.seed: episode.success for episode in after.episodes}
    unpaired = outcomes_before.keys() ^ outcomes_after.keys()
    if before.subject.task != after.subject.task or unpaired:
        raise ConfigError(
            f"{before.subject} and {after.subject} cannot be compared in pairs: "
            f"{len(unpaired)} seeds were run by one of them only; evaluate both on the same task and seeds"
        )
    seeds = sorted(outcomes_before)
    return Comparison.of([outcomes_before[seed] for seed in seeds], [outcomes_after[seed] for seed in seeds])


def save(result: EvaluationResult, path: Path) -> None:
    """Write the result as JSON, atomically: the file is the old one or the whole new one."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(result)))


def load(path: Path) -> EvaluationResult:
    """Read a saved result; StorageError or CorruptDataError name the file."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=EvaluationResult)
    except OSError as error:
        raise StorageError(f"cannot read the evaluation result {path}: {error}") from error
    except (msgspec.DecodeError, ConfigError) as error:
        raise CorruptDataError(f"{path} is no evaluation result: {error}") from error
    if result.schema_version != RESULT_SCHEMA_VERSION:
        raise CorruptDataError(
            f"{path} has schema version {result.schema_version}, this release reads {RESULT_SCHEMA_VERSION}; "
            "evaluate again"
        )
    return result
