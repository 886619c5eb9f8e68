"""The learner's store of recorded steps: every step counts exactly once, and an answer means it is on the disk."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from robot_stack.buffer.log import Durability, DurableLog
from robot_stack.core.codec import unpack
from robot_stack.core.errors import MessageError
from robot_stack.core.messages import FloatArray, Step


class SessionKey(NamedTuple):
    run: str
    robot: str
    session: str


class SequenceSet:
    """A set of whole numbers kept as ranges: one pair of numbers for a session without gaps."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, value: int) -> bool:
        position = bisect_right(self._starts, value) - 1
        return position >= 0 and value < self._stops[position]

    def add(self, value: int) -> None:
        position = bisect_right(self._starts, value)
        if position and value < self._stops[position - 1]:
            return
        self._count += 1
        joins_left = position > 0 and self._stops[position - 1] == value
        joins_right = position < len(self._starts) and self._starts[position] == value + 1
        if joins_left and joins_right:
            self._stops[position - 1] = self._stops.pop(position)
            del self._starts[position]
        elif joins_left:
            self._stops[position - 1] = value + 1
        elif joins_right:
            self._starts[position] = value
        else:
            self._starts.insert(position, value)
            self._stops.insert(position, value + 1)

    def add_range(self, start: int, stop: int) -> None:
        """Add start .. stop - 1."""
        first, last = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        merged = range(first, last)
        if merged:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._count += stop - start - sum(self._stops[i] - self._starts[i] for i in merged)
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def ranges(self) -> list[tuple[int, int]]:
        """(start, stop) of each range, in order."""
        return list(zip(self._starts, self._stops, strict=True))


class KnownSteps:
    """Which steps are stored, by (run, robot, session) and seq."""

    def __init__(self) -> None:
        self.sessions: dict[SessionKey, SequenceSet] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, step: tuple[SessionKey, int]) -> bool:
        key, seq = step
        return seq in self.sessions.get(key, ())

    def add(self, key: SessionKey, seq: int) -> None:
        self.add_range(key, seq, seq + 1)

    def add_range(self, key: SessionKey, start: int, stop: int) -> None:
        known = self.sessions.setdefault(key, SequenceSet())
        before = len(known)
        if stop == start + 1:
            known.add(start)
        else:
            known.add_range(start, stop)
        self._count += len(known) - before

    def counts(self) -> dict[SessionKey, int]:
        """Number of steps stored of each session."""
        return {key: len(seqs) for key, seqs in self.sessions.items()}

    def select_new(self, records: Sequence[bytes]) -> list[tuple[bytes, Step]]:
        """Those packed steps that are not stored yet, each once; MessageError if any of all is malformed."""
        fresh: list[tuple[bytes, Step]] = []
        identities: set[tuple[SessionKey, int]] = set()
        for position, record in enumerate(records):
            step = decode_step(record, f"record {position} of {len(records)}")
            identity = (SessionKey(step.run, step.robot, step.session), step.seq)
            if identity not in identities and identity not in self:
                identities.add(identity)
                fresh.append((record, step))
        return fresh


class StepLog:
    """A durable log of packed `Step` records without repetitions.

    (run, robot, session, seq) is a step's identity. Which ones are known is derived from the log when it is opened.
    One thread appends; `iterate` may run in another.
    """

    def __init__(self, directory: Path, durability: Durability = "power") -> None:
        self._log = DurableLog(directory, durability=durability)
        self._known = KnownSteps()

    def open(self) -> None:
        self._known = KnownSteps()
        self._log.open(self._remember)

    def close(self) -> None:
        self._log.close()

    def __enter__(self) -> StepLog:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, records: Sequence[bytes]) -> tuple[int, int]:
        """Store packed steps and return (accepted, duplicates) once all of them are durable.

        MessageError if one of them is malformed, StorageError if the disk refuses: then none of the batch is stored.
        """
        fresh = self._known.select_new(records)
        if fresh:
            self._log.append_many([record for record, _ in fresh])
            self._log.sync()
        for _, step in fresh:
            self._known.add(SessionKey(step.run, step.robot, step.session), step.seq)
        return len(fresh), len(records) - len(fresh)

    def __len__(self) -> int:
        return self._log.next_index - self._log.first_index

    @property
    def next_index(self) -> int:
        """Index that the next accepted step will get: the number of steps stored so far."""
        return self._log.next_index

    @property
    def cut_bytes(self) -> int:
        """Bytes of unfinished writes cut off when the log was opened."""
        return self._log.cut_bytes

    def iterate(self, start: int) -> Iterator[tuple[int, Step]]:
        """(index, step) from `start` on, in the order stored; arrays are read-only."""
        for index, payload in self._log.iterate(start):
            yield index, unpack(payload, Step)

    def sessions(self) -> dict[SessionKey, int]:
        """Number of steps stored of each session."""
        return self._known.counts()

    def _remember(self, _: int, payload: bytes) -> None:
        identity: StepIdentity = unpack(payload, StepIdentity)
        self._known.add(identity.key, identity.seq)


def decode_step(record: bytes, name: str) -> Step:
    """The step in a packed record, or MessageError that says what is wrong with it.

    Values that a fault can produce (a policy's NaN action, and its refusal) are recorded as they are; what is checked
    is that the record can be understood: counters, shapes and dtypes.
    """
    try:
        step: Step = unpack(record, Step)
    except MessageError as error:
        raise MessageError(f"{name} is not a step: {error}") from error
    problem = _problem(step)
    if problem:
        raise MessageError(
            f"{name} is not a usable step: {problem} (run '{step.run}', robot '{step.robot}', session "
            f"'{step.session}', seq {step.seq}). Nothing of its batch was stored; correct the program that recorded it."
        )
    return step


class StepIdentity(Struct, frozen=True):
    """The part of a step that says where it belongs; decoding this alone leaves the arrays untouched."""

    run: str
    robot: str
    session: str
    seq: int
    episode: int
    terminated: bool
    truncated: bool

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.run, self.robot, self.session)


def _problem(step: Step) -> str:
    for name in ("run", "robot", "session"):
        if not getattr(step, name):
            return f"its {name} is empty"
    for name in ("seq", "episode", "segment", "index"):
        if getattr(step, name) < 0:
            return f"its {name} is {getattr(step, name)}, allowed is 0 or more"
    if not math.isfinite(step.reward):
        return f"its reward is {step.reward}, allowed is a finite number"
    if not step.observation:
        return "it has no observation"
    has_final = step.final_observation is not None or step.final_action_base is not None
    if has_final and not (step.terminated or step.truncated):
        return "it has a final observation or final base action, and it did not end its episode"
    size = step.action_base.size
    actions: dict[str, FloatArray | None] = {
        "action_base": step.action_base,
        "action_asked": step.action_asked,
        "action_sent": step.action_sent,
        "final_action_base": step.final_action_base,
    }
    for name, action in actions.items():
        if action is not None and (action.shape != (size,) or action.dtype != np.float32):
            return f"its {name} is {action.dtype}{list(action.shape)}, all actions of a step are float32[{size}]"
    return ""
