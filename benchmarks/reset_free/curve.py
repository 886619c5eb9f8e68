"""Evaluations of one run, and how its practice went, in a file that grows by a line for each."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.edge.judged_robot import VerdictCounts
from robot_stack.edge.reset_free import PracticeRecord


class Point(Struct, frozen=True, kw_only=True):
    """One evaluation.

    Attributes:
        env_steps, episodes, updates: of practice so far.
        success: of the forward task, by the task's predicate: one character for each seed from `first_seed` on, '1'
            for success.
        resets: times that the scene was set up; `calls` of them by a person who was called.
        practice: attempts and goals reached, by whoever judged.
        forward, backward: those verdicts against the task's own, in steps.
        cpu_s: of practice and learning.
    """

    env_steps: int
    episodes: int
    updates: int
    first_seed: int
    success: str
    resets: int
    calls: int
    perturbations: int
    practice: PracticeRecord
    forward: VerdictCounts
    backward: VerdictCounts
    cpu_s: float
    last: bool = False

    @property
    def successes(self) -> int:
        return self.success.count("1")


def append(path: Path, point: Point) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.encode(point) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Point]:
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Point) for line in path.read_bytes().splitlines() if line]


def is_finished(path: Path) -> bool:
    points = read(path)
    return bool(points) and points[-1].last
