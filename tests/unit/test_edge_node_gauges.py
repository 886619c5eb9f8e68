"""The gauges: what they measure, how they read from other threads, and how a status shows them."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace as changed

import numpy as np
import pytest

from robot_stack.apps.status import _gauges
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.core.protocols import GuidedChunkPolicy
from robot_stack.core.specs import STATE
from robot_stack.edge.chunking import ChunkCounts
from robot_stack.edge.control_loop import LoopStep
from robot_stack.edge.gauges import MAX_FIELDS, WINDOW, GaugeReadings, Gauges, Window, measured
from robot_stack.edge.warmup import warm_up
from tests.unit.test_edge_parts import RampPolicy, loop_step, observation

MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def step(index: int, version: int = 9, **ages_ns: int) -> LoopStep:
    made = loop_step(index)
    seen = Observation(
        id=index, stamp_ns=0, features=made.observation.features, age_ns=ages_ns or {STATE: 0}, index=index
    )
    return changed(made, observation=seen, weights_version=version)


def test_a_window_keeps_the_newest_and_counts_all() -> None:
    window = Window(4)
    assert window.spread().count == 0 and window.spread().p50 == -1.0
    for value in range(10):
        window.add(float(value))
    found = window.spread()
    assert (found.p50, found.max, found.count) == (7.5, 9.0, 10)
    assert window.spread(wanted=10.0).max == 4.0, "the distance from what is wanted"
    before = window.copy()
    window.add(100.0)
    assert before.spread().max == 9.0


def test_the_jitter_is_the_distance_from_the_wanted_period_within_episodes_only() -> None:
    clock = Clock()
    gauges = Gauges(clock)
    gauges.watch(None, ChunkCounts(), lambda: 0, period_s=0.1)
    for pause_ms, index in ((0, 0), (100, 1), (97, 2), (104, 3), (60_000, 0), (100, 1)):
        clock.now_ns += pause_ms * MS
        gauges.on_step(step(index))
    found = gauges.read().period_jitter_ms
    assert found.count == 4 and found.max == pytest.approx(4.0) and found.p50 == pytest.approx(1.5)
    gauges.watch(None, ChunkCounts(), lambda: 0, period_s=None)
    assert gauges.read().period_jitter_ms.count == 0, "in lock-step there is no period"


def test_ages_versions_and_refusals_are_shown() -> None:
    gauges = Gauges()
    gauges.watch(None, ChunkCounts(), lambda: 4, period_s=0.1)
    for index in range(100):
        gauges.on_step(step(index, version=index, state=index * MS, front=30 * MS))
    found = gauges.read()
    assert found.age_ms["state"].p50 == pytest.approx(49.5) and found.age_ms["state"].p99 == pytest.approx(98.01)
    assert found.age_ms["front"].max == 30.0
    assert (found.weights_version, found.refused_weights, found.steps) == (99, 4, 100)


def test_memory_stays_the_same_however_long_it_runs() -> None:
    gauges = Gauges()
    for index in range(3 * WINDOW):
        gauges.on_step(step(index, **{f"field_{index % 200}": MS}))
        gauges.predicted(0.1)
    assert len(gauges._age_ms) == MAX_FIELDS
    sizes = [sys.getsizeof(gauges._inference_ms._values), sys.getsizeof(gauges._period_ms._values)]
    for index in range(3 * WINDOW):
        gauges.on_step(step(index + 1))
        gauges.predicted(0.1)
    assert sizes == [sys.getsizeof(gauges._inference_ms._values), sys.getsizeof(gauges._period_ms._values)]
    assert gauges.read().inference_ms.count == 6 * WINDOW


def test_what_became_of_chunks_adds_up_over_connections() -> None:
    gauges = Gauges()
    first = ChunkCounts()
    gauges.watch(None, first, lambda: 0, 0.1)
    first.late_actions, first.empty_steps = 5, 2
    assert gauges.read().late_actions == 5
    second = ChunkCounts(late_actions=1, late_chunks=3, lost_chunks=1)
    gauges.watch(None, second, lambda: 0, 0.1)
    second.late_actions += 1
    found = gauges.read()
    assert (found.late_actions, found.late_chunks, found.lost_chunks, found.empty_steps) == (7, 3, 1, 2)


def test_the_cached_share_is_what_is_not_computed() -> None:
    class Cached:
        block_share = 0.3

    gauges = Gauges()
    assert gauges.read().cached_share == 0.0
    gauges.watch(Cached(), ChunkCounts(), lambda: 0, None)
    assert gauges.read().cached_share == pytest.approx(0.7)


class Slow(RampPolicy):
    def predict(self, observation: Observation) -> ActionChunk:
        time.sleep(0.01)
        return super().predict(observation)


class SlowGuided(Slow):
    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        return self.predict(observation)


def test_predictions_are_timed_and_are_the_policys_own() -> None:
    gauges = Gauges()
    policy = measured(Slow(), gauges)
    assert policy.spec == Slow.spec and not isinstance(policy, GuidedChunkPolicy)
    assert policy.predict(observation(3)).actions[:, 0].tolist() == list(range(3, 11))
    guided = measured(SlowGuided(), gauges)
    assert isinstance(guided, GuidedChunkPolicy)
    assert guided.predict_guided(observation(4), np.zeros((0, 1), np.float32), 0, 1).index == 4
    found = gauges.read().inference_ms
    assert found.count == 2 and found.p50 >= 10.0


def test_reading_from_another_thread_while_the_loop_runs_gives_whole_figures() -> None:
    gauges = Gauges()
    gauges.watch(None, ChunkCounts(), lambda: 0, 0.1)
    stop = threading.Event()
    problems: list[str] = []

    def read() -> None:
        while not stop.is_set():
            found = gauges.read()
            ages = {spread.count for spread in found.age_ms.values()}
            if len(ages) > 1 or (ages and ages != {found.steps}):
                problems.append(f"{found.steps} steps, ages of {ages}")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for index in range(2000):
            gauges.on_step(step(index, state=MS, front=MS, wrist=MS))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not problems and gauges.read().steps == 2000


def test_the_status_says_it_in_words() -> None:
    assert "not warm yet" in _gauges(GaugeReadings())
    clock = Clock()
    gauges = Gauges(clock)
    counts = ChunkCounts(late_actions=12, empty_steps=3)
    gauges.watch(None, counts, lambda: 2, period_s=0.1)
    gauges.warmed(warm_up(RampPolicy()))
    assert "inference not measured yet" in _gauges(gauges.read())
    gauges.predicted(0.25)
    for index in range(3):
        clock.now_ns += 101 * MS
        gauges.on_step(step(index, version=6, state=5 * MS))
    words = _gauges(gauges.read())
    for part in (
        "inference 250.00 ms (p99 250.00 ms), 0 % of the block calls cached",
        "3 control steps; 12 actions came too late, 3 steps had none",
        "jitter of the control period 1.00 ms",
        "age of state 5.00 ms",
        "weights version 6, 2 refused",
    ):
        assert part in words, words
