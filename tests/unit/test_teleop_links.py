"""The teleop server's ways to an edge and to cameras, over real sockets: what is replaced, refused and lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from robot_stack.core.messages import CameraFrame, Failed, StopLevel
from robot_stack.core.seat import Drive, Driven, Intent, LeaveSeat, SeatReply, SeatTaken, TakeSeat
from robot_stack.edge.seat import Seat
from robot_stack.edge.seat_server import SeatServer
from robot_stack.teleop.config import CameraSource, TeleopConfig, TeleopRobot
from robot_stack.teleop.messages import ControlView
from robot_stack.teleop.robot import RobotLink
from robot_stack.teleop.robot_links import StopLink
from robot_stack.teleop.seat_link import SeatLink, words_of
from robot_stack.teleop.threads import Peer
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher
from tests.seat_kit import SPEC
from tests.transport_kit import LOOPBACK, eventually, make_keys

NOWHERE = "tcp://127.0.0.1:9"


class Asking:
    """A link to a seat, and what came of every wish."""

    def __init__(self, keys: KeyStore, address: str) -> None:
        self.lost: list[str] = []
        self.link = SeatLink("arm_0", Peer(address, keys, "operator", "edge"), self.lost.append)

    def ask(self, wish: TakeSeat | LeaveSeat | Drive, page: int = 1) -> SeatReply:
        came, replies = threading.Event(), list[SeatReply]()

        def answer(reply: SeatReply) -> None:
            replies.append(reply)
            came.set()

        self.link.ask(wish, page, answer)
        assert came.wait(10.0)
        return replies[0]


def drive(intent: Intent = Intent.HOLD, valid_s: float = 0.4) -> Drive:
    deadline_ns = time.monotonic_ns() + round(valid_s * 1e9)
    return Drive(session="", seq=0, deadline_ns=deadline_ns, intent=intent)


def serve(keys: KeyStore, address: str = LOOPBACK) -> tuple[Seat, SeatServer]:
    seat = Seat(SPEC, "rac", "run", lock_step=True)
    return seat, SeatServer(seat, address, LOOPBACK, keys, "edge", lambda label: None)


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_the_seat_is_taken_driven_and_left(keys: KeyStore, opened: ExitStack) -> None:
    seat, server = serve(keys)
    opened.enter_context(server)
    asking = Asking(keys, server.addresses[0])
    opened.enter_context(asking.link)
    assert "do not have control" in words_of(asking.ask(drive()))
    assert isinstance(asking.ask(TakeSeat(holder="anna")), SeatTaken)
    assert seat.read().holder == "anna" and asking.link.info is not None and asking.link.info.spec == SPEC
    driven = asking.ask(drive(Intent.RECOVER))
    assert isinstance(driven, Driven) and "no episode" in driven.refusal
    assert "do not have control" in words_of(asking.ask(drive(), page=2))  # it was not this page that took it
    assert words_of(asking.ask(LeaveSeat(session=""))) == "" and seat.read().holder == ""


def test_the_seat_is_kept_while_nothing_is_said(keys: KeyStore, opened: ExitStack) -> None:
    seat, server = serve(keys)
    opened.enter_context(server)
    asking = Asking(keys, server.addresses[0])
    opened.enter_context(asking.link)
    asking.ask(TakeSeat(holder="anna"))
    time.sleep(2.6)
    assert seat.read().holder == "anna" and not asking.lost


def test_a_newer_drive_takes_the_place_of_one_that_waits_and_what_is_said_once_stays(keys: KeyStore) -> None:
    link = SeatLink("arm_0", Peer(NOWHERE, keys, "operator", "edge"), lambda words: None)  # not started: all waits
    for intent in (Intent.RECOVER, Intent.RECOVER, Intent.HOLD, Intent.CORRECT, Intent.CORRECT, Intent.FINISH):
        link.ask(drive(intent), 1, lambda reply: None)
    link.ask(drive(Intent.CORRECT), 2, lambda reply: None)
    waiting = [one.wish.intent for one in link._waiting if isinstance(one.wish, Drive)]
    assert waiting == [Intent.RECOVER, Intent.HOLD, Intent.CORRECT, Intent.FINISH, Intent.CORRECT]
    link.drop(1)
    assert [one.page for one in link._waiting] == [2]


def test_too_many_wishes_are_refused_at_once(keys: KeyStore) -> None:
    link = SeatLink("arm_0", Peer(NOWHERE, keys, "operator", "edge"), lambda words: None)
    refused = list[SeatReply]()
    for _ in range(40):
        link.ask(drive(Intent.HOLD), 1, refused.append)
    assert len(refused) == 24 and "dropped" in words_of(refused[0])


def test_without_an_edge_everything_is_refused_in_words_and_nothing_waits(keys: KeyStore, opened: ExitStack) -> None:
    asking = Asking(keys, NOWHERE)
    opened.enter_context(asking.link)
    reply = asking.ask(TakeSeat(holder="anna"))
    assert isinstance(reply, Failed) and "robot-stack edge" in reply.message
    assert not asking.link._waiting and "robot-stack edge" in asking.link.problem


def test_an_edge_that_is_started_again_is_met_anew_and_nobody_has_its_seat(keys: KeyStore, opened: ExitStack) -> None:
    with ExitStack() as first:
        _, server = serve(keys)
        first.enter_context(server)
        address = server.addresses[0]
        asking = Asking(keys, address)
        opened.enter_context(asking.link)
        asking.ask(TakeSeat(holder="anna"))
        before = asking.link.info
    seat, again = serve(keys, address)
    opened.enter_context(again)
    assert eventually(lambda: len(asking.lost) == 1, 10.0)
    assert eventually(lambda: isinstance(asking.ask(TakeSeat(holder="anna")), SeatTaken), 10.0)
    asking.link.edge_is_new()
    assert eventually(lambda: asking.link.info is not before, 10.0)
    assert seat.read().holder == "anna"


def test_a_stop_without_a_robot_server_is_told_in_words(keys: KeyStore, opened: ExitStack) -> None:
    stop = StopLink("arm_0", Peer(NOWHERE, keys, "operator", "robot"), StopLevel.HOLD)
    opened.enter_context(stop)
    told = list[str]()
    stop.stop("anna", told.append)
    assert eventually(lambda: len(told) == 1, 15.0) and "robot-stack robot-server" in told[0]


def test_a_stop_without_a_key_is_told_in_words(keys: KeyStore, opened: ExitStack) -> None:
    stop = StopLink("arm_0", Peer(NOWHERE, keys, "nobody", "robot"), StopLevel.HOLD)
    opened.enter_context(stop)
    told = list[str]()
    stop.stop("anna", told.append)
    assert eventually(lambda: len(told) == 1, 10.0) and "there is no key 'nobody'" in told[0]


def test_a_camera_process_is_shown_and_its_fault_is_told(keys: KeyStore, tmp_path: Path, opened: ExitStack) -> None:
    frames = opened.enter_context(Publisher(SERVICES["camera.frame"], LOOPBACK, keys, "robot"))
    robot = TeleopRobot(
        name="arm_0",
        seat_address=NOWHERE,
        seat_state_address=NOWHERE,
        robot_address=NOWHERE,
        state_address=NOWHERE,
        keys_directory=str(keys.directory),
        cameras=(CameraSource(name="wrist", address=frames.address), CameraSource(name="front")),
    )
    config = TeleopConfig(robots=(robot,), directory=str(tmp_path))
    link = RobotLink(config, robot, lambda: None, lambda words: None)
    opened.enter_context(link)
    box = link.boxes["wrist"]

    def publish(fault: str = "") -> bool:
        image = np.zeros((0 if fault else 16, 16, 3), np.uint8)
        frames.send(
            CameraFrame(
                boot="b",
                camera="wrist",
                stamp_ns=time.monotonic_ns(),
                device_time_ns=0,
                number=1,
                image=image,
                fault=fault,
            )
        )
        return box.problem == fault and box.newest is not None

    assert eventually(publish, 10.0)
    assert eventually(lambda: publish("the cable is loose"), 10.0)
    state = link.state(ControlView(), 1)
    cameras = {camera.name: camera.problem for camera in state.cameras}
    assert cameras["wrist"] == "the cable is loose"
    assert eventually(lambda: "robot-server" in link.boxes["front"].problem, 10.0)
    assert state.seat is None and state.seat_age_ms == -1.0 and state.body is None
