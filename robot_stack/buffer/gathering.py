"""From drawn rows to batches: links are followed for all rows of a part at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.buffer.batches import ChunkBatch, Draw, Images, Mask, Rows, SequenceBatch, TransitionBatch
from robot_stack.buffer.frames import ImageBuffers
from robot_stack.buffer.replay import Replay
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Array, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The rows of a draw that come from one replay: their slots there, and which samples of the batch they are."""

    replay: Replay
    slots: Rows
    samples: slice


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """`states` (steps + 1, n): where each sample is after 0, 1, ... steps; `taken` (steps, n): whether it moved on.

    A sample that reached the end of its stream stays at the last state, or at the step that terminated the episode.
    `terminated` (n,): whether that step was among those taken.
    """

    states: Rows
    taken: Mask
    terminated: Mask


def _follow(replay: Replay, slots: Rows, steps: int) -> _Path:
    states: Rows = np.empty((steps + 1, len(slots)), np.int64)
    states[0] = slots
    for i in range(steps):
        replay.next_row.take(states[i], out=states[i + 1], mode="clip")
    moved = states[1:] != states[:-1]
    terminal = replay.terminated.take(states[:-1])
    taken = moved | terminal
    taken[1:] &= moved[:-1]  # the step that terminates leads to itself: it is taken once, on arrival
    return _Path(states, taken, terminal[-1])


def gather_transitions(
    pieces: Sequence[Piece], draw: Draw, n_step: int, discount: float, images: tuple[str, ...], out: ImageBuffers
) -> TransitionBatch:
    if not 0.0 <= discount <= 1.0:
        raise ConfigError(f"the discount is {discount}; allowed is 0 to 1")
    _check_length(pieces, n_step, 0, "n_step")
    powers = discount ** np.arange(n_step + 1)
    size = len(draw)
    return_n, bootstrap = np.empty(size, np.float32), np.empty(size, np.float32)
    following: list[Piece] = []
    ended: Mask = np.empty(size, np.bool_)
    for piece in pieces:
        path = _follow(piece.replay, piece.slots, n_step)
        rewards = piece.replay.reward.take(path.states[:-1])
        return_n[piece.samples] = (powers[:-1, None] * rewards * path.taken).sum(axis=0)
        bootstrap[piece.samples] = np.where(path.terminated, 0.0, powers[path.taken.sum(axis=0)])
        ended[piece.samples] = path.terminated
        following.append(Piece(piece.replay, path.states[-1], piece.samples))
    next_observation = _vectors(following, size, "observation")
    next_action_base = _vectors(following, size, "action_base")
    next_observation[ended] = 0.0
    next_action_base[ended] = 0.0
    return_to_go, steps_to_go = _returns(pieces, size, discount)
    return TransitionBatch(
        observation=_vectors(pieces, size, "observation"),
        action_base=_vectors(pieces, size, "action_base"),
        action=_vectors(pieces, size, "action"),
        return_n=return_n,
        bootstrap=bootstrap,
        next_observation=next_observation,
        next_action_base=next_action_base,
        return_to_go=return_to_go,
        steps_to_go=steps_to_go,
        stratum=_strata(pieces, size),
        weight=draw.weight,
        draw=draw,
        images={name: _images(pieces, size, name, "", out) for name in images},
        next_images={name: _images(following, size, name, "next ", out) for name in images},
    )


def gather_chunks(
    pieces: Sequence[Piece], draw: Draw, horizon: int, images: tuple[str, ...], out: ImageBuffers
) -> ChunkBatch:
    _check_length(pieces, horizon, 1, "horizon")
    size = len(draw)
    is_pad: Mask = np.zeros((size, horizon), np.bool_)
    steps: list[Piece] = []
    for piece in pieces:
        path: Rows = np.empty((len(piece.slots), horizon), np.int64)
        path[:, 0] = now = piece.slots
        for i in range(1, horizon):
            onward = piece.replay.next_row.take(now)
            is_step = onward < piece.replay.config.capacity  # a final state has no action
            path[:, i] = now = np.where(is_step, onward, now)
        is_pad[piece.samples, 1:] = path[:, 1:] == path[:, :-1]
        steps.append(Piece(piece.replay, path, piece.samples))
    return ChunkBatch(
        observation=_vectors(pieces, size, "observation"),
        action_base=_vectors(pieces, size, "action_base"),
        actions=_vectors(steps, size, "action"),
        is_pad=is_pad,
        stratum=_strata(pieces, size),
        weight=draw.weight,
        draw=draw,
        images={name: _images(pieces, size, name, "", out) for name in images},
    )


def gather_sequences(
    pieces: Sequence[Piece], draw: Draw, length: int, images: tuple[str, ...], out: ImageBuffers
) -> SequenceBatch:
    _check_length(pieces, length, 0, "length")
    size = len(draw)
    valid: Mask = np.empty((size, length), np.bool_)
    ended: Mask = np.empty(size, np.bool_)
    steps: list[Piece] = []
    following: list[Piece] = []
    for piece in pieces:
        path = _follow(piece.replay, piece.slots, length)
        valid[piece.samples] = path.taken.T
        ended[piece.samples] = path.terminated
        last = path.taken.sum(axis=0) - 1  # steps taken are the first ones; beyond them the last is repeated
        order = np.minimum(np.arange(length)[:, None], last)
        visited = np.ascontiguousarray(np.take_along_axis(path.states, order, axis=0).T)
        steps.append(Piece(piece.replay, visited, piece.samples))
        following.append(Piece(piece.replay, path.states[-1], piece.samples))
    next_observation = _vectors(following, size, "observation")
    next_action_base = _vectors(following, size, "action_base")
    next_observation[ended] = 0.0
    next_action_base[ended] = 0.0
    reward, terminated = _columns(steps, (size, length), "reward"), _columns(steps, (size, length), "terminated")
    return SequenceBatch(
        observation=_vectors(steps, size, "observation"),
        action_base=_vectors(steps, size, "action_base"),
        action=_vectors(steps, size, "action"),
        reward=(reward * valid).astype(np.float32),
        terminated=terminated & valid,
        valid=valid,
        next_observation=next_observation,
        next_action_base=next_action_base,
        stratum=_strata(pieces, size),
        weight=draw.weight,
        draw=draw,
        images={name: _images(steps, size, name, "", out) for name in images},
    )


def _check_length(pieces: Sequence[Piece], wanted: int, spare: int, name: str) -> None:
    allowed = min(piece.replay.config.lookahead for piece in pieces) + spare
    if not 1 <= wanted <= allowed:
        raise ConfigError(
            f"{name} is {wanted}; these replays were made for 1 to {allowed}. Give ReplayConfig a larger lookahead."
        )


def _vectors(pieces: Sequence[Piece], size: int, column: str) -> FloatArray:
    """(size, *shape of a piece's samples, width) of a column of vectors."""
    first = pieces[0]
    width = getattr(first.replay, column).shape[1]
    gathered: FloatArray = np.empty((size, *first.slots.shape[1:], width), np.float32)
    for piece in pieces:
        # mode="clip" writes straight into the output; the default would copy everything twice.
        values: FloatArray = getattr(piece.replay, column)
        values.take(piece.slots, axis=0, out=gathered[piece.samples], mode="clip")
    return gathered


def _columns(pieces: Sequence[Piece], shape: tuple[int, int], column: str) -> Array:
    gathered: Array = np.empty(shape, getattr(pieces[0].replay, column).dtype)
    for piece in pieces:
        gathered[piece.samples] = getattr(piece.replay, column).take(piece.slots)
    return gathered


def _returns(pieces: Sequence[Piece], size: int, discount: float) -> tuple[FloatArray, NDArray[np.int32]]:
    """Monte-Carlo returns (size,) and how many rewards they have; ConfigError for returns of another discount."""
    returns, steps = np.full(size, -np.inf, np.float32), np.zeros(size, np.int32)
    for piece in pieces:
        own = piece.replay.config.return_discount
        if own == 0.0:
            continue
        if own != discount:
            raise ConfigError(
                f"transitions with the discount {discount} were asked of a replay whose returns have the discount "
                f"{own}; give ReplayConfig the same return_discount, or 0 where returns are not needed"
            )
        returns[piece.samples] = piece.replay.return_to_go.take(piece.slots)
        steps[piece.samples] = piece.replay.steps_to_go.take(piece.slots)
    return returns, steps


def _strata(pieces: Sequence[Piece], size: int) -> NDArray[np.uint8]:
    gathered = np.empty(size, np.uint8)
    for piece in pieces:
        gathered[piece.samples] = piece.replay.stratum.take(piece.slots)
    return gathered


def _images(pieces: Sequence[Piece], size: int, name: str, prefix: str, out: ImageBuffers) -> Images:
    """(size, *shape of a piece's samples, H, W, 3) of one feature, in an array that is used again."""
    inner, shape = pieces[0].slots.shape[1:], pieces[0].replay.frames.shape(name)
    gathered = out.array(prefix + name, (size, *inner, *shape))
    for piece in pieces:
        target = gathered[piece.samples].reshape(-1, *shape)
        piece.replay.frames.gather(name, piece.slots.reshape(-1), target, out)
    return gathered
