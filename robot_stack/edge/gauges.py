"""How the edge's policy and its loop fare, in numbers: measured at every step, shown in the edge's status."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from msgspec import Struct

from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.protocols import GuidedChunkPolicy, Policy
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.chunking import ChunkCounts
from robot_stack.edge.control_loop import LoopStep
from robot_stack.edge.warmup import WarmUp

WINDOW = 512
MAX_FIELDS = 64


@runtime_checkable
class CachesBlocks(Protocol):
    """A policy that keeps parts of its network's output from call to call of its solver."""

    @property
    def block_share(self) -> float:
        """Share of the block calls of a chunk that are computed; the others take what was kept."""


class Spread(Struct, frozen=True, kw_only=True):
    """Of the last `WINDOW` values; -1 where there were none. `count`: of all values so far."""

    p50: float = -1.0
    p99: float = -1.0
    max: float = -1.0
    count: int = 0


class Window:
    """The last `size` values, and how many there were in all. Not thread-safe; adding allocates nothing."""

    def __init__(self, size: int = WINDOW) -> None:
        self._values = np.zeros(size, dtype=np.float64)
        self.count = 0

    def add(self, value: float) -> None:
        self._values[self.count % len(self._values)] = value
        self.count += 1

    def copy(self) -> Window:
        same = Window(len(self._values))
        same._values[:], same.count = self._values, self.count
        return same

    def spread(self, wanted: float = 0.0) -> Spread:
        """Quantiles of the values' distance from `wanted`."""
        values = np.abs(self._values[: min(self.count, len(self._values))] - wanted)
        if not len(values):
            return Spread()
        p50, p99 = np.quantile(values, (0.5, 0.99))
        return Spread(p50=float(p50), p99=float(p99), max=float(values.max()), count=self.count)


class GaugeReadings(Struct, frozen=True, kw_only=True):
    """The gauges at one moment. Times in ms, quantiles over the last `WINDOW` values.

    Attributes:
        warm: the policy has been warmed up; first_inference_ms: its first prediction then, with the compilation of a
            compiled back-end.
        inference_ms: one prediction of a chunk, wherever it is computed.
        cached_share: of the network's block calls, taken from the cache; 0 where nothing is cached.
        late_actions, late_chunks, lost_chunks, empty_steps: see `ChunkCounts`; since the edge began.
        period_jitter_ms: distance of the control period from the wanted one; empty in lock-step.
        age_ms: of each field of the observation, when it was used.
        weights_version: of the residual that acts. refused_weights: how many were not let act.
    """

    warm: bool = False
    first_inference_ms: float = -1.0
    inference_ms: Spread = Spread()
    cached_share: float = 0.0
    late_actions: int = 0
    late_chunks: int = 0
    lost_chunks: int = 0
    empty_steps: int = 0
    steps: int = 0
    period_jitter_ms: Spread = Spread()
    age_ms: dict[str, Spread] = {}
    weights_version: int = 0
    refused_weights: int = 0


class Gauges:
    """Collects the gauges; a `StepObserver`. Thread-safe: predictions may run beside the control loop.

    Args:
        now_ns: host monotonic time.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._inference_ms = Window()
        self._period_ms = Window()
        self._age_ms: dict[str, Window] = {}
        self._wanted_ms = math.nan
        self._last_ns = 0
        self._steps = 0
        self._version = 0
        self._counts = ChunkCounts()
        self._counts_before = ChunkCounts()
        self._caches: CachesBlocks | None = None
        self._refused: Callable[[], int] = lambda: 0
        self._warm: WarmUp | None = None

    def watch(self, policy: object, counts: ChunkCounts, refused: Callable[[], int], period_s: float | None) -> None:
        """A loop begins with these. `policy`: may be a `CachesBlocks`; `refused`: how many weights were not let act;
        `period_s`: the wanted control period, None in lock-step."""
        with self._lock:
            self._counts_before, self._counts = _sum(self._counts_before, self._counts), counts
            self._caches = policy if isinstance(policy, CachesBlocks) else None
            self._refused = refused
            self._wanted_ms = math.nan if period_s is None else period_s * 1e3

    def warmed(self, warm: WarmUp) -> None:
        """The policy's warm-up is over."""
        with self._lock:
            self._warm = warm

    def predicted(self, duration_s: float) -> None:
        with self._lock:
            self._inference_ms.add(duration_s * 1e3)

    def on_step(self, step: LoopStep) -> None:
        now_ns = self._now_ns()
        with self._lock:
            if step.observation.index > 0:
                self._period_ms.add((now_ns - self._last_ns) / 1e6)
            self._last_ns = now_ns
            self._steps += 1
            self._version = step.weights_version
            for key, age_ns in step.observation.age_ns.items():
                window = self._age_ms.get(key)
                if window is None:
                    if len(self._age_ms) >= MAX_FIELDS:
                        continue
                    window = self._age_ms[key] = Window()
                window.add(age_ns / 1e6)

    def read(self) -> GaugeReadings:
        """The gauges now. The quantiles are computed beside the lock: the control loop never waits for them."""
        with self._lock:
            inference, period = self._inference_ms.copy(), self._period_ms.copy()
            ages = {key: window.copy() for key, window in self._age_ms.items()}
            steps, version, wanted_ms = self._steps, self._version, self._wanted_ms
            caches, refused, warm = self._caches, self._refused, self._warm
            counts = _sum(self._counts_before, self._counts)
        return GaugeReadings(
            warm=warm is not None,
            first_inference_ms=-1.0 if warm is None else warm.first_s * 1e3,
            inference_ms=inference.spread(),
            cached_share=0.0 if caches is None else 1.0 - caches.block_share,
            late_actions=counts.late_actions,
            late_chunks=counts.late_chunks,
            lost_chunks=counts.lost_chunks,
            empty_steps=counts.empty_steps,
            steps=steps,
            period_jitter_ms=Spread() if math.isnan(wanted_ms) else period.spread(wanted_ms),
            age_ms={key: window.spread() for key, window in ages.items()},
            weights_version=version,
            refused_weights=refused(),
        )


def _sum(left: ChunkCounts, right: ChunkCounts) -> ChunkCounts:
    return ChunkCounts(*(getattr(left, name) + getattr(right, name) for name in ChunkCounts.__slots__))


class MeasuredPolicy:
    """A policy whose predictions are timed. Chunks are its own."""

    def __init__(self, policy: Policy, gauges: Gauges) -> None:
        self._policy = policy
        self._gauges = gauges

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    def predict(self, observation: Observation) -> ActionChunk:
        began_s = time.perf_counter()
        chunk = self._policy.predict(observation)
        self._gauges.predicted(time.perf_counter() - began_s)
        return chunk


class MeasuredGuidedPolicy(MeasuredPolicy):
    """The same for a policy that can go on from planned actions."""

    def __init__(self, policy: GuidedChunkPolicy, gauges: Gauges) -> None:
        super().__init__(policy, gauges)
        self._guided = policy

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        began_s = time.perf_counter()
        chunk = self._guided.predict_guided(observation, previous, delay_steps, execute_steps)
        self._gauges.predicted(time.perf_counter() - began_s)
        return chunk


def measured(policy: Policy, gauges: Gauges) -> Policy:
    """The policy with its predictions timed; it can still do what it could."""
    if isinstance(policy, GuidedChunkPolicy):
        return MeasuredGuidedPolicy(policy, gauges)
    return MeasuredPolicy(policy, gauges)
