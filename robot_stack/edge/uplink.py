"""The uplink: a thread that ships the spool to the learner and brings weights back. It never touches the control loop.

A step leaves the spool only after the learner has said that it is durable there. While the learner is away the spool
fills and the edge goes on with its last policy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from robot_stack.core.errors import MessageError, RobotStackError
from robot_stack.core.messages import GetProgress, GetWeights, LearnerProgress, LearnerReply, StepAck, StepBatch
from robot_stack.edge.spool import Spool
from robot_stack.edge.weights import WeightInbox, fetch_weights, load_tensors
from robot_stack.transport.client import RequestClient

logger = logging.getLogger(__name__)

BATCH_RECORDS = 256
BATCH_BYTES = 4 << 20
IDLE_S = 0.02
PROGRESS_EVERY_S = 0.2
REQUEST_TIMEOUT_S = 5.0
RETRY_S = 0.3


class Uplink:
    """`make_client` opens the connection inside the thread, because a socket belongs to one thread."""

    def __init__(
        self, make_client: Callable[[], RequestClient[LearnerReply]], spool: Spool, inbox: WeightInbox
    ) -> None:
        self._make_client = make_client
        self._spool = spool
        self._inbox = inbox
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._progress: LearnerProgress | None = None
        self._outdated = True
        self._inbox_version = -1
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._next_progress_s = 0.0
        self.reachable: bool | None = None

    def __enter__(self) -> Uplink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * REQUEST_TIMEOUT_S)

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

        With 0, all steps are durable and trained through and the newest weights are in the inbox: the next episode
        is then the same however fast either side ran.
        """

        def ready(progress: LearnerProgress) -> bool:
            recorded = progress.durable_steps + self._spool.unacknowledged
            lag = recorded - min(progress.trained_steps, recorded)
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
                    while not self._stop.is_set():
                        if not self._turn(client):
                            self._stop.wait(IDLE_S)
            except RobotStackError as error:
                if self.reachable is not False:
                    logger.warning("learner: %s; steps are kept in the spool meanwhile", error)
                self.reachable = False
                self._stop.wait(RETRY_S)

    def _turn(self, client: RequestClient[LearnerReply]) -> bool:
        """Ship one batch or look for news; False if there was nothing to do."""
        first, records = self._spool.pending(BATCH_RECORDS, BATCH_BYTES)
        if records:
            self._ship(client, first, records)
        due = time.monotonic() >= self._next_progress_s
        if due or records:
            self._look_for_news(client)
        return bool(records)

    def _ship(self, client: RequestClient[LearnerReply], first: int, records: list[bytes]) -> None:
        ack = client.request(StepBatch(records=records), timeout_s=REQUEST_TIMEOUT_S)
        if not isinstance(ack, StepAck) or ack.records != len(records):
            raise MessageError(f"the learner did not acknowledge a batch of {len(records)} steps; it is sent again")
        with self._changed:
            self._outdated = True
        self._spool.acknowledge(first + len(records) - 1)
        if ack.duplicates:
            logger.info("the learner had %d of these steps already; they count once", ack.duplicates)

    def _look_for_news(self, client: RequestClient[LearnerReply]) -> None:
        progress = client.request(GetProgress(), timeout_s=REQUEST_TIMEOUT_S)
        if not isinstance(progress, LearnerProgress):
            raise MessageError(f"the learner answered with {type(progress).__name__} where its progress was due")
        self._next_progress_s = time.monotonic() + PROGRESS_EVERY_S
        self.reachable = True
        if progress.weights_version > self._inbox_version:
            self._fetch(client)
        with self._changed:
            self._progress = progress
            self._outdated = False
            self._changed.notify_all()

    def _fetch(self, client: RequestClient[LearnerReply]) -> None:
        def ask(request: GetWeights) -> object:
            return client.request(request, timeout_s=REQUEST_TIMEOUT_S)

        fetched = fetch_weights(ask)
        if fetched is not None:
            snapshot, data = fetched
            self._inbox.put(snapshot.version, load_tensors(data))
            self._inbox_version = snapshot.version
