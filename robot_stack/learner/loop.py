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
from robot_stack.learner.ingest import Ingest
from robot_stack.learner.metrics import MetricsLog
from robot_stack.learner.publication import WeightPublisher
from robot_stack.learner.trainer import Trainer
from robot_stack.transport.server import Request, RequestServer

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.02


class LearnerLoop:
    """Owns store, trainer, checkpoints and the server; `run` until `keep_running` says no.

    `kind` names whose weights they are in every announcement: the algorithm.
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
    ) -> None:
        self._requests = requests
        self._store = store
        self._ingest = Ingest(store)
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._publisher = WeightPublisher(kind=kind)
        self._metrics = MetricsLog(directory / "metrics.jsonl")
        self._target_steps = target_steps
        self._checkpoint_every_s = checkpoint_every_s
        self._saved_updates = -1

    def resume(self) -> None:
        """Continue from the newest valid checkpoint, if there is one."""
        checkpoint = self._checkpoints.latest()
        if checkpoint is not None:
            self._trainer.restore(checkpoint.tensors, checkpoint.meta)
            self._saved_updates = self._trainer.updates
            logger.info("resumed at step %d, update %d", self._trainer.trained_steps, self._trainer.updates)
        self._publish()

    def run(self, keep_running: Callable[[], bool]) -> None:
        """Serve and train. Saves a checkpoint on the way out."""
        next_save_s = time.monotonic() + self._checkpoint_every_s
        busy = False
        while keep_running():
            for request in self._requests.poll(0.0 if busy else IDLE_POLL_S):
                request.reply(self._answer(request))
            busy = self._trainer.advance()
            if self._trainer.finished:
                self._trainer.conclude()
            if self._trainer.version != self._publisher.version:
                self._publish()
            if time.monotonic() >= next_save_s:
                self._save()
                next_save_s = time.monotonic() + self._checkpoint_every_s
        self._save()

    def _publish(self) -> None:
        trainer = self._trainer
        self._publisher.publish(trainer.version, trainer.published, trainer.trained_steps)
        self._metrics.write(trainer.trained_steps, trainer.updates, trainer.version, trainer.metrics)
        if trainer.finished:
            self._save()

    def _save(self) -> None:
        if self._trainer.updates != self._saved_updates:
            tensors, meta = self._trainer.state()
            self._checkpoints.save(self._trainer.updates, tensors, meta)
            self._saved_updates = self._trainer.updates

    def _answer(self, request: Request[LearnerRequest]) -> LearnerReply:
        try:
            return self._handle(request.message)
        except RobotStackError as error:
            logger.error("%s: %s", request.peer, error)
            return Failed(reason=type(error).__name__, message=str(error))

    def _handle(self, message: LearnerRequest) -> LearnerReply:
        if isinstance(message, StepBatch):
            return self._ingest.answer(message)
        if isinstance(message, GetProgress):
            return self._progress()
        if isinstance(message, Hello):
            if message.schema_version != SCHEMA_VERSION:
                text = f"{message.peer} speaks schema version {message.schema_version}, this learner {SCHEMA_VERSION}"
                return Failed(reason="schema_version", message=f"{text}; install the same release on both")
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
        )
