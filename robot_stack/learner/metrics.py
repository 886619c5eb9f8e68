"""What a learner measures: lines of JSON, which the report draws its curves from, and TensorBoard's event files."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.messages import RobotFeed
from robot_stack.learner.imitation_log import TrainingLog

WINDOW_S = 60.0
_MARK_EVERY_S = 1.0


class MetricsLine(Struct, frozen=True, kw_only=True):
    """`unix_s` is wall time, for the log only. `robots`, `waiting_share`: see `LearnerProgress`."""

    unix_s: float
    trained_steps: int
    updates: int
    weights_version: int
    metrics: dict[str, float]
    robots: dict[str, RobotFeed] = {}
    waiting_share: float = 0.0


class MetricsLog:
    """Appends a line per publication. After a resume some points may stand twice; readers keep the last.

    `scalars`: another log, which gets every number by name (`staleness/franka_0/versions_p95`); None: none.
    """

    def __init__(self, path: Path, scalars: TrainingLog | None = None) -> None:
        self._path = path
        self._scalars = scalars

    def write(
        self,
        trained_steps: int,
        updates: int,
        version: int,
        metrics: Mapping[str, float],
        robots: Mapping[str, RobotFeed],
        waiting_share: float,
    ) -> None:
        line = MetricsLine(
            unix_s=time.time(),
            trained_steps=trained_steps,
            updates=updates,
            weights_version=version,
            metrics=dict(metrics),
            robots=dict(robots),
            waiting_share=waiting_share,
        )
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
        if self._scalars is not None:
            self._scalars(trained_steps, scalars_of(line))


def scalars_of(line: MetricsLine) -> dict[str, float]:
    """Every number of a line by a name of its own."""
    found = dict(line.metrics)
    found |= {"weights_version": line.weights_version, "updates": line.updates, "waiting_share": line.waiting_share}
    for robot, feed in line.robots.items():
        found |= {f"steps/{robot}": feed.steps, f"waiting/{robot}": feed.waiting}
        if feed.staleness.steps:
            of_robot = msgspec.structs.asdict(feed.staleness)
            found |= {f"staleness/{robot}/{name}": value for name, value in of_robot.items() if name != "steps"}
    return found


class WaitingShare:
    """The share of the last minute, about, that was spent waiting. Times are those of a monotonic clock, in s."""

    def __init__(self, now_s: float) -> None:
        self._waited_s = 0.0
        self._marks = deque([(now_s, 0.0)])

    def add(self, waited_s: float, now_s: float) -> None:
        """So long was waited, until now."""
        self._waited_s += waited_s
        if now_s - self._marks[-1][0] >= _MARK_EVERY_S:
            self._marks.append((now_s, self._waited_s))
            while self._marks[1][0] <= now_s - WINDOW_S:
                self._marks.popleft()

    def read(self, now_s: float) -> float:
        """From 0 to 1."""
        begun_s, before_s = self._marks[0]
        return (self._waited_s - before_s) / (now_s - begun_s) if now_s > begun_s else 0.0


def read_metrics(path: Path) -> list[MetricsLine]:
    """The last line written for every weights version, in order; a torn last line is left out."""
    lines: dict[int, MetricsLine] = {}
    if not path.exists():
        return []
    for text in path.read_bytes().splitlines():
        try:
            line = msgspec.json.decode(text, type=MetricsLine)
        except msgspec.DecodeError:
            continue
        lines[line.weights_version] = line
    return [lines[version] for version in sorted(lines)]
