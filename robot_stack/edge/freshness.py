"""Is this picture new? Judged by the camera's process and again at the edge, by frame number and by two clocks.

A camera that hangs goes on to deliver: the same picture again, an old one from a queue, a picture with a number that
counts on while its clock stands. So the frame number, the device's clock and the host's clock all have to advance, and
the two clocks have to agree. All times are nanoseconds; nothing here reads a clock.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from robot_stack.core.clock import NS_PER_S, s_to_ns

FROZEN_PERIODS = 3
"""So many frame periods without a fresh picture and the camera counts as frozen."""
MAX_DRIFT = 0.2
"""Share by which the device's clock may run faster or slower than the host's, over DRIFT_SPAN_S."""
DRIFT_SPAN_S = 1.0
FUTURE_TOLERANCE_S = 0.05
"""A stamp may lie this far ahead of now: two readings of a clock, and the error of an offset between hosts."""
_WINDOW_S = 10.0


class Freshness(enum.Enum):
    """FRESH, or RESTARTED for the first picture of a new process; every other picture is not to be used.

    REPEATED: number or device time did not advance. BACKWARDS: number, device time or stamp went back. FROZEN: either,
    for FROZEN_PERIODS. STALE: older than allowed. CLOCK: the device's clock and the host's contradict each other.
    """

    FRESH = "fresh"
    RESTARTED = "restarted"
    REPEATED = "repeated"
    BACKWARDS = "backwards"
    FROZEN = "frozen"
    STALE = "stale"
    CLOCK = "clock"

    @property
    def usable(self) -> bool:
        return self in (Freshness.FRESH, Freshness.RESTARTED)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a picture says about itself; `stamp_ns` is on the judge's own host clock."""

    boot: str
    number: int
    device_time_ns: int
    stamp_ns: int


class FreshnessJudge:
    """Judges the pictures of one camera in the order they arrive.

    A number that goes back is fine with a new boot (the process was started again) and never within one boot, so two
    pictures that alternate in a stuck queue do not pass as new.

    Args:
        rate_hz: the camera's frame rate.
        max_age_s: an older picture is stale. The age counts from the host's stamp, and what the picture was delayed
            before that, seen on the device's clock, is added.
    """

    def __init__(self, rate_hz: float, max_age_s: float) -> None:
        self.max_age_ns = s_to_ns(max_age_s)
        self.frozen_after_ns = s_to_ns(FROZEN_PERIODS / rate_hz)
        self._last: Sample | None = None
        self._alive_ns: int | None = None
        self._window: deque[Sample] = deque()

    def take(self, sample: Sample, now_ns: int) -> Freshness:
        """Judge the next picture."""
        restarted = self._last is not None and sample.boot != self._last.boot
        if restarted or self._last is None:
            self._window.clear()
        verdict = self._compare(sample, now_ns)
        if verdict in (Freshness.REPEATED, Freshness.BACKWARDS):
            return Freshness.FROZEN if self.frozen(now_ns) else verdict
        self._last = sample
        if verdict is not Freshness.CLOCK:
            self._remember(sample)
        if not verdict.usable:
            return verdict
        self._alive_ns = sample.stamp_ns
        return Freshness.RESTARTED if restarted else Freshness.FRESH

    def silent_ns(self, now_ns: int) -> int:
        """Time since the last fresh picture; before the first one, since this was first asked."""
        if self._alive_ns is None:
            self._alive_ns = now_ns
        return max(0, now_ns - self._alive_ns)

    def frozen(self, now_ns: int) -> bool:
        """True once there was no fresh picture for FROZEN_PERIODS."""
        return self.silent_ns(now_ns) > self.frozen_after_ns

    def age_ns(self, sample: Sample, now_ns: int) -> int:
        """Age of a picture: since its stamp, plus its delay before that, against the fastest one lately."""
        fastest_ns = min((other.stamp_ns - other.device_time_ns for other in self._window), default=None)
        waited_ns = 0 if fastest_ns is None else sample.stamp_ns - sample.device_time_ns - fastest_ns
        return max(0, now_ns - sample.stamp_ns) + max(0, waited_ns)

    def _compare(self, sample: Sample, now_ns: int) -> Freshness:
        last = self._last
        if last is not None and sample.boot == last.boot:
            if sample.number < last.number or sample.device_time_ns < last.device_time_ns:
                return Freshness.BACKWARDS
            if sample.stamp_ns < last.stamp_ns:
                return Freshness.BACKWARDS
            if sample.number == last.number or sample.device_time_ns == last.device_time_ns:
                return Freshness.REPEATED
        if sample.stamp_ns - now_ns > s_to_ns(FUTURE_TOLERANCE_S) or self._drifts(sample):
            return Freshness.CLOCK
        return Freshness.STALE if self.age_ns(sample, now_ns) > self.max_age_ns else Freshness.FRESH

    def _drifts(self, sample: Sample) -> bool:
        """Compare both clocks over the newest span of at least DRIFT_SPAN_S."""
        for earlier in reversed(self._window):
            host_ns = sample.stamp_ns - earlier.stamp_ns
            if host_ns >= DRIFT_SPAN_S * NS_PER_S:
                device_ns = sample.device_time_ns - earlier.device_time_ns
                return abs(device_ns / host_ns - 1.0) > MAX_DRIFT
        return False

    def _remember(self, sample: Sample) -> None:
        self._window.append(sample)
        while sample.stamp_ns - self._window[0].stamp_ns > _WINDOW_S * NS_PER_S:
            self._window.popleft()
