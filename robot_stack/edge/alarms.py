"""What is wrong at the edge right now, for people: raised once, shown until it is over."""

from __future__ import annotations

import enum
import logging
import threading
import time

from msgspec import Struct

from robot_stack.core.clock import s_to_ns

logger = logging.getLogger(__name__)

REPEAT_S = 10.0


class AlarmKind(enum.Enum):
    """Warnings: DISK_LOW, LEARNER_AWAY. The others mean that something was refused or lost."""

    DISK_LOW = "disk_low"
    DISK_FAILED = "disk_failed"
    DISK_HANGS = "disk_hangs"
    STEPS_DROPPED = "steps_dropped"
    NO_NEW_EPISODES = "no_new_episodes"
    LEARNER_AWAY = "learner_away"
    LEARNER_REFUSES = "learner_refuses"
    STEPS_REFUSED = "steps_refused"
    WEIGHTS_REFUSED = "weights_refused"

    @property
    def is_error(self) -> bool:
        return self not in (AlarmKind.DISK_LOW, AlarmKind.LEARNER_AWAY)


class Alarm(Struct, frozen=True, kw_only=True):
    """`since_ns`: monotonic clock of this host at which it was raised."""

    kind: AlarmKind
    message: str
    since_ns: int


class AlarmBoard:
    """The alarms that hold now, one of each kind. Thread-safe.

    A new alarm is logged at once and its end too; a changed message of the same kind, or a reminder where asked for,
    every `REPEAT_S` at most.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alarms: dict[AlarmKind, Alarm] = {}
        self._logged_ns: dict[AlarmKind, int] = {}

    def put(self, kind: AlarmKind, message: str, *, remind: bool = False) -> None:
        """Raise an alarm, or give the raised one this message; '' ends it."""
        now_ns = time.monotonic_ns()
        with self._lock:
            before = self._alarms.get(kind)
            if not message:
                self._end(kind, now_ns)
                return
            since_ns = before.since_ns if before else now_ns
            self._alarms[kind] = Alarm(kind=kind, message=message, since_ns=since_ns)
            news = remind or before is None or before.message != message
            if before is not None and (not news or now_ns - self._logged_ns[kind] < s_to_ns(REPEAT_S)):
                return
            self._logged_ns[kind] = now_ns
        logger.log(logging.ERROR if kind.is_error else logging.WARNING, "%s: %s", kind.value, message)

    def end(self, *kinds: AlarmKind) -> None:
        """These are over."""
        for kind in kinds:
            self.put(kind, "")

    def active(self) -> tuple[Alarm, ...]:
        """Oldest first."""
        with self._lock:
            return tuple(sorted(self._alarms.values(), key=lambda alarm: alarm.since_ns))

    def _end(self, kind: AlarmKind, now_ns: int) -> None:
        alarm = self._alarms.pop(kind, None)
        if alarm is not None:
            logger.info("%s is over after %.1f s", kind.value, (now_ns - alarm.since_ns) / 1e9)
