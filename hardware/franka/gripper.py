"""When the Franka Hand gets a new goal: it takes goals, not a stream.

A goal of the real hand blocks it for 0.5 to 1 s, so a new one goes out only when the wanted width has come to rest, or
has moved for as long as a goal takes; when it differs from the last goal by more than `MIN_CHANGE_M`; and at most
every `MIN_INTERVAL_S`.
"""

from __future__ import annotations

from robot_stack.core.clock import s_to_ns

MIN_CHANGE_M = 0.004
MIN_INTERVAL_S = 0.5
SPEED_M_S = 0.1
GRASP_FORCE_N = 30.0

_REST_M = 1e-4
_INTERVAL_NS = s_to_ns(MIN_INTERVAL_S)


class WidthGoals:
    """Wanted widths in, at every tick; few goals out."""

    def __init__(self) -> None:
        self._goal_m = self._wanted_m = 0.0
        self._changed_ns = self._sent_ns = -_INTERVAL_NS

    def start(self, measured_m: float) -> None:
        """The hand stays as it is until another width is wanted."""
        self._goal_m = self._wanted_m = measured_m

    def next(self, width_m: float, now_ns: int) -> tuple[float, bool] | None:
        """A goal that is due now, and whether it closes the hand; else None."""
        rests = abs(width_m - self._wanted_m) <= _REST_M
        if not rests and abs(self._wanted_m - self._goal_m) <= MIN_CHANGE_M:
            self._changed_ns = now_ns
        self._wanted_m = width_m
        due = now_ns - self._sent_ns >= _INTERVAL_NS and (rests or now_ns - self._changed_ns >= _INTERVAL_NS)
        if not due or abs(width_m - self._goal_m) <= MIN_CHANGE_M:
            return None
        closing = width_m < self._goal_m
        self._goal_m, self._sent_ns, self._changed_ns = width_m, now_ns, now_ns
        return width_m, closing
