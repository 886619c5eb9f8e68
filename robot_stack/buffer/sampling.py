"""Draws batches out of one or several replays, and gathers them.

A draw says which rows; it consumes randomness and takes microseconds. Gathering copies what the rows lead to and
consumes nothing, so it may happen later, in another thread, or twice in different forms (transitions and chunks of
the same draw). The sequence of draws is a function of the seed and of the calls on the replays and the sampler, and
`state` is all that a checkpoint needs beside the log: replays refilled from the log up to the same step and a
sampler with that state loaded go on exactly as the first would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from robot_stack.buffer.batches import ChunkBatch, Draw, Rows, SequenceBatch, TransitionBatch
from robot_stack.buffer.frames import ImageBuffers
from robot_stack.buffer.gathering import Piece, gather_chunks, gather_sequences, gather_transitions
from robot_stack.buffer.priorities import Priorities, PriorityState
from robot_stack.buffer.replay import Replay, Stratum
from robot_stack.buffer.shares import SharedOut
from robot_stack.core.errors import ConfigError, SpecMismatchError, StorageError
from robot_stack.core.messages import FloatArray


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every eligible row of the part with the same probability, with replacement."""


@dataclass(frozen=True, slots=True)
class Recent:
    """Uniform over the `window` rows that became eligible last."""

    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"the window of the newest rows is {self.window}; allowed is 1 or more")


@dataclass(frozen=True, slots=True)
class Prioritised:
    """Proportional to priority^alpha (T. Schaul et al.: Prioritized Experience Replay, arXiv 1511.05952).

    A new row has the largest priority that was set so far (1 at first). Importance weights are (N P(row))^-beta over
    the largest of the batch; beta rises linearly from `beta` to `beta_final` over the first `beta_draws` draws.
    """

    alpha: float = 0.6
    beta: float = 0.4
    beta_final: float = 1.0
    beta_draws: int = 100_000

    def __post_init__(self) -> None:
        if not all(0.0 <= value <= 1.0 for value in (self.alpha, self.beta, self.beta_final)) or self.beta_draws < 1:
            raise ConfigError(
                f"alpha, beta and beta_final of prioritised sampling lie in [0, 1] and beta_draws is 1 or more; they "
                f"are {self.alpha}, {self.beta}, {self.beta_final} and {self.beta_draws}"
            )

    def beta_at(self, draws: int) -> float:
        return self.beta + (self.beta_final - self.beta) * min(1.0, draws / self.beta_draws)


Selection = Uniform | Recent | Prioritised


@dataclass(frozen=True, slots=True)
class Part:
    """One ingredient of a mix: the rows of a replay (of one stratum, or None: all), with a relative share."""

    replay: Replay
    stratum: Stratum | None = None
    share: float = 1.0
    selection: Selection = Uniform()


class Cursor(Struct, frozen=True):
    """Where a sampler stands, without priorities. `rng_*`: the PCG64 state (128-bit numbers as text).

    `given`: samples that each part's share has earned so far; `redistributed`: how many of them others had to give.
    """

    rng_state: str
    rng_inc: str
    rng_has_uint32: int
    rng_uinteger: int
    draws: int
    given: tuple[int, ...]
    redistributed: tuple[int, ...]


class SamplerState(Struct, frozen=True):
    cursor: Cursor
    weights: tuple[int, ...]
    priorities: tuple[PriorityState | None, ...]


class Sampler:
    """Draws from several parts with exact shares (RLPD, arXiv 2302.02948): see `SharedOut`.

    A part that should give some and is empty raises StorageError; with `on_empty="redistribute"` the other parts give
    them, and `redistributed` counts them by part. Images are gathered into `buffers` sets of output arrays in turn: a
    batch's images stay valid until `buffers` more batches were gathered. Not safe for several threads, except that
    batches may be gathered in any thread if each is given an `out` of its own.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        seed: int,
        *,
        on_empty: Literal["error", "redistribute"] = "error",
        buffers: int = 2,
    ) -> None:
        if buffers < 1:
            raise ConfigError(f"a sampler was given {buffers} sets of output arrays for images; it needs 1 or more")
        self._parts = tuple(parts)
        self._shares = SharedOut([part.share for part in self._parts])
        _check_alike([part.replay for part in self._parts])
        self._on_empty = on_empty
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._draws = 0
        self._redistributed = [0] * len(self._parts)
        self._settings = 0
        self._buffers = [ImageBuffers() for _ in range(buffers)]
        self._gathered = 0
        self._priorities = [
            Priorities(part.replay, part.stratum, part.selection.alpha)
            if isinstance(part.selection, Prioritised)
            else None
            for part in self._parts
        ]

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts

    @property
    def redistributed(self) -> tuple[int, ...]:
        """By part: samples that it should have given while it was empty, and that other parts gave."""
        return tuple(self._redistributed)

    @property
    def generation(self) -> tuple[int, ...]:
        """Changes with everything that the next draw depends on, except draws themselves."""
        return (self._settings, *(part.replay.generation for part in self._parts))

    def ready(self) -> bool:
        """Whether `draw` would find what it needs: all parts with a share (with "redistribute": any) have rows."""
        filled = [part.replay.size(part.stratum) > 0 for part in self._parts if part.share > 0]
        return all(filled) if self._on_empty == "error" else any(filled)

    def draw(self, batch_size: int) -> Draw:
        """Choose the rows of the next batch, part by part in the order of the parts; StorageError if a part is empty.

        A refused draw changes nothing.
        """
        if batch_size < 1:
            raise ConfigError(f"a batch size of {batch_size} was asked for; allowed is 1 or more")
        counts = self._counts(batch_size)
        rows, weights = [], []
        for position, count in enumerate(counts):
            if count:
                chosen, weight = self._choose(position, count)
                rows.append(chosen)
                weights.append(weight)
        self._draws += 1
        weight = np.concatenate(weights)
        return Draw(tuple(counts), np.concatenate(rows), (weight / weight.max()).astype(np.float32))

    def transitions(
        self,
        draw: Draw,
        n_step: int,
        discount: float,
        images: Sequence[str] = (),
        out: ImageBuffers | None = None,
    ) -> TransitionBatch:
        """n-step transitions from the drawn rows, with the named image features; n_step at most the lookahead."""
        return gather_transitions(self._pieces(draw), draw, n_step, discount, tuple(images), self._out(out))

    def chunks(
        self, draw: Draw, horizon: int, images: Sequence[str] = (), out: ImageBuffers | None = None
    ) -> ChunkBatch:
        """The drawn rows' observations, each with `horizon` actions; horizon at most the lookahead + 1."""
        return gather_chunks(self._pieces(draw), draw, horizon, tuple(images), self._out(out))

    def sequences(
        self, draw: Draw, length: int, images: Sequence[str] = (), out: ImageBuffers | None = None
    ) -> SequenceBatch:
        """Stretches of `length` steps that begin at the drawn rows; length at most the lookahead."""
        return gather_sequences(self._pieces(draw), draw, length, tuple(images), self._out(out))

    def set_priorities(self, draw: Draw, priorities: FloatArray) -> None:
        """Set the priorities (B,), finite and above 0, of the rows of a draw, in its order.

        Rows of parts that are not prioritised, and rows forgotten meanwhile, are passed over.
        """
        values = np.asarray(priorities, np.float32)
        if values.shape != (len(draw),) or not (np.isfinite(values).all() and (values > 0.0).all()):
            raise ConfigError(
                f"priorities of a draw of {len(draw)} rows are as many finite numbers above 0; they were given with "
                f"shape {list(values.shape)}, the smallest is {values.min(initial=np.inf)}. Take |error| + 1e-6."
            )
        self._settings += 1
        start = 0
        for table, count in zip(self._priorities, draw.counts, strict=True):
            if table is not None and count:
                table.set(draw.rows[start : start + count], values[start : start + count])
            start += count

    # ---- state ----

    def cursor(self) -> Cursor:
        """Where the sequence of draws stands; cheap. `rewind` goes back there while nothing else has changed."""
        rng = self._rng.bit_generator.state
        return Cursor(
            rng_state=str(rng["state"]["state"]),
            rng_inc=str(rng["state"]["inc"]),
            rng_has_uint32=rng["has_uint32"],
            rng_uinteger=rng["uinteger"],
            draws=self._draws,
            given=tuple(self._shares.given),
            redistributed=tuple(self._redistributed),
        )

    def rewind(self, cursor: Cursor) -> None:
        """Undo the draws since `cursor` was taken."""
        words = {"state": int(cursor.rng_state), "inc": int(cursor.rng_inc)}
        self._rng.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": words,
            "has_uint32": cursor.rng_has_uint32,
            "uinteger": cursor.rng_uinteger,
        }
        self._draws = cursor.draws
        self._shares.given = list(cursor.given)
        self._redistributed = list(cursor.redistributed)

    def state(self, cursor: Cursor | None = None) -> bytes:
        """Everything needed to go on, as JSON; from `cursor` on, where one is given. Taking it changes nothing."""
        priorities = tuple(None if table is None else table.state() for table in self._priorities)
        here = self.cursor() if cursor is None else cursor
        return msgspec.json.encode(SamplerState(here, tuple(self._shares.weights), priorities))

    def load_state(self, state: bytes) -> None:
        """Go on from `state`, with replays that were filled up to the same step.

        StorageError for bytes that are no state, or that belong to other parts or shares, or to other contents where
        priorities are concerned.
        """
        try:
            loaded = msgspec.json.decode(state, type=SamplerState)
        except msgspec.DecodeError as error:
            raise StorageError(f"{len(state)} bytes are no state of a sampler: {error}") from error
        prioritised = [table is not None for table in self._priorities]
        if list(loaded.weights) != self._shares.weights or [p is not None for p in loaded.priorities] != prioritised:
            raise StorageError(
                f"the state of a sampler with the shares {list(loaded.weights)} was given to one with "
                f"{self._shares.weights}, or other parts are prioritised; resume with the configuration of the run"
            )
        for table, priorities in zip(self._priorities, loaded.priorities, strict=True):
            if table is not None and priorities is not None:
                table.load_state(priorities)
        self._settings += 1
        self.rewind(loaded.cursor)

    # ---- inner workings ----

    def _counts(self, batch_size: int) -> list[int]:
        before = list(self._shares.given)
        counts = self._shares.take(batch_size)
        empty = [i for i, part in enumerate(self._parts) if counts[i] and not part.replay.size(part.stratum)]
        if not empty:
            return counts
        others = [part.share if part.replay.size(part.stratum) else 0.0 for part in self._parts]
        if self._on_empty == "error" or not any(others):
            self._shares.given = before
            part = self._parts[empty[0]]
            raise StorageError(
                f"part {empty[0] + 1} of {len(counts)} in the mix has share {part.share} and no eligible row of "
                f"{'any stratum' if part.stratum is None else part.stratum.name}; load or collect steps first, give "
                'it the share 0, or let the others give its samples with on_empty="redistribute"'
            )
        for i in empty:
            self._redistributed[i] += counts[i]
        extra = SharedOut(others).take(sum(counts[i] for i in empty))
        return [0 if i in empty else count + extra[i] for i, count in enumerate(counts)]

    def _choose(self, position: int, count: int) -> tuple[Rows, FloatArray]:
        part, table = self._parts[position], self._priorities[position]
        if table is not None and isinstance(part.selection, Prioritised):
            slots, relative = table.draw(count, self._rng)
            weight = relative ** np.float32(-part.selection.beta_at(self._draws))
        else:
            eligible = part.replay.eligible(part.stratum)
            held = len(eligible)
            first = max(0, held - part.selection.window) if isinstance(part.selection, Recent) else 0
            slots, weight = eligible.pick(self._rng.integers(first, held, size=count)), np.ones(count, np.float32)
        return part.replay.row_number.take(slots), weight

    def _pieces(self, draw: Draw) -> list[Piece]:
        pieces, start = [], 0
        for part, count in zip(self._parts, draw.counts, strict=True):
            if count:
                slots = part.replay.slots(draw.rows[start : start + count])
                pieces.append(Piece(part.replay, slots, slice(start, start + count)))
            start += count
        return pieces

    def _out(self, out: ImageBuffers | None) -> ImageBuffers:
        if out is not None:
            return out
        self._gathered += 1
        return self._buffers[self._gathered % len(self._buffers)]


def _check_alike(replays: Sequence[Replay]) -> None:
    first = replays[0].config
    for position, replay in enumerate(replays[1:], 2):
        config = replay.config
        if (config.observation_size, config.action_size) != (first.observation_size, first.action_size):
            raise SpecMismatchError(
                f"part {position} of the mix has observations of {config.observation_size} and actions of "
                f"{config.action_size} numbers, part 1 of {first.observation_size} and {first.action_size}"
            )
        for name in config.images.keys() & first.images.keys():
            if tuple(config.images[name]) != tuple(first.images[name]):
                raise SpecMismatchError(
                    f"{name} of part {position} of the mix has the shape {list(config.images[name])}, of part 1 "
                    f"{list(first.images[name])}"
                )
