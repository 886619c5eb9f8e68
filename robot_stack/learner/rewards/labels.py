"""What people say about recorded episodes and steps: a small file that only grows, one JSON object a line.

A label is on the disk when `add_label` returns. A last line that a crash tore was never confirmed: it is left out, and
taken away by the next label. Of two labels for the same thing the later one counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import ConfigError, CorruptDataError, StorageError
from robot_stack.core.messages import Step
from robot_stack.core.protocols import Judgement, Outcome, RewardModel
from robot_stack.learner.rewards.outcomes import EpisodeKey, episode_key, verdict

logger = logging.getLogger(__name__)


class HumanLabel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One person's verdict: on a whole episode, or on the state after one step of it (`index`).

    An episode that succeeded did so with its last step. `who`: the person's name; `when_s`: Unix time in seconds.
    """

    run: str
    robot: str
    session: str
    episode: int
    success: bool
    who: str
    when_s: float
    index: int | None = None

    def __post_init__(self) -> None:
        if not self.who:
            raise ConfigError("a label needs the name of the person who gave it; `who` is empty")


def add_label(path: Path, label: HumanLabel) -> None:
    """Add a label, synced to the disk; StorageError if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            between = b""
            if whole < len(content):
                if _decoded(content[whole:]) is None:
                    file.truncate(whole)
                else:
                    between = b"\n"  # complete but for the newline, as an editor leaves it
            file.write(between + msgspec.json.encode(label) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"the label cannot be written to {path}: {error}") from error


def read_labels(path: Path) -> list[HumanLabel]:
    """All labels in the order in which they were given; none if there is no file.

    CorruptDataError names a line that is none, but for a torn last one.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"the labels in {path} cannot be read: {error}") from error
    *lines, tail = content.split(b"\n")
    labels = []
    for number, line in enumerate(lines, 1):
        label = _decoded(line)
        if label is None:
            raise CorruptDataError(
                f"{path}: line {number} is no label: {line[:80]!r}; repair or remove that line by hand"
            )
        labels.append(label)
    last = _decoded(tail) if tail else None
    if tail and last is None:
        logger.warning("%s: the last line is torn and was left out: %r", path, tail[:80])
    return labels if last is None else [*labels, last]


class HumanLabels:
    """What people said; where nobody said anything, what another model says. A `RewardModel`.

    The labels are those that are in the file now: later ones count for the next one who reads it.
    """

    def __init__(self, path: Path, otherwise: RewardModel) -> None:
        labels = read_labels(path)
        self._otherwise = otherwise
        self._episodes: dict[EpisodeKey, bool] = {}
        self._steps: dict[tuple[EpisodeKey, int], bool] = {}
        for label in labels:
            key = (label.run, label.robot, label.session, label.episode)
            if label.index is None:
                self._episodes[key] = label.success
            else:
                self._steps[key, label.index] = label.success
        self.name = f"human_label over {otherwise.name}"
        digest = hashlib.sha256(otherwise.version.encode())
        digest.update(msgspec.json.encode(labels))
        self.version = digest.hexdigest()

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        said = [self._said(outcome.step) for outcome in outcomes]
        asked = [outcome for outcome, label in zip(outcomes, said, strict=True) if label is None]
        others = iter(self._otherwise.judge(asked) if asked else [])
        return [next(others) if label is None else verdict(label, float(label), sure=True) for label in said]

    def _said(self, step: Step) -> bool | None:
        key = episode_key(step)
        label = self._steps.get((key, step.index))
        if label is None and key in self._episodes:
            return self._episodes[key] and (step.terminated or step.truncated)
        return label


def _decoded(line: bytes) -> HumanLabel | None:
    try:
        return msgspec.json.decode(line, type=HumanLabel)
    except (msgspec.DecodeError, UnicodeDecodeError, ConfigError):
        return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
