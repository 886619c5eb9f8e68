"""The outbox: between the control loop, which never waits, and the spool, which may have to wait for its disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

import msgspec
import numpy as np

from robot_stack.buffer.images import ImageCodec, encode_image
from robot_stack.core.codec import pack
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import Features, Step
from robot_stack.core.specs import IMAGES

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 10.0


class RecordSink(Protocol):
    """Where packed steps are kept: a `Spool`."""

    def put(self, record: bytes) -> int:
        """Keep a record whole, or raise and keep nothing of it."""


class Outbox:
    """Takes `Step` records at once; a thread of its own encodes their images, packs them and puts them into the spool.

    While that thread keeps up, `kill -9` loses at most the one step that is just being written. Where a step cannot be
    kept (the queue or the spool is full, the disk is full or dead), it and the rest of its episode are dropped and
    counted: an episode in the spool is whole, or it ends before the gap, so no two steps can be paired across one.

    The writer numbers the kept steps of a session anew, without gaps: a gap at the learner then always means a loss.

    Attributes:
        kept: steps in the spool. dropped: steps given up. Since the start.
        problem: why the last step was dropped, in words; '' once a step is kept again.
    """

    def __init__(self, sink: RecordSink, codec: ImageCodec, capacity_bytes: int) -> None:
        self._sink = sink
        self._codec = codec
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition()  # held for a moment only, never while something is encoded or written
        self._queue: deque[Step] = deque()
        self._queued_bytes = 0
        self._stop = False
        self._busy_since_ns = 0
        self._refused_episode: tuple[str, int] | None = None  # at `put`, from here on
        self._failed_episode: tuple[str, int] | None = None  # at the spool
        self._session, self._next_seq = "", 0
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self.kept = 0
        self.dropped = 0
        self.problem = ""
        self.largest_record_bytes = 0

    def __enter__(self) -> Outbox:
        if self._codec is ImageCodec.JPEG:  # a missing package is an error now, not in mid-episode
            encode_image(np.zeros((8, 8, 3), dtype=np.uint8), self._codec)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.flush(_CLOSE_TIMEOUT_S)
        with self._changed:
            self._stop = True
            self._changed.notify_all()
            left = len(self._queue)
        self._thread.join(timeout=1.0)
        if left:
            logger.error("%d recorded steps could not be written before the end and are lost", left)

    def put(self, step: Step) -> None:
        """Take a step. Never waits and never raises; its arrays must not change any more."""
        size = _size_bytes(step)
        episode = (step.session, step.episode)
        with self._changed:
            if episode in (self._refused_episode, self._failed_episode):
                self.dropped += 1
                return
            if self._queued_bytes + size > self._capacity_bytes:
                self._refused_episode = episode
                self._drop(
                    f"{self._queued_bytes} of {self._capacity_bytes} bytes wait for the disk, which does not keep up"
                )
                return
            self._queue.append(step)
            self._queued_bytes += size
            if not self._busy_since_ns:
                self._busy_since_ns = time.monotonic_ns()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until every step taken so far is in the spool or counted as dropped; False if that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout=timeout_s)

    @property
    def waiting(self) -> int:
        """Steps that are not in the spool yet, the one being written included."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    @property
    def stuck_s(self) -> float:
        """For how long the writer has been working on one and the same step; 0 if it has nothing to do."""
        since_ns = self._busy_since_ns
        return (time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stop or bool(self._queue))
                if self._stop:
                    return
                step = self._queue[0]
                failed = (step.session, step.episode) == self._failed_episode
            problem = "" if failed else self._write(step)
            with self._changed:
                self._queue.popleft()
                self._queued_bytes -= _size_bytes(step)
                self._busy_since_ns = time.monotonic_ns() if self._queue else 0
                if failed:
                    self.dropped += 1
                elif problem:
                    self._failed_episode = (step.session, step.episode)
                    self._drop(problem)
                else:
                    self.kept += 1
                    if self._refused_episode != (step.session, step.episode):
                        self.problem = ""
                self._changed.notify_all()

    def _write(self, step: Step) -> str:
        """Put one step into the spool; why that failed, or ''."""
        if step.session != self._session:
            self._session, self._next_seq = step.session, 0
        try:
            record = pack_step(msgspec.structs.replace(step, seq=self._next_seq), self._codec)
            self._sink.put(record)
        except RobotStackError as error:
            return str(error)
        except Exception as error:  # whatever it is, the robot goes on and the loss is shown
            logger.exception("a step could not be recorded")
            return f"{type(error).__name__}: {error}"
        self._next_seq += 1
        if step.final_observation is None:  # the last one of an episode holds two observations
            self.largest_record_bytes = max(self.largest_record_bytes, len(record))
        return ""

    def _drop(self, problem: str) -> None:
        self.dropped += 1
        self.problem = problem


def pack_step(step: Step, codec: ImageCodec) -> bytes:
    """A step as it goes to the spool or a log, its images encoded as asked."""
    if codec is ImageCodec.RAW:
        return pack(step)
    final = step.final_observation
    return pack(
        msgspec.structs.replace(
            step,
            observation=_encoded(step.observation, codec),
            final_observation=None if final is None else _encoded(final, codec),
        )
    )


def _encoded(features: Features, codec: ImageCodec) -> Features:
    return {
        name: encode_image(value, codec) if name.startswith(IMAGES) and value.ndim == 3 else value
        for name, value in features.items()
    }


def _size_bytes(step: Step) -> int:
    arrays = [*step.observation.values(), *(step.final_observation or {}).values()]
    return 1024 + sum(array.nbytes for array in arrays)
