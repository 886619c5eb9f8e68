"""Practice without resets (RoboFuME, arXiv 2310.15145; MEDAL, arXiv 2205.05212): who decides what the next episode is.

A task and its undoing take turns, each from where the other one ended. A direction is over when its goal is reached or
at the episode's step limit. A failed backward attempt is followed by another one, because forward would begin in a
place that is no start, maybe in its own goal. A person is called when nothing was reached for some attempts, when the
scene left the workspace, or after a fault; each call is counted and kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct, structs

from robot_stack.core.direction import Direction
from robot_stack.core.errors import RobotStackError, StorageError
from robot_stack.core.files import write_atomically
from robot_stack.edge.control_loop import EpisodeId, EpisodeSummary, LoopStep
from robot_stack.edge.reset_free_config import PracticeConfig

logger = logging.getLogger(__name__)

FIRST_SETUP = "the scene was never set up"
OUT_OF_REACH = "the scene is out of the workspace"


class Call(Struct, frozen=True, kw_only=True):
    """A person was called. `episode`: the one that they set up the scene for; `when_s`: Unix time in seconds."""

    number: int
    episode: int
    reason: str
    when_s: float


class DirectionCounts(Struct, frozen=True, kw_only=True):
    attempts: int = 0
    reached: int = 0
    steps: int = 0


class PracticeRecord(Struct, frozen=True, kw_only=True):
    """How practice without resets stands; enough to go on from after a restart.

    `following`: direction of the next episode; `call_for`: why a person is needed before it, '' if none is.
    `failures`: attempts in a row that reached nothing.
    """

    forward: DirectionCounts = DirectionCounts()
    backward: DirectionCounts = DirectionCounts()
    calls: int = 0
    failures: int = 0
    following: Direction = Direction.FORWARD
    call_for: str = FIRST_SETUP

    def counts(self, direction: Direction) -> DirectionCounts:
        return self.forward if direction is Direction.FORWARD else self.backward


class Episodes(Protocol):
    """Says what the next episode is, and hears how it went."""

    def next(self, number: int, seed: int) -> EpisodeId:
        """The next episode; may wait for a person."""

    def ended(self, summary: EpisodeSummary) -> None: ...

    def failed(self, error: RobotStackError) -> None:
        """The episode that was begun could not go on."""

    def on_step(self, step: LoopStep) -> None: ...


class Episodic:
    """The scene is set up for every episode; `Episodes`."""

    def next(self, number: int, seed: int) -> EpisodeId:
        return EpisodeId(number, seed)

    def ended(self, summary: EpisodeSummary) -> None:
        """Nothing follows from it."""

    def failed(self, error: RobotStackError) -> None:
        """Nothing follows from it."""

    def on_step(self, step: LoopStep) -> None:
        """Nothing follows from it."""


class ResetFree:
    """`Episodes` without resets; an observer of the control loop.

    Args:
        folder: where `practice.json`, how it stands, and `calls.jsonl`, every call, are kept.
        answer: called when a person is needed; returns once they have set up the scene. The reset of a simulated
            scene follows by itself.
    """

    def __init__(self, config: PracticeConfig, folder: Path, answer: Callable[[Call], None]) -> None:
        self._config = config
        self._folder = folder
        self._answer = answer
        self._asked = self._lost = False
        self.record = read_practice(folder) or PracticeRecord()

    def next(self, number: int, seed: int) -> EpisodeId:
        record = self.record
        if not record.call_for:
            is_backward = record.following is Direction.BACKWARD
            limit = self._config.backward_max_steps if is_backward else 0
            return EpisodeId(number, seed, record.following, limit or None)
        if not self._asked:
            self._asked = True
            self._call(number, record.call_for)
        self._asked = False
        self.record = structs.replace(self.record, call_for="", failures=0, following=Direction.FORWARD)
        return EpisodeId(number, seed)

    def _call(self, number: int, reason: str) -> None:
        call = Call(number=self.record.calls, episode=number, reason=reason, when_s=time.time())
        self.record = structs.replace(self.record, calls=call.number + 1)
        logger.info("call %d for a person: %s", call.number + 1, reason)
        _append(self._folder / CALLS, call)
        self._keep()
        self._answer(call)

    def on_step(self, step: LoopStep) -> None:
        task = step.stepped.state.task
        self._lost = task is not None and task.truncated and not task.success

    def ended(self, summary: EpisodeSummary) -> None:
        direction = summary.episode.here or Direction.FORWARD
        at_limit = self._config.backward_limit_reaches and direction is Direction.BACKWARD
        reached = summary.success or at_limit
        self._count(direction, summary.steps, reached=reached)
        failures = self.record.failures
        if summary.success:
            failures = 0
        elif not at_limit:
            failures += 1
        following = direction.other if reached else Direction.BACKWARD
        call_for = OUT_OF_REACH if self._lost else self._too_often(failures)
        self.record = structs.replace(self.record, failures=failures, following=following, call_for=call_for)
        self._lost = False
        self._keep()

    def _count(self, direction: Direction, steps: int, *, reached: bool) -> None:
        before = self.record.counts(direction)
        counts = DirectionCounts(
            attempts=before.attempts + 1, reached=before.reached + reached, steps=before.steps + steps
        )
        self.record = structs.replace(self.record, **{direction.value: counts})

    def _too_often(self, failures: int) -> str:
        if failures < self._config.failures_to_call:
            return ""
        return f"{failures} attempts in a row reached no goal"

    def failed(self, error: RobotStackError) -> None:
        self.record = structs.replace(self.record, call_for=f"the episode could not go on: {error}")
        self._lost = False
        self._keep()

    def _keep(self) -> None:
        try:
            write_atomically(self._folder / RECORD, msgspec.json.encode(self.record))
        except StorageError as error:  # counts are not worth an episode, and a full disk has alarms of its own
            logger.warning("the state of practice was not saved: %s", error)


RECORD, CALLS = "practice.json", "calls.jsonl"


def read_practice(folder: Path) -> PracticeRecord | None:
    """How practice in that folder stood last, or None if there was none; StorageError if the file is none."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=PracticeRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"{path} is no state of practice: {error}. Remove it; the scene is set up anew") from error


def read_calls(folder: Path) -> list[Call]:
    """Every call of a person, in order."""
    path = folder / CALLS
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Call) for line in path.read_bytes().splitlines() if line]


def _append(path: Path, call: Call) -> None:
    try:
        with path.open("ab") as file:
            file.write(msgspec.json.encode(call) + b"\n")
    except OSError as error:
        logger.warning("the call was not written to %s: %s", path, error)
