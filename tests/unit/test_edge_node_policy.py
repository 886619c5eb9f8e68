"""Which scheduler an edge gets, and that its policy is warm, in the right thread, before anything moves."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from robot_stack.apps.edge_policy import EdgePolicy, warm_chunks
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import PolicyError, RobotStackError
from robot_stack.core.messages import ActionChunk, FloatArray, Observation
from robot_stack.edge.gauges import Gauges
from robot_stack.edge.scheduler import AsyncChunkScheduler, ChunkScheduler
from tests.unit.test_edge_parts import RampPolicy, observation, state


class Watched(RampPolicy):
    """A ramp that says which threads asked, what for, and how often it went on from planned actions."""

    example_instruction = "push the block"

    def __init__(self, offset: float = 0.0, took_s: float = 0.0) -> None:
        super().__init__()
        self.offset, self.took_s = offset, took_s
        self.threads: list[str] = []
        self.instructions: set[str] = set()
        self.guided = 0

    def predict(self, observation: Observation) -> ActionChunk:
        self.threads.append(threading.current_thread().name)
        self.instructions.add(observation.instruction)
        time.sleep(self.took_s)
        chunk = super().predict(observation)
        return ActionChunk(
            observation_id=chunk.observation_id,
            index=chunk.index,
            weights_version=0,
            actions=np.clip(chunk.actions + np.float32(self.offset), -100, 100),
        )

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        self.guided += 1
        return self.predict(observation)


def config_of(*overrides: str):  # type: ignore[no-untyped-def]
    return compose_config(["robot=franka", *overrides])


def test_by_default_the_robot_waits_for_each_chunk() -> None:
    policy, gauges = Watched(), Gauges()
    loaded = EdgePolicy(policy, policy)
    with warm_chunks(
        config_of(), loaded, gauges, control_rate_hz=10.0, lock_step=True, keep_running=lambda: True
    ) as chunks:
        assert isinstance(chunks.scheduler, ChunkScheduler)
        assert gauges.read().warm and policy.threads == ["MainThread"] * len(policy.threads)
        assert policy.instructions == {"push the block"} and policy.guided == 0
        assert chunks.scheduler.propose(observation(0), state())[0] == 0.0
    assert gauges.read().inference_ms.count == 1, "the warm-up is none of the robot's predictions"


def test_the_configured_instruction_is_what_is_tried() -> None:
    policy = Watched()
    with warm_chunks(
        config_of("policy.instruction=lift the cube"),
        EdgePolicy(policy, policy),
        Gauges(),
        control_rate_hz=10.0,
        lock_step=True,
        keep_running=lambda: True,
    ):
        assert policy.instructions == {"lift the cube"}


def test_in_lock_step_a_chunk_takes_the_configured_simulated_time() -> None:
    policy = Watched()
    config = config_of("edge.chunking=switch", "edge.simulated_latency_s=0.3", "policy.execute_steps=4")
    with warm_chunks(
        config, EdgePolicy(policy, None), Gauges(), control_rate_hz=10.0, lock_step=True, keep_running=lambda: True
    ) as chunks:
        scheduler = chunks.scheduler
        assert isinstance(scheduler, AsyncChunkScheduler)
        scheduler.begin(0)
        actions = [float(scheduler.propose(observation(index), state())[0]) for index in range(16)]
    assert actions == [float(index) for index in range(16)]
    assert chunks.counts.late_actions > 0 and chunks.counts.empty_steps == 0
    assert set(policy.threads) == {"MainThread"}


@pytest.mark.parametrize(("mode", "guided"), [("switch", False), ("ensemble", False), ("rtc", True)])
def test_on_the_wall_clock_the_policy_is_warmed_up_by_the_thread_that_predicts(mode: str, guided: bool) -> None:
    policy, gauges = Watched(), Gauges()
    with warm_chunks(
        config_of(f"edge.chunking={mode}", "policy.execute_steps=4"),
        EdgePolicy(policy, policy),
        gauges,
        control_rate_hz=10.0,
        lock_step=False,
        keep_running=lambda: True,
    ) as chunks:
        assert isinstance(chunks.scheduler, AsyncChunkScheduler) and gauges.read().warm
        assert set(policy.threads) == {"inference"} and (policy.guided > 0) is guided


@pytest.mark.parametrize("mode", ["sync", "switch"])
def test_a_policy_that_must_not_act_never_gets_a_scheduler(mode: str) -> None:
    policy, gauges = Watched(offset=float("nan")), Gauges()
    with (
        pytest.raises(PolicyError, match="not finite"),
        warm_chunks(
            config_of(f"edge.chunking={mode}"),
            EdgePolicy(policy, None),
            gauges,
            control_rate_hz=10.0,
            lock_step=False,
            keep_running=lambda: True,
        ),
    ):
        pytest.fail("a scheduler was made")
    assert not gauges.read().warm


def test_whoever_is_told_to_end_does_not_wait_for_the_warm_up() -> None:
    policy = Watched(took_s=0.3)
    with (
        pytest.raises(RobotStackError, match="told to end"),
        warm_chunks(
            config_of("edge.chunking=switch"),
            EdgePolicy(policy, None),
            Gauges(),
            control_rate_hz=10.0,
            lock_step=False,
            keep_running=lambda: False,
        ),
    ):
        pytest.fail("a scheduler was made")
