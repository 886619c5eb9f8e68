"""The seat over real sockets: who may do what, and what arrives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from robot_stack.core.errors import CommandRefusedError, RobotError, RobotStackError, StorageError
from robot_stack.core.messages import SCHEMA_VERSION, Done, Hello, Ping, Pong
from robot_stack.core.seat import (
    Drive,
    Driven,
    EpisodeRef,
    GetSeat,
    Intent,
    KeepSeat,
    LabelEpisode,
    LeaveSeat,
    Phase,
    SceneReady,
    SeatInfo,
    SeatReply,
    SeatState,
    SeatTaken,
    TakeSeat,
)
from robot_stack.edge.control_loop import EpisodeId
from robot_stack.edge.seat import Seat
from robot_stack.edge.seat_server import SeatServer
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Subscriber
from tests.seat_kit import SPEC
from tests.transport_kit import LOOPBACK, eventually, make_keys

REQUEST, STATE = SERVICES["seat.request"], SERVICES["seat.state"]
EPISODE = EpisodeRef(run="run", robot="arm_0", session="s", episode=3)


@dataclass
class Served:
    """A seat that is served, and clients of it."""

    seat: Seat
    server: SeatServer
    keys: KeyStore
    labels: list[LabelEpisode] = field(default_factory=list)
    full: bool = False

    def client(self, key: str) -> RequestClient[SeatReply]:
        return RequestClient(REQUEST, self.server.addresses[0], self.keys, key, "edge", SeatReply)

    def states(self, key: str) -> Subscriber[SeatState]:
        return Subscriber(STATE, self.server.addresses[1], self.keys, key, "edge", SeatState)

    def keep_label(self, label: LabelEpisode) -> None:
        if self.full:
            raise StorageError("the disk is full")
        self.labels.append(label)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    keys = make_keys(tmp_path)
    seat = Seat(SPEC, "hg_dagger", "run", lock_step=False)
    made = Served(seat, None, keys)  # type: ignore[arg-type]
    with SeatServer(seat, LOOPBACK, LOOPBACK, keys, "edge", made.keep_label) as server:
        made.server = server
        yield made


def ask(client: RequestClient[SeatReply], message: object) -> SeatReply:
    return client.request(message, timeout_s=20.0)


def sit(client: RequestClient[SeatReply], holder: str = "ann", *, by_force: bool = False) -> str:
    taken = ask(client, TakeSeat(holder=holder, by_force=by_force))
    assert isinstance(taken, SeatTaken) and taken.silence_s > 0
    return taken.session


def drive(session: str, seq: int, intent: Intent = Intent.CORRECT) -> Drive:
    return Drive(
        session=session, seq=seq, deadline_ns=time.monotonic_ns() + 400_000_000, intent=intent, moves={"dx_m": 0.5}
    )


def test_a_session_from_taking_the_seat_to_leaving_it(served: Served) -> None:
    served.seat.begin(EpisodeId(0, 7))
    with served.client("operator") as client:
        info = ask(client, Hello(schema_version=SCHEMA_VERSION, peer="teleop"))
        assert isinstance(info, SeatInfo) and info == served.seat.info and ask(client, GetSeat()) == info
        assert (info.rule, info.rewinds, info.drivable) == ("hg_dagger", True, SPEC.action.names)
        pong = ask(client, Ping())
        assert isinstance(pong, Pong) and abs(pong.stamp_ns - time.monotonic_ns()) < 20e9
        session = sit(client)
        hold = ask(client, replace(drive(session, 1, Intent.HOLD)))
        assert hold == Driven(seq=1, phase=Phase.PAUSED)
        refused = ask(client, drive(session, 1))
        assert isinstance(refused, Driven) and refused.phase is Phase.PAUSED and "it is old" in refused.refusal
        assert ask(client, KeepSeat(session=session)) == Done()
        assert ask(client, LeaveSeat(session=session)) == Done()
        with pytest.raises(CommandRefusedError, match="not yours"):
            ask(client, KeepSeat(session=session))
        with pytest.raises(CommandRefusedError, match="same release"):
            ask(client, Hello(schema_version=SCHEMA_VERSION + 1, peer="teleop"))


def test_a_viewer_sees_and_moves_nothing(served: Served) -> None:
    served.seat.begin(EpisodeId(0, 7))
    taken = served.seat.take("ann", by_force=False)
    assert isinstance(taken, SeatTaken)
    with served.client("viewer") as client:
        assert isinstance(ask(client, GetSeat()), SeatInfo)
        for message in (
            TakeSeat(holder="eve", by_force=True),
            KeepSeat(session=taken.session),
            LeaveSeat(session=taken.session),
            drive(taken.session, 1),
            LabelEpisode(session=taken.session, who="eve", episode=EPISODE),
            SceneReady(session=taken.session),
        ):
            with pytest.raises(CommandRefusedError, match="may not send"):
                ask(client, message)
    state = served.seat.read()
    assert state.holder == "ann" and state.phase is Phase.AUTONOMOUS and served.labels == []


def test_two_operators_one_seat(served: Served) -> None:
    with served.client("operator") as ann, served.client("operator") as bob:
        session = sit(ann)
        with pytest.raises(CommandRefusedError, match="ann has the seat"):
            ask(bob, TakeSeat(holder="bob"))
        sit(bob, "bob", by_force=True)
        reply = ask(ann, drive(session, 1))
        assert isinstance(reply, Driven) and "bob has the seat" in reply.refusal


def test_labels_are_kept_and_a_scene_that_was_ready_is_waited_for(served: Served) -> None:
    with served.client("operator") as client:
        session = sit(client)
        label = LabelEpisode(session=session, who="ann", episode=EPISODE, success=True, note="fine")
        assert ask(client, label) == Done() and served.labels == [label] and not served.seat.read().waits_for_scene
        assert ask(client, replace(label, reset_needed=True)) == Done() and served.seat.read().waits_for_scene
        assert ask(client, SceneReady(session=session)) == Done() and not served.seat.read().waits_for_scene
        served.full = True
        with pytest.raises(CommandRefusedError, match="disk is full"):
            ask(client, replace(label, reset_needed=True))
        assert not served.seat.read().waits_for_scene, "what was not kept has no effect"
        with pytest.raises(CommandRefusedError, match="not yours"):
            ask(client, replace(label, session="x"))


@pytest.mark.parametrize("key", ["operator", "viewer"])
def test_the_state_arrives_again_and_again_and_is_the_newest(served: Served, key: str) -> None:
    served.seat.begin(EpisodeId(5, 7))
    with served.states(key) as states:
        seen: list[SeatState] = []
        until_s = time.monotonic() + 20.0
        while len(seen) < 20 and time.monotonic() < until_s:
            state = states.newest(timeout_s=1.0)
            seen += [] if state is None else [state]
        assert len(seen) == 20
        assert all(after.seq > before.seq for before, after in pairwise(seen))
        spans_s = sorted((b.stamp_ns - a.stamp_ns) / (b.seq - a.seq) / 1e9 for a, b in pairwise(seen))
        assert spans_s[0] > 0.01, "one every 20 ms, whatever else happens"
        assert seen[-1].episode is not None and seen[-1].episode.episode == 5
        served.seat.take("ann", by_force=True)
        assert eventually(lambda: (state := states.newest(1.0)) is not None and state.holder == "ann", 10.0)


def test_a_flood_and_a_hanging_client_do_not_keep_an_operator_from_holding_the_robot(served: Served) -> None:
    served.seat.begin(EpisodeId(0, 7))
    ends = threading.Event()

    def flood() -> None:
        with served.client("viewer") as client:
            while not ends.is_set():
                try:
                    client.request(GetSeat(), timeout_s=0.0)
                except RobotStackError:
                    continue

    thread = threading.Thread(target=flood)
    with served.states("viewer"), served.client("operator") as client:  # watches, and never reads
        session = sit(client)
        thread.start()
        try:
            for seq in range(1, 20):
                reply = ask(client, drive(session, seq, Intent.HOLD if seq % 2 else Intent.RESUME))
                assert isinstance(reply, Driven) and reply.refusal == "", seq
        finally:
            ends.set()
            thread.join()


def test_a_server_that_breaks_closes_the_seat(tmp_path: Path) -> None:
    keys, seat = make_keys(tmp_path), Seat(SPEC, "rac", "run", lock_step=False)

    def breaks(label: LabelEpisode) -> None:
        raise MemoryError("a bug")

    with SeatServer(seat, LOOPBACK, LOOPBACK, keys, "edge", breaks) as server:
        client: RequestClient[SeatReply] = RequestClient(
            REQUEST, server.addresses[0], keys, "operator", "edge", SeatReply
        )
        with client:
            session = sit(client)
            with pytest.raises(RobotStackError):
                client.request(LabelEpisode(session=session, who="ann", episode=EPISODE), timeout_s=1.0)

        def is_closed() -> bool:
            try:
                seat.stands_still(None, None, lambda: None)  # type: ignore[arg-type,return-value]
            except RobotError as error:
                return "a bug" in str(error)
            return False

        assert eventually(is_closed, 10.0)


def test_an_address_that_is_taken_is_an_error_at_once(served: Served) -> None:
    second = SeatServer(served.seat, served.server.addresses[0], LOOPBACK, served.keys, "edge", served.keep_label)
    with pytest.raises(RobotStackError), second:
        pass
