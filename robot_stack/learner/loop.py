"""The learner's process: one thread that answers the edges between updates. No locks, nothing to race.

A batch of steps is answered only after it is on the disk. Training is the trainer's fold over that same log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from robot_stack.buffer.store import StepStore
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    Done,
    Failed,
    GetProgress,
    Hello,
    LearnerProgress,
    LearnerReply,
    LearnerRequest,
    StepBatch,
)
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.feeds import Feeds
from robot_stack.learner.imitation_log import TrainingLog
from robot_stack.learner.ingest import Ingest
from robot_stack.learner.metrics import MetricsLog, WaitingShare, read_metrics
from robot_stack.learner.publication import WeightPublisher
from robot_stack.learner.trainer import Trainer
from robot_stack.transport.server import Request, RequestServer

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.02


class LearnerLoop:
    """Owns store, trainer, checkpoints and the server; `run` until `keep_running` says no.

    `kind` names whose weights they are in every announcement: the algorithm. `feeds`: the robots that may feed it;
    `scalars`: where the numbers of its metrics go beside the file.
    """

    def __init__(
        self,
        requests: RequestServer[LearnerRequest],
        store: StepStore,
        trainer: Trainer,
        checkpoints: CheckpointStore,
        directory: Path,
        *,
        kind: str,
        target_steps: int,
        checkpoint_every_s: float,
        feeds: Feeds | None = None,
        scalars: TrainingLog | None = None,
    ) -> None:
        self._requests = requests
        self._store = store
        self._feeds = feeds or Feeds()
        self._ingest = Ingest(store, self._feeds)
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._publisher = WeightPublisher(kind=kind)
        self._metrics_path = directory / "metrics.jsonl"
        self._metrics = MetricsLog(self._metrics_path, scalars)
        self._waiting = WaitingShare(time.monotonic())
        self._target_steps = target_steps
        self._checkpoint_every_s = checkpoint_every_s
        self._saved = -1
        self._told: dict[str, str] = {}

    def resume(self) -> None:
        """Continue from the newest valid checkpoint, if there is one."""
        checkpoint = self._checkpoints.latest()
        if checkpoint is not None:
            self._trainer.restore(checkpoint.tensors, checkpoint.meta)
            self._saved = self._checkpoint_number()
            logger.info("resumed at step %d, update %d", self._trainer.trained_steps, self._trainer.updates)
        self._know_feeds()
        self._publish()

    def _know_feeds(self) -> None:
        """What was published when, and which robots' steps are still to be learned from."""
        for line in read_metrics(self._metrics_path):
            self._feeds.published(line.weights_version, max(0.0, time.time() - line.unix_s))
        trainer, store = self._trainer, self._store
        untrained = store.iterate(max(trainer.position, store.first_index))
        self._feeds.resume(store.sessions(), (step for _, step in untrained))
        trainer.watch(lambda step: self._feeds.trained(step, trainer.version))

    def run(self, keep_running: Callable[[], bool]) -> None:
        """Serve and train. Saves a checkpoint on the way out."""
        next_save_s = time.monotonic() + self._checkpoint_every_s
        busy = False
        while keep_running():
            for request in self._poll(busy):
                request.reply(self._answer(request))
            busy = self._trainer.advance()
            if self._trainer.finished:
                self._trainer.conclude()
            if self._trainer.version != self._publisher.version:
                self._publish()
            if self._trainer.finished:
                self._save()
            if time.monotonic() >= next_save_s:
                self._save()
                next_save_s = time.monotonic() + self._checkpoint_every_s
        self._save()

    def _poll(self, busy: bool) -> list[Request[LearnerRequest]]:
        if busy:
            return self._requests.poll(0.0)
        begun_s = time.monotonic()
        requests = self._requests.poll(IDLE_POLL_S)
        now_s = time.monotonic()
        self._waiting.add(now_s - begun_s, now_s)
        return requests

    def _publish(self) -> None:
        trainer = self._trainer
        self._publisher.publish(trainer.version, trainer.published, trainer.trained_steps)
        self._feeds.published(trainer.version)
        self._metrics.write(
            trainer.trained_steps,
            trainer.updates,
            trainer.version,
            trainer.metrics,
            self._feeds.read(self._store.sessions()),
            self._waiting.read(time.monotonic()),
        )

    def _save(self) -> None:
        number = self._checkpoint_number()
        if number != self._saved:
            tensors, meta = self._trainer.state()
            self._checkpoints.save(number, tensors, meta)
            self._saved = number

    def _checkpoint_number(self) -> int:
        """Higher with every step, update and publication: none of them is left out of a checkpoint."""
        return self._trainer.trained_steps + self._trainer.updates + self._trainer.version

    def _answer(self, request: Request[LearnerRequest]) -> LearnerReply:
        self._feeds.heard(request.peer)
        try:
            return self._handle(request.message, request.peer)
        except RobotStackError as error:
            if self._told.get(request.peer) != str(error):  # it asks again and again
                self._told[request.peer] = str(error)
                logger.error("%s: %s", request.peer, error)
            return Failed(reason=type(error).__name__, message=str(error))

    def _handle(self, message: LearnerRequest, peer: str) -> LearnerReply:
        if isinstance(message, StepBatch):
            return self._ingest.answer(message, peer)
        if isinstance(message, GetProgress):
            return self._progress()
        if isinstance(message, Hello):
            if message.schema_version != SCHEMA_VERSION:
                text = f"{message.peer} speaks schema version {message.schema_version}, this learner {SCHEMA_VERSION}"
                return Failed(reason="schema_version", message=f"{text}; install the same release on both")
            if message.robot is not None:
                self._feeds.greet(peer, message.robot)
            return Done()
        return self._publisher.answer(message)

    def _progress(self) -> LearnerProgress:
        trainer = self._trainer
        return LearnerProgress(
            durable_steps=self._store.next_index,
            trained_steps=trainer.trained_steps,
            updates=trainer.updates,
            weights_version=self._publisher.version,
            target_steps=self._target_steps,
            finished=trainer.finished,
            metrics=trainer.metrics,
            robots=self._feeds.read(self._store.sessions()),
            waiting_share=self._waiting.read(time.monotonic()),
        )
