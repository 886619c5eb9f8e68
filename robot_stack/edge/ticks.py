"""When a robot server's ticks are, seen from its client, and periods that are kept while a person drives.

A robot server answers at its ticks. A command that is sent right after one is as old as a whole tick when it is taken;
one that is made shortly before the next is hardly older than the way there.
"""

from __future__ import annotations

import math
import time

from robot_stack.core.clock import NS_PER_S, Pacer, s_to_ns

LEAD_S = 0.004
"""So long before an answer is due its request is sent. Too late costs a whole tick."""
_LATE_S = 0.001
_FORGET = 0.05


class ServerTicks:
    """The grid of a server's answers, by the earliest of them; local monotonic seconds."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._lead_s = min(LEAD_S, tick_s / 2)
        self._answered_s: float | None = None

    def answered(self, now_s: float) -> None:
        """An answer came. Later ones than the grid says move it only slowly: something else came before them."""
        if self._answered_s is None:
            self._answered_s = now_s
            return
        ticks = round((now_s - self._answered_s) / self._tick_s)
        expected_s = self._answered_s + ticks * self._tick_s
        off_s = now_s - expected_s
        self._answered_s = now_s if off_s < 0.0 else expected_s + _FORGET * off_s

    def send_at(self, from_s: float) -> float:
        """The first time from then on at which a request is answered soon; that time where nothing is known."""
        if self._answered_s is None:
            return from_s
        first_s = self._answered_s - self._lead_s
        ticks = math.ceil((from_s - _LATE_S - first_s) / self._tick_s)
        return max(from_s, first_s + ticks * self._tick_s)

    def answer_at(self, sent_s: float) -> float:
        """When a request that is sent at a time of `send_at` is answered."""
        return sent_s + self._lead_s

    def after_answer(self, from_s: float, delay_s: float) -> float:
        """The first time from then on that lies so long after a tick's answers."""
        if self._answered_s is None:
            return from_s
        first_s = self._answered_s + delay_s
        return first_s + math.ceil((from_s - first_s) / self._tick_s) * self._tick_s


class ControlPacer(Pacer):
    """Control periods on a fixed grid. `wait` skips a period that is over; `wait_or_catch_up` does not, if it is over
    only just: the next one begins at once, and ends on the grid."""

    @property
    def due_s(self) -> float:
        """When the running period ends, on `time.monotonic`."""
        return self._next_ns / NS_PER_S

    @property
    def share(self) -> float:
        """How much of a whole period the running one has: less than 1 after one that took too long."""
        return min(1.0, (self._next_ns - self._woke_ns) / self._period_ns)

    def restart(self, due_s: float) -> None:
        """A period begins now, wherever the last one was; it ends at `due_s`, and the grid goes on from there."""
        self._woke_ns = time.monotonic_ns()
        self._next_ns = s_to_ns(due_s)
        self.ticks += 1

    def wait_or_catch_up(self, within_s: float) -> None:
        now_ns = time.monotonic_ns()
        if self.ticks == 0 or not 0 < now_ns - self._next_ns <= s_to_ns(within_s):
            self.wait()
            return
        self._periods_ns.append(now_ns - self._woke_ns)
        self._woke_ns = now_ns
        self._next_ns += self._period_ns
        self.ticks += 1


def sleep_until(until_s: float) -> None:
    """Of `time.monotonic`."""
    time.sleep(max(0.0, until_s - time.monotonic()))
