"""Time: monotonic nanoseconds of this host. Wall time is for logs only.

Another host's monotonic clock runs from another origin. `ClockOffset` is the one place that converts: it keeps
the offset measured with the smallest round trip, as NTP does, with the bound of its error.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

NS_PER_S = 1_000_000_000


def s_to_ns(duration_s: float) -> int:
    return round(duration_s * NS_PER_S)


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic nanoseconds; never goes back."""


class MonotonicClock:
    """The host's own monotonic clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()


class ManualClock:
    """A clock that moves only when told to: simulated time in lock-step, and tests."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance_ns(self, duration_ns: int) -> None:
        if duration_ns < 0:
            raise ValueError(f"a clock cannot go back (asked for {duration_ns} ns)")
        self._now_ns += duration_ns


@dataclass(slots=True)
class ClockOffset:
    """Converts local monotonic time to a peer's: peer = local + offset_ns, within +-error_ns."""

    offset_ns: int = 0
    error_ns: int = 2**62

    def update(self, sent_ns: int, peer_ns: int, received_ns: int) -> None:
        """Take one ping: sent and received on the local clock, answered at peer_ns on the peer's."""
        error_ns = (received_ns - sent_ns) // 2 + 1
        if error_ns < self.error_ns:
            self.offset_ns = peer_ns - (sent_ns + received_ns) // 2
            self.error_ns = error_ns

    def to_peer_ns(self, local_ns: int) -> int:
        return local_ns + self.offset_ns


class Pacer:
    """Keeps a loop at a fixed period on the monotonic clock and counts every overrun.

    Deadlines lie on a fixed grid, so one slow tick does not shift the later ones; whole periods that were
    missed are skipped and counted, never run in a burst.
    """

    def __init__(self, period_s: float, history: int = 4096) -> None:
        self._period_ns = s_to_ns(period_s)
        self._next_ns = 0
        self._woke_ns = 0
        self._periods_ns: deque[int] = deque(maxlen=history)
        self.overruns = 0
        self.ticks = 0

    def wait(self) -> None:
        """Sleep until the next tick is due."""
        now_ns = time.monotonic_ns()
        if self.ticks == 0:
            self._next_ns = now_ns
        else:
            missed = (now_ns - self._next_ns) // self._period_ns + 1 if now_ns > self._next_ns else 0
            self.overruns += missed
            self._next_ns += missed * self._period_ns
        if self._next_ns > now_ns:
            time.sleep((self._next_ns - now_ns) / NS_PER_S)
        woke_ns = time.monotonic_ns()
        if self.ticks > 0:
            self._periods_ns.append(woke_ns - self._woke_ns)
        self._woke_ns = woke_ns
        self._next_ns += self._period_ns
        self.ticks += 1

    def periods_s(self) -> list[float]:
        """The last measured periods, oldest first."""
        return [period_ns / NS_PER_S for period_ns in self._periods_ns]
