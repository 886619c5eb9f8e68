"""The operator's seat in the control loop: pauses, driving, what is recorded, and what is refused."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from robot_stack.core.errors import RobotError
from robot_stack.core.messages import FloatArray, Observation, RobotState, Verdict
from robot_stack.core.seat import MAX_VALID_S, Drive, Intent, Phase, SeatTaken
from robot_stack.edge.control_loop import EpisodeId
from robot_stack.edge.operator import Rule
from robot_stack.edge.seat import Seat
from tests.seat_kit import SPEC, VALID_S, Arm, Person, Plan, forward, make_seat, show

HOLD, REWIND, RECOVER, CORRECT = Intent.HOLD, Intent.REWIND, Intent.RECOVER, Intent.CORRECT
RESUME, FINISH = Intent.RESUME, Intent.FINISH
BACK, ON = {"dx_m": -1.0}, {"dx_m": 0.5, "gripper": -1.0}


def now(seat: Seat) -> Phase:
    return seat.phase


def planned(*entries: tuple[int, int, Intent, dict[str, float]]) -> Plan:
    """From the first to the last of these commands the person wants that, every time."""

    def plan(command: int, person: Person) -> None:
        for first, last, intent, moves in entries:
            if first <= command <= last:
                assert person.wants(intent, moves) == "", (command, intent)

    return plan


RAC = planned((3, 5, HOLD, {}), (6, 8, RECOVER, BACK), (12, 14, CORRECT, ON), (15, 15, FINISH, {}))


def test_a_pause_is_neither_recorded_nor_counted_and_the_episode_goes_on_after_it() -> None:
    done = show(planned((4, 12, HOLD, {}), (13, 13, RESUME, {})))
    assert done.sources() == "p" * SPEC.max_episode_steps
    assert [step.observation.index for step in done.seen] == list(range(SPEC.max_episode_steps))
    robot = done.robot
    assert isinstance(robot, Arm) and len(robot.actions) == SPEC.max_episode_steps + 9
    still = np.array(robot.actions[4:13])
    assert (still[:, :3] == 0.0).all() and (still[:, 3] == 1.0).all(), "the hand stays open"
    assert done.policy is not None and done.policy.begun == 2, "what was planned before the pause is old"


def test_an_intervention_is_recorded_as_it_was_driven_and_with_rac_the_episode_ends_with_it() -> None:
    done = show(RAC)
    assert done.sources() == "ppp" + "rrrr" + "ccc", "the last wish counts until its deadline"
    last = done.seen[-1]
    assert last.truncated and not last.terminated and last.following_base is not None
    assert [step.observation.index for step in done.seen] == list(range(len(done.seen)))
    assert done.person.seat.phase is Phase.BETWEEN
    assert done.interventions is not None
    counts = done.interventions.counts
    assert (counts.interventions, counts.recoveries, counts.corrections, counts.violations) == (1, 1, 1, 0)
    recovery = [step.action_asked for step in done.seen if step.source.value == "human_recovery"]
    np.testing.assert_allclose(recovery[0], [-0.01, 0.0, 0.0, 1.0], atol=1e-7)
    correction = [step.action_asked for step in done.seen if step.source.value == "human_correction"]
    np.testing.assert_allclose(correction[0], [0.005, 0.0, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(correction[-1][3], 0.0, err_msg="nothing opens a hand but a person")


def test_hg_dagger_hands_back_and_the_policy_goes_on() -> None:
    done = show(planned((3, 5, CORRECT, ON), (6, 6, RESUME, {})), "hg_dagger")
    sources = done.sources()
    assert sources == "ppp" + "ccc" + "p" * (SPEC.max_episode_steps - 6)
    assert not done.seen[5].truncated and done.seen[-1].truncated
    assert done.policy is not None and done.policy.begun == 2


def test_finish_in_a_pause_ends_with_one_still_step() -> None:
    done = show(planned((3, 4, RECOVER, BACK), (10, 10, HOLD, {}), (12, 12, FINISH, {})))
    assert done.sources()[-1] == "r" and done.seen[-1].truncated
    assert (done.seen[-1].action_asked[:3] == 0.0).all() and done.seen[-1].action_asked[3] == 1.0


def test_a_success_during_the_correction_terminates() -> None:
    robot = Arm()

    def plan(command: int, person: Person) -> None:
        RAC(command, person)
        robot.done = command >= 13

    done = show(plan, robot=robot)
    assert done.seen[-1].terminated and not done.seen[-1].truncated and done.sources()[-1] == "c"
    assert done.person.seat.read().last_success


def test_a_demonstration_begins_paused_and_ends_when_the_person_says_so() -> None:
    plan = planned((5, 9, CORRECT, ON), (10, 10, FINISH, {}))
    done = show(plan, "demonstration", episodes=1)
    assert set(done.sources()) == {"c"} and done.seen[0].observation.index == 0 and done.seen[-1].truncated
    robot = done.robot
    assert isinstance(robot, Arm) and (np.array(robot.actions[:5])[:, :3] == 0.0).all()
    assert done.person.seat.phase is Phase.BETWEEN


def test_taking_over_changes_the_command_by_less_than_one_step() -> None:
    bound = SPEC.action.upper_array()[:3]
    for rule in ("rac", "hg_dagger"):
        done = show(planned((6, 9, RECOVER, {"dx_m": 1.0, "dyaw_rad": -1.0}), (12, 12, FINISH, {})), rule)
        for before, after in pairwise(done.seen[:10]):
            assert (np.abs(after.action_asked[:3]) <= bound).all()
            assert after.action_asked[3] == before.action_asked[3] == 1.0, "the hand stays as the policy had it"


def test_a_policys_refused_action_is_not_what_a_person_takes_over_with() -> None:
    class Refusing(Arm):
        def step(self, action: FloatArray):  # type: ignore[no-untyped-def]
            stepped = super().step(np.nan_to_num(action))
            if np.isfinite(action).all():
                return stepped
            import dataclasses

            from msgspec.structs import replace

            return dataclasses.replace(stepped, result=replace(stepped.result, verdict=Verdict.REFUSED))

    def act(observation: Observation, state: RobotState) -> FloatArray:
        return np.array([0.0, 0.0, 0.0, 0.7 if observation.index < 3 else np.nan], np.float32)

    done = show(planned((5, 6, RECOVER, BACK), (8, 8, FINISH, {})), robot=Refusing(), act=act)
    assert done.sources().startswith("pppppr")
    assert done.seen[5].action_asked[3] == pytest.approx(0.7)


@pytest.mark.parametrize("rule", ["rac", "hg_dagger"])
@pytest.mark.parametrize("intent", [RECOVER, REWIND])
def test_a_dead_mans_switch(rule: Rule, intent: Intent) -> None:
    def plan(command: int, person: Person) -> None:
        if command == 20:
            assert person.wants(intent, BACK, valid_s=0.35, to_index=3) == ""

    robot = Arm()
    with pytest.raises(_OverError):
        show(_ends_after(plan, 60), rule, robot)
    moving = [bool(np.any(action[:3] != 0.0)) for action in robot.actions[20:]]
    assert moving == [True] * 4 + [False] * (len(moving) - 4), "0.35 s are four control steps"


class _OverError(Exception):
    """The test has seen enough."""


def _ends_after(plan: Plan, commands: int) -> Plan:
    def ended(command: int, person: Person) -> None:
        if command >= commands:
            raise _OverError
        plan(command, person)

    return ended


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "old": ({"seq": 3}, "it is old"),
    "too late": ({"deadline_s": -0.001}, "too late"),
    "too far": ({"deadline_s": MAX_VALID_S + 0.01}, "further ahead"),
    "no seat": ({"session": "x" * 32}, "take it first"),
    "nobody": ({"session": ""}, "take it first"),
    "unknown": ({"moves": {"dq_m": 0.1}}, "no action element 'dq_m'"),
    "out of range": ({"moves": {"dx_m": 1.01}}, "allowed: -1 to 1"),
    "not a number": ({"moves": {"dx_m": float("nan")}}, "allowed: -1 to 1"),
    "no speed": ({"intent": REWIND, "speed": 0.0}, "above 0 to 1"),
    "speed not a number": ({"intent": REWIND, "speed": float("nan")}, "above 0 to 1"),
    "a step never passed": ({"intent": REWIND, "to_index": 55}, "not on the recorded way; its steps are 0 to"),
    "no step": ({"intent": REWIND, "to_index": -7}, "none"),
    "a correction without a recovery": ({"intent": CORRECT}, "recover first"),
    "nothing to finish": ({"intent": FINISH}, "nothing to finish"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("paused", [False, True])
def test_what_is_refused_is_refused_in_words_and_changes_nothing(name: str, paused: bool) -> None:
    changes, words = REFUSED[name]
    tried: list[str] = []

    def plan(command: int, person: Person) -> None:
        if command == 5 and paused:
            assert not person.wants(HOLD)
        if command == 8:
            person.seq = max(person.seq, 3)
            assert not person.wants(HOLD if paused else RESUME)
            phase = person.seat.phase
            values: dict[str, Any] = {
                "session": person.session,
                "seq": person.seq + 1,
                "intent": RECOVER,
                "moves": BACK,
            } | changes
            deadline_ns = person.clock.now_ns() + round(float(values.pop("deadline_s", VALID_S)) * 1e9)
            refusal, after = person.seat.drive(Drive(deadline_ns=deadline_ns, **values))
            tried.append(refusal)
            assert after is phase is person.seat.phase
            assert name in ("no seat", "nobody") or person.seat.read().refusal == refusal

    robot = Arm()
    with pytest.raises(_OverError):
        show(_ends_after(plan, 14), robot=robot)
    assert words in tried[0]
    expected = np.zeros(3) if paused else np.array([0.01, 0.004, 0.05])
    np.testing.assert_allclose(np.array(robot.actions[9:])[:, :3], np.tile(expected, (5, 1)), atol=1e-7)


@pytest.mark.parametrize("valid_s", [-5.0, 5.0])
def test_a_hold_is_followed_whatever_the_clocks_say(valid_s: float) -> None:
    seat, person = make_seat()
    seat.begin(EpisodeId(0, 7))
    assert person.wants(HOLD, valid_s=valid_s) == "" and now(seat) is Phase.PAUSED


def test_between_episodes_everything_is_refused() -> None:
    seat, person = make_seat()
    for intent in Intent:
        assert "no episode" in person.wants(intent) and now(seat) is Phase.BETWEEN


def test_what_is_held_when_an_episode_begins_moves_nothing_until_it_was_let_go() -> None:
    seat, person = make_seat("hg_dagger")
    for number in range(2):
        person.wants(CORRECT, ON)
        seat.begin(EpisodeId(number, 7))
        for _ in range(5):
            person.lets_time_pass(VALID_S / 2)
            assert "let go first" in person.wants(CORRECT, ON) and now(seat) is Phase.AUTONOMOUS
        person.lets_time_pass(VALID_S) if number else person.wants(HOLD)
        assert person.wants(CORRECT, ON) == "" and now(seat) is Phase.CORRECTING


def test_what_is_held_while_an_intervention_ends_does_not_begin_the_next_one() -> None:
    def plan(command: int, person: Person) -> None:
        if 3 <= command <= 30:
            person.wants(CORRECT, ON)
        if command == 6:
            assert person.wants(FINISH) == ""

    done = show(plan, "hg_dagger")
    assert done.sources() == "ppp" + "ccc" + "p" * (SPEC.max_episode_steps - 6)


def test_a_forced_change_of_hands_stops_the_robot_and_the_former_holder_moves_nothing() -> None:
    seat, ann = make_seat("hg_dagger")
    seat.begin(EpisodeId(0, 7))
    assert ann.wants(CORRECT, ON) == "" and now(seat) is Phase.CORRECTING
    refused = seat.take("bob", by_force=False)
    assert isinstance(refused, str) and "ann has the seat" in refused
    bob = Person(seat, ann.clock).sit("bob", by_force=True)
    assert now(seat) is Phase.PAUSED and seat.read().holder == "bob"
    assert "bob has the seat" in ann.wants(CORRECT, ON) and now(seat) is Phase.PAUSED
    assert not seat.keep(ann.session) and not seat.leave(ann.session)
    assert bob.wants(CORRECT, ON) == "", "a new holder's numbers begin anew"


def test_a_silent_holder_loses_the_seat_and_the_robot_stays_as_it_stood() -> None:
    seat, ann = make_seat()
    seat.begin(EpisodeId(0, 7))
    ann.wants(HOLD)
    ann.lets_time_pass(1.9)
    assert seat.keep(ann.session)
    ann.lets_time_pass(2.1)
    assert seat.read().holder == "" and not seat.keep(ann.session) and now(seat) is Phase.PAUSED
    bob = Person(seat, ann.clock).sit("bob")
    assert bob.wants(RESUME) == "" and now(seat) is Phase.AUTONOMOUS


def test_races_for_the_seat_never_end_with_two_holders() -> None:
    """10^4 random calls from five threads. Whoever was told that they have the seat keeps it until a call of somebody
    else took it: by the order in which the seat answered, there is never a second one."""
    seat, first = make_seat()
    seat.leave(first.session)
    seat.begin(EpisodeId(0, 7))
    now_ns = first.clock.now_ns()
    followed: list[tuple[str, str]] = []
    failures: list[str] = []
    sessions: set[str] = set()

    def compete(number: int) -> None:
        rng, session = np.random.default_rng(number), ""
        for count in range(2000):
            choice = rng.integers(5)
            if choice == 0 or (choice == 1 and rng.random() < 0.5):
                taken = seat.take(f"p{number}", by_force=choice == 1)
                if isinstance(taken, SeatTaken):
                    session = taken.session
                    sessions.add(session)
                elif seat.keep(session):
                    failures.append("refused the seat that they have")  # take without force, while it is theirs
                    failures.pop()
            elif choice == 2:
                if seat.leave(session) and seat.keep(session):
                    failures.append("kept what was left")
            else:
                with seat._lock:  # who has it is asked in the same instant
                    drive = Drive(session=session, seq=count, deadline_ns=now_ns + 10**8, intent=HOLD)
                    refusal, holder = seat.drive(drive)[0], seat.read().holder
                if not refusal:
                    followed.append((f"p{number}", holder))

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(sessions) > 100
    assert len(followed) > 100 and all(who == holder for who, holder in followed)


def test_the_scene_is_waited_for() -> None:
    seat, _ = make_seat()
    seen = [seat.waits_for_scene]
    seat.wait_for_scene()
    seen += [seat.waits_for_scene, seat.read().waits_for_scene]
    seat.scene_ready()
    assert [*seen, seat.waits_for_scene] == [False, True, True, False]


def test_a_closed_seat_ends_the_episode() -> None:
    def plan(command: int, person: Person) -> None:
        if command == 4:
            person.seat.close("the socket is gone")

    robot = Arm()
    with pytest.raises(RobotError, match="the socket is gone"):
        show(plan, robot=robot)
    assert len(robot.actions) == 4


def test_what_is_shown() -> None:
    shown = []

    def plan(command: int, person: Person) -> None:
        RAC(command, person)
        shown.append(person.seat.read())

    done = show(plan)
    first, paused, driving, last = shown[0], shown[5], shown[9], done.person.seat.read()
    assert (first.phase, first.episode and first.episode.episode, first.holder) == (Phase.BETWEEN, None, "ann")
    assert (paused.phase, paused.index, paused.person_steps) == (Phase.PAUSED, 3, 0)
    assert paused.episode is not None and paused.episode.session and paused.max_steps == SPEC.max_episode_steps
    assert driving.phase is Phase.RECOVERING and driving.person_steps >= 1
    assert driving.commanded is not None and driving.commanded[0] == pytest.approx(-0.01)
    assert (last.phase, last.episode) == (Phase.BETWEEN, None) and last.last_episode == paused.episode
    assert last.person_steps == len(done.sources().replace("p", ""))
    assert all(after.seq > before.seq for before, after in pairwise(shown))
    assert all(after.stamp_ns >= before.stamp_ns for before, after in pairwise(shown))


def test_parts_of_a_step_follow_the_newest_wish_and_stop_when_it_runs_out() -> None:
    now_ns = [10**9]
    seat = Seat(SPEC, "hg_dagger", "run", lock_step=False, now_ns=lambda: now_ns[0])
    taken = seat.take("ann", by_force=False)
    assert isinstance(taken, SeatTaken)
    arm = Arm()
    seat.begin(EpisodeId(0, 7))
    state = arm.reset(0).state
    observation = Observation(id=1, stamp_ns=0, features=state.features, age_ns={}, episode_seed=7, index=0)
    proposed = forward(observation, state)

    def drive(seq: int, dx: float, intent: Intent = CORRECT) -> None:
        wish = Drive(
            session=taken.session, seq=seq, deadline_ns=now_ns[0] + 40_000_000, intent=intent, moves={"dx_m": dx}
        )
        assert seat.drive(wish)[0] == ""

    drive(1, 1.0)
    assert seat.stands_still(observation, state, lambda: proposed) is None
    taken_over = seat.intervene(observation, state, proposed)
    assert taken_over is not None and taken_over.parts is seat
    parts = []
    for number in range(10):
        parts.append(seat.part(0.1))
        now_ns[0] += 10_000_000
        if number == 2:
            drive(2, -0.5)
    assert [part is None for part in parts] == [False] * 7 + [True] + [False] * 2, "it runs out after 40 ms, once"
    pieces = [part for part in parts if part is not None]
    np.testing.assert_allclose([part[0] for part in pieces], [0.001] * 3 + [-0.0005] * 4 + [0.0] * 2, atol=1e-7)
    assert all(part[3] == 1.0 for part in pieces) and now(seat) is Phase.PAUSED
    np.testing.assert_allclose(seat.summed(pieces), [0.001, 0.0, 0.0, 1.0], atol=1e-7)
    assert not seat.lets_go(observation, state)


def test_what_ran_out_between_two_steps_stops_the_robot_with_one_more_step_of_the_same_phase() -> None:
    now_ns = [10**9]
    seat = Seat(SPEC, "rac", "run", lock_step=False, now_ns=lambda: now_ns[0])
    taken = seat.take("ann", by_force=False)
    assert isinstance(taken, SeatTaken)
    arm = Arm()
    seat.begin(EpisodeId(0, 7))
    state = arm.reset(0).state
    observation = Observation(id=1, stamp_ns=0, features=state.features, age_ns={}, episode_seed=7, index=0)
    proposed = forward(observation, state)
    wish = Drive(session=taken.session, seq=1, deadline_ns=now_ns[0] + 40_000_000, intent=RECOVER, moves=BACK)
    assert seat.drive(wish)[0] == ""
    for ran_out in (False, True):
        assert seat.stands_still(observation, state, lambda: proposed) is None
        taken_over = seat.intervene(observation, state, proposed)
        assert taken_over is not None and taken_over.source.value == "human_recovery"
        assert (seat.part(1.0) is None) == ran_out
        now_ns[0] += 50_000_000
        assert seat.read().phase is Phase.PAUSED
    still = seat.stands_still(observation, state, lambda: proposed)
    assert still is not None and (still[:3] == 0.0).all()
