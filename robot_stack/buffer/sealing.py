"""Which steps of the log form complete stretches, and the thread that seals them.

A stretch is a run of steps of one (run, robot, session, episode) in log order. It is complete when its last step ended
the episode, when a later step of the same (run, robot) has another session or episode, when it has grown to the size of
a file, or when nothing has come for long (a robot that was switched off must not keep the log from shrinking).
A stretch that goes on after all gives another file.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from robot_stack.buffer.catalog import SealedFile, describe_file
from robot_stack.buffer.episode_file import (
    MAX_EPISODE_STEPS,
    episode_name,
    same_layout,
    step_bytes,
    write_episode_file,
)
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import Step

logger = logging.getLogger(__name__)


class Owner(NamedTuple):
    """Whose a stretch is."""

    run: str
    robot: str
    session: str
    episode: int


@dataclass(slots=True)
class Stretch:
    """`indices`: log indices of its steps that are not sealed yet. `touched_s`: when the last one came."""

    owner: Owner
    indices: array[int] = field(default_factory=lambda: array("q"))
    size_bytes: int = 0
    touched_s: float = 0.0


class StretchTracker:
    """Sorts unsealed steps into stretches. Not for several threads at once.

    Args:
        max_bytes: size of its log records at which a stretch counts as complete.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: dict[tuple[str, str], Stretch] = {}
        self._ready: deque[Stretch] = deque()
        self._set_aside: list[Stretch] = []

    def add(self, index: int, owner: Owner, *, ended: bool, size_bytes: int, now_s: float) -> None:
        """A step that is durable in the log; indices rise."""
        stretch = self._of(owner)
        if stretch is None:
            stretch = self._open[owner.run, owner.robot] = Stretch(owner)
        stretch.indices.append(index)
        stretch.size_bytes += size_bytes
        stretch.touched_s = now_s
        if ended or stretch.size_bytes >= self._max_bytes or len(stretch.indices) >= MAX_EPISODE_STEPS:
            self._complete(owner.run, owner.robot)

    def pass_by(self, owner: Owner) -> None:
        """A step that is sealed already: it completes an unsealed stretch of another session or episode."""
        self._of(owner)

    def complete_idle(self, before_s: float) -> None:
        """Complete the stretches whose last step came before this time."""
        for run, robot in [key for key, stretch in self._open.items() if stretch.touched_s < before_s]:
            self._complete(run, robot)

    def next(self) -> Stretch | None:
        """The oldest complete stretch; it stays until `drop_sealed` has taken its last step."""
        return self._ready[0] if self._ready else None

    def drop_sealed(self, stretch: Stretch, count: int) -> None:
        """The first `count` steps of a complete stretch are sealed."""
        del stretch.indices[:count]
        if not stretch.indices:
            self._ready.remove(stretch)

    def postpone(self, stretch: Stretch) -> None:
        """Let the other complete stretches go first."""
        self._ready.remove(stretch)
        self._ready.append(stretch)

    def set_aside(self, stretch: Stretch) -> None:
        """A stretch that cannot be sealed: it stays in the log for good."""
        self._ready.remove(stretch)
        self._set_aside.append(stretch)

    def first_unsealed(self) -> int | None:
        """The smallest log index that is not sealed."""
        stretches = (*self._open.values(), *self._ready, *self._set_aside)
        return min((stretch.indices[0] for stretch in stretches), default=None)

    def unsealed(self) -> int:
        """Number of steps that are not sealed."""
        return sum(len(stretch.indices) for stretch in (*self._open.values(), *self._ready, *self._set_aside))

    def complete(self) -> int:
        """Number of complete stretches that wait."""
        return len(self._ready)

    def _of(self, owner: Owner) -> Stretch | None:
        stretch = self._open.get((owner.run, owner.robot))
        if stretch is not None and stretch.owner != owner:
            self._complete(owner.run, owner.robot)
            return None
        return stretch

    def _complete(self, run: str, robot: str) -> None:
        self._ready.append(self._open.pop((run, robot)))


def split_for_files(steps: Iterable[tuple[int, Step]], max_bytes: int) -> Iterator[list[tuple[int, Step]]]:
    """The steps of a stretch in lists that each fit into one file; no more than one list is in memory at a time."""
    part: list[tuple[int, Step]] = []
    size = 0
    for index, step in steps:
        grown = size + step_bytes(step)
        if part and (grown > max_bytes or len(part) == MAX_EPISODE_STEPS or not _goes_on(part[-1][1], step)):
            yield part
            part, grown = [], step_bytes(step)
        part.append((index, step))
        size = grown
    if part:
        yield part


def write_sealed(episodes: Path, part: list[tuple[int, Step]]) -> SealedFile:
    """Write the steps as one file. Always so that it survives a loss of power: the log lets go of these steps because
    of this file."""
    index, first = part[0]
    last = part[-1][1]
    path = episodes / episode_name(index, first.robot, first.session, first.episode)
    if path.exists():  # written before, and then something failed
        file = describe_file(path)
        if file.indices().tolist() == [index for index, _ in part]:
            return file
    ended = last.terminated or last.truncated
    return describe_file(write_episode_file(episodes, part, ended=ended, durability="power"))


def _goes_on(before: Step, step: Step) -> bool:
    has_final = before.final_observation is not None or before.final_action_base is not None
    return not has_final and same_layout(before, step)


class BackgroundWork:
    """A thread that calls `work` when woken or when `period_s` is over; again at once while `work` returns True.

    An error is logged and counted in `errors`, and `work` is tried again after `retry_s`.
    """

    def __init__(self, work: Callable[[], bool], *, period_s: float, retry_s: float) -> None:
        self.errors = 0
        self._work = work
        self._period_s = period_s
        self._retry_s = retry_s
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="seal-episodes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """Wait for the piece of work in progress and end."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                more = self._work()
            except RobotStackError as error:
                self.errors += 1
                logger.error("sealing episodes failed, the steps stay in the log: %s", error)
                self._stop.wait(self._retry_s)
            except Exception:
                self.errors += 1
                logger.exception("sealing episodes failed, the steps stay in the log")
                self._stop.wait(self._retry_s)
            else:
                if not more and not self._stop.is_set():
                    self._wake.wait(self._period_s)
