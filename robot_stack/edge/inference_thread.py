"""Inference beside the control loop: a thread of its own, or, in lock-step, a delay that can be repeated exactly."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol

from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import ActionChunk

Job = Callable[[], ActionChunk]

JOIN_S = 1.0


class Inference(Protocol):
    """Computes one chunk at a time for the control loop, which owns it and calls it once in every step or so."""

    @property
    def busy(self) -> bool:
        """A chunk was asked for and not taken yet."""

    @property
    def immediate(self) -> bool:
        """Whether a chunk is there in the step in which it is asked for."""

    def start(self, job: Job, index: int) -> None:
        """Compute `job`, from the observation of step `index`. Not while busy."""

    def arrived(self, index: int) -> bool:
        """Whether `take` gives a chunk at step `index`."""

    def take(self, index: int) -> ActionChunk | None:
        """The chunk if it is there at step `index`, never waiting for it. Raises what the job raised."""

    def wait(self) -> tuple[ActionChunk, int]:
        """Wait for the chunk, and how many control steps it took. Raises what the job raised."""

    def discard(self) -> None:
        """Whatever was asked for is no longer wanted."""


class DelayedInference:
    """For lock-step simulation: every chunk is there exactly `latency_steps` control steps after its observation.

    It is computed on the spot, on the caller's thread, while the simulated world stands still.
    """

    def __init__(self, latency_s: float, control_rate_hz: float) -> None:
        if not latency_s >= 0.0:
            raise ConfigError(f"an injected latency of {latency_s} s; allowed: 0 or more")
        # 0.3 s at 10 Hz are 3 steps, though 0.3 * 10 is a little more.
        self.latency_steps = math.ceil(latency_s * control_rate_hz - 1e-9)
        self._chunk: ActionChunk | None = None
        self._ready = 0

    @property
    def busy(self) -> bool:
        return self._chunk is not None

    @property
    def immediate(self) -> bool:
        return self.latency_steps == 0

    def start(self, job: Job, index: int) -> None:
        self._chunk, self._ready = job(), index + self.latency_steps

    def arrived(self, index: int) -> bool:
        return self._chunk is not None and index >= self._ready

    def take(self, index: int) -> ActionChunk | None:
        if not self.arrived(index):
            return None
        chunk, self._chunk = self._chunk, None
        return chunk

    def wait(self) -> tuple[ActionChunk, int]:
        chunk = self.take(self._ready)
        if chunk is None:
            raise PolicyError("no chunk was asked for, so none can be waited for")
        return chunk, self.latency_steps

    def discard(self) -> None:
        self._chunk = None


class InferenceThread:
    """One worker thread, which alone calls the policy. The control loop waits for an episode's first chunk only.

    Use as a context manager. The thread is a daemon: one that hangs does not keep the process alive.

    Args:
        control_rate_hz: of the robot: delays are counted in its steps.
        patience_s: a chunk that takes longer fails the episode with PolicyError.
    """

    immediate = False

    def __init__(self, control_rate_hz: float, patience_s: float) -> None:
        self._rate_hz = control_rate_hz
        self._patience_s = patience_s
        self._jobs: queue.SimpleQueue[tuple[Future[ActionChunk], Job] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._wanted: Future[ActionChunk] | None = None
        self._started_s = 0.0

    def __enter__(self) -> InferenceThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()
        self._jobs.put(None)
        self._thread.join(JOIN_S)

    @property
    def busy(self) -> bool:
        return self._wanted is not None

    def start(self, job: Job, index: int) -> None:
        self._wanted, self._started_s = Future(), time.monotonic()
        self._jobs.put((self._wanted, job))

    def arrived(self, index: int) -> bool:
        return self._wanted is not None and self._wanted.done()

    def take(self, index: int) -> ActionChunk | None:
        if self._wanted is None:
            return None
        if not self._wanted.done():
            if time.monotonic() - self._started_s > self._patience_s:
                raise self._hangs()
            return None
        done, self._wanted = self._wanted, None
        return done.result()

    def wait(self) -> tuple[ActionChunk, int]:
        if self._wanted is None:
            raise PolicyError("no chunk was asked for, so none can be waited for")
        wanted, self._wanted = self._wanted, None
        try:
            chunk = wanted.result(self._patience_s)
        except TimeoutError:
            if wanted.done():
                raise  # the policy's own
            wanted.cancel()
            raise self._hangs() from None
        return chunk, math.ceil((time.monotonic() - self._started_s) * self._rate_hz)

    def discard(self) -> None:
        if self._wanted is not None:
            self._wanted.cancel()
            self._wanted = None

    def _hangs(self) -> PolicyError:
        return PolicyError(
            f"inference has given no chunk for {self._patience_s:.1f} s; use a faster solver or back-end, or look "
            "whether the accelerator hangs"
        )

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                chunk = job()
            except BaseException as error:  # whatever it is, it belongs to whoever asked
                future.set_exception(error)
            else:
                future.set_result(chunk)
