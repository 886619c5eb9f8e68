"""A thread that watches what the control loop must not wait for, raises alarms, and writes the edge's status file."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import StorageError
from robot_stack.edge.alarms import Alarm, AlarmBoard, AlarmKind
from robot_stack.edge.disk import disk_space
from robot_stack.edge.gauges import GaugeReadings, Gauges
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.spool import Spool

CHECK_S = 0.25
STUCK_S = 0.5
WRITE_EVERY_S = 1.0


class EdgeStatus(Struct, frozen=True, kw_only=True):
    """How an edge fares. `stamp_ns` and `since_ns`: monotonic clock of its host; -1 for a time that never was.

    steps_queued wait for the disk, steps_waiting (in the spool) for the learner; steps_dropped could not be kept
    and steps_refused were malformed to the learner (set aside in the spool's folder `refused`). gauges: of the policy
    and the control loop.
    """

    stamp_ns: int
    alarms: tuple[Alarm, ...]
    steps_kept: int
    steps_dropped: int
    steps_queued: int
    steps_waiting: int
    steps_refused: int
    spool_bytes: int
    spool_capacity_bytes: int
    disk_free_bytes: int
    learner_heard_ns: int
    gauges: GaugeReadings = GaugeReadings()


class EdgeWatch:
    """Looks every `CHECK_S` and writes `path` every second at most, whole or not at all.

    Args:
        low_free_share: of the disk; below it a warning is raised.
        learner_heard_ns: when the learner last answered, -1 before.
    """

    def __init__(
        self,
        path: Path,
        spool: Spool,
        outbox: Outbox,
        board: AlarmBoard,
        low_free_share: float,
        learner_heard_ns: Callable[[], int],
        gauges: Gauges | None = None,
    ) -> None:
        self._path = path
        self._spool = spool
        self._outbox = outbox
        self._board = board
        self._low_free_share = low_free_share
        self._learner_heard_ns = learner_heard_ns
        self._gauges = gauges or Gauges()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-watch", daemon=True)
        self._next_write_s = 0.0
        self._free_bytes = -1

    def __enter__(self) -> EdgeWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(CHECK_S):
            self._check()
            if time.monotonic() >= self._next_write_s:
                self._next_write_s = time.monotonic() + WRITE_EVERY_S
                self._write()
        self._write()

    def _check(self) -> None:
        """Memory first: asking a hanging disk may hang this thread too, and then the alarm is out already."""
        outbox, board = self._outbox, self._board
        hangs = outbox.stuck_s > STUCK_S
        board.put(
            AlarmKind.DISK_HANGS,
            f"the disk that holds {self._spool.directory} hangs; the robot goes on and steps wait in memory. "
            "Check that disk (dmesg, smartctl)"
            if hangs
            else "",
        )
        lost = f"{outbox.dropped} steps could not be kept: {outbox.problem}"
        board.put(AlarmKind.STEPS_DROPPED, lost if outbox.problem else "")
        refused = self._spool.refused
        folder = self._spool.refused_directory
        words = f"the learner takes {refused} steps for malformed; they are set aside in {folder}. Report them"
        board.put(AlarmKind.STEPS_REFUSED, words if refused else "")
        if not hangs:
            self._check_disk()

    def _check_disk(self) -> None:
        try:
            space = disk_space(self._spool.directory)
        except StorageError as error:
            self._board.put(AlarmKind.DISK_FAILED, str(error))
            return
        self._board.end(AlarmKind.DISK_FAILED)
        self._free_bytes = space.free_bytes
        low = space.free_share < self._low_free_share
        words = (
            f"less than {100 * self._low_free_share:.0f} % of the disk that holds {self._spool.directory} are free "
            f"({space.total_bytes >> 20} MiB in all). Free space there; when it is full no episode begins"
        )
        self._board.put(AlarmKind.DISK_LOW, words if low else "")

    def _write(self) -> None:
        status = EdgeStatus(
            stamp_ns=time.monotonic_ns(),
            alarms=self._board.active(),
            steps_kept=self._outbox.kept,
            steps_dropped=self._outbox.dropped,
            steps_queued=self._outbox.waiting,
            steps_waiting=self._spool.unacknowledged,
            steps_refused=self._spool.refused,
            spool_bytes=self._spool.bytes_used,
            spool_capacity_bytes=self._spool.capacity_bytes,
            disk_free_bytes=self._free_bytes,
            learner_heard_ns=self._learner_heard_ns(),
            gauges=self._gauges.read(),
        )
        # Not synced: it says how things are now, and after a crash nobody needs to know how they were.
        aside = self._path.with_name(f".{self._path.name}.new")
        with contextlib.suppress(OSError):  # a full disk is what the alarms in the log tell of
            aside.write_bytes(msgspec.json.encode(status))
            aside.replace(self._path)


def read_status(path: Path) -> EdgeStatus | None:
    """The status that an edge wrote last, or None if it never did; StorageError if the file is none."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=EdgeStatus)
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"{path} is no status of an edge: {error}. Remove it; the edge writes it anew") from error
