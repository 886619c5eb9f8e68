"""An input device drives a robot through the edge's seat, step by step, on a clock of the test's own: what is held, let
go, lost, silent; what follows, and what does not jump."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import ConfigError
from robot_stack.core.seat import Intent
from robot_stack.core.specs import STATE, RobotSpec, vector
from robot_stack.core.teleop_device import DeviceReading
from robot_stack.teleop.device_link import Look
from robot_stack.teleop.devices.settings import (
    DeviceSettings,
    LeaderArmSettings,
    LeaderJoint,
    SpaceMouseSettings,
    ZeroMqSettings,
)
from robot_stack.teleop.pilot import Body, Pilot, Wanted
from tests.seat_kit import SPEC, Arm, Person, Show, show

MOUSE = SpaceMouseSettings(name="mouse", speed=1.0)
VR = ZeroMqSettings(name="vr", address="", keys_directory="", gives="pose")
PERIOD_NS = s_to_ns(0.1)
Says = Callable[[int], Look]


@dataclass
class Flight:
    """A device at the seat of an arm in lock-step: before the n-th command the pilot looks at what `says` gives."""

    settings: DeviceSettings
    says: Says
    end: int = 24
    arm: Arm = field(default_factory=Arm)
    wanted: list[Wanted | None] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    at: dict[int, Callable[[Flight, Person], None]] = field(default_factory=dict)
    body_age_s: float = 0.0
    pilot: Pilot = field(init=False)
    done: Show = field(init=False)

    def __post_init__(self) -> None:
        self.pilot = Pilot(self.settings, SPEC, Intent.RECOVER, begun=1)
        self.done = show(self._plan, robot=self.arm)

    def _plan(self, number: int, person: Person) -> None:
        now_ns = person.clock.now_ns()
        look = self.says(number)
        if look.reading is not None:  # a reading's stamp says how old it is when the pilot looks
            look = replace(look, reading=replace(look.reading, stamp_ns=now_ns - look.reading.stamp_ns))
        if number in self.at:
            self.at[number](self, person)
        body = Body(features=self.arm.state().features, came_ns=now_ns - s_to_ns(self.body_age_s))
        wanted = self.pilot.look(now_ns, look, body)
        self.wanted.append(wanted)
        if wanted is not None:
            refusal = person.wants(wanted.intent, wanted.moves)
            if refusal and wanted.intent is not Intent.HOLD:
                self.refusals.append(refusal)
                self.pilot.release()
        if number == self.end:
            person.wants(Intent.HOLD)
            if person.wants(Intent.FINISH):  # nobody has driven
                person.wants(Intent.RESUME)

    def moved(self, command: int) -> float:
        """How much of its reach the n-th command moves any relative element, without the policy's own commands."""
        return float(np.abs(self.arm.actions[command][:3] / np.array([0.01, 0.01, 0.1])).max())


def deflected(x: float = 1.0, age_s: float = 0.0, **more: Any) -> Look:
    return Look(
        reading=DeviceReading(stamp_ns=s_to_ns(age_s), deflection={"x": x, "y": 0.0}, **more), problem="", begun=1
    )


def placed(x_m: float, *, held: bool | None = True, age_s: float = 0.0, yaw_rad: float = 0.0, **more: Any) -> Look:
    turn = (0.0, 0.0, math.sin(yaw_rad / 2), math.cos(yaw_rad / 2))
    pose = (x_m, 0.3, -2.0, *turn)
    return Look(
        reading=DeviceReading(stamp_ns=s_to_ns(age_s), held=held, pose_in_device=pose, **more), problem="", begun=1
    )


REST, GONE = deflected(0.0), Look(problem="the cable is out", begun=1)
QUIET = Look(problem="", begun=1, opened_ns=0)


def between(first: int, last: int, held: Look, otherwise: Look = REST) -> Says:
    return lambda number: held if first <= number <= last else otherwise


# ---- what is held, and what is not ---------------------------------------------------------------------------------


def test_a_deflected_puck_drives_and_one_at_rest_does_nothing_to_the_policy() -> None:
    flight = Flight(MOUSE, between(5, 10, deflected()))
    assert flight.wanted[:5] == [None] * 5 and flight.done.sources().startswith("pppp")
    assert all(flight.arm.actions[number][0] == pytest.approx(0.01) for number in range(5, 11))
    assert flight.done.sources().count("r") >= 6


def test_unplugged_while_deflected_it_stands_still_with_the_next_command() -> None:
    flight = Flight(MOUSE, lambda number: REST if number < 5 else deflected() if number < 10 else GONE)
    assert flight.moved(9) == pytest.approx(1.0)
    assert flight.wanted[10] == Wanted(intent=Intent.HOLD)
    assert all(flight.moved(number) == 0.0 for number in range(10, flight.end))
    assert flight.pilot.words == "'mouse' is gone: the cable is out"


def test_nothing_that_was_let_go_or_lost_is_recorded_as_a_persons() -> None:
    for after in (REST, GONE, deflected(age_s=0.5)):
        flight = Flight(
            MOUSE, lambda number, after=after: REST if number < 5 else deflected() if number < 10 else after
        )
        recorded = flight.done.sources().count("r")
        assert recorded <= 6, after  # five that were driven, and the one that ends the intervention


def test_silence_while_deflected_is_letting_go() -> None:
    flight = Flight(MOUSE, lambda number: REST if number < 5 else deflected(age_s=max(0.0, 0.05 * (number - 8))))
    stopped = [number for number, wanted in enumerate(flight.wanted) if wanted and wanted.intent is Intent.HOLD]
    assert stopped == [11]  # the first look at which the reading is older than 0.1 s
    assert all(flight.moved(number) == 0.0 for number in range(11, flight.end))


def test_what_comes_back_while_it_is_held_moves_nothing_until_it_was_let_go() -> None:
    def says(number: int) -> Look:
        if number < 5:
            return REST
        if number in (9, 10):
            return GONE
        return REST if number == 16 else deflected()

    flight = Flight(MOUSE, says)
    driven = [number for number, one in enumerate(flight.wanted) if one and one.intent is Intent.RECOVER]
    assert driven == [5, 6, 7, 8, *range(17, flight.end + 1)]


def test_a_stream_that_stalls_while_it_is_held_does_not_go_on_by_itself() -> None:
    late = placed(0.0, age_s=0.4)
    flight = Flight(VR, lambda number: placed(0.0, held=False) if number < 5 else late if number == 9 else placed(0.0))
    driven = [number for number, one in enumerate(flight.wanted) if one and one.intent is Intent.RECOVER]
    assert driven == [5, 6, 7, 8]


def test_what_is_held_when_it_is_chosen_does_not_count() -> None:
    flight = Flight(MOUSE, lambda number: REST if number == 12 else deflected())
    driven = [number for number, one in enumerate(flight.wanted) if one]
    assert driven and driven[0] == 13


def test_a_device_that_has_said_nothing_since_it_was_opened_is_at_rest() -> None:
    flight = Flight(MOUSE, between(5, 8, deflected(), QUIET))
    assert flight.wanted[5] is not None and flight.moved(6) == pytest.approx(1.0)


@pytest.mark.parametrize(("open_s", "engages"), [(0.05, False), (0.15, True)])
def test_a_device_that_was_just_opened_is_not_known_to_be_at_rest_before_it_could_have_said_more(
    open_s: float, engages: bool
) -> None:
    pilot, now_ns = Pilot(MOUSE, SPEC, Intent.RECOVER, begun=1), PERIOD_NS * 100
    just_opened = Look(problem="", begun=1, opened_ns=now_ns - s_to_ns(open_s))
    assert pilot.look(now_ns, just_opened, None) is None
    reading = DeviceReading(stamp_ns=now_ns, deflection={"x": 1.0})
    assert (pilot.look(now_ns, replace(just_opened, reading=reading), None) is not None) is engages


def test_a_look_from_before_it_was_chosen_does_not_count() -> None:
    flight = Flight(MOUSE, lambda number: replace(deflected() if 5 <= number < 9 else REST, begun=0))
    assert flight.wanted == [None] * len(flight.wanted)


def test_a_dead_mans_switch_of_its_own_counts_and_deflection_alone_does_not() -> None:
    flight = Flight(MOUSE, lambda number: deflected(held=8 <= number < 12))
    driven = [number for number, one in enumerate(flight.wanted) if one and one.intent is Intent.RECOVER]
    assert driven == [8, 9, 10, 11]


def test_the_person_pauses_on_the_page_and_the_device_has_to_be_let_go_first() -> None:
    def pause(flight: Flight, person: Person) -> None:
        flight.pilot.release()
        person.wants(Intent.HOLD)

    flight = Flight(MOUSE, lambda number: REST if number < 5 or number == 15 else deflected(), at={9: pause})
    driven = [number for number, one in enumerate(flight.wanted) if one and one.intent is Intent.RECOVER]
    assert driven == [5, 6, 7, 8, *range(16, flight.end + 1)]


def test_what_the_edge_refuses_ends_it() -> None:
    def correct(flight: Flight, person: Person) -> None:
        flight.pilot.intent = Intent.CORRECT

    flight = Flight(MOUSE, between(5, 20, deflected()), at={4: correct})
    assert len(flight.refusals) == 1 and "recover first" in flight.refusals[0]
    assert "r" not in flight.done.sources() and "c" not in flight.done.sources()


# ---- speeds ----------------------------------------------------------------------------------------------------------


def test_the_dead_zone_is_nothing_and_speed_grows_from_its_edge() -> None:
    settings = SpaceMouseSettings(name="mouse", speed=0.5, dead_zone=0.2)
    pilot = Pilot(settings, SPEC, Intent.RECOVER, begun=1)
    now_ns = PERIOD_NS * 100

    def at(x: float) -> dict[str, float] | None:
        look = deflected(x)
        assert look.reading is not None
        wanted = pilot.look(now_ns, replace(look, reading=replace(look.reading, stamp_ns=now_ns)), None)
        return None if wanted is None or wanted.intent is Intent.HOLD else wanted.moves

    assert at(0.0) is None and at(0.19) is None
    assert at(0.21) == {"dx_m": pytest.approx(0.00625)}
    assert at(-0.6) == {"dx_m": pytest.approx(-0.25)} and at(1.0) == {"dx_m": pytest.approx(0.5)}


def test_axes_drive_what_the_settings_say_in_the_direction_that_they_say() -> None:
    settings = SpaceMouseSettings(name="mouse", speed=1.0, mapping={"x": "-dy_m", "yaw": "dx_m"})
    flight = Flight(settings, between(5, 8, deflected()))
    assert flight.arm.actions[6][1] == pytest.approx(-0.01) and flight.arm.actions[6][0] == 0.0


def test_a_button_closes_the_hand_while_it_is_pressed_and_it_stays() -> None:
    flight = Flight(MOUSE, between(5, 8, deflected(0.0, hand=0.0)))
    assert [float(action[3]) for action in flight.arm.actions[5:20]] == [0.0] * 15
    assert all(flight.moved(number) == 0.0 for number in range(5, 20))


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        (SPEC, SpaceMouseSettings(name="m", mapping={"x": "dz_m"}), "'x' is to drive 'dz_m'"),
        (
            replace(SPEC, action=vector(("left_dx_m", "right_dx_m"), (-1.0, -1.0), (1.0, 1.0))),
            SpaceMouseSettings(name="m"),
            "the 'side' of a robot with two arms",
        ),
        (
            replace(SPEC, action=vector(("x_m", "quat_w"), (-1.0, -1.0), (1.0, 1.0))),
            VR,
            "none of them can follow. Choose another action space",
        ),
        (replace(SPEC, observation={STATE: vector(("tool_x_m",))}), VR, "none of them can follow"),
    ],
)
def test_a_device_that_does_not_fit_a_robot_is_refused_in_words(
    spec: RobotSpec, settings: DeviceSettings, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Pilot(settings, spec, Intent.RECOVER, begun=1)


# ---- places ----------------------------------------------------------------------------------------------------------


def test_engaging_moves_nothing_wherever_the_device_is() -> None:
    arm = Arm(off=(0.004, 0.0, 0.02))
    flight = Flight(VR, lambda number: placed(7.0, held=number >= 5, yaw_rad=2.0), arm=arm)
    assert flight.wanted[5] is not None and flight.wanted[5].intent is Intent.RECOVER
    for wanted in flight.wanted[5:]:
        assert wanted is not None and all(abs(move) < 1e-6 for move in wanted.moves.values())
    assert all(flight.moved(number) < 1e-5 for number in range(6, flight.end))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_goal_comes_to_the_displacement_with_the_speed_that_is_allowed(scale: float) -> None:
    settings = replace(VR, scale=scale)
    starts = list[float]()

    def begin(flight: Flight, person: Person) -> None:
        starts.append(float(flight.arm.goal[0]))

    def says(number: int) -> Look:
        return placed(1.0 if number < 7 else 1.04, held=number >= 5, yaw_rad=0.0 if number < 7 else 0.3)

    flight = Flight(settings, says, end=45, at={6: begin})
    assert flight.arm.goal[0] - starts[0] == pytest.approx(0.04 * scale, abs=1e-4)
    assert flight.arm.goal[2] == pytest.approx(flight.arm.actions[0][2] * 6 + 0.3, abs=0.06)  # headings are not scaled
    assert max(flight.moved(number) for number in range(7, flight.end)) <= 1.0 + 1e-6


def test_the_device_is_put_back_and_taken_up_again_without_a_jump() -> None:
    """Letting go, moving the hand, and holding on again: the robot goes on from where it is."""
    flight = Flight(
        VR, lambda number: placed(0.0 if number < 12 else 0.9, held=5 <= number < 10 or number >= 15), end=30
    )
    assert all(flight.moved(number) < 1e-5 for number in range(6, flight.end))


def test_a_frame_that_is_turned_against_the_robots_base() -> None:
    settings = replace(VR, turned_rad=math.pi / 2)
    flight = Flight(settings, lambda number: placed(0.0 if number < 7 else 0.02, held=number >= 5), end=40)
    driven = np.sum(flight.arm.actions[7:40], axis=0)
    assert driven[0] == pytest.approx(0.0, abs=1e-4) and driven[1] == pytest.approx(0.02, abs=2e-4)


def test_a_place_that_gets_lost_while_it_is_held_stands_still() -> None:
    lost = Look(reading=DeviceReading(stamp_ns=0, held=True), problem="", begun=1)
    flight = Flight(VR, lambda number: lost if number >= 9 else placed(0.0 if number < 7 else 0.2, held=number >= 5))
    assert flight.moved(8) > 0.5
    assert flight.wanted[9] == Wanted(intent=Intent.HOLD) and "does not know its place" in flight.pilot.words
    assert all(flight.moved(number) == 0.0 for number in range(9, flight.end))


def test_nothing_follows_by_an_old_state_of_the_robot() -> None:
    flight = Flight(VR, lambda number: placed(0.0, held=number >= 5), body_age_s=0.4)
    assert not any(flight.wanted) and "state is too old" in flight.pilot.words


def test_a_place_without_a_switch_of_its_own_needs_the_pages() -> None:
    def holds(flight: Flight, person: Person) -> None:
        flight.pilot.switch_until_ns = person.clock.now_ns() + 3 * PERIOD_NS

    flight = Flight(VR, lambda number: placed(0.0 if number < 9 else 0.2, held=None), at={8: holds})
    driven = [number for number, one in enumerate(flight.wanted) if one and one.intent is Intent.RECOVER]
    assert driven == [8, 9, 10] and flight.wanted[11] == Wanted(intent=Intent.HOLD)
    assert all(flight.moved(number) == 0.0 for number in range(11, flight.end))


def test_the_hand_of_the_robot_stays_until_the_persons_moves() -> None:
    def says(number: int) -> Look:
        return placed(0.0, held=number >= 5, hand=0.2 if number < 10 else 0.3 if number < 15 else 0.8)

    flight = Flight(VR, says)
    hand = [float(action[3]) for action in flight.arm.actions]
    assert hand[6:15] == [1.0] * 9  # open, as the policy had it
    assert hand[15] == pytest.approx(0.8)


# ---- joints ----------------------------------------------------------------------------------------------------------

JOINTS = ("fr3_joint1", "fr3_joint2")
JOINT_SPEC = replace(
    SPEC,
    action=vector((*(f"{one}_delta_rad" for one in JOINTS), "gripper"), (-0.05, -0.05, 0.0), (0.05, 0.05, 1.0)),
    observation={STATE: vector((*(f"{one}_rad" for one in JOINTS), *(f"goal_minus_{one}_rad" for one in JOINTS)))},
)
LEADER = LeaderArmSettings(name="gello", port="", joints=(LeaderJoint(name="j", id=1),))


def leader(pilot: Pilot, joints: dict[str, float], goal: tuple[float, float]) -> Wanted | None:
    now_ns = PERIOD_NS * 100
    pilot.switch_until_ns = now_ns + 1
    reading = DeviceReading(stamp_ns=now_ns, joints=joints, hand=1.0)
    features = {STATE: np.array([goal[0] - 0.01, goal[1], 0.01, 0.0], np.float32)}
    return pilot.look(now_ns, Look(reading=reading, problem="", begun=1), Body(features=features, came_ns=now_ns))


def opened(pilot: Pilot) -> Pilot:
    """Its switch was seen to be open."""
    now_ns = PERIOD_NS * 90
    look = Look(reading=DeviceReading(stamp_ns=now_ns, joints={"a": 0.0}), problem="", begun=1)
    assert pilot.look(now_ns, look, None) is None
    return pilot


def test_joints_are_followed_by_their_names_or_as_the_settings_say() -> None:
    by_name = opened(Pilot(LEADER, JOINT_SPEC, Intent.CORRECT, begun=1))
    first = leader(by_name, {"fr3_joint1": 1.0, "fr3_joint2_rad": -2.0}, (0.3, 0.4))
    assert first is not None and first.intent is Intent.CORRECT
    assert first.moves == {"fr3_joint1_delta_rad": pytest.approx(0.0, abs=1e-5), "fr3_joint2_delta_rad": 0.0}
    then = leader(by_name, {"fr3_joint1": 1.01, "fr3_joint2_rad": -2.5}, (0.3, 0.4))
    assert then is not None and then.moves["fr3_joint2_delta_rad"] == pytest.approx(-1.0)
    assert then.moves["fr3_joint1_delta_rad"] == pytest.approx(0.02, abs=1e-3)  # all keep together

    settings = replace(LEADER, mapping={"a": "-fr3_joint2_delta_rad"})
    named = opened(Pilot(settings, JOINT_SPEC, Intent.RECOVER, begun=1))
    leader(named, {"a": 0.0}, (0.0, 0.0))
    then = leader(named, {"a": 0.01}, (0.0, 0.0))
    assert then is not None and then.moves == {"fr3_joint2_delta_rad": pytest.approx(-0.6 * 0.01 / 0.05)}


def test_joints_that_drive_nothing_are_refused_in_words() -> None:
    pilot = opened(Pilot(LEADER, JOINT_SPEC, Intent.RECOVER, begun=1))
    assert leader(pilot, {"elbow": 1.0}, (0.0, 0.0)) is None
    assert "says elbow, and nothing of it drives fr3_joint1_delta_rad" in pilot.words
