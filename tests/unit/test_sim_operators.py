"""The scripted operator: sees failure coming, goes back the way it came, and makes a bad policy succeed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from msgspec.structs import replace

from hardware.franka.sim import SimulatedFranka
from hardware.sim.operators import Mode, OperatorConfig, make_operator
from robot_stack.apps.operators import build_interventions, scripted_interventions
from robot_stack.config.compose import compose_config
from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Command, FloatArray, Lifecycle, Observation, RobotState, Source, Step
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, RobotSpec
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, EpisodeSummary, NoCorrection
from robot_stack.edge.operator import Interventions
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.remote_robot import Begun, Stepped
from robot_stack.safety.guard import RobotGuard

TICK_S = 0.01
EPISODES = 8
P, R, C = Source.POLICY, Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION


class InProcess:
    """A simulated arm behind the same guard as on any robot, in lock-step."""

    def __init__(self, task: str) -> None:
        self._clock = ManualClock()
        self._robot = SimulatedFranka("franka", task, clock=self._clock)
        self._guard = RobotGuard(self._robot, self._clock)
        self._guard.connect()
        self._guard.acquire_lease("s", "test")
        self._guard.transition(Lifecycle.ACTIVE)
        self._seq = 0

    @property
    def spec(self) -> RobotSpec:
        return self._robot.spec

    def reset(self, seed: int) -> Begun:
        self._guard.reset(seed)
        return Begun(self._guard.state(), 0)

    def step(self, action: FloatArray) -> Stepped:
        self._seq += 1
        deadline_ns = self._clock.now_ns() + 10**9
        result = self._guard.command(Command(session="s", seq=self._seq, deadline_ns=deadline_ns, action=action))
        for _ in range(10):
            self._guard.tick()
            self._robot.advance(TICK_S)
            self._clock.advance_ns(round(TICK_S * 1e9))
        return Stepped(result, self._guard.state(), 0, late=False)

    def close(self) -> None:
        self._guard.close()


class Believer:
    """Goes to where the socket (or cube) is observed and pushes there: it fails where the observation is wrong, and
    its hand closes too early to hold a cube."""

    source, version = P, 1

    def __init__(self, spec: RobotSpec) -> None:
        self._spec = spec

    def begin(self, seed: int) -> None:
        pass

    def at_boundary(self, index: int) -> bool:
        return False

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        spec, away = self._spec, observation.features[ENVIRONMENT_STATE].astype(np.float64)
        seen = dict(zip(spec.observation[STATE].names, observation.features[STATE], strict=True))
        lead = np.array([seen[f"goal_minus_tool_{axis}_m"] for axis in "xyz"])
        turn = away[3] - seen["goal_minus_tool_yaw_rad"]
        if spec.task == "peg_insertion":
            height = -0.03 if np.abs(away[:2]).max() < 0.003 else 0.004
            step = np.array([*(away[:3] - lead), turn])
            step[2] += height
        else:
            step = np.array([*(0.3 * away[:3]), 0.3 * away[3], float(np.linalg.norm(away[:3]) > 0.03)])
        return np.clip(step, spec.action.lower_array(), spec.action.upper_array()).astype(np.float32)


class Practice:
    """Episodes of the believer, with an operator or alone."""

    def __init__(self, robot: InProcess, interventions: Interventions | None, episodes: int = EPISODES) -> None:
        self.steps: list[Step] = []
        self.interventions = interventions
        recorder = Recorder(RecordingId("run", "franka", robot.spec.task), self.steps.append)
        believer = Believer(robot.spec)
        loop = ControlLoop(robot, believer, NoCorrection(), [recorder], 1.0, interventions=interventions)
        self.summaries: list[EpisodeSummary] = [loop.run_episode(EpisodeId(one, 100 + one)) for one in range(episodes)]

    @property
    def successes(self) -> int:
        return sum(summary.success for summary in self.summaries)

    def episodes(self) -> list[list[Step]]:
        found: dict[int, list[Step]] = defaultdict(list)
        for step in self.steps:
            found[step.episode].append(step)
        return list(found.values())


@pytest.fixture(scope="module")
def peg() -> Iterator[InProcess]:
    robot = InProcess("peg_insertion")
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def alone(peg: InProcess) -> Practice:
    return Practice(peg, None)


def practice(robot: InProcess, mode: Mode, episodes: int = EPISODES, **changes: float) -> Practice:
    config = replace(OperatorConfig(mode=mode), **changes)
    return Practice(robot, scripted_interventions(robot.spec, config), episodes)


@pytest.fixture(scope="module")
def rac(peg: InProcess) -> Practice:
    return practice(peg, "rac")


def test_rewinding_and_correcting_makes_a_bad_policy_succeed(alone: Practice, rac: Practice) -> None:
    assert alone.successes <= EPISODES // 2
    assert rac.successes == EPISODES


def test_every_intervention_is_a_recovery_then_a_correction_then_the_end(rac: Practice) -> None:
    for steps in rac.episodes():
        sources = [step.source for step in steps]
        recovered, corrected = sources.count(R), sources.count(C)
        assert sources == [P] * (len(sources) - recovered - corrected) + [R] * recovered + [C] * corrected
        assert (recovered > 0) == (corrected > 0)
        assert steps[-1].terminated or steps[-1].truncated
    assert rac.interventions is not None and rac.interventions.counts.interventions >= EPISODES // 2
    assert rac.interventions.counts.person_steps == sum(step.source is not P for step in rac.steps)


def test_it_goes_back_the_way_it_came_and_up_to_where_the_policy_still_knew_its_way(rac: Practice) -> None:
    names = tuple(_spec().observation[STATE].names)
    place = [names.index(f"tool_{axis}_m") for axis in "xyz"]
    for steps in rac.episodes():
        path = np.array([step.observation[STATE][place] for step in steps])
        last_policy = max(index for index, step in enumerate(steps) if step.source is P)
        corrections = [index for index, step in enumerate(steps) if step.source is C]
        if not corrections:
            continue
        back = path[corrections[0]]
        assert back[2] > path[last_policy][2] + 0.01  # up again
        segments = [(one, other) for one, other in pairwise(path[: last_policy + 1])]
        assert min(_to_segment_m(back, *segment) for segment in segments) < 0.006  # on the policy's own path


def test_who_needs_no_help_gets_none(alone: Practice, rac: Practice) -> None:
    helped = {step.episode for step in rac.steps if step.source is not P}
    by_itself = {summary.episode.number for summary in alone.summaries if summary.success}
    assert not helped & by_itself
    assert len(helped) == EPISODES - len(by_itself)


def test_the_same_seeds_give_the_same_steps_bit_for_bit(peg: InProcess, rac: Practice) -> None:
    again = practice(peg, "rac")
    assert [step.action_asked.tobytes() for step in again.steps] == [step.action_asked.tobytes() for step in rac.steps]


def test_noise_belongs_to_the_seed_and_keeps_the_bounds(peg: InProcess, rac: Practice) -> None:
    noisy, again = (practice(peg, "rac", 4, noise=0.1) for _ in range(2))
    asked = [step.action_asked for step in noisy.steps if step.source is not P]
    assert [one.tobytes() for one in asked] == [
        step.action_asked.tobytes() for step in again.steps if step.source is not P
    ]
    first = [step.action_asked for step in rac.steps if step.source is not P]
    assert not np.array_equal(asked[0], first[0])
    assert np.abs(np.stack(asked)).max(axis=0).tolist() <= peg.spec.action.upper_array().tolist()
    assert all((np.abs(one) <= peg.spec.action.upper_array()).all() for one in asked)


def test_hg_dagger_corrects_at_once_hands_back_and_helps(peg: InProcess, alone: Practice) -> None:
    hg_dagger = practice(peg, "hg_dagger")
    assert hg_dagger.successes > alone.successes
    sources = [[step.source for step in steps] for steps in hg_dagger.episodes()]
    assert all(R not in episode for episode in sources)
    assert any((C, P) in pairwise(episode) for episode in sources)


def test_full_demonstrations_are_driven_from_the_first_step_on(peg: InProcess) -> None:
    full = practice(peg, "full_demonstrations")
    assert full.successes == EPISODES and {step.source for step in full.steps} == {C}


def test_a_spent_budget_ends_the_help_after_the_intervention_under_way(peg: InProcess) -> None:
    spent = practice(peg, "full_demonstrations", budget_steps=20)
    person = [sum(step.source is not P for step in steps) for steps in spent.episodes()]
    assert spent.interventions is not None
    helped = sum(count > 0 for count in person)
    assert sum(person[:helped]) == sum(person) == spent.interventions.counts.person_steps
    assert sum(person) >= 20 > sum(person[: helped - 1])


def test_a_cube_that_slipped_is_grasped_again() -> None:
    robot = InProcess("pick_cube")
    try:
        assert Practice(robot, None, episodes=3).successes == 0
        assert practice(robot, "rac", 3).successes == 3
    finally:
        robot.close()


# ---- chosen by configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("choice", "ends"), [("scripted_rac", True), ("scripted_hg_dagger", False)])
def test_an_operator_is_chosen_by_configuration(choice: str, ends: bool) -> None:
    config = compose_config(["robot=franka", f"edge.operator={choice}"])
    assert build_interventions(config, _spec()).end_the_episode == ends


def test_scripted_operators_are_for_simulated_robots_and_tasks_that_they_know() -> None:
    config = compose_config(["robot=franka", "edge.operator=scripted_rac"])
    with pytest.raises(ConfigError, match="real robot"):
        build_interventions(config, replace(_spec(), simulated=False))
    with pytest.raises(ConfigError, match="peg_insertion, pick_cube"):
        make_operator("touch_block", _spec())


def _spec() -> RobotSpec:
    return SimulatedFranka("franka", "peg_insertion").spec


def _to_segment_m(point: FloatArray, begin: FloatArray, end: FloatArray) -> float:
    along = end - begin
    share = np.clip(np.dot(point - begin, along) / max(float(np.dot(along, along)), 1e-12), 0.0, 1.0)
    return float(np.linalg.norm(begin + share * along - point))
