"""The points of a learning curve: one JSON line for each evaluation, kept as soon as it is known."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import CorruptDataError


class Point(Struct, frozen=True, kw_only=True):
    """One evaluation of the deterministic policy.

    Attributes:
        due: environment steps after which it was due; the same for all seeds.
        env_steps: recorded when it was made: the first episode end at or after `due`.
        episodes, updates, version: of practice, of the learner, of the published weights that acted.
        replan_every: control steps executed of each chunk.
        wall_s, cpu_s: spent on practice and learning until then; evaluations are not in them.
        first_seed, success: one character for each seed from `first_seed` on, '1' for success by the task's predicate.
        human_steps: recorded steps in which the (scripted) person acted.
    """

    due: int
    env_steps: int
    episodes: int
    updates: int
    version: int
    replan_every: int
    wall_s: float
    cpu_s: float
    first_seed: int
    success: str
    human_steps: int = 0

    @property
    def successes(self) -> int:
        return self.success.count("1")

    @property
    def n(self) -> int:
        return len(self.success)


class CurveFile:
    """The points of one run; CorruptDataError if the file was damaged in its middle."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.points: list[Point] = []
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the power was cut while the last line was written
            os.truncate(path, len(whole))
        try:
            self.points += [msgspec.json.decode(line, type=Point) for line in whole.splitlines()]
        except msgspec.DecodeError as error:
            raise CorruptDataError(f"{path} is damaged: {error}; move the run's folder away to begin anew") from error

    def append(self, point: Point) -> None:
        """Keep a point, synced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(point) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.points.append(point)

    def has(self, due: int, replan_every: int) -> bool:
        return any(point.due == due and point.replan_every == replan_every for point in self.points)
