"""What algorithms learn from: the newest steps, linked to streams, in rows of fixed size.

Every step is one row, in the order of arrival, in a ring of `capacity` rows; the oldest make room for the newest. The
state after the last action of a truncated episode has a row as well, beside the ring, for as long as the step before
it. `next_row` links the rows of a stream, so n-step transitions, chunks and sequences are found by following links
for a whole batch at once (`robot_stack.buffer.gathering`). A link never leaves its stream, and a row is forgotten
before those that it leads to.

A row is eligible, that is, may be drawn, once everything is known that a sample from it can need: `lookahead` further
steps of its stream, or the stream's end. The last step of a stream that stops without the end of its episode has no
next observation: it is never a sample's start, only the state after the step before it.

Termination and truncation stay apart: a terminated episode has no future worth anything, a truncated one bootstraps
from the observation stored after its last action. The contents are a function of the sequence of `add` and `end` calls
alone, so replaying a log rebuilds the same replay.

With a `return_discount`, the steps of an episode get their Monte-Carlo returns once, when the episode ends.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_stack.buffer.batches import Mask, Rows
from robot_stack.buffer.eligible import EligibleRows
from robot_stack.buffer.frames import FrameStore, ImageShape, ImageSource
from robot_stack.core.errors import ConfigError, SpecMismatchError, StorageError
from robot_stack.core.messages import FloatArray

MAX_OPEN_STREAMS = 256


class Stratum(enum.IntEnum):
    """Where a step came from, as far as sampling is concerned."""

    DEMONSTRATION = 0
    ONLINE = 1
    RECOVERY = 2
    CORRECTION = 3
    PRE_INTERVENTION = 4


@dataclass(frozen=True, slots=True, eq=False)
class ReplayStep:
    """One step: observation (D,) and actions (A,), all float32.

    `stream` names the stretch of steps that belong together (session, episode, segment); `index` counts within it.
    `action` is what was executed, `action_base` what the base policy proposed. `final_observation`,
    `final_action_base` and `final_images` belong to the state after the action of an episode's last step; a truncated
    step needs them. `images` are raw (H, W, 3) or encoded (1-D, one JPEG file) uint8 by feature; those that the replay
    was not configured for are ignored. `source_index` is the step's index in the log, where the replay's image source
    finds its frames; with it, images may be left out here.
    """

    stream: Hashable
    index: int
    stratum: Stratum
    observation: FloatArray
    action_base: FloatArray
    action: FloatArray
    reward: float
    terminated: bool
    truncated: bool
    final_observation: FloatArray | None = None
    final_action_base: FloatArray | None = None
    source_index: int = -1
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    final_images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """`capacity` steps. `lookahead`: the largest n-step, sequence length, or chunk horizon - 1 that will be gathered.

    `return_discount`: of the returns to the episode's end; 0 computes none.
    `images`: shape (H, W, 3) by feature. `frame_budget_bytes`: how much memory the newest frames of all features may
    take together; older ones are read from the image source, and without one steps whose frames fell out are forgotten.
    """

    capacity: int
    observation_size: int
    action_size: int
    images: Mapping[str, ImageShape] = field(default_factory=dict)
    frame_budget_bytes: int = 0
    lookahead: int = 1
    return_discount: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.return_discount <= 1.0:
            raise ConfigError(f"return_discount of a replay is {self.return_discount}; allowed: 0 (no returns) to 1")
        if min(self.capacity, self.observation_size, self.action_size, self.lookahead) < 1:
            raise ConfigError(
                "a replay needs a capacity, an observation size, an action size and a lookahead of 1 or more; it was "
                f"given {self.capacity}, {self.observation_size}, {self.action_size} and {self.lookahead}"
            )


class _Stream:
    """A stream that may go on: its last step, the rows that are not eligible yet (the last one included), and, where
    returns are computed, all rows that it has."""

    __slots__ = ("index", "pending", "rows")

    def __init__(self) -> None:
        self.index = 0
        self.pending: deque[int] = deque()
        self.rows: deque[int] = deque()


class Replay:
    """See the module's text. Columns have a row for every slot: 0 .. capacity - 1 hold steps, the rest final states.

    Counted, because they are left out: `dropped` steps whose stream ended with no next observation (the edge was
    killed, a segment changed), and `non_finite` steps with a NaN or an infinity. `generation` changes whenever the
    contents do. One thread adds; others may gather meanwhile, but only rows that are not forgotten while they do.
    """

    def __init__(self, config: ReplayConfig, image_source: ImageSource | None = None) -> None:
        self.config = config
        self.dropped = 0
        self.non_finite = 0
        self.generation = 0
        capacity, rows = config.capacity, 2 * config.capacity  # zeros take no memory before they are written
        self.observation: FloatArray = np.zeros((rows, config.observation_size), np.float32)
        self.action_base: FloatArray = np.zeros((rows, config.action_size), np.float32)
        self.action: FloatArray = np.zeros((capacity, config.action_size), np.float32)
        self.reward: NDArray[np.float64] = np.zeros(rows, np.float64)
        self.terminated: Mask = np.zeros(rows, np.bool_)
        returns = capacity if config.return_discount > 0.0 else 0
        self.return_to_go: FloatArray = np.full(returns, -np.inf, np.float32)
        self.steps_to_go: NDArray[np.int32] = np.zeros(returns, np.int32)  # 0 while the episode's end is not known
        self.stratum: NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self.next_row: Rows = np.zeros(rows, np.int64)  # a row that nothing follows leads to itself
        self.row_number: Rows = np.full(capacity, -1, np.int64)
        self.entered: Rows = np.full(capacity, -1, np.int64)  # the how-many-th to become eligible; -1 while it is not
        self.frames = FrameStore(config.images, rows, config.frame_budget_bytes, image_source)
        self._source_index: Rows = np.full(capacity, -1, np.int64)
        self._first = 0  # row numbers first .. next - 1 are held
        self._next = 0
        self._entries = 0
        self._free_finals: list[int] = []
        self._fresh_final = capacity
        self._open: dict[Hashable, _Stream] = {}
        self._everything = EligibleRows(capacity, np.zeros(capacity, np.int64))
        places = np.zeros(capacity, np.int64)
        self._of_stratum = {stratum: EligibleRows(capacity, places) for stratum in Stratum}
        self._change_logs: list[ChangeLog] = []

    # ---- reading ----

    def __len__(self) -> int:
        """How many rows are eligible."""
        return len(self._everything)

    def size(self, stratum: Stratum | None = None) -> int:
        """How many rows of a stratum (None: of all) are eligible."""
        return len(self.eligible(stratum))

    def eligible(self, stratum: Stratum | None = None) -> EligibleRows:
        return self._everything if stratum is None else self._of_stratum[stratum]

    @property
    def first_row(self) -> int:
        """The number of the oldest row that is held; all up to `next_row_number - 1` are."""
        return self._first

    @property
    def next_row_number(self) -> int:
        """The number that the next step will get: how many steps were taken so far."""
        return self._next

    def slots(self, rows: Rows) -> Rows:
        """Where rows lie in the columns; StorageError if one of them was forgotten since it was drawn."""
        if len(rows) and (int(rows.min()) < self._first or int(rows.max()) >= self._next):
            raise StorageError(
                f"a sample asks for rows {int(rows.min())} to {int(rows.max())}, the replay holds {self._first} to "
                f"{self._next - 1}: gather a draw before so many steps are added that its rows are forgotten"
            )
        return rows % self.config.capacity

    def watch(self) -> ChangeLog:
        """A log of the rows that become eligible or are forgotten from now on."""
        log = ChangeLog(self.config.capacity)
        self._change_logs.append(log)
        return log

    # ---- writing ----

    def add(self, step: ReplayStep) -> None:
        """Take the next step of its stream; rows whose samples are now decided become eligible.

        A step whose index does not follow the last one of its stream starts anew, as after `end`. SpecMismatchError
        for shapes of another robot or missing images, MessageError for an image that cannot be read; then nothing was
        changed.
        """
        self._check_shapes(step)
        ends = step.truncated and not step.terminated and step.final_observation is not None
        self.frames.check(step.images, step.source_index)
        if ends and step.final_images:
            self.frames.check(step.final_images, step.source_index)
        self.generation += 1
        stream = self._open.pop(step.stream, None)
        if not _is_finite(step):
            self.non_finite += 1
            self._finish_cut(stream)
            return
        if stream is not None and step.index != stream.index + 1:
            self._finish_cut(stream)
            stream = None
        stream = _Stream() if stream is None else stream
        self._link(stream, self._insert(step))
        stream.index = step.index
        if step.terminated or step.truncated:
            self._finish_episode(stream, step)
        else:
            self._open[step.stream] = stream
            if len(self._open) > MAX_OPEN_STREAMS:
                self.end(next(iter(self._open)))
        self._forget_lost_frames()

    def end(self, stream: Hashable) -> None:
        """Say that a stream stops here without the end of its episode; unknown streams are ignored.

        Its last step has no next observation and is dropped; those before it get the steps that there are. The streams
        longest without a step end by themselves when more than MAX_OPEN_STREAMS are open.
        """
        self.generation += 1
        self._finish_cut(self._open.pop(stream, None))

    def _insert(self, step: ReplayStep) -> int:
        if self._next - self._first == self.config.capacity:
            self._forget_oldest()
        slot = self._next % self.config.capacity
        self.observation[slot] = step.observation
        self.action_base[slot] = step.action_base
        self.action[slot] = step.action
        self.reward[slot] = step.reward
        self.terminated[slot] = step.terminated
        self.stratum[slot] = step.stratum
        self.next_row[slot] = slot
        if self.config.return_discount > 0.0:
            self.return_to_go[slot], self.steps_to_go[slot] = -np.inf, 0
        self.row_number[slot] = self._next
        self._source_index[slot] = step.source_index
        self.frames.put(slot, step.images, step.source_index, final=False)
        self._next += 1
        return self._next - 1

    def _link(self, stream: _Stream, row: int) -> None:
        pending, capacity = stream.pending, self.config.capacity
        if pending and pending[-1] >= self._first:
            self.next_row[pending[-1] % capacity] = row % capacity
        pending.append(row)
        if self.config.return_discount > 0.0:
            stream.rows.append(row)
            while stream.rows[0] < self._first:  # forgotten: nobody asks for its return
                stream.rows.popleft()
        if len(pending) > self.config.lookahead:
            self._admit(pending.popleft())

    def _admit(self, row: int) -> None:
        if row < self._first:
            return  # forgotten before it was decided: so many steps of other streams came in between
        slot = row % self.config.capacity
        self.entered[slot] = self._entries
        self._entries += 1
        self._everything.append(slot)
        self._of_stratum[Stratum(self.stratum[slot])].append(slot)
        for log in self._change_logs:
            log.note(slot)

    def _forget_oldest(self) -> None:
        slot = self._first % self.config.capacity
        self._first += 1
        following = int(self.next_row[slot])
        if following >= self.config.capacity:
            self._free_finals.append(following)
        self.row_number[slot] = self._source_index[slot] = -1
        if self.entered[slot] < 0:
            return
        self.entered[slot] = -1
        self._everything.remove(slot)
        self._of_stratum[Stratum(self.stratum[slot])].remove(slot)
        for log in self._change_logs:
            log.note(slot)

    def _forget_lost_frames(self) -> None:
        while self._first < self._next and self.frames.lost(self._first % self.config.capacity):
            self._forget_oldest()

    def _finish_episode(self, stream: _Stream, step: ReplayStep) -> None:
        if not step.terminated:
            if not self._has_final_state(step):
                self._finish_cut(stream)
                return
            self._link_final(stream.pending[-1] % self.config.capacity, step)
        if self.config.return_discount > 0.0:
            self._compute_returns(stream)
        while stream.pending:
            self._admit(stream.pending.popleft())

    def _compute_returns(self, stream: _Stream) -> None:
        """From the episode's last step backwards, as far as its rows are held."""
        slots = np.array([row % self.config.capacity for row in reversed(stream.rows) if row >= self._first], np.int64)
        returns, following = [], 0.0
        for reward in self.reward[slots].tolist():
            following = reward + self.config.return_discount * following
            returns.append(following)
        self.return_to_go[slots] = returns
        self.steps_to_go[slots] = np.arange(1, len(slots) + 1)

    def _has_final_state(self, step: ReplayStep) -> bool:
        vectors = step.final_observation is not None and step.final_action_base is not None
        return vectors and (bool(step.final_images) or not self.frames.needs_images(step.source_index))

    def _link_final(self, last: int, step: ReplayStep) -> None:
        if self._free_finals:
            slot = self._free_finals.pop()
        else:
            slot = self._fresh_final
            self._fresh_final += 1
        self.observation[slot] = step.final_observation
        self.action_base[slot] = step.final_action_base
        self.next_row[slot] = slot
        self.next_row[last] = slot
        self.frames.put(slot, step.final_images, step.source_index, final=True)

    def _finish_cut(self, stream: _Stream | None) -> None:
        if stream is None:
            return
        while len(stream.pending) > 1:
            self._admit(stream.pending.popleft())
        self.dropped += 1

    def _check_shapes(self, step: ReplayStep) -> None:
        observation, action = (self.config.observation_size,), (self.config.action_size,)
        wanted = (
            ("observation", step.observation, observation),
            ("action_base", step.action_base, action),
            ("action", step.action, action),
            ("final_observation", step.final_observation, observation),
            ("final_action_base", step.final_action_base, action),
        )
        for name, vector, shape in wanted:
            if vector is not None and vector.shape != shape:
                raise SpecMismatchError(
                    f"{name} of step {step.index} of {step.stream} has shape {list(vector.shape)}, this replay was "
                    f"made for {list(shape)}: these steps were recorded with another robot, task or configuration"
                )


class ChangeLog:
    """Slots whose eligibility changed, for a reader who keeps something about them. `overflowed`: look at all slots."""

    def __init__(self, capacity: int) -> None:
        self.overflowed = False
        self._capacity = capacity
        self._slots: list[int] = []

    def note(self, slot: int) -> None:
        if len(self._slots) >= self._capacity:
            self.overflowed = True
            self._slots.clear()
        if not self.overflowed:
            self._slots.append(slot)

    def take(self) -> Rows:
        """The slots noted since the last call, each once, in rising order; all there are after an overflow."""
        noted = np.arange(self._capacity) if self.overflowed else np.unique(np.array(self._slots, np.int64))
        self.overflowed = False
        self._slots.clear()
        return noted


def _is_finite(step: ReplayStep) -> bool:
    vectors = [step.observation, step.action_base, step.action]
    if not step.terminated:  # after a termination the final state is not used
        vectors += [vector for vector in (step.final_observation, step.final_action_base) if vector is not None]
    return math.isfinite(step.reward) and all(np.isfinite(vector).all() for vector in vectors)
