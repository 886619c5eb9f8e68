"""A person beside the policy: the rules of interventions, and what becomes of them in the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pytest

from policies.residual.config import ExplorationConfig
from robot_stack.apps.edge import Exploring
from robot_stack.core.errors import CommandRefusedError
from robot_stack.core.messages import (
    Array,
    CommandResult,
    FloatArray,
    Lifecycle,
    Observation,
    Refusal,
    RobotState,
    Source,
    Step,
    TaskStatus,
    Verdict,
)
from robot_stack.core.specs import STATE, RobotSpec, vector
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, LoopStep
from robot_stack.edge.operator import Intervention, Interventions, Nobody, Rule
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.remote_robot import Begun, Stepped
from robot_stack.edge.scheduler import ChunkScheduler
from robot_stack.edge.weights import LiveResidual, WeightInbox
from tests.unit.test_edge_parts import RampPolicy

P, R, C = Source.POLICY, Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION
MAX_STEPS = 12
SPEC = RobotSpec(
    name="cart_0",
    model="cart",
    task="ramp",
    simulated=True,
    control_rate_hz=10.0,
    tick_rate_hz=100.0,
    command_timeout_s=0.15,
    max_episode_steps=MAX_STEPS,
    action=RampPolicy.spec.action,
    observation={STATE: vector(("x_m",))},
)


class Cart:
    """A robot in this process: moves by each action, whose filter refuses what is beyond 50 and lets nothing move."""

    spec = SPEC

    def __init__(self, goal_m: float = 1e9) -> None:
        self._goal_m = goal_m
        self._x_m = 0.0
        self._seq = 0
        self.steps = 0

    def reset(self, seed: int) -> Begun:
        self._x_m = 0.0
        return Begun(self._state(), 0)

    def step(self, action: FloatArray) -> Stepped:
        refused = abs(float(action[0])) > 50.0
        self.steps += 1
        self._x_m += 0.0 if refused else float(action[0])
        result = CommandResult(
            seq=self.steps,
            verdict=Verdict.REFUSED if refused else Verdict.ACCEPTED,
            refusal=Refusal.OUT_OF_BOUNDS if refused else None,
            message="",
            sent=np.zeros(1, np.float32) if refused else action,
        )
        return Stepped(result, self._state(), 0, late=False)

    def _state(self) -> RobotState:
        self._seq += 1
        done = self._x_m >= self._goal_m
        return RobotState(
            boot="b",
            seq=self._seq,
            stamp_ns=self._seq,
            lifecycle=Lifecycle.ACTIVE,
            features={STATE: np.array([self._x_m], np.float32)},
            task=TaskStatus(reward=float(done), success=done, terminated=done),
        )


class Planned(Nobody):
    """An operator who acts as planned: at these steps with that source; lets go after the steps in `until`."""

    def __init__(self, plan: Mapping[int, Source], until: Sequence[int] = (), action: float = -1.0) -> None:
        self._plan, self._until = plan, until
        self._action = np.array([action], np.float32)
        self.proposed: list[float] = []
        self.episodes: list[EpisodeId] = []

    def begin(self, episode: EpisodeId) -> None:
        self.episodes.append(episode)

    def intervene(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
        self.proposed.append(float(proposed[0]))
        source = self._plan.get(observation.index)
        return None if source is None else Intervention(self._action, source)

    def lets_go(self, observation: Observation, state: RobotState) -> bool:
        return observation.index - 1 in self._until


class Seen:
    def __init__(self) -> None:
        self.steps: list[LoopStep] = []

    def on_step(self, step: LoopStep) -> None:
        self.steps.append(step)


class PlusOne:
    """A residual that adds 1."""

    version = 3

    def __init__(self, version: int = 3, tensors: Mapping[str, Array] | None = None) -> None:
        self.version = version

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        return action_base + 1

    def refresh(self) -> None:
        """There are no weights to exchange."""


class Run:
    """Episodes of the ramp policy with an operator: what was executed, and what was recorded."""

    def __init__(
        self, operator: Planned, rule: Rule, *, episodes: int = 1, robot: Cart | None = None, noisy: bool = False
    ) -> None:
        self.robot, self.policy, self.recorded = robot or Cart(), RampPolicy(), list[Step]()
        self.seen, self.interventions = Seen(), Interventions(operator, rule)
        live = LiveResidual(PlusOne(), WeightInbox(), PlusOne)
        exploration = ExplorationConfig(sigma=0.01)
        loop = ControlLoop(
            self.robot,
            ChunkScheduler(self.policy, 4),
            Exploring(live, exploration, SPEC.action, seed=0) if noisy else PlusOne(),
            [self.seen, Recorder(RecordingId("run", "cart_0", "ramp"), self.recorded.append)],
            1.0,
            interventions=self.interventions,
        )
        self.summaries = [loop.run_episode(EpisodeId(number, 7)) for number in range(episodes)]

    def sources(self) -> list[Source]:
        return [step.source for step in self.recorded]


def test_without_an_operator_everything_is_the_policys() -> None:
    run = Run(Planned({}), "rac")
    assert run.sources() == [P] * MAX_STEPS
    assert [step.action_asked[0] for step in run.recorded] == [t + 1.0 for t in range(MAX_STEPS)]
    assert run.recorded[-1].truncated and run.summaries[0].person_steps == 0


def test_segments_are_labelled_and_add_up_to_the_episode_which_ends_with_the_intervention() -> None:
    run = Run(Planned({3: R, 4: R, 5: C, 6: C, 7: C}, until=[7]), "rac")
    assert run.sources() == [P, P, P, R, R, C, C, C]
    assert [step.segment for step in run.recorded] == [0, 0, 0, 1, 1, 2, 2, 2]
    lengths = [len(list(steps)) for _, steps in groupby(step.segment for step in run.recorded)]
    assert sum(lengths) == run.summaries[0].steps == run.robot.steps == 8
    counts = run.interventions.counts
    assert (counts.interventions, counts.recoveries, counts.corrections) == (1, 1, 1)
    assert (counts.policy_steps, counts.recovery_steps, counts.correction_steps) == (3, 2, 3)
    assert run.summaries[0].person_steps == counts.person_steps == 5


def test_an_episode_that_the_operator_ends_is_truncated_with_all_that_a_time_out_needs() -> None:
    run = Run(Planned({1: R, 2: C}, until=[2]), "rac")
    *before, last = run.recorded
    assert not any(step.truncated or step.terminated for step in before)
    assert last.truncated and not last.terminated
    assert last.final_observation is not None and last.final_observation[STATE][0] == -1.0  # 1 forth, 2 back
    assert last.final_action_base is not None and last.final_action_base[0] == 3.0


def test_in_rac_no_step_follows_an_intervention_and_the_next_episode_is_a_fresh_one() -> None:
    operator = Planned({2: R, 3: C}, until=[3])
    run = Run(operator, "rac", episodes=2)
    assert run.sources() == [P, P, R, C] * 2 and run.robot.steps == 8
    assert [one.number for one in operator.episodes] == [0, 1]
    assert [step.segment for step in run.recorded] == [0, 0, 1, 2] * 2


def test_hg_dagger_hands_back_and_the_policy_plans_anew() -> None:
    run = Run(Planned({1: C, 2: C, 9: C}, until=[2, 9]), "hg_dagger")
    assert run.sources() == [P, C, C, P, P, P, P, P, P, C, P, P]
    assert run.policy.planned_at == [0, 3, 7, 10]  # every 4 steps, and at both hand-backs
    assert run.interventions.counts.interventions == 2 and run.recorded[-1].truncated
    assert not any(step.truncated for step in run.recorded[:-1])


def test_a_success_in_the_last_corrected_step_terminates() -> None:
    run = Run(Planned({0: R, 1: C, 2: C}, until=[2], action=2.0), "rac", robot=Cart(goal_m=6.0))
    last = run.recorded[-1]
    assert last.terminated and not last.truncated and last.success and len(run.recorded) == 3


@pytest.mark.parametrize("noisy", [False, True])
def test_neither_residual_nor_exploration_touches_a_persons_action(noisy: bool) -> None:
    operator = Planned({2: R, 3: R, 4: C}, until=[4], action=-1.25)
    run = Run(operator, "rac", noisy=noisy)
    person = [step for step in run.recorded if step.source is not P]
    assert [step.action_asked[0] for step in person] == [-1.25] * 3
    assert [step.action_sent[0] for step in person] == [-1.25] * 3
    assert [step.action_base[0] for step in person] == [2.0, 3.0, 4.0]  # what the policy would have begun with
    policys = [step.action_asked[0] for step in run.recorded if step.source is P]
    assert operator.proposed[:2] == policys  # the operator sees what would be sent, noise included
    assert ([float(action) for action in policys] == [1.0, 2.0]) != noisy


def test_a_persons_refused_step_is_recorded_as_refused_and_theirs() -> None:
    run = Run(Planned({1: R, 2: C}, until=[2], action=80.0), "rac")
    policys, recovery, correction = run.recorded
    assert policys.verdict is Verdict.ACCEPTED
    for step, source in ((recovery, R), (correction, C)):
        assert (step.verdict, step.refusal, step.source) == (Verdict.REFUSED, Refusal.OUT_OF_BOUNDS, source)
        assert step.action_asked[0] == 80.0 and step.action_sent[0] == 0.0
    assert run.interventions.counts.refused_steps == 2


@pytest.mark.parametrize(
    ("plan", "rule", "words"),
    [
        ({2: C}, "rac", "without a recovery"),
        ({2: R, 3: C, 4: R}, "rac", "after a correction"),
        ({2: C, 3: R}, "hg_dagger", "after a correction"),
        ({2: R, 4: C}, "rac", "in the middle"),
        ({2: C, 4: C}, "hg_dagger", "in the middle"),
        ({2: Source.EXPERT}, "hg_dagger", "expert"),
    ],
)
def test_a_broken_rule_sends_nothing_and_is_counted(plan: dict[int, Source], rule: Rule, words: str) -> None:
    operator, robot = Planned(plan), Cart()
    interventions, seen = Interventions(operator, rule), Seen()
    loop = ControlLoop(robot, ChunkScheduler(RampPolicy(), 4), PlusOne(), [seen], 1.0, interventions=interventions)
    with pytest.raises(CommandRefusedError, match=words):
        loop.run_episode(EpisodeId(0, 7))
    assert interventions.counts.violations == 1
    assert robot.steps == len(seen.steps) == len(operator.proposed) - 1  # the step of the violation never was


def test_an_action_of_another_shape_is_refused_before_it_is_sent() -> None:
    class Wide(Planned):
        def intervene(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
            return Intervention(np.zeros(2, np.float32), R)

    robot = Cart()
    loop = ControlLoop(
        robot, ChunkScheduler(RampPolicy(), 4), PlusOne(), [], 1.0, interventions=Interventions(Wide({}), "rac")
    )
    with pytest.raises(CommandRefusedError, match="shape"):
        loop.run_episode(EpisodeId(0, 7))
    assert robot.steps == 0


def test_an_intervention_that_time_cuts_off_in_its_recovery_is_counted_and_forgotten() -> None:
    plan = {**dict.fromkeys(range(MAX_STEPS - 2, MAX_STEPS), R)}
    run = Run(Planned(plan), "rac", episodes=2)
    assert run.sources() == ([P] * (MAX_STEPS - 2) + [R, R]) * 2
    assert run.interventions.counts.interventions == 2 and run.interventions.counts.uncorrected == 1
    assert [step.truncated for step in run.recorded] == ([False] * (MAX_STEPS - 1) + [True]) * 2
