"""Evaluates a policy over seeds, one episode each, and survives being interrupted at any instant.

Every outcome is appended to a progress file and synced before the next episode begins, so a run that is started
again goes on where it was. The file belongs to one subject; a torn last line (power cut while writing) is dropped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from robot_stack.core.errors import ConfigError, CorruptDataError, StorageError
from robot_stack.evaluation.results import EpisodeOutcome, EvaluationResult, EvaluationSubject


class EpisodeRunner(Protocol):
    def run(self, seed: int) -> EpisodeOutcome:
        """One whole episode of this seed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an evaluation stands. The rate counts this process's episodes only, not those found in the file."""

    done: int
    total: int
    successes: int
    episodes_per_s: float
    remaining_s: float

    def __str__(self) -> str:
        return (
            f"{self.done}/{self.total} episodes, {self.successes} successful, "
            f"{self.episodes_per_s * 60:.1f} per minute, {self.remaining_s:.0f} s left"
        )


def evaluate(
    runner: EpisodeRunner,
    subject: EvaluationSubject,
    seeds: Sequence[int],
    *,
    progress_path: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> EvaluationResult:
    """Run every seed that `progress_path` does not have yet, in the order given, and return all in that order.

    Raises ConfigError if the file belongs to another subject, CorruptDataError if it was damaged in its middle.
    """
    if len(set(seeds)) != len(seeds):
        raise ConfigError("an evaluation needs different seeds; one was given twice")
    with _progress_file(progress_path, subject) as (file, outcomes):
        todo = [seed for seed in seeds if seed not in outcomes]
        started = time.monotonic()
        for count, seed in enumerate(todo, start=1):
            outcome = runner.run(seed)
            if outcome.seed != seed:
                raise ConfigError(f"the runner was asked for seed {seed} and reports seed {outcome.seed}")
            _append(file, msgspec.json.encode(outcome))
            outcomes[seed] = outcome
            rate = count / max(time.monotonic() - started, 1e-9)
            finished = [outcomes[seed] for seed in seeds if seed in outcomes]
            on_progress(
                Progress(
                    done=len(finished),
                    total=len(seeds),
                    successes=sum(episode.success for episode in finished),
                    episodes_per_s=rate,
                    remaining_s=(len(todo) - count) / rate,
                )
            )
    return EvaluationResult(subject=subject, episodes=tuple(outcomes[seed] for seed in seeds))


@contextmanager
def _progress_file(path: Path, subject: EvaluationSubject) -> Iterator[tuple[BinaryIO, dict[int, EpisodeOutcome]]]:
    """The file, open behind its last whole line, and what it holds: the subject first, then one outcome per line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error}") from error
    with file:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if whole < len(content):
            file.truncate(whole)
        if not lines:
            _append(file, msgspec.json.encode(subject))
        yield file, _parse(path, lines, subject)


def _parse(path: Path, lines: list[bytes], subject: EvaluationSubject) -> dict[int, EpisodeOutcome]:
    if not lines:
        return {}
    try:
        found = msgspec.json.decode(lines[0], type=EvaluationSubject)
        outcomes = [msgspec.json.decode(line, type=EpisodeOutcome) for line in lines[1:]]
    except msgspec.DecodeError as error:
        raise CorruptDataError(f"{path} is damaged: {error}; move it away to evaluate from the start") from error
    if found != subject:
        raise ConfigError(
            f"{path} holds episodes of {found}, not of {subject}; use another file, or move it away to start anew"
        )
    return {outcome.seed: outcome for outcome in outcomes}


def _append(file: BinaryIO, line: bytes) -> None:
    try:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write {file.name}: {error}; free space and start again to go on") from error
