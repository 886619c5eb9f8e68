"""The benchmark of learning: its robot is the remote one, runs go on bit for bit, and seeds are pooled rightly."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec import structs

from benchmarks.inference.rollouts import Simulation
from benchmarks.learning.__main__ import parse
from benchmarks.learning.bench import Job, run_job
from benchmarks.learning.curve import CurveFile, Point
from benchmarks.learning.evaluation import successes
from benchmarks.learning.plots import draw
from benchmarks.learning.practice import LAST_SEED, Measuring, Practice
from benchmarks.learning.report import curve_of, filled, pooled, report_of, table
from benchmarks.learning.robot import LocalRobot
from benchmarks.learning.tasks import LearningTask, quick, task_of
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.actors import Improved
from robot_stack.apps.build import base_spec, build_expert, build_simulated
from robot_stack.apps.connections import ROBOT_REQUEST, ROBOT_STATE
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.robot_server import RobotServer
from robot_stack.apps.train import read_demonstrations
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import CommandRefusedError, ConfigError, CorruptDataError
from robot_stack.core.messages import (
    ActionChunk,
    FloatArray,
    Observation,
    Refusal,
    RobotReply,
    RobotRequest,
    RobotState,
    Source,
    TaskStatus,
    Verdict,
)
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.control_loop import LoopRobot
from robot_stack.edge.remote_robot import RemoteRobot, Stepped
from robot_stack.evaluation.statistics import wilson_interval
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.server import RequestServer
from robot_stack.transport.stream import Publisher, Subscriber

STEPS = 110
MEASURING = Measuring(every=60, episodes=2, last_episodes=3, lanes=2)


def tiny_task() -> LearningTask:
    small = quick(task_of("peg_insertion"))
    overrides = (*small.overrides, "task.demonstrations=2", "policy.training.steps=5", "learner.publish_every_steps=30")
    settings = {
        "residual_td3": (
            "algorithm.exploration.warmup_steps=30",
            "algorithm.update.critic_only_updates=5",
            "algorithm.residual.hidden=[8]",
            "algorithm.update.critic_hidden=[8]",
        )
    }
    return structs.replace(small, overrides=overrides, settings=settings)


def job(work: Path, algorithm: str) -> Job:
    return Job(work=str(work), task=tiny_task(), seed=0, algorithm=algorithm, steps=STEPS, measuring=MEASURING)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a base policy."""
    folder = tmp_path_factory.mktemp("learning")
    run_job(job(folder, ""))
    return folder


@pytest.fixture(scope="module")
def finished(work: Path) -> Path:
    """The folder of a whole run of residual_td3."""
    run_job(job(work, "residual_td3"))
    return RunLayout.of(job(work, "residual_td3").config()).root


# ---- the robot ------------------------------------------------------------------------------------------------------


@contextmanager
def served(config: StackConfig, folder: Path) -> Iterator[RemoteRobot]:
    """The same simulated robot behind a real robot server, with its sockets, in a thread."""
    keys = KeyStore(folder / "keys")
    for role in (Role.ROBOT, Role.EDGE):
        keys.make(role.value, role)
    running, ready = threading.Event(), threading.Event()
    running.set()
    addresses: list[str] = []

    def serve() -> None:
        requests: RequestServer[RobotRequest] = RequestServer(
            ROBOT_REQUEST, "tcp://127.0.0.1:*", keys, "robot", RobotRequest
        )
        with requests, Publisher(ROBOT_STATE, "tcp://127.0.0.1:*", keys, "robot") as states:
            addresses.extend((requests.address, states.address))
            ready.set()
            RobotServer(build_simulated(config), requests, states, lock_step=True).run(running.is_set)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(10.0)
        client: RequestClient[RobotReply] = RequestClient(
            ROBOT_REQUEST, addresses[0], keys, "edge", "robot", RobotReply
        )
        states: Subscriber[RobotState] = Subscriber(ROBOT_STATE, addresses[1], keys, "edge", "robot", RobotState)
        with client, states:
            robot = RemoteRobot(client, states, "edge")
            robot.connect(10.0)
            robot.arm(10.0)
            yield robot
    finally:
        running.clear()
        thread.join()


def actions_of(robot: LoopRobot, count: int) -> list[FloatArray]:
    """Some inside the bounds, one a little beyond them (clipped), one that is no number (refused)."""
    rng, spec = np.random.default_rng(3), robot.spec.action
    drawn = [rng.uniform(spec.lower_array(), spec.upper_array()).astype(np.float32) for _ in range(count)]
    drawn[3] = np.float32(1.02) * spec.upper_array()
    drawn[5] = np.full_like(drawn[5], np.nan)
    return drawn


def episode(robot: LoopRobot, seed: int, actions: list[FloatArray]) -> list[Stepped]:
    robot.reset(seed)
    return [robot.step(action) for action in actions]


def test_the_robot_in_this_process_is_the_remote_one_bit_for_bit(tmp_path: Path) -> None:
    config = tiny_task().config(tmp_path, "robot", 0, "residual_td3")
    with LocalRobot(build_simulated(config)) as local, served(config, tmp_path) as remote:
        assert local.spec == remote.spec
        actions = actions_of(local, 12)
        for seed in (5, 6, 5):
            here, there = episode(local, seed, actions), episode(remote, seed, actions)
            assert [one.result.verdict for one in here] == [one.result.verdict for one in there]
            assert {Verdict.CLIPPED, Verdict.REFUSED} <= {one.result.verdict for one in here}
            for mine, theirs in zip(here, there, strict=True):
                np.testing.assert_array_equal(mine.result.sent, theirs.result.sent)
                assert mine.state.features.keys() == theirs.state.features.keys()
                for name, value in mine.state.features.items():
                    np.testing.assert_array_equal(value, theirs.state.features[name])
                assert mine.state.task == theirs.state.task
                assert (mine.age_ns, mine.late) == (theirs.age_ns, theirs.late)


def test_a_fault_ends_the_episode_and_the_next_reset_clears_it(tmp_path: Path) -> None:
    config = tiny_task().config(tmp_path, "robot", 0, "residual_td3")
    with LocalRobot(build_simulated(config)) as robot:
        actions = actions_of(robot, 8)
        robot.reset(0)
        robot.step(actions[0])
        robot._lane.guard.latch_fault("a cable came off")
        with pytest.raises(CommandRefusedError) as refused:
            robot.step(actions[1])
        assert refused.value.reason == Refusal.NOT_ACTIVE.value
        robot.reset(1)
        assert robot.step(actions[0]).result.verdict is Verdict.ACCEPTED


def test_success_can_be_the_only_reward(tmp_path: Path) -> None:
    config = task_of("pusht").config(tmp_path, "robot", 0, "residual_td3")
    rewards = {}
    for success_reward in (False, True):
        with LocalRobot(build_simulated(config), success_reward=success_reward) as robot:
            state = robot.reset(1_003).state
            expert = build_expert(config, robot.spec)
            expert.reset(1_003)
            tasks: list[TaskStatus] = []
            while not tasks or not (tasks[-1].terminated or tasks[-1].truncated):
                assert state.ground_truth is not None
                state = robot.step(expert.act(state.features, state.ground_truth)).state
                assert state.task is not None
                tasks.append(state.task)
            assert tasks[-1].success
            rewards[success_reward] = [task.reward for task in tasks]
    assert rewards[True] == [0.0] * (len(rewards[True]) - 1) + [1.0]
    assert len(rewards[False]) == len(rewards[True])
    assert sum(rewards[False]) > 2.0  # the task's own is paid on the way


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_learns_measures_itself_and_keeps_everything(finished: Path) -> None:
    points = CurveFile(finished / "curve.jsonl").points
    assert [point.due for point in points] == [0, 60, STEPS]
    assert [point.n for point in points] == [2, 2, 3]
    assert [point.first_seed for point in points] == [0, 0, LAST_SEED]
    assert (points[0].env_steps, points[0].updates, points[0].version) == (0, 0, 0)
    last = points[-1]
    assert last.env_steps >= STEPS
    assert last.updates == 5 + (STEPS - 30)
    assert last.version >= 2
    assert last.cpu_s > 0
    assert [point.cpu_s for point in points] == sorted(point.cpu_s for point in points)
    with StepStore(finished / "learner" / "steps", "process") as store:
        steps = [step for _, step in store.iterate(0)]
    assert len(steps) == last.env_steps
    assert {step.source for step in steps} == {Source.POLICY}
    early = [step for step in steps if step.weights_version == 0]
    assert any((step.action_asked != step.action_base).any() for step in early)  # the warm-up explores
    assert max(step.weights_version for step in steps) >= 1  # published weights did act


def test_a_finished_run_is_not_made_again(work: Path, finished: Path) -> None:
    before = (finished / "curve.jsonl").read_bytes()
    run_job(job(work, "residual_td3"))
    assert (finished / "curve.jsonl").read_bytes() == before


class Unplugged(LocalRobot):
    """Goes off in the middle of an episode."""

    steps_left = 0

    def step(self, action: FloatArray) -> Stepped:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise KeyboardInterrupt
        return super().step(action)


def test_an_interrupted_run_goes_on_bit_for_bit(work: Path, finished: Path, tmp_path: Path) -> None:
    wanted = job(work, "residual_td3")
    config = structs.replace(wanted.config(), run="interrupted")
    layout, of_base = RunLayout.of(config), RunLayout.of(wanted.base_config())
    layout.remember_robot(of_base.robot_spec())
    base, demonstrations = GenerativePolicy.load(of_base.policy), read_demonstrations(of_base)
    for steps_left in (75, 7, 10_000):  # dies behind its second point, dies again at once, and comes to the end
        robot = Unplugged(build_simulated(config))
        robot.steps_left = steps_left
        with (
            robot,
            Simulation(lambda: build_simulated(config)) as simulation,
            StepStore(layout.steps, "process", config.learner.store) as store,
        ):
            practice = Practice(config, base, demonstrations, robot, simulation, store, MEASURING)
            try:
                practice.run(lambda point: None)
            except KeyboardInterrupt:
                assert steps_left < 10_000
    whole, resumed = (CurveFile(root / "curve.jsonl").points for root in (finished, layout.root))
    strip = {"wall_s": 0.0, "cpu_s": 0.0}
    assert [structs.replace(point, **strip) for point in resumed] == [structs.replace(one, **strip) for one in whole]
    ends = [CheckpointStore(root / "learner" / "checkpoints").latest() for root in (finished, layout.root)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].tensors.keys() == ends[1].tensors.keys()
    for name, tensor in ends[0].tensors.items():
        np.testing.assert_array_equal(ends[1].tensors[name], tensor, err_msg=name)


def test_a_base_policy_made_with_other_settings_is_not_used(work: Path) -> None:
    other = structs.replace(tiny_task(), overrides=(*tiny_task().overrides, "policy.training.steps=6"))
    with pytest.raises(ConfigError, match="begun with other settings"):
        run_job(structs.replace(job(work, ""), task=other))


class Remembered:
    """Acts as the expert did in the episodes of `by_policy` (as chunks) and of `by_step` (at every step), else not."""

    version = 1

    def __init__(self, spec: PolicySpec, known: dict[int, list[FloatArray]], by_policy: int, by_step: int) -> None:
        self.spec = spec
        self._known, self._by_policy, self._by_step = known, by_policy, by_step
        self._nothing = np.zeros(spec.action.shape, np.float32)

    def predict(self, observation: Observation) -> ActionChunk:
        raise AssertionError("batches are asked for")

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        return np.stack([[self._at(one, self._by_policy, ahead) for ahead in range(8)] for one in observations])

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        return action_base if action_base.any() else self._at(observation, self._by_step, 0)

    def refresh(self) -> None:
        raise AssertionError("what is evaluated does not change")

    def _at(self, observation: Observation, seed: int, ahead: int) -> FloatArray:
        actions = self._known[observation.episode_seed] if observation.episode_seed == seed else []
        index = observation.index + ahead
        return actions[index] if index < len(actions) else self._nothing


def test_every_seed_gets_its_own_outcome_side_by_side(tmp_path: Path) -> None:
    config, seeds = tiny_task().config(tmp_path, "robot", 0, "residual_td3"), [21, 22, 23]
    known: dict[int, list[FloatArray]] = {}
    with LocalRobot(build_simulated(config)) as robot:
        spec = base_spec(config, robot.spec)
        for seed in seeds:
            expert, state, known[seed] = build_expert(config, robot.spec), robot.reset(seed).state, []
            while not (state.task and state.task.terminated):
                assert state.ground_truth is not None
                known[seed].append(expert.act(state.features, state.ground_truth))
                state = robot.step(known[seed][-1]).state
    with Simulation(lambda: build_simulated(config)) as simulation:
        for by_policy, by_step in ((21, 23), (22, 22)):
            acting = Remembered(spec, known, by_policy, by_step)
            found = successes(simulation, Improved(1, acting, acting), seeds, 4, 2)
            assert found == [seed in {by_policy, by_step} for seed in seeds]


# ---- statistics -----------------------------------------------------------------------------------------------------


def point(due: int, success: str, wall_s: float = 0.0, env_steps: int = 0, human_steps: int = 0) -> Point:
    return Point(
        due=due,
        env_steps=env_steps or due,
        episodes=0,
        updates=0,
        version=0,
        replan_every=8,
        wall_s=wall_s,
        cpu_s=0.0,
        first_seed=0,
        success=success,
        human_steps=human_steps,
    )


def test_seeds_are_pooled_by_episode() -> None:
    found = pooled([point(100, "1100", wall_s=4.0), point(100, "1110", wall_s=6.0), point(100, "0000", wall_s=5.0)])
    assert (found.successes, found.n, found.env_steps, found.wall_s) == (5, 12, 100, 5.0)
    assert found.by_seed == (0.5, 0.75, 0.0)
    expected = wilson_interval(5, 12)
    assert found.ci == (expected.lower, expected.upper)


def test_a_curve_has_the_points_that_all_seeds_have_and_its_last_is_not_its_best() -> None:
    runs = {
        0: [point(0, "0000"), point(100, "1111"), point(200, "1100"), point(300, "1111")],
        1: [point(0, "0000"), point(100, "1110"), point(200, "1000", env_steps=205, human_steps=41)],
    }
    curve = curve_of("residual_td3", runs)
    assert [one.env_steps for one in curve.points] == [0, 100, 200]
    assert curve.last.rate == pytest.approx(3 / 8)
    assert curve.steps_to == {"50": 100, "80": 100, "90": None}
    assert curve.human_share == pytest.approx(0.1)


def test_a_torn_last_line_is_cut_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    CurveFile(path).append(point(0, "01"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:10])
    assert CurveFile(path).points == [point(0, "01")]
    assert path.read_bytes() == whole
    path.write_bytes(whole[:10] + b"\n" + whole)
    with pytest.raises(CorruptDataError, match=r"curve\.jsonl is damaged"):
        CurveFile(path)


def test_the_report_shows_base_and_curves(work: Path, finished: Path, tmp_path: Path) -> None:
    run_job(job(work, "base"))
    report = report_of(
        "peg_insertion",
        work / "peg_insertion",
        ["base", "residual_td3", "rlpd"],
        [0],
        execute_steps=8,
        command="test",
        quick=True,
        load_average=0.0,
    )
    assert [curve.algorithm for curve in report.curves] == ["residual_td3"]
    assert {"8", "4", "1"} == set(report.base)
    assert {one.n for one in report.base.values()} == {3}
    shown = table(report)
    assert "re-planned every 4" in shown
    assert "`residual_td3`" in shown
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report
    document = "a\n<!-- learning: peg_insertion -->\nold\n<!-- end -->\nb\n"
    once = filled(document, report)
    assert once.startswith("a\n<!--")
    assert once.endswith("<!-- end -->\nb\n")
    assert shown in once
    assert "old" not in once
    assert filled(once, report) == once
    draw(report, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no place for peg_insertion"):
        filled("a\n", report)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--algorithms", "residual_td4"], "no algorithm 'residual_td4'"), (["--tasks", "juggling"], "no learning task")],
)
def test_unknown_names_are_told_at_once(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(arguments)
