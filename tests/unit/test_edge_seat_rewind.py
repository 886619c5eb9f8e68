"""Driving simulated robots back along the way that they came, through the robot server's own guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from msgspec.structs import replace

from hardware.franka.sim import SimulatedFranka
from hardware.sim.experts import Expert, make_expert
from hardware.stretch.experts import StretchReachGraspExpert
from hardware.stretch.sim import SimulatedStretch
from hardware.unitree_g1.actions import ARM_JOINTS
from hardware.unitree_g1.experts import G1BimanualLiftExpert
from hardware.unitree_g1.sim import SimulatedG1
from robot_stack.core.handling import Handling
from robot_stack.core.messages import Features, FloatArray, Verdict
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.seat import Intent
from robot_stack.core.specs import STATE, RobotSpec, vector
from robot_stack.edge.rewind import Way
from tests.seat_kit import SPEC, Arm, GuardedRobot, Person, Show, show

NEAR_M, NEAR_RAD = 0.005, np.deg2rad(2.0)
FRANKA_JOINTS = tuple(f"fr3_joint{number}" for number in range(1, 8))


class DrivesJoints:
    """Up and out, every joint at a speed of its own, and after some steps another way; open hands stay open."""

    _TURN_AFTER = 10

    def __init__(self, spec: RobotSpec, joints: tuple[str, ...], first: str, then: str) -> None:
        self._handling, self._step = Handling(spec), 0
        self._moves = [
            {f"{joint}_delta_rad": int(tenths) / 10 for joint, tenths in zip(joints, way.split(), strict=True)}
            for way in (first, then)
        ]
        self._last = np.array([float(name.endswith("gripper")) for name in spec.action.names], np.float32)

    def reset(self, seed: int) -> None:
        self._step = 0

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        self._step += 1
        return self._handling.moved(self._last, self.moves(self._step), 1.0)

    def moves(self, step: int) -> dict[str, float]:
        """What a hand does at that step."""
        return self._moves[step > self._TURN_AFTER]


def franka_joints(spec: RobotSpec) -> DrivesJoints:
    return DrivesJoints(spec, FRANKA_JOINTS, "4 -6 2 5 -7 8 10", "-3 -4 5 -5 6 5 -10")


def g1_joints(spec: RobotSpec) -> DrivesJoints:
    left = "-4 8 4 -6 5 4 -5", "-3 4 -3 -5 -8 2 4"
    right = "-5 -6 2 -7 -5 -3 6", "-3 -5 3 -4 10 5 4"
    return DrivesJoints(spec, ARM_JOINTS, f"{left[0]} {right[0]}", f"{left[1]} {right[1]}")


@dataclass(frozen=True)
class Case:
    """`steps` of its expert before the person pauses; the G1's end before it squeezes anything."""

    make: Callable[[], SimulatedRobot]
    expert: Callable[[RobotSpec], Expert]
    steps: int


CASES = {
    "franka_peg": Case(
        lambda: SimulatedFranka("a", "peg_insertion"), lambda spec: make_expert("peg_insertion", spec), 8
    ),
    "franka_pick": Case(lambda: SimulatedFranka("a", "pick_cube"), lambda spec: make_expert("pick_cube", spec), 22),
    "franka_joints": Case(lambda: SimulatedFranka("a", "pick_cube", action_space="joint_delta"), franka_joints, 18),
    "g1": Case(lambda: SimulatedG1("a", "g1_bimanual_lift"), G1BimanualLiftExpert, 9),
    "g1_joints": Case(
        lambda: SimulatedG1("a", "g1_bimanual_lift", hands="dex3", action_space="joint_delta"), g1_joints, 18
    ),
    "stretch": Case(lambda: SimulatedStretch("a", "stretch_reach_grasp"), StretchReachGraspExpert, 25),
}


class Rewinds:
    """Pauses, rewinds to a step, and ends the intervention when the robot is there."""

    def __init__(self, steps: int, target: int, speed: float, stop_after: int = 0, stop_for: int = 0) -> None:
        self._steps, self._target, self._speed = steps, target, speed
        self._stop = range(steps + 3 + stop_after, steps + 3 + stop_after + stop_for)
        self.arrived = False

    def __call__(self, command: int, person: Person) -> None:
        person.seat.keep(person.session)
        if command == self._steps or command in self._stop:
            assert person.wants(Intent.HOLD) == ""
        elif command >= self._steps + 3 and not self.arrived:
            refusal = person.wants(Intent.REWIND, to_index=self._target, speed=self._speed)
            self.arrived = "let go first" in refusal
            assert self.arrived or refusal == "", refusal
        elif self.arrived:
            person.wants(Intent.FINISH)


def rewound(name: str, target: int, speed: float = 1.0, **stops: int) -> tuple[Show, GuardedRobot, int]:
    """The episode, its robot, and how many commands came before the rewind."""
    case = CASES[name]
    robot = GuardedRobot(case.make())
    expert = case.expert(robot.spec)
    plan = Rewinds(case.steps, target, speed, **stops)
    done = show(plan, "rac", robot, lambda _, state: expert.act(state.features, state.ground_truth or {}))
    assert plan.arrived
    return done, robot, case.steps + 3


def off(done: Show, spec: RobotSpec, target: int) -> np.ndarray:
    handling = Handling(spec)
    (wanted,) = (step.observation.features for step in done.seen if step.observation.index == target)
    return handling.difference(handling.measured(wanted), handling.measured(done.seen[-1].following.features))


def limits(spec: RobotSpec) -> np.ndarray:
    return np.array([NEAR_RAD if axis.turns else NEAR_M for axis in Handling(spec).axes])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_it_comes_back_to_where_it_was(name: str, share: float) -> None:
    target = int(CASES[name].steps * share)
    done, robot, before = rewound(name, target)
    assert (np.abs(off(done, robot.spec, target)) < limits(robot.spec)).all()
    assert all(result.verdict is Verdict.ACCEPTED for result in robot.results[before:])
    assert set(done.sources()[CASES[name].steps :]) == {"r"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stop_after", [2, 7])
def test_stopped_in_the_middle_it_stands_goes_on_from_there_and_still_gets_there(name: str, stop_after: int) -> None:
    done, robot, before = rewound(name, 0, stop_after=stop_after, stop_for=6)
    stopped = [result.sent for result in robot.results[before + stop_after + 1 : before + stop_after + 6]]
    relative = Handling(robot.spec).relative
    assert all((sent[relative] == 0.0).all() for sent in stopped)
    assert (np.abs(off(done, robot.spec, 0)) < limits(robot.spec)).all()
    handling = Handling(robot.spec)
    start = handling.measured(done.seen[0].observation.features)
    rests = [handling.measured(step.following.features) for step in done.seen[CASES[name].steps + stop_after :]]
    to_go = [handling.steps_of(handling.difference(start, place)) for place in rests]
    assert max(to_go[2:], default=0.0) <= to_go[0] + 1.5, "it does not go forward again"


@pytest.mark.parametrize("name", ["franka_peg", "franka_joints", "g1", "g1_joints", "stretch"])
@pytest.mark.parametrize("speed", [0.25, 1.0])
def test_it_is_no_faster_than_the_person_says(name: str, speed: float) -> None:
    _, robot, before = rewound(name, CASES[name].steps // 2, speed)
    handling = Handling(robot.spec)
    asked = np.array([result.sent for result in robot.results[before:]])[:, handling.relative]
    shares = np.abs(asked) / handling.reach
    assert shares.max() <= speed * (1 + 1e-5)
    assert shares.max() > 0.8 * speed


@pytest.mark.parametrize("name", ["franka_joints", "g1_joints"])
def test_joints_that_a_person_drove_by_hand_come_back(name: str) -> None:
    case, steps = CASES[name], 15
    robot = GuardedRobot(case.make())
    person_moves = case.expert(robot.spec)
    assert isinstance(person_moves, DrivesJoints)
    rewinds = Rewinds(3 + steps, 0, 1.0)

    def plan(command: int, person: Person) -> None:
        if 3 <= command < 3 + steps:
            assert person.wants(Intent.RECOVER, person_moves.moves(command)) == ""
        else:
            rewinds(command, person)

    still = np.array([float(name.endswith("gripper")) for name in robot.spec.action.names], np.float32)
    done = show(plan, "rac", robot, lambda *_: still)
    handling = Handling(robot.spec)
    away = [handling.measured(step.following.features) for step in done.seen]
    start = handling.measured(done.seen[0].observation.features)
    assert np.abs(np.array(away) - start).max(axis=0).min() > np.deg2rad(4.0), "every joint was moved"
    assert rewinds.arrived and set(done.sources()[3:]) == {"r"}
    assert (np.abs(off(done, robot.spec, 0)) < NEAR_RAD).all()
    assert all(result.verdict is Verdict.ACCEPTED for result in robot.results)


def walked(places: list[float], familiar: list[float] | None = None) -> Way:
    """A way along x."""
    way = Way(Handling(SPEC), SPEC.control_period_s)
    for index, place in enumerate(places):
        features = {STATE: np.array([place, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32)}
        way.add(index, features, np.ones(4, np.float32), familiar[index] if familiar else -1.0)
    return way


def test_the_suggestion_is_the_newest_familiar_place_far_enough_behind() -> None:
    places = [0.01 * count for count in range(21)]
    suggested = walked(places).suggested(10)
    assert suggested is not None and suggested.index == 10
    familiar = [0.5] * 6 + [2.0] * 15
    suggested = walked(places, familiar).suggested(10)
    assert suggested is not None and suggested.index == 5
    suggested = walked(places, [2.0] * 21).suggested(10)
    assert suggested is not None and suggested.index == 10, "none is familiar"
    suggested = walked(places[:5]).suggested(10)
    assert suggested is not None and suggested.index == 0, "the way is shorter"
    assert walked([]).suggested(10) is None and walked([0.0]).suggested(10) is None
    back_and_forth = walked([0.0, 0.01, 0.0, 0.01, 0.0, 0.01])
    suggested = back_and_forth.suggested(2)
    assert suggested is not None and suggested.index == 3, "way counts, not distance"


def test_it_says_why_it_cannot_go_somewhere() -> None:
    way = walked([0.0, 0.01, 0.02])
    assert "not on the recorded way; its steps are 0 to 2" in way.refusal(7)
    assert "at step 2 already" in way.refusal(2)
    assert way.refusal(1) == ""
    unable = Way(Handling(_without_goals()), 0.1)
    assert "recover by hand" in unable.refusal(0)


def _without_goals() -> RobotSpec:
    return replace(SPEC, observation={STATE: vector(("tool_x_m", "tool_y_m", "tool_yaw_rad"))})


def test_a_weight_that_pulls_the_robot_down_does_not_keep_it_from_the_place() -> None:
    arm = Arm()

    def plan(command: int, person: Person) -> None:
        if command == 20:
            arm.off[:] = (0.004, 0.0, 0.0)
        rewinds(command, person)

    rewinds = Rewinds(20, 5, 1.0)
    done = show(plan, robot=arm)
    wanted = done.seen[5].observation.features[STATE][:3]
    assert np.abs(done.seen[-1].following.features[STATE][:3] - wanted).max() < 0.0025


def test_the_hand_opens_before_the_arm_goes_on_back() -> None:
    arm, rewinds = Arm(), Rewinds(20, 2, 1.0)

    def act(observation: object, state: object) -> np.ndarray:
        return np.array([0.01, 0.0, 0.0, float(len(arm.actions) < 10)], np.float32)

    done = show(rewinds, robot=arm, act=act)
    back = np.array([step.action_asked for step in done.seen if step.source.value == "human_recovery"])
    opens = int(np.argmax(back[:, 3] > 0.5))
    assert 5 <= opens < len(back) - 5 and (back[:opens, 3] == 0.0).all() and (back[opens:, 3] == 1.0).all()
    assert (back[opens : opens + 10, :3] == 0.0).all() and (back[opens + 11, :3] != 0.0).any()


def test_what_is_held_on_arrival_goes_no_further() -> None:
    arm, words = Arm(), []

    def plan(command: int, person: Person) -> None:
        person.seat.keep(person.session)
        if 25 <= command < 70:
            words.append(person.wants(Intent.REWIND, to_index=-1))
        if command == 70:
            person.lets_time_pass(0.3)
            assert person.wants(Intent.FINISH) == ""

    done = show(plan, robot=arm)
    assert words[0] == "" and "let go first" in words[-1]
    recovered = done.sources().count("r")
    assert 8 <= recovered <= 20, "ten steps of way, and a few to settle"
    np.testing.assert_allclose(done.seen[-1].following.features[STATE][0], 0.14, atol=0.0025)
