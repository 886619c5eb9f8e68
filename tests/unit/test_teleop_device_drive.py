"""The thread between an input device and the edge's seat: what is sent when, and what the edge's answers do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from robot_stack.core.messages import Failed
from robot_stack.core.seat import Drive, Driven, Intent, Phase, SeatReply
from robot_stack.teleop.device_drive import VALID_S, DeviceDrive, Told, Use
from robot_stack.teleop.device_link import DeviceLink
from robot_stack.teleop.devices.settings import SpaceMouseSettings
from robot_stack.teleop.pilot import Pilot
from tests.device_kit import HeldDevice
from tests.seat_kit import SPEC
from tests.transport_kit import eventually

SETTINGS = SpaceMouseSettings(name="mouse", max_age_s=0.25)


class Edge:
    """A seat that answers every drive at once, as the test says."""

    def __init__(self) -> None:
        self.drives: list[Drive] = []
        self.answer: SeatReply = Driven(seq=0, phase=Phase.RECOVERING)

    def ask(self, wish: Drive, page: int, answer: Callable[[SeatReply], None]) -> None:
        assert page == 3
        self.drives.append(wish)
        answer(self.answer)

    @property
    def intents(self) -> list[Intent]:
        return [drive.intent for drive in self.drives]


@contextmanager
def driving(edge: Edge) -> Iterator[tuple[HeldDevice, DeviceDrive, list[Told]]]:
    held, told = HeldDevice("mouse"), list[Told]()
    held.now = {"deflection": {"x": 0.0}}
    link = DeviceLink(held)
    drive = DeviceDrive("arm_0", edge, lambda: None, told.append)  # type: ignore[arg-type]
    link.listen(drive.changed)
    with drive, link:
        drive.choose(Use(link, Pilot(SETTINGS, SPEC, Intent.RECOVER, link.begin()), 3))
        assert eventually(lambda: link.look.reading is not None, 5.0)
        time.sleep(0.1)
        held.now = {"deflection": {"x": 1.0}}
        yield held, drive, told


def test_drives_flow_with_a_short_deadline_while_it_is_held_and_one_hold_ends_them() -> None:
    edge = Edge()
    with driving(edge) as (held, _, told):
        assert eventually(lambda: len(edge.drives) > 20, 5.0)
        ahead_s = (edge.drives[-1].deadline_ns - time.monotonic_ns()) / 1e9
        assert ahead_s <= VALID_S and edge.drives[-1].moves == {"dx_m": pytest.approx(0.5)}
        held.now = {"deflection": {"x": 0.0}}
        assert eventually(lambda: edge.intents[-1] is Intent.HOLD, 5.0)
        count = len(edge.drives)
        time.sleep(0.1)
        assert len(edge.drives) == count and edge.intents.count(Intent.HOLD) == 1
    assert [one.what for one in told] == ["engaged", "let go"] and not told[-1].problem


def test_at_least_fifty_drives_in_a_second() -> None:
    edge = Edge()
    with driving(edge):
        assert eventually(lambda: len(edge.drives) > 5, 5.0)
        spans = list[float]()
        for _ in range(5):
            count, began_s = len(edge.drives), time.monotonic()
            assert eventually(lambda count=count: len(edge.drives) >= count + 20, 5.0)
            spans.append(time.monotonic() - began_s)
    assert min(spans) < 20 / 50


def test_a_refusal_ends_it_until_it_is_let_go_and_what_only_came_late_does_not() -> None:
    edge = Edge()
    with driving(edge) as (held, _, told):
        assert eventually(lambda: len(edge.drives) > 3, 5.0)
        for tolerated in (
            Failed(reason="late", message="3 ms too late"),
            Driven(seq=0, phase=Phase.RECOVERING, refusal="the command was 3 ms too late"),
        ):
            edge.answer, count = tolerated, len(edge.drives)
            assert eventually(lambda count=count: len(edge.drives) > count + 5, 5.0)
        edge.answer = Driven(seq=0, phase=Phase.BETWEEN, refusal="no episode is running")
        assert eventually(lambda: told[-1].what == "refused", 5.0)
        assert told[-1].problem == "no episode is running"
        edge.answer, count = Driven(seq=0, phase=Phase.RECOVERING), len(edge.drives)
        time.sleep(0.15)
        assert len(edge.drives) == count and Intent.HOLD not in edge.intents
        held.now = {"deflection": {"x": 0.0}}
        time.sleep(0.1)
        held.now = {"deflection": {"x": 1.0}}
        assert eventually(lambda: len(edge.drives) > count, 5.0)


def test_what_is_given_up_while_it_is_held_ends_with_a_hold_and_nothing_after_it() -> None:
    edge = Edge()
    with driving(edge) as (_, drive, _):
        assert eventually(lambda: len(edge.drives) > 3, 5.0)
        drive.give_up(page=4)  # another page's is not this one's
        assert drive.use is not None
        drive.give_up(page=3)
        assert drive.use is None and edge.intents[-1] is Intent.HOLD
        count = len(edge.drives)
        time.sleep(0.1)
        assert len(edge.drives) == count


def test_standing_back_says_nothing_and_nothing_follows() -> None:
    edge = Edge()
    with driving(edge) as (_, drive, _):
        assert eventually(lambda: len(edge.drives) > 3, 5.0)
        drive.stand_back()
        count = len(edge.drives)
        time.sleep(0.15)
        assert len(edge.drives) == count and Intent.HOLD not in edge.intents
