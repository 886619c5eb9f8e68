"""Scheduler, alignment, recorder and weights on the edge."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import pytest
from safetensors.numpy import save

from robot_stack.core.errors import MessageError, PolicyError, RobotError
from robot_stack.core.messages import (
    ActionChunk,
    Array,
    CommandResult,
    FloatArray,
    GetWeights,
    Lifecycle,
    Observation,
    RobotState,
    Source,
    Step,
    TaskStatus,
    Verdict,
    WeightChunk,
    WeightSnapshot,
)
from robot_stack.core.specs import STATE, PolicySpec, RobotSpec, vector
from robot_stack.edge.alignment import Aligner
from robot_stack.edge.control_loop import EpisodeId, LoopStep, NoCorrection
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.remote_robot import Stepped
from robot_stack.edge.scheduler import ChunkScheduler
from robot_stack.edge.weights import LiveResidual, WeightFetch, WeightInbox, load_tensors

ACTION = vector(("a",), lower=(-100.0,), upper=(100.0,))
SPEC = RobotSpec(
    name="robot_0",
    model="test",
    task="ramp",
    simulated=True,
    control_rate_hz=10.0,
    tick_rate_hz=100.0,
    command_timeout_s=0.15,
    max_episode_steps=20,
    action=ACTION,
    observation={STATE: vector(("x_m",))},
)


def state(x_m: float = 0.0, **changes: object) -> RobotState:
    values: dict[str, object] = {
        "boot": "b",
        "seq": 1,
        "stamp_ns": 5,
        "lifecycle": Lifecycle.ACTIVE,
        "features": {STATE: np.array([x_m], dtype=np.float32)},
        "task": TaskStatus(reward=0.0, success=False, terminated=False),
    }
    return RobotState(**(values | changes))  # type: ignore[arg-type]


def observation(index: int) -> Observation:
    return Observation(id=index, stamp_ns=0, features={}, age_ns={}, episode_seed=3, index=index)


class RampPolicy:
    """Predicts for step t the action t: any slip of the schedule shows."""

    spec = PolicySpec(name="ramp", task="ramp", horizon=8, action=ACTION, observation={})

    def __init__(self) -> None:
        self.planned_at: list[int] = []

    def predict(self, observation: Observation) -> ActionChunk:
        self.planned_at.append(observation.index)
        steps = np.arange(observation.index, observation.index + 8, dtype=np.float32)[:, None]
        return ActionChunk(observation_id=observation.id, index=observation.index, weights_version=0, actions=steps)


@pytest.mark.parametrize("execute", [1, 3, 8])
def test_every_step_runs_the_action_predicted_for_it(execute: int) -> None:
    policy = RampPolicy()
    scheduler = ChunkScheduler(policy, execute)
    scheduler.begin(0)
    actions = [float(scheduler.propose(observation(t), state())[0]) for t in range(20)]
    assert actions == [float(t) for t in range(20)]
    assert policy.planned_at == list(range(0, 20, execute))


def test_a_new_episode_forgets_the_old_chunk() -> None:
    policy = RampPolicy()
    scheduler = ChunkScheduler(policy, 8)
    scheduler.propose(observation(0), state())
    scheduler.begin(1)
    assert scheduler.at_boundary(3)


@pytest.mark.parametrize("execute", [0, 9])
def test_execution_beyond_the_horizon_is_refused(execute: int) -> None:
    with pytest.raises(PolicyError, match="horizon"):
        ChunkScheduler(RampPolicy(), execute)


def test_stale_and_incomplete_states_are_refused() -> None:
    aligner = Aligner(SPEC, max_age_s=0.2)
    assert aligner.observe(state(), 100_000_000, 0, 0).age_ns == {STATE: 100_000_000}
    with pytest.raises(RobotError, match="250 ms old"):
        aligner.observe(state(), 250_000_000, 0, 0)
    with pytest.raises(RobotError, match=r"observation\.state"):
        aligner.observe(state(features={}), 0, 0, 0)


def loop_step(
    index: int, episode: int = 4, source: Source = Source.POLICY, *, ended: bool = False, base: FloatArray | None = None
) -> LoopStep:
    result = CommandResult(
        seq=1, verdict=Verdict.CLIPPED, refusal=None, message="", sent=np.array([1.0], dtype=np.float32)
    )
    return LoopStep(
        episode=EpisodeId(episode, 77),
        observation=Aligner(SPEC, 1.0).observe(state(0.5), 0, 77, index),
        action_base=np.array([2.0], dtype=np.float32) if base is None else base,
        action_asked=np.array([3.0], dtype=np.float32),
        stepped=Stepped(result, state(0.6), 0, late=False),
        source=source,
        weights_version=9,
        terminated=False,
        truncated=ended,
        following=Aligner(SPEC, 1.0).observe(state(0.6), 0, 77, index + 1),
        following_base=np.array([4.0], dtype=np.float32) if ended else None,
    )


def test_the_recorder_stores_asked_sent_and_verdict_and_numbers_steps() -> None:
    steps: list[Step] = []
    recorder = Recorder(RecordingId("run", "robot_0", "ramp"), steps.append)
    recorder.on_step(loop_step(0))
    recorder.on_step(loop_step(1, ended=True))
    first, last = steps
    assert (first.seq, last.seq, first.session) == (0, 1, last.session)
    assert (first.action_base[0], first.action_asked[0], first.action_sent[0]) == (2.0, 3.0, 1.0)
    assert first.verdict is Verdict.CLIPPED and first.weights_version == 9 and first.final_observation is None
    assert last.final_observation is not None and last.final_observation[STATE][0] == np.float32(0.6)
    assert last.final_action_base is not None and last.final_action_base[0] == 4.0
    assert last.truncated and not last.terminated


def test_what_the_state_asks_for_is_observed_and_recorded() -> None:
    aligner = Aligner(SPEC, max_age_s=0.2)
    observation = aligner.observe(state(instruction="touch the red block"), age_ns=0, episode_seed=1, index=0)
    steps: list[Step] = []
    recorder = Recorder(RecordingId("run", "robot_0", "ramp"), steps.append)
    recorder.on_step(dataclasses.replace(loop_step(0), observation=observation))
    recorder.on_step(loop_step(1))
    assert [step.instruction for step in steps] == ["touch the red block", ""]


def test_every_change_of_the_source_begins_a_segment_and_every_episode_begins_at_0() -> None:
    steps: list[Step] = []
    recorder = Recorder(RecordingId("run", "robot_0", "ramp"), steps.append)
    policy, recovery, correction = Source.POLICY, Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION
    for episode, sources in (
        (4, [policy, policy, recovery, correction, policy]),
        (5, [policy, recovery]),
        (6, [recovery]),
    ):
        for index, source in enumerate(sources):
            recorder.on_step(loop_step(index, episode, source))
    assert [step.segment for step in steps] == [0, 0, 1, 2, 3, 0, 1, 0]


def test_a_recorded_step_does_not_change_when_its_arrays_are_used_again() -> None:
    steps: list[Step] = []
    base = np.array([2.0], dtype=np.float32)
    Recorder(RecordingId("run", "robot_0", "ramp"), steps.append).on_step(loop_step(0, base=base))
    base[0] = -1.0
    assert steps[0].action_base[0] == 2.0


class Server:
    """Answers requests for weights from bytes, in small chunks, possibly with a bit flipped."""

    def __init__(self, data: bytes, chunk: int = 64, flip_bit: int | None = None) -> None:
        self.snapshot = WeightSnapshot(
            version=3, kind="residual", sha256=hashlib.sha256(data).hexdigest(), size=len(data), trained_steps=1
        )
        content = bytearray(data)
        if flip_bit is not None:
            content[flip_bit // 8] ^= 1 << (flip_bit % 8)
        self.data, self.chunk = bytes(content), chunk

    def __call__(self, request: GetWeights) -> WeightChunk:
        part = self.data[request.offset : request.offset + self.chunk]
        return WeightChunk(snapshot=self.snapshot, offset=request.offset, data=part)


WEIGHTS = save({"w": np.arange(60, dtype=np.float32)})


def test_weights_arrive_whole_in_chunks() -> None:
    fetched = WeightFetch().fetch(Server(WEIGHTS))
    assert fetched is not None
    assert load_tensors(fetched[1])["w"].tolist() == list(range(60))


@pytest.mark.parametrize("bit", range(0, len(WEIGHTS) * 8, 37))
def test_every_flipped_bit_is_caught(bit: int) -> None:
    with pytest.raises(MessageError, match="hash"):
        WeightFetch().fetch(Server(WEIGHTS, flip_bit=bit))


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(PolicyError, match="not finite"):
        load_tensors(save({"w": np.array([1.0, np.nan], dtype=np.float32)}))


class Constant:
    """A residual that adds a constant."""

    def __init__(self, version: int, tensors: Mapping[str, Array]) -> None:
        self.version = version
        self._add = tensors["w"]

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        return action_base + self._add


def test_new_weights_take_over_at_a_boundary_only() -> None:
    inbox = WeightInbox()
    live = LiveResidual(NoCorrection(), inbox, Constant)
    base = np.zeros(1, dtype=np.float32)
    inbox.put(2, {"w": np.ones(1, dtype=np.float32)})
    assert live.correct(observation(0), base)[0] == 0.0 and live.version == 0
    live.refresh()
    assert live.correct(observation(1), base)[0] == 1.0 and live.version == 2


def test_weights_that_give_a_non_finite_action_never_act() -> None:
    inbox = WeightInbox()
    live = LiveResidual(NoCorrection(), inbox, Constant)
    inbox.put(2, {"w": np.full(1, np.inf, dtype=np.float32)})
    live.refresh()
    assert live.correct(observation(0), np.zeros(1, dtype=np.float32))[0] == 0.0
    assert live.version == 0
