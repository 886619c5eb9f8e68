"""A policy that exchanges itself for newer weights: when, what is refused, and that the robot never notices."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from policies.common.store import load_policy
from policies.generative.config import GenerativeConfig
from policies.generative.policy import KIND
from robot_stack.apps.edge_policy import NewestTold, edge_policy
from robot_stack.apps.layout import RunLayout
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import ActionChunk, Array, FloatArray, Observation
from robot_stack.core.protocols import GuidedChunkPolicy
from robot_stack.core.specs import STATE, PolicySpec, vector
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.chunking import ChunkingConfig
from robot_stack.edge.inference_thread import InferenceThread
from robot_stack.edge.live_policy import KEPT_PREDICTIONS, LiveGuidedPolicy, LivePolicy, PolicyCanary
from robot_stack.edge.scheduler import AsyncChunkScheduler, ChunkScheduler
from robot_stack.edge.weights import WeightInbox
from tests.generative_kit import EULER, EXPERT, FLOW, make_policy, observations
from tests.transport_kit import make_keys
from tests.unit.test_edge_parts import state

SPEC = PolicySpec(
    name="level",
    task="nothing",
    horizon=4,
    action=vector(("a", "b"), lower=(-1.0, 0.0), upper=(1.0, 10.0)),
    observation={STATE: vector(("x_m",))},
)


def observed(index: int) -> Observation:
    return Observation(id=index, stamp_ns=0, features={STATE: np.zeros(1, np.float32)}, age_ns={}, index=index)


class Level:
    """Predicts (level, 5) for all steps; odd tensors make it odd."""

    def __init__(self, version: int, tensors: Mapping[str, Array]) -> None:
        if "unbuildable" in tensors:
            raise KeyError("weight.0")
        self.version, self.tensors = version, tensors
        self.spec = replace(SPEC, **{key: value for key, value in _SPECS.items() if key in tensors})
        self.calls: list[int] = []

    def predict(self, observation: Observation) -> ActionChunk:
        self.calls.append(observation.index)
        if "fails" in self.tensors or ("fails_at" in self.tensors and observation.index == self.tensors["fails_at"]):
            raise RuntimeError("shapes do not match")
        horizon = self.spec.horizon - ("short" in self.tensors)
        level = float(self.tensors.get("level", np.zeros(1))[0])
        actions = np.full((horizon, 2), [level, 5.0], np.float32)
        version = 99 if "misnamed" in self.tensors else self.version
        return ActionChunk(
            observation_id=observation.id, index=observation.index, weights_version=version, actions=actions
        )

    def predict_guided(
        self, observation: Observation, previous: FloatArray, delay_steps: int, execute_steps: int
    ) -> ActionChunk:
        chunk = self.predict(observation)
        actions = chunk.actions.copy()
        actions[:delay_steps] = previous[:delay_steps]
        return replace(chunk, actions=actions)


_SPECS = {
    "history": 3,
    "horizon": 3,
    "observation": {STATE: vector(("x_m",)), "observation.force": vector(("f_n",))},
    "action": vector(("a", "b"), lower=(-2.0, 0.0), upper=(2.0, 10.0)),
}


def level(value: float) -> dict[str, Array]:
    return {"level": np.full(1, value)}


class Bench:
    """A live policy that begins with level 0."""

    def __init__(self, max_change: float = 0.5, *, at_rest_only: bool = False) -> None:
        self.inbox, self.board = WeightInbox(), AlarmBoard()
        self.built: list[Level] = []
        self.initial = Level(0, {})
        canary = PolicyCanary(max_change)
        self.live = LivePolicy(self.initial, self.inbox, self._build, canary, self.board, at_rest_only=at_rest_only)

    def _build(self, version: int, tensors: Mapping[str, Array]) -> Level:
        self.built.append(Level(version, tensors))
        return self.built[-1]

    def predict(self, *indices: int) -> list[float]:
        return [float(self.live.predict(observed(index)).actions[0, 0]) for index in indices]


def test_new_weights_act_in_the_very_call_that_finds_them() -> None:
    bench = Bench()
    assert bench.predict(0, 4) == [0.0, 0.0] and bench.live.version == 0
    bench.inbox.put(2, level(0.5))
    chunk = bench.live.predict(observed(8))
    assert (chunk.actions[0, 0], chunk.weights_version, bench.live.version) == (0.5, 2, 2)
    assert bench.live.acting is bench.built[0] and bench.live.refused == 0
    bench.predict(12, 16)
    assert len(bench.built) == 1


def test_a_candidate_costs_one_prediction_for_each_kept_one_and_its_own_and_the_acting_one_nothing() -> None:
    bench = Bench()
    indices = range(0, 4 * 20, 4)
    bench.predict(*indices)
    before = len(bench.initial.calls)
    bench.inbox.put(1, level(0.5))
    bench.predict(80)
    assert len(bench.initial.calls) == before
    assert sorted(bench.built[0].calls) == [*indices[-KEPT_PREDICTIONS:], 80]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"unbuildable": np.ones(1)}, "weight.0"),
        ({"fails": np.ones(1)}, "shapes do not match"),
        (level(np.nan), "not finite"),
        (level(np.inf), "not finite"),
        (level(1.5), "a from 1.5"),
        ({"short": np.ones(1)}, "chunk of float32"),
        ({"misnamed": np.ones(1)}, "say version 99"),
        ({"history": np.ones(1)}, "over 3 steps"),
        ({"horizon": np.ones(1)}, "3 actions"),
        ({"observation": np.ones(1)}, "observation.force"),
        ({"action": np.ones(1)}, "another action space"),
        (level(-0.7), "60 % of their range"),
        ({"fails_at": np.int64(8)}, "shapes do not match"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_that_must_not_act_are_refused_in_the_same_step(bad: dict[str, Array], words: str) -> None:
    bench = Bench()
    bench.inbox.put(1, level(0.5))
    bench.predict(0, 4)
    bench.inbox.put(2, bad)
    chunk = bench.live.predict(observed(8))
    assert (chunk.actions[0, 0], chunk.weights_version, chunk.index) == (0.5, 1, 8)
    assert bench.live.version == 1 and bench.live.refused == 1
    (alarm,) = bench.board.active()
    assert alarm.kind is AlarmKind.WEIGHTS_REFUSED and words in alarm.message and "version 1 stays" in alarm.message
    bench.predict(12)
    assert bench.live.refused == 1  # asked once, not again and again
    bench.inbox.put(3, level(0.6))
    assert bench.predict(16) == [np.float32(0.6)]
    assert not bench.board.active()


def test_a_change_is_measured_against_what_acts_now_not_against_the_beginning() -> None:
    bench = Bench(max_change=0.25)  # of a range of 2: 0.5
    bench.predict(0, 4, 8)
    for version, value in enumerate((0.4, 0.8, 1.0), start=1):  # each near the one before, the last far from the first
        bench.inbox.put(version, level(value))
        assert bench.predict(8 + 4 * version) == [np.float32(value)]
    bench.inbox.put(9, level(0.4))
    assert bench.predict(24) == [1.0] and bench.live.refused == 1


def test_the_first_weights_of_an_edge_that_saw_nothing_yet_act_at_once() -> None:
    bench = Bench(max_change=0.1)
    bench.inbox.put(7, level(1.0))
    assert bench.predict(0) == [1.0] and bench.live.version == 7


def test_where_the_world_does_not_wait_weights_change_at_an_episodes_first_chunk_only() -> None:
    bench = Bench(at_rest_only=True)
    bench.predict(0, 4)
    bench.inbox.put(1, level(0.5))
    assert bench.predict(8, 12) == [0.0, 0.0] and not bench.built
    assert bench.predict(0, 4) == [0.5, 0.5]


def test_a_budget_cuts_the_trial_short_but_never_leaves_it_out() -> None:
    clock = count()
    canary = PolicyCanary(0.1, budget_s=2.5, now_s=lambda: float(next(clock)))
    inbox = WeightInbox()
    built: list[Level] = []

    def build(version: int, tensors: Mapping[str, Array]) -> Level:
        built.append(Level(version, tensors))
        return built[-1]

    live = LivePolicy(Level(0, {}), inbox, build, canary)
    for index in range(0, 32, 4):
        live.predict(observed(index))
    inbox.put(1, level(0.1))
    live.predict(observed(32))
    assert built[0].calls == [28, 24, 20, 32]  # the newest first
    inbox.put(2, level(0.9))
    assert live.predict(observed(36)).weights_version == 1 and live.refused == 1


def test_guided_chunks_are_judged_as_they_were_asked_for() -> None:
    inbox = WeightInbox()
    live = LiveGuidedPolicy(Level(0, {}), inbox, Level, PolicyCanary(0.2))
    assert isinstance(live, GuidedChunkPolicy)
    planned = np.full((4, 2), [-1.0, 5.0], np.float32)
    for index in (0, 4):
        assert live.predict_guided(observed(index), planned, 4, 0).actions[0, 0] == -1.0
    inbox.put(1, level(0.3))
    chunk = live.predict_guided(observed(8), planned, 2, 0)
    # A chunk from noise alone would differ by 0.65 of the range: committed actions are the same for both.
    assert chunk.actions[:, 0].tolist() == [-1.0, -1.0, np.float32(0.3), np.float32(0.3)] and live.refused == 0


def test_policies_that_cannot_go_on_from_planned_actions_are_refused_by_one_that_can() -> None:
    class Unguided:
        def __init__(self, version: int, tensors: Mapping[str, Array]) -> None:
            self._level = Level(version, tensors)
            self.spec = self._level.spec

        def predict(self, observation: Observation) -> ActionChunk:
            return self._level.predict(observation)

    inbox, board = WeightInbox(), AlarmBoard()
    live = LiveGuidedPolicy(Level(0, {}), inbox, Unguided, PolicyCanary(1.0), board)  # type: ignore[arg-type]
    inbox.put(1, level(0.3))
    planned = np.zeros((4, 2), np.float32)
    assert live.predict_guided(observed(0), planned, 0, 4).weights_version == 0
    assert "planned actions" in board.active()[0].message


def test_a_policy_without_bounds_is_not_accepted() -> None:
    unbounded = Level(0, {})
    unbounded.spec = replace(SPEC, action=vector(("a", "b")))
    with pytest.raises(PolicyError, match="without bounds"):
        LivePolicy(unbounded, WeightInbox(), Level, PolicyCanary(0.5))


@pytest.mark.parametrize("max_change", [0.0, -1.0, float("nan")])
def test_a_canary_needs_a_largest_change(max_change: float) -> None:
    with pytest.raises(PolicyError, match="above 0"):
        PolicyCanary(max_change)


def test_in_the_inference_thread_steps_go_on_and_say_which_weights_they_are_of() -> None:
    threads: set[str] = set()

    class Watched(Level):
        def predict(self, observation: Observation) -> ActionChunk:
            threads.add(threading.current_thread().name)
            return super().predict(observation)

    inbox = WeightInbox()
    live = LivePolicy(Watched(0, {}), inbox, Watched, PolicyCanary(1.0))
    config = ChunkingConfig(mode="switch", execute_steps=1)
    found: list[tuple[int, float]] = []
    with InferenceThread(10.0, 30.0) as inference:
        scheduler = AsyncChunkScheduler(live, inference, config)
        for version in range(1, 6):
            inbox.put(version, level(0.1 * version) if version != 3 else level(np.nan))
            scheduler.begin(0)
            for index in range(3):
                action = scheduler.propose(observed(index), state())
                found.append((scheduler.version, round(float(action[0]), 3)))
    assert threads == {"inference"} and live.refused == 1
    assert sorted(set(found)) == [(1, 0.1), (2, 0.2), (4, 0.4), (5, 0.5)]


def test_one_scheduler_runs_the_newest_weights_from_its_next_chunk_on() -> None:
    bench = Bench()
    scheduler = ChunkScheduler(bench.live, 4)
    versions = []
    for index in range(12):
        if index == 5:
            bench.inbox.put(4, level(0.5))
        scheduler.propose(observed(index), state())
        versions.append(scheduler.version)
    assert versions == [0] * 8 + [4] * 4


# ---- wired --------------------------------------------------------------------------------------------------------


def test_what_is_told_of_a_live_policy_follows_the_weights() -> None:
    base = make_policy()
    live = LivePolicy(base, WeightInbox(), lambda version, tensors: base, PolicyCanary(0.5))
    told = NewestTold(live, base)
    assert told.block_share == base.block_share == 1.0 and told.example_instruction == base.example_instruction


@pytest.mark.parametrize("chunking", ["sync", "rtc"])
def test_an_edge_whose_algorithm_trains_chunks_goes_on_with_them(chunking: str, tmp_path: Path) -> None:
    choices = ["robot=franka", "algorithm=rac", "policy.runtime.backend=eager", f"edge.chunking={chunking}"]
    config = compose_config([*choices, f"runs_directory={tmp_path}"])
    base, inbox, seen = make_policy(EXPERT, FLOW, EULER), WeightInbox(), observations(4)
    directory = RunLayout.of(config).policy
    directory.parent.mkdir(parents=True)
    base.save(directory)
    _, weights = load_policy(directory, KIND, GenerativeConfig)
    tensors = {name: value * np.float32(1.001) for name, value in weights.items()}
    with edge_policy(config, make_keys(tmp_path), inbox, AlarmBoard()) as loaded:
        assert loaded.live is not None and loaded.policy is loaded.live
        assert isinstance(loaded.policy, GuidedChunkPolicy) == (chunking == "rtc")
        before = loaded.policy.predict(seen[0])
        assert before.weights_version == 0 and np.array_equal(before.actions, base.predict(seen[0]).actions)
        inbox.put(3, tensors)
        after = loaded.policy.predict(seen[2])
        assert (after.weights_version, loaded.live.version, loaded.live.refused) == (3, 3, 0)
        assert not np.array_equal(after.actions, base.predict(seen[2]).actions)
        inbox.put(4, {name: value * np.float32("nan") for name, value in weights.items()})
        assert loaded.policy.predict(seen[3]).weights_version == 3 and loaded.live.refused == 1
        assert isinstance(loaded.told, NewestTold) and loaded.told.block_share == 1.0


def test_a_policy_server_cannot_exchange_policies_and_that_is_said(tmp_path: Path) -> None:
    config = compose_config(["robot=franka", "algorithm=rac", "edge.inference=server"])
    with (
        pytest.raises(ConfigError, match=r"edge\.inference=local"),
        edge_policy(config, make_keys(tmp_path), WeightInbox(), AlarmBoard()),
    ):
        pass
