"""The edge's end of one camera process: its pictures that are fresh, or words why there are none."""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Protocol

from robot_stack.core.clock import ClockOffset
from robot_stack.core.errors import RobotError, RobotStackError
from robot_stack.core.messages import Array, CameraFrame
from robot_stack.edge.freshness import Freshness, FreshnessJudge, Sample

KEPT_PICTURES = 4
_POLL_S = 0.005


class FrameStream(AbstractContextManager["FrameStream"], Protocol):
    """What a feed needs of a `transport.stream.Subscriber[CameraFrame]`."""

    def newest(self, timeout_s: float) -> CameraFrame | None: ...


class CameraFeed:
    """Watches one camera process from one thread. Use as a context manager: it opens the subscriber.

    Args:
        name: of the camera; frames of another one are refused.
        subscriber: of the stream `camera.frame`.
        judge: a fresh judge with the camera's rate and the age up to which a picture may be used.
        offset: from this host's clock to the clock of the camera's host; None where they are one host.
    """

    def __init__(
        self, name: str, subscriber: FrameStream, judge: FreshnessJudge, offset: ClockOffset | None = None
    ) -> None:
        self.name = name
        self.dropped: Counter[str] = Counter()
        """Pictures that were not used, by the name of the `Freshness`; `fault`: messages of a hanging camera."""
        self.taken = 0
        self.skipped = 0
        """Pictures between two taken ones, by their numbers, that were never seen here: lost, or not asked for."""
        self._subscriber = subscriber
        self._judge = judge
        self._offset = offset
        self._open = ExitStack()
        self._held: deque[tuple[Sample, Array]] = deque(maxlen=KEPT_PICTURES)
        self._fault = ""
        self._last_verdict = Freshness.FRESH

    def __enter__(self) -> CameraFeed:
        self._open.enter_context(self._subscriber)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def newest(self, now_ns: int) -> tuple[Array, int]:
        """The newest fresh picture, uint8 RGB (height, width, 3), and its age in ns at `now_ns`. Waits for nothing.

        A picture is given again until it is too old: a loop may run faster than its camera.

        Raises:
            RobotError: the camera hangs, its process is away, or its newest picture is too old.
        """
        self._take(now_ns)
        sample, image = self._checked_newest(now_ns)
        return image, self._judge.age_ns(sample, now_ns)

    def nearest(self, reference_ns: int, now_ns: int) -> tuple[Array, int]:
        """Of the last pictures that are fresh enough the one taken nearest to `reference_ns` (this host's clock), and
        its age in ns at `now_ns`. The camera has to be alive as for `newest`, with the same errors.

        Pictures are known from the calls of this class: one that came and went between two calls was never seen.
        """
        self._take(now_ns)
        self._checked_newest(now_ns)
        aged = [(self._judge.age_ns(sample, now_ns), image) for sample, image in self._held]
        fresh = [(age_ns, image) for age_ns, image in aged if age_ns <= self._judge.max_age_ns]
        age_ns, image = min(fresh, key=lambda one: abs(now_ns - one[0] - reference_ns))
        return image, age_ns

    def wait(self, timeout_s: float) -> None:
        """Until there is a fresh picture, as when the camera's process has just begun; RobotError as of `newest`, with
        the last reason, if none comes in time."""
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                self.newest(time.monotonic_ns())
                return
            except RobotError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(_POLL_S)

    def _checked_newest(self, now_ns: int) -> tuple[Sample, Array]:
        """The newest picture; RobotError unless it may be used."""
        silent_ns = self._judge.silent_ns(now_ns)
        if self._fault:
            raise RobotError(f"the process of camera '{self.name}' reports: {self._fault}. The policy pauses")
        if not self._held or self._judge.frozen(now_ns):
            raise RobotError(
                f"camera '{self.name}' has sent no fresh picture for {silent_ns / 1e6:.0f} ms (allowed: "
                f"{self._judge.frozen_after_ns / 1e6:.0f} ms){self._why()}; the policy pauses. "
                "Check the camera's process"
            )
        age_ns = self._judge.age_ns(self._held[-1][0], now_ns)
        if age_ns > self._judge.max_age_ns:
            raise RobotError(
                f"the newest picture of camera '{self.name}' is {age_ns / 1e6:.0f} ms old (allowed: "
                f"{self._judge.max_age_ns / 1e6:.0f} ms); the policy pauses. Check its rate and the network"
            )
        return self._held[-1]

    def _why(self) -> str:
        return "" if self._last_verdict.usable else f": what comes is {self._last_verdict.value}"

    def _take(self, now_ns: int) -> None:
        try:
            frame = self._subscriber.newest(0.0)
        except RobotStackError as error:
            raise RobotError(f"camera '{self.name}': {error}") from error
        if frame is None:
            return
        if frame.camera != self.name:
            raise RobotError(
                f"the stream of camera '{self.name}' carries pictures of '{frame.camera}'; give each camera an "
                "address of its own"
            )
        if frame.fault:
            self._fault = frame.fault
            self.dropped["fault"] += 1
            return
        sample = Sample(frame.boot, frame.number, frame.device_time_ns, self._to_own_clock(frame.stamp_ns))
        self._last_verdict = self._judge.take(sample, now_ns)
        if self._last_verdict.usable:
            if self._held and self._held[-1][0].boot == sample.boot:
                self.skipped += sample.number - self._held[-1][0].number - 1
            else:
                self._held.clear()  # a new process counts and stamps anew
            self._held.append((sample, frame.image))
            self._fault = ""
            self.taken += 1
        else:
            self.dropped[self._last_verdict.value] += 1

    def _to_own_clock(self, stamp_ns: int) -> int:
        return stamp_ns if self._offset is None else stamp_ns - self._offset.offset_ns
