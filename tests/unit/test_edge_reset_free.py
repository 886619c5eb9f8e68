"""Practice without resets: which episode is next, when a person is called, when noise shakes the robot loose."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from benchmarks.learning.robot import LocalRobot
from robot_stack.apps.build import build_simulated
from robot_stack.apps.collect import ActionNoise
from robot_stack.apps.reset_free import PracticeMode, describe_practice
from robot_stack.config.compose import compose_config
from robot_stack.core.direction import Direction, direction_of
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.messages import FloatArray, Observation, Source, Step
from robot_stack.core.protocols import Judgement, Outcome
from robot_stack.core.specs import STATE, RobotSpec, vector
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, EpisodeSummary, NoCorrection
from robot_stack.edge.judged_robot import JudgedRobot
from robot_stack.edge.perturbation import Novelty, Perturbing
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.reset_free import FIRST_SETUP, OUT_OF_REACH, Call, ResetFree, read_calls, read_practice
from robot_stack.edge.reset_free_config import PracticeConfig
from robot_stack.learner.rewards.directed import DirectedReward
from robot_stack.learner.rewards.medal import NoGoal
from robot_stack.learner.rewards.predicate import InjectedErrors, TaskPredicate
from tests.unit.test_edge_parts import RampPolicy

F, B = Direction.FORWARD, Direction.BACKWARD
CONFIG = PracticeConfig(mode="reset_free", failures_to_call=3)
SPEC = RobotSpec(
    name="cart_0",
    model="cart",
    task="ramp",
    simulated=True,
    control_rate_hz=10.0,
    tick_rate_hz=100.0,
    command_timeout_s=0.15,
    max_episode_steps=20,
    action=RampPolicy.spec.action,
    observation={STATE: vector(("tool_x_m", "tool_yaw_rad", "tool_speed_m_s", "goal_x_m"))},
)


class Run:
    """A manager, and episodes that end as told."""

    def __init__(self, folder: Path, config: PracticeConfig = CONFIG) -> None:
        self.answered: list[Call] = []
        self.manager = ResetFree(config, folder, self.answered.append)
        self.number = 0

    def begins(self) -> EpisodeId:
        episode = self.manager.next(self.number, 100 + self.number)
        self.number += 1
        return episode

    def goes(self, *successes: bool) -> list[Direction | None]:
        """Episodes with these outcomes; how each of them began."""
        began = []
        for success in successes:
            episode = self.begins()
            began.append(episode.here)
            self.manager.ended(EpisodeSummary(episode, 7, success, float(success)))
        return began


def test_the_first_scene_is_set_up_and_then_directions_take_turns(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.goes(True, True, True, True) == [None, B, F, B]
    assert [call.reason for call in run.answered] == [FIRST_SETUP]
    assert run.manager.record.forward.reached == run.manager.record.backward.reached == 2
    assert run.manager.record.forward.steps == 14


def test_a_failed_attempt_is_followed_by_backward_until_a_start_is_reached(tmp_path: Path) -> None:
    assert Run(tmp_path).goes(True, False, True, False, True) == [None, B, B, F, B]


def test_a_person_is_called_after_so_many_failures_in_a_row_and_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.goes(False, False, True, False, False, False, True) == [None, B, B, F, B, B, None]
    assert [call.episode for call in run.answered] == [0, 6]
    assert "3 attempts" in run.answered[1].reason
    assert read_calls(tmp_path) == run.answered
    assert "2 calls" in describe_practice(tmp_path)


def test_where_backward_has_no_goal_its_limit_is_one_and_says_nothing_of_forward(tmp_path: Path) -> None:
    config = structs.replace(CONFIG, backward_limit_reaches=True, backward_max_steps=5)
    run = Run(tmp_path, config)
    assert run.begins().limit is None
    run.manager.ended(EpisodeSummary(EpisodeId(0, 100), 7, False, 0.0))
    backward = run.begins()
    assert (backward.here, backward.limit) == (B, 5)
    run.manager.ended(EpisodeSummary(backward, 5, False, 0.0))
    assert run.goes(False, False, False) == [F, B, F], "three forward failures, two aimless backward episodes"
    assert run.begins().here is None


def test_a_fault_and_a_lost_scene_need_a_person(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.goes(True)
    run.manager.failed(RobotError("a cable came off"))
    assert "PERSON IS NEEDED" in describe_practice(tmp_path)
    assert run.goes(True, True) == [None, B]
    run.manager._lost = True
    run.goes(False)
    assert run.goes(True) == [None]
    assert ["a cable came off" in run.answered[1].reason, run.answered[2].reason] == [True, OUT_OF_REACH]


def test_a_person_who_was_not_there_is_asked_once(tmp_path: Path) -> None:
    asked: list[Call] = []

    def away(call: Call) -> None:
        asked.append(call)
        raise RobotError("nobody came")

    manager = ResetFree(CONFIG, tmp_path, away)
    with pytest.raises(RobotError):
        manager.next(0, 0)
    manager.failed(RobotError("nobody came"))
    assert manager.next(1, 1).here is None
    assert len(asked) == manager.record.calls == 1


def test_practice_goes_on_after_a_restart(tmp_path: Path) -> None:
    Run(tmp_path).goes(True, False)
    again = Run(tmp_path)
    assert again.manager.record == read_practice(tmp_path)
    assert again.goes(True, True) == [B, F]
    assert not again.answered


@settings(deadline=None, max_examples=15)
@given(st.lists(st.booleans(), min_size=10, max_size=30))
def test_whatever_happens_failures_never_pile_up_and_forward_begins_at_a_start(outcomes: list[bool]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        began = run.goes(*outcomes)
        in_a_row = 0
        for index, (here, success) in enumerate(zip(began, outcomes, strict=True)):
            assert in_a_row < 3 or here is None
            if here is F:
                assert began[index - 1] is B and outcomes[index - 1]
            in_a_row = 0 if success else (1 if here is None else in_a_row + 1)
        assert run.manager.record.calls == began.count(None)


# ---- stuck ----------------------------------------------------------------------------------------------------------


def seen(index: int, x_m: float, yaw_rad: float = 0.0) -> Observation:
    state = np.array([x_m, yaw_rad, 100.0 * index, 100.0 * index], np.float32)
    return Observation(id=index, stamp_ns=0, features={STATE: state}, age_ns={}, episode_seed=5, index=index)


def test_novel_is_what_is_far_from_all_that_was_seen_and_speed_is_no_place() -> None:
    novelty = Novelty(PracticeConfig(novel_m=0.01, novel_rad=0.1), SPEC)
    stale = []
    places = [(0.0, 0.0), (0.02, 0.0), (0.005, 0.05), (0.02, 0.15), (0.02, 0.16)]
    for index, (x_m, yaw_rad) in enumerate(places):
        novelty.see(seen(index, x_m, yaw_rad))
        stale.append(novelty.stale_steps)
    assert stale == [0, 0, 1, 0, 1]


def corrected(sigma: float, places: Sequence[float]) -> tuple[list[float], Perturbing]:
    config = PracticeConfig(stuck_steps=3, perturb_steps=2, perturb_sigma=sigma)
    perturbing = Perturbing(NoCorrection(), config, SPEC, seed=1)
    action: FloatArray = np.zeros(1, np.float32)
    return [float(perturbing.correct(seen(i, x), action)[0]) for i, x in enumerate(places)], perturbing


def test_a_robot_that_sees_nothing_new_is_perturbed_for_some_steps_and_again() -> None:
    actions, perturbing = corrected(0.5, [0.0] * 9)
    assert [action != 0.0 for action in actions] == [False] * 3 + [True, True, False, True, True, False]
    assert perturbing.perturbations == 2
    assert corrected(0.5, [0.0] * 9)[0] == actions, "a pure function of seeds and step"


def test_a_robot_that_moves_is_left_alone() -> None:
    actions, perturbing = corrected(0.5, [0.01 * i for i in range(9)])
    assert actions == [0.0] * 9
    assert perturbing.perturbations == 0


def test_a_new_episode_forgets_the_old_one() -> None:
    config = PracticeConfig(stuck_steps=3, perturb_steps=2)
    perturbing = Perturbing(NoCorrection(), config, SPEC, seed=1)
    action: FloatArray = np.zeros(1, np.float32)
    for _ in range(4):
        for index in range(3):
            assert perturbing.correct(seen(index, 0.0), action)[0] == 0.0


def test_positions_must_exist() -> None:
    with pytest.raises(ConfigError, match="tool_x_m"):
        Novelty(PracticeConfig(stuck_prefixes=("hand_",)), SPEC)


# ---- with a robot ---------------------------------------------------------------------------------------------------


class Still:
    """Proposes to stay."""

    source, version = Source.POLICY, 0

    def __init__(self, spec: RobotSpec) -> None:
        self._action = np.zeros(spec.action.shape, np.float32)

    def begin(self, seed: int) -> None: ...

    def at_boundary(self, index: int) -> bool:
        return False

    def propose(self, observation: Observation, state: object) -> FloatArray:
        return self._action


@pytest.fixture(scope="module")
def peg() -> LocalRobot:
    return LocalRobot(build_simulated(compose_config(("robot=franka", "task=peg_cycle", "robot.view_cameras=[]"))))


def test_steps_record_which_direction_they_had(peg: LocalRobot, tmp_path: Path) -> None:
    steps: list[Step] = []
    manager = ResetFree(CONFIG, tmp_path, lambda _: None)
    recorder = Recorder(RecordingId("run", peg.spec.name, peg.spec.task), steps.append)
    loop = ControlLoop(peg, Still(peg.spec), ActionNoise(peg.spec.action, 0.1), [recorder, manager], 0.2)
    for number in range(3):
        manager.ended(loop.run_episode(shortened(manager.next(number, number))))
    directions = {step.episode: direction_of(step.instruction) for step in steps}
    assert directions == {0: F, 1: B, 2: F if manager.record.backward.reached else B}
    assert steps[-1].truncated and steps[-1].final_action_base is not None


def shortened(episode: EpisodeId) -> EpisodeId:
    return EpisodeId(episode.number, episode.seed, episode.here, 4)


class Said:
    """Says what it was told, in order."""

    name, version = "said", "1"

    def __init__(self, *verdicts: bool) -> None:
        self._verdicts = iter(verdicts)
        self.asked: list[Outcome] = []

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        self.asked += outcomes
        verdicts = [next(self._verdicts) for _ in outcomes]
        return [Judgement(success=one, probability=1.0, reward=float(one)) for one in verdicts]


def test_what_is_taken_for_a_success_ends_the_episode_once_it_is_confirmed(peg: LocalRobot) -> None:
    robot = JudgedRobot(peg, Said(True, False, True, True), "run", consecutive=2)
    still = np.zeros(peg.spec.action.shape, np.float32)
    robot.reset(0)
    tasks = [robot.step(still).state.task for _ in range(4)]
    assert [task is not None and task.terminated for task in tasks] == [False, False, False, True]
    assert [task.reward for task in tasks if task is not None] == [0.0, 0.0, 0.0, 1.0]
    assert (robot.forward.false_positives, robot.forward.true_negatives) == (1, 3)


def test_each_direction_is_judged_by_its_own_model(peg: LocalRobot) -> None:
    forward, backward = Said(False, False), Said(True)
    robot = JudgedRobot(peg, DirectedReward({F: forward, B: backward}), "run")
    still = np.zeros(peg.spec.action.shape, np.float32)
    robot.reset(0)
    robot.step(still)
    robot.step(still)
    robot.begin_here(1, B)
    assert robot.step(still).state.task is not None
    assert [direction_of(one.step.instruction) for one in (*forward.asked, *backward.asked)] == [F, F, B]
    assert [one.step.index for one in (*forward.asked, *backward.asked)] == [0, 1, 0]
    assert robot.backward.true_positives == 1, "a fresh scene is a goal of backward"


def test_without_errors_the_tasks_own_verdict_comes_through(peg: LocalRobot) -> None:
    still = np.zeros(peg.spec.action.shape, np.float32)
    robot = JudgedRobot(peg, InjectedErrors(TaskPredicate(), 0.0, 0.0, 0), "run")
    robot.reset(0)
    robot.begin_here(1, B)
    task = robot.step(still).state.task
    assert task is not None and task.success and task.terminated and task.reward == 1.0
    goalless = JudgedRobot(peg, DirectedReward({F: TaskPredicate(), B: NoGoal()}), "run")
    goalless.begin_here(2, B)
    task = goalless.step(still).state.task
    assert task is not None and not task.success and not task.terminated


def test_the_default_mode_changes_nothing(tmp_path: Path) -> None:
    config = compose_config(("robot=franka", "task=peg_cycle"))
    mode = PracticeMode(config, tmp_path)
    assert mode.episodes.next(3, 7) == EpisodeId(3, 7)
    assert describe_practice(tmp_path) == ""
    with pytest.raises(ConfigError, match="reset_free"):
        PracticeMode(compose_config(("task=peg_cycle", "practice.judge=reward")), tmp_path)
