"""The uplink: a thread that ships the spool to the learner and brings weights back. It never touches the control loop.

A step leaves the spool only after the learner has said that it is durable there. While the learner is away the spool
fills and the edge goes on with its last policy; afterwards it catches up as fast as the link allows. A learner that
refuses us is shown as an alarm. A step that it takes for malformed, and only such a one, is set aside.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from robot_stack.core.errors import (
    AuthenticationError,
    CommandRefusedError,
    ConfigError,
    MessageError,
    PolicyError,
    RobotStackError,
)
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    Done,
    Failed,
    GetProgress,
    GetWeights,
    Hello,
    LearnerProgress,
    LearnerReply,
    StepAck,
    StepBatch,
    WeightEncoding,
)
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.spool import Spool
from robot_stack.edge.weights import WeightFetch, WeightInbox, load_tensors
from robot_stack.transport.client import RequestClient

logger = logging.getLogger(__name__)

MIN_BATCH_BYTES = 64 << 10
FIRST_BATCH_BYTES = 1 << 20
MAX_BATCH_BYTES = 16 << 20
MAX_BATCH_RECORDS = 8192
QUICK_BATCH_S = 0.25
SLOW_BATCH_S = 1.0
GATHER_S = 0.05
"""So long the uplink waits once the spool is empty: steps that come meanwhile share one message and one sync."""
PROGRESS_EVERY_S = 0.2
PROGRESS_WHILE_BEHIND_S = 1.0
REQUEST_TIMEOUT_S = 20.0
RETRY_S = 0.3
STOP_PATIENCE_S = 2.0
MALFORMED_STEP = "MessageError"
"""`Failed.reason` of a learner that holds a batch with a malformed step: it stored none of it, and never will."""


class BatchLimits:
    """How much to ship at once: as much as the link carries in well under the time-out, so that a fast link is used
    whole and a slow one still gets something through. After a refusal ever fewer records, to find the bad one."""

    def __init__(self) -> None:
        self.size_bytes = FIRST_BATCH_BYTES
        self.records = MAX_BATCH_RECORDS

    def acknowledged(self, size_bytes: int, took_s: float) -> None:
        self.records = min(MAX_BATCH_RECORDS, 2 * self.records)
        if took_s > SLOW_BATCH_S:
            self.failed()
        elif took_s < QUICK_BATCH_S and 2 * size_bytes >= self.size_bytes:
            self.size_bytes = min(MAX_BATCH_BYTES, 2 * self.size_bytes)

    def failed(self) -> None:
        """There was no answer in time."""
        self.size_bytes = max(MIN_BATCH_BYTES, self.size_bytes // 2)

    def refused(self, records: int) -> None:
        """One of these records, at least, is malformed."""
        self.records = max(1, records // 2)


class Uplink:
    """`make_client` opens the connection inside the thread, because a socket belongs to one thread.

    `peer`: the name of this edge, for the learner's log. `encoding`: how weights are to travel.
    """

    def __init__(
        self,
        make_client: Callable[[], RequestClient[LearnerReply]],
        spool: Spool,
        inbox: WeightInbox,
        board: AlarmBoard | None = None,
        peer: str = "edge",
        encoding: WeightEncoding = WeightEncoding.FULL,
    ) -> None:
        self._make_client = make_client
        self._spool = spool
        self._inbox = inbox
        self._board = board or AlarmBoard()
        self._peer = peer
        self._limits = BatchLimits()
        self._weights = WeightFetch(encoding)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._progress: LearnerProgress | None = None
        self._outdated = True
        self._inbox_version = -1
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._next_progress_s = 0.0
        self._robot: RobotSpec | None = None
        self._greeted_with: RobotSpec | None = None
        self.reachable: bool | None = None
        self.heard_ns = -1

    def __enter__(self) -> Uplink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=STOP_PATIENCE_S)  # a request under way is given up: its steps go out next time

    def tell_robot(self, robot: RobotSpec) -> None:
        """From now on this edge has that robot: the learner is told before the next step, and may refuse it."""
        self._robot = robot

    @property
    def progress(self) -> LearnerProgress | None:
        """The learner's last report, or None before the first."""
        return self._progress

    def wait_until(self, ready: Callable[[LearnerProgress], bool], keep_waiting: Callable[[], bool]) -> bool:
        """Block until a report satisfies `ready`; False if `keep_waiting` said no first."""
        while keep_waiting():
            with self._changed:
                progress = self._progress
                if progress is not None and not self._outdated and ready(progress):
                    return True
                self._changed.wait(timeout=0.2)
        return False

    def trained_through(self, max_lead_steps: int) -> Callable[[LearnerProgress], bool]:
        """Condition for `wait_until`: the learner lags at most so many steps behind everything recorded here.

        What other edges sent does not count, else one could keep another one waiting. With 0, all steps are durable
        and trained through and the newest weights are in the inbox: the next episode of the only robot is then the same
        however fast either side ran.
        """

        def ready(progress: LearnerProgress) -> bool:
            feed = progress.robots.get(self._robot.name) if self._robot is not None else None
            untrained = progress.durable_steps - progress.trained_steps if feed is None else feed.waiting
            lag = max(0, untrained + self._spool.unacknowledged)
            current = max_lead_steps > 0 or self._inbox_version >= progress.weights_version
            return progress.finished or (lag <= max_lead_steps and current)

        return ready

    def flushed(self, progress: LearnerProgress) -> bool:
        """Condition for `wait_until`: the spool is empty."""
        return self._spool.unacknowledged == 0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._make_client() as client:
                    self._greet(client)
                    while not self._stop.is_set():
                        self._turn(client)
                        if self._spool.unacknowledged == 0:
                            self._stop.wait(GATHER_S)
            except Exception as error:  # whatever happens, this thread goes on trying: nobody else empties the spool
                self._show(error)
                self._stop.wait(RETRY_S)

    def _show(self, error: Exception) -> None:
        self.reachable = False
        if isinstance(error, (AuthenticationError, CommandRefusedError, ConfigError)):
            self._board.put(AlarmKind.LEARNER_REFUSES, f"{error}; steps are kept in the spool meanwhile", remind=True)
            self._board.end(AlarmKind.LEARNER_AWAY)
            return
        if not isinstance(error, RobotStackError):
            logger.error("the uplink failed and begins anew", exc_info=error)
        self._board.put(AlarmKind.LEARNER_AWAY, f"{error}; steps are kept in the spool meanwhile")

    def _greet(self, client: RequestClient[LearnerReply]) -> None:
        """A learner of another version would take every step for malformed: it gets none."""
        robot = self._robot
        reply = self._ask(client, Hello(schema_version=SCHEMA_VERSION, peer=self._peer, robot=robot))
        if not isinstance(reply, Done):
            raise MessageError(f"the learner answered our greeting with {type(reply).__name__}")
        self._greeted_with = robot

    def _turn(self, client: RequestClient[LearnerReply]) -> None:
        """Ship one batch, if there is one, and look for news when it is time to."""
        if self._robot is not self._greeted_with:
            self._greet(client)
        first, records = self._spool.pending(self._limits.records, self._limits.size_bytes)
        if records:
            self._ship(client, first, records)
        caught_up = bool(records) and self._spool.unacknowledged == 0
        if caught_up or time.monotonic() >= self._next_progress_s:
            self._look_for_news(client)
            self._next_progress_s = time.monotonic() + (PROGRESS_WHILE_BEHIND_S if records else PROGRESS_EVERY_S)

    def _ship(self, client: RequestClient[LearnerReply], first: int, records: list[bytes]) -> None:
        begun_s = time.monotonic()
        try:
            ack = client.request(StepBatch(records=records), timeout_s=REQUEST_TIMEOUT_S, raise_failed=False)
        except RobotStackError:
            self._limits.failed()
            raise
        if isinstance(ack, Failed):
            self._refused(ack, first, len(records))
            return
        if not isinstance(ack, StepAck) or ack.records != len(records):
            raise MessageError(f"the learner did not acknowledge a batch of {len(records)} steps; it is sent again")
        with self._changed:
            self._outdated = True
        self._spool.acknowledge(first + len(records) - 1)
        self._limits.acknowledged(sum(map(len, records)), time.monotonic() - begun_s)
        self._heard()
        if ack.duplicates:
            logger.info("the learner had %d of these steps already; they count once", ack.duplicates)

    def _refused(self, failed: Failed, first: int, records: int) -> None:
        """A batch that the learner did not take: find the malformed step, or wait if the trouble is another."""
        if failed.reason != MALFORMED_STEP:
            raise CommandRefusedError(failed.reason, f"the learner does not take steps: {failed.message}")
        if records > 1:
            self._limits.refused(records)
            return
        path = self._spool.set_aside(first, failed.message)
        with self._changed:
            self._outdated = True
        logger.error("step %d of the spool is malformed: %s; it lies in %s", first, failed.message, path)

    def _heard(self) -> None:
        self.reachable = True
        self.heard_ns = time.monotonic_ns()
        self._board.end(AlarmKind.LEARNER_AWAY, AlarmKind.LEARNER_REFUSES)

    def _ask(self, client: RequestClient[LearnerReply], request: Hello | GetProgress | GetWeights) -> LearnerReply:
        return client.request(request, timeout_s=REQUEST_TIMEOUT_S)

    def _look_for_news(self, client: RequestClient[LearnerReply]) -> None:
        progress = self._ask(client, GetProgress())
        if not isinstance(progress, LearnerProgress):
            raise MessageError(f"the learner answered with {type(progress).__name__} where its progress was due")
        self._heard()
        if progress.weights_version > self._inbox_version:
            self._fetch(client)
        with self._changed:
            self._progress = progress
            self._outdated = False
            self._changed.notify_all()

    def _fetch(self, client: RequestClient[LearnerReply]) -> None:
        fetched = self._weights.fetch(lambda request: self._ask(client, request))
        if fetched is None:
            return
        snapshot, data = fetched
        try:
            self._inbox.put(snapshot.version, load_tensors(data))
        except PolicyError as error:  # asking for the same weights again would not make them better
            words = f"weights version {snapshot.version} refused: {error}"
            self._board.put(AlarmKind.WEIGHTS_REFUSED, words, remind=True)
        self._inbox_version = snapshot.version
