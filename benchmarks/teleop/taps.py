"""What the measured processes write down: who saw which input when, on this machine's one monotonic clock.

An input carries its number in its moves: turning over moving is a fraction that no other input of the same stretch has,
whatever share of it a command carries.
"""

from __future__ import annotations

import enum
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUMBERS = 4000
AMPLITUDE = 0.25
FLIP_EVERY = 30
MOVE, TURN = "dx_m", "dyaw_rad"
STILL = -1
_MOVES = 1e-9
_RECORD = struct.Struct("<Bqi")
_DTYPE = np.dtype([("kind", "<u1"), ("when_ns", "<i8"), ("number", "<i4")])

Records = NDArray[np.void]


class Kind(enum.IntEnum):
    """Who saw what. AT_SEAT: the edge took an input. IN_LOOP: its control loop made a command of it. AT_ROBOT: the
    robot server took the command. STEP: a control step of the edge is over. TICK: one of the robot server began."""

    AT_SEAT = 1
    IN_LOOP = 2
    AT_ROBOT = 3
    STEP = 4
    TICK = 5


class Tap:
    """Appends records; one per process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def put(self, kind: Kind, number: int = 0) -> None:
        os.write(self._descriptor, _RECORD.pack(kind, time.monotonic_ns(), number))


def read_tap(path: Path) -> Records:
    """All whole records so far."""
    data = path.read_bytes() if path.exists() else b""
    return np.frombuffer(data[: len(data) // _RECORD.size * _RECORD.size], _DTYPE)


def moves_of(number: int) -> dict[str, float]:
    """The moves of an input: to and fro, so that the robot stays where it is."""
    size = AMPLITUDE if number // FLIP_EVERY % 2 else -AMPLITUDE
    return {MOVE: size, TURN: size * (number % NUMBERS + 1) / (NUMBERS + 1)}


def number_of_moves(moves: dict[str, float]) -> int:
    """`moves_of` backwards, STILL for other moves."""
    return _number(moves.get(MOVE, 0.0), moves.get(TURN, 0.0))


def number_of_action(action: Sequence[float], names: Sequence[str], upper: Sequence[float]) -> int:
    """The number of the input that a command carries (its bounds are symmetric), or STILL."""
    move, turn = names.index(MOVE), names.index(TURN)
    return _number(action[move] / upper[move], action[turn] / upper[turn])


def _number(move: float, turn: float) -> int:
    if abs(move) < _MOVES:
        return STILL
    return round(turn / move * (NUMBERS + 1)) - 1


def first_seen_ns(records: Records, kind: Kind, since_ns: int, until_ns: int) -> dict[int, int]:
    """When each number was first seen by that process in that time."""
    mine = records[(records["kind"] == kind) & (records["when_ns"] >= since_ns) & (records["when_ns"] < until_ns)]
    seen: dict[int, int] = {}
    for number, when_ns in zip(mine["number"].tolist(), mine["when_ns"].tolist(), strict=True):
        seen.setdefault(number, when_ns)
    return seen


def times_ns(records: Records, kind: Kind, since_ns: int, until_ns: int) -> NDArray[np.int64]:
    """When that happened, within a stretch of time."""
    when = records["when_ns"][records["kind"] == kind]
    return when[(when >= since_ns) & (when < until_ns)].astype(np.int64)
