"""Chunks beside the control loop: every step runs what was predicted for it, late actions never run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from robot_stack.core.errors import ConfigError, PolicyError, RobotError
from robot_stack.core.messages import ActionChunk, FloatArray, Lifecycle, Observation, RobotState, Source
from robot_stack.core.specs import PolicySpec, vector
from robot_stack.edge.chunking import ChunkingConfig, NewestChunk
from robot_stack.edge.ensembling import TemporalEnsemble
from robot_stack.edge.inference_thread import DelayedInference, InferenceThread
from robot_stack.edge.latency import LatencyEstimate
from robot_stack.edge.scheduler import AsyncChunkScheduler, ChunkScheduler

H = 8
RATE_HZ = 10.0
STATE = RobotState(boot="b", seq=1, stamp_ns=0, lifecycle=Lifecycle.ACTIVE, features={})
Mode = Literal["switch", "ensemble", "rtc"]
MODES: tuple[Mode, ...] = ("switch", "ensemble", "rtc")
ZERO = ChunkingConfig(when_empty="zero")


class RampPolicy:
    """Predicts for step t of the episode of seed s the action (t, s): any slip of the schedule shows."""

    spec = PolicySpec(
        name="ramp", task="ramp", horizon=H, action=vector(("t", "s"), (-1e3, -1e3), (1e3, 1e3)), observation={}
    )

    def __init__(self, meanwhile: Callable[[int], None] = lambda index: None) -> None:
        self.meanwhile = meanwhile
        self.asked: list[int] = []
        self.given: list[tuple[FloatArray, int, int]] = []

    def predict(self, observation: Observation) -> ActionChunk:
        index = observation.index
        self.asked.append(index)
        self.meanwhile(index)
        steps = np.arange(index, index + H)
        actions = np.stack((steps, np.full(H, observation.episode_seed)), axis=1).astype(np.float32)
        return ActionChunk(observation_id=observation.id, index=index, weights_version=0, actions=actions)

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        self.given.append((previous, delay_steps, execute_steps))
        return self.predict(observation)


class UnguidedPolicy:
    """Cannot be told what is planned."""

    spec = RampPolicy.spec

    def predict(self, observation: Observation) -> ActionChunk:
        return RampPolicy().predict(observation)


def observe(index: int, seed: int = 3) -> Observation:
    return Observation(id=index, stamp_ns=0, features={}, age_ns={}, episode_seed=seed, index=index)


def lock_step(policy: RampPolicy, latency_steps: int, config: ChunkingConfig) -> AsyncChunkScheduler:
    return AsyncChunkScheduler(policy, DelayedInference(latency_steps / RATE_HZ, RATE_HZ), config)


# ---- the schedule in lock-step ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    mode=st.sampled_from(MODES),
    latency=st.integers(0, H + 2),
    execute=st.integers(1, H),
    when_empty=st.sampled_from(["zero", "last"]),
)
def test_every_step_runs_what_was_predicted_for_it_or_holds(
    mode: Mode, latency: int, execute: int, when_empty: Literal["zero", "last"]
) -> None:
    config = ChunkingConfig(mode=mode, execute_steps=execute, when_empty=when_empty)
    policy = RampPolicy()
    scheduler = lock_step(policy, latency, config)
    scheduler.begin(0)
    held, before = 0, np.zeros(2, np.float32)
    for index in range(30):
        action = scheduler.propose(observe(index), STATE)
        if scheduler.counts.empty_steps > held:
            held += 1
            assert action.tolist() == ([0.0, 0.0] if when_empty == "zero" else before.tolist())
        else:
            assert action.tolist() == [float(index), 3.0]
        before = action
    assert held == 0 or 2 * latency > H or latency + execute > H
    if latency <= H // 2 and latency + execute <= H:
        assert held == 0
    later = [index for index in policy.asked[1:] if index + latency < 30]  # the first one was waited for
    assert scheduler.counts.late_actions == sum(min(latency, H) for _ in later)
    assert all(now - then <= max(execute, latency, 1) for then, now in pairwise(policy.asked))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("execute", [1, 3, 8])
def test_without_latency_it_is_the_synchronous_schedule(mode: Mode, execute: int) -> None:
    policy, plain = RampPolicy(), RampPolicy()
    scheduler = lock_step(policy, 0, replace(ZERO, mode=mode, execute_steps=execute))
    synchronous = ChunkScheduler(plain, execute)
    for seed in (0, 1):
        scheduler.begin(seed)
        synchronous.begin(seed)
        for index in range(20):
            assert scheduler.at_boundary(index) == synchronous.at_boundary(index)
            expected = synchronous.propose(observe(index, seed), STATE)
            assert scheduler.propose(observe(index, seed), STATE).tolist() == expected.tolist()
    assert policy.asked == plain.asked
    assert (scheduler.counts.late_actions, scheduler.counts.empty_steps) == (0, 0)
    assert scheduler.source is Source.POLICY


@pytest.mark.parametrize("latency", [1, 2, 3])
def test_a_boundary_is_where_another_chunk_begins_to_count(latency: int) -> None:
    scheduler = lock_step(RampPolicy(), latency, replace(ZERO, mode="switch", execute_steps=4))
    scheduler.begin(0)
    for index in range(25):
        chunks, boundary = scheduler.counts.chunks, scheduler.at_boundary(index)
        scheduler.propose(observe(index), STATE)
        assert (scheduler.counts.chunks > chunks) == boundary
    assert scheduler.counts.chunks > 4


def test_the_policy_is_told_what_is_planned_and_how_long_it_will_take() -> None:
    policy = RampPolicy()
    scheduler = lock_step(policy, 2, ChunkingConfig(mode="rtc", execute_steps=4))
    for index in range(9):
        scheduler.propose(observe(index), STATE)
    assert policy.asked == [0, 4, 8]
    first, second, third = policy.given
    assert first[0].shape == (0, 2)
    assert second[0][:, 0].tolist() == [4, 5, 6, 7] and second[1:] == (2, 4)
    assert third[0][:, 0].tolist() == [8, 9, 10, 11] and third[1:] == (2, 4)
    assert scheduler.counts.late_chunks == 0


def test_a_chunk_is_asked_for_while_there_is_still_enough_to_run() -> None:
    policy = RampPolicy()
    scheduler = lock_step(policy, 3, ChunkingConfig(mode="switch", execute_steps=H))
    for index in range(30):
        scheduler.propose(observe(index), STATE)
    assert policy.asked == [0, 5, 10, 15, 20, 25]  # 3 of 8 actions are left, as many as the delay needs
    assert scheduler.counts.empty_steps == 0


def test_late_lost_and_underestimated_chunks_are_counted() -> None:
    scheduler = lock_step(RampPolicy(), H, replace(ZERO, mode="switch", execute_steps=H))
    for index in range(2 * H + 2):  # asked for in steps 1 and 9, there in steps 9 and 17
        scheduler.propose(observe(index), STATE)
    counts = scheduler.counts
    assert (counts.chunks, counts.lost_chunks, counts.late_actions) == (1, 2, 2 * H)
    assert counts.empty_steps == H + 2

    inference = DelayedInference(0.1, RATE_HZ)
    slow = AsyncChunkScheduler(RampPolicy(), inference, replace(ZERO, mode="switch", execute_steps=3))
    for index in range(20):
        inference.latency_steps = 1 if index < 10 else 4
        slow.propose(observe(index), STATE)
    assert slow.counts.late_chunks == 1  # after the first slow one, slow ones are reckoned with


def test_without_an_action_the_episode_ends_unless_holding_was_chosen() -> None:
    scheduler = lock_step(RampPolicy(), H, ChunkingConfig(mode="switch"))
    for index in range(H):
        scheduler.propose(observe(index), STATE)
    with pytest.raises(RobotError, match="no action for step 8: inference takes about 8 control steps"):
        scheduler.propose(observe(H), STATE)


def test_holding_leaves_the_gripper_as_it_is() -> None:
    policy = RampPolicy()
    policy.spec = replace(policy.spec, action=vector(("dx_m", "gripper"), (-0.1, 0.0), (0.1, 1.0)))
    scheduler = lock_step(policy, H, replace(ZERO, mode="switch"))
    actions = [scheduler.propose(observe(index, seed=1), STATE).tolist() for index in range(H + 1)]
    assert actions[H - 1] == [H - 1, 1.0] and actions[H] == [0.0, 1.0]


def test_a_new_episode_forgets_the_old_one() -> None:
    policy = RampPolicy()
    scheduler = lock_step(policy, 3, replace(ZERO, mode="ensemble", execute_steps=1))
    for seed, steps in ((0, 5), (1, 10)):
        scheduler.begin(seed)
        assert scheduler.at_boundary(0)
        for index in range(steps):
            assert scheduler.propose(observe(index, seed), STATE).tolist() == [float(index), float(seed)]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(PolicyError, match="horizon"):
        lock_step(RampPolicy(), 0, ChunkingConfig(execute_steps=H + 1))
    with pytest.raises(PolicyError, match="which chunking"):
        AsyncChunkScheduler(UnguidedPolicy(), DelayedInference(0.0, RATE_HZ), ChunkingConfig(mode="rtc"))
    with pytest.raises(ConfigError, match="execute_steps is 0"):
        ChunkingConfig(execute_steps=0)
    with pytest.raises(ConfigError, match="latency"):
        DelayedInference(-0.1, RATE_HZ)


@pytest.mark.parametrize(("latency_s", "steps"), [(0.0, 0), (0.1, 1), (0.101, 2), (0.2, 2), (0.3, 3), (0.25, 3)])
def test_injected_latency_is_rounded_up_to_control_steps(latency_s: float, steps: int) -> None:
    assert DelayedInference(latency_s, RATE_HZ).latency_steps == steps


# ---- ensembling -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    decay=st.floats(-0.5, 2.0),
    arrivals=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_running_averages_are_those_of_all_predictions_in_time(
    decay: float, arrivals: list[tuple[int, int]], seed: int
) -> None:
    rng, ensemble = np.random.default_rng(seed), TemporalEnsemble(2, decay)
    predicted: dict[int, list[FloatArray]] = {}
    now = 0
    for later, delay in arrivals:
        begin = now + later
        now = begin + min(delay, H - 1)
        actions = rng.normal(size=(H, 2)).astype(np.float32)
        ensemble.take(ActionChunk(observation_id=0, index=begin, weights_version=0, actions=actions), now)
        for index in range(now, begin + H):
            predicted.setdefault(index, []).append(actions[index - begin])
    for index in range(now, ensemble.end):
        weights = np.exp(-decay * np.arange(len(predicted[index])))
        expected = np.average(predicted[index], axis=0, weights=weights)
        action = ensemble.action(index)
        assert action is not None
        np.testing.assert_allclose(action, expected, atol=1e-6)
        np.testing.assert_allclose(ensemble.rest(now)[index - now], expected, atol=1e-6)
    assert ensemble.end == max(predicted) + 1 and ensemble.action(ensemble.end) is None


def test_equal_predictions_give_exactly_themselves() -> None:
    ensemble = TemporalEnsemble(1, 0.01)
    value = np.full((H, 1), 0.1, np.float32)
    for index in range(20):
        ensemble.take(ActionChunk(observation_id=0, index=index, weights_version=0, actions=value), index)
        action = ensemble.action(index)
        assert action is not None and action.dtype == np.float32 and action.tobytes() == value[0].tobytes()


@pytest.mark.parametrize("plan", [NewestChunk(1), TemporalEnsemble(1, 0.01)])
def test_a_plan_knows_its_end(plan: NewestChunk | TemporalEnsemble) -> None:
    assert plan.action(0) is None and plan.rest(0).shape == (0, 1)
    actions = np.arange(H, dtype=np.float32)[:, None]
    plan.take(ActionChunk(observation_id=0, index=4, weights_version=0, actions=actions), 6)
    assert plan.end == 12 and plan.rest(7)[:, 0].tolist() == [3, 4, 5, 6, 7]
    assert plan.action(12) is None and plan.rest(12).shape == (0, 1)
    plan.clear()
    assert plan.action(7) is None


# ---- latency ----------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_worst_of_late_or_a_quantile() -> None:
    worst, median = LatencyEstimate(window=4, initial_steps=2), LatencyEstimate(window=4, quantile=0.5)
    assert (worst.steps, median.steps) == (2, 0)
    for steps in (9, 1, 2, 3, 4):
        worst.add(steps)
        median.add(steps)
    assert (worst.steps, median.steps) == (4, 2)
    with pytest.raises(ConfigError, match="window 0"):
        LatencyEstimate(window=0)


# ---- the thread -------------------------------------------------------------------------------------------------


@contextmanager
def threaded(
    policy: RampPolicy, config: ChunkingConfig, patience_s: float = 30.0
) -> Iterator[tuple[AsyncChunkScheduler, InferenceThread]]:
    with InferenceThread(RATE_HZ, patience_s) as inference:
        yield AsyncChunkScheduler(policy, inference, config), inference


def until_arrived(inference: InferenceThread) -> None:
    deadline = time.monotonic() + 20.0
    while not inference.arrived(0):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("mode", MODES)
def test_the_loop_goes_on_while_the_worker_is_slow(mode: Mode) -> None:
    released = threading.Event()

    def block(index: int) -> None:
        if index > 0:
            released.wait(20.0)

    policy = RampPolicy(block)
    with threaded(policy, replace(ZERO, mode=mode, execute_steps=3)) as (scheduler, inference):
        scheduler.begin(0)
        started_s = time.monotonic()
        actions = [scheduler.propose(observe(index), STATE)[0] for index in range(6)]
        assert time.monotonic() - started_s < 10.0
        assert actions == [0, 1, 2, 3, 4, 5]
        released.set()
        until_arrived(inference)
        assert policy.asked == [0, 3]
        assert scheduler.at_boundary(6)
        assert scheduler.propose(observe(6), STATE)[0] == 6
        assert scheduler.counts.late_actions == 3 and scheduler.latency.steps == 3
        assert scheduler.counts.chunks == 2


@pytest.mark.parametrize("failing", [0, 3])
def test_what_the_worker_raises_fails_the_episode(failing: int) -> None:
    def fail(index: int) -> None:
        if index == failing:
            raise PolicyError("the sensor behind observation.state gives NaN")

    with threaded(RampPolicy(fail), replace(ZERO, mode="switch", execute_steps=3)) as (scheduler, inference):
        with pytest.raises(PolicyError, match="the sensor"):
            for index in range(H):
                scheduler.propose(observe(index), STATE)
                if index == failing:
                    until_arrived(inference)
        scheduler.begin(1)  # the thread is still there for the next episode
        assert scheduler.propose(observe(1, 1), STATE).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("hanging", [0, 3])
def test_a_worker_that_hangs_fails_the_episode(hanging: int) -> None:
    released = threading.Event()

    def hang(index: int) -> None:
        if index == hanging:
            released.wait(20.0)

    with threaded(RampPolicy(hang), replace(ZERO, execute_steps=3), patience_s=0.2) as (scheduler, _):
        with pytest.raises(PolicyError, match="no chunk for 0"):
            for index in range(1000):
                scheduler.propose(observe(index), STATE)
                time.sleep(0.002)
        released.set()


def test_a_chunk_of_the_last_episode_never_runs_in_the_next() -> None:
    released = threading.Event()

    def block(index: int) -> None:
        if index == 3:
            released.wait(20.0)

    with threaded(RampPolicy(block), replace(ZERO, mode="switch", execute_steps=3)) as (scheduler, _):
        scheduler.begin(0)
        for index in range(5):
            scheduler.propose(observe(index, 0), STATE)
        scheduler.begin(1)
        released.set()
        for index in range(3):
            assert scheduler.propose(observe(index, 1), STATE).tolist() == [float(index), 1.0]


def test_the_policy_is_called_on_the_worker_alone() -> None:
    callers: list[str] = []
    with threaded(RampPolicy(lambda _: callers.append(threading.current_thread().name)), ZERO) as (scheduler, _):
        for index in range(30):
            scheduler.propose(observe(index), STATE)
            time.sleep(0.001)
    assert set(callers) == {"inference"} and len(callers) > 1
