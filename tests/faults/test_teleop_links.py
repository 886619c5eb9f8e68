"""Pages that vanish, race, babble and expire, before a real teleop server, seat and robot: what the robot gets of it.

Every input has a number that can be read from the commands that the robot gets (`benchmarks.teleop.taps`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from benchmarks.teleop.taps import STILL, moves_of, number_of_action
from robot_stack.core.messages import CommandResult, FloatArray
from robot_stack.core.seat import SeatTaken
from robot_stack.core.specs import STATE
from robot_stack.teleop.config import TeleopConfig
from robot_stack.teleop.messages import Ack, PageMessage, Ping, Watch
from robot_stack.teleop.server import TeleopServer
from tests.teleop_kit import Edge, PlainPage, teleop_world
from tests.transport_kit import eventually

RECONNECTS, RACES = 1000, 500
VALID_S = 0.3
DRIVEN_M, REST_M = 7.5e-4, 3e-5
"""In one tick of 10 ms: driven at 75 mm/s; at rest below 3 mm/s."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Happened:
    """In the order of the edge: ('take', n) for the n-th time that somebody got the seat, ('part', n) when the control
    loop made a command of input n, ('command', n) when the robot got it. With the time just before (monotonic ns)."""

    events: list[tuple[str, int, int]] = field(default_factory=list)
    moved_m: list[tuple[int, float]] = field(default_factory=list)
    takes: int = 0

    def of(self, kind: str) -> list[tuple[int, int]]:
        return [(number, when_ns) for what, number, when_ns in list(self.events) if what == kind]

    def moving(self, kind: str, since_ns: int = 0) -> list[int]:
        return [number for number, when_ns in self.of(kind) if number != STILL and when_ns >= since_ns]


@dataclass
class World:
    server: TeleopServer
    edge: Edge
    happened: Happened
    directory: Path
    cookies: dict[str, str] = field(default_factory=dict)

    def page(self, user: str = "operator") -> PlainPage:
        return PlainPage(self.server.url, self.server.new_tokens[user])

    def tab(self, user: str = "operator") -> Tab:
        if user not in self.cookies:
            with self.page(user) as page:
                self.cookies[user] = page.http.cookies["teleop"]
        return Tab(self.server.url, self.cookies[user])


class Tab:
    """A WebSocket of a log-in that there is already: quick to open, quick to lose."""

    def __init__(self, url: str, cookie: str) -> None:
        base = url.rstrip("/")
        self._opened = ExitStack()
        self.socket: ClientConnection = self._opened.enter_context(
            connect(
                base.replace("http", "ws", 1) + "/ws",
                additional_headers={"Cookie": f"teleop={cookie}"},
                origin=Origin(base),
                compression=None,
                close_timeout=0.2,
            )
        )
        self.seq = 0

    def send(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, "robot": "franka_0", **fields}))

    def drive(self, number: int, times: float = 1.0) -> int:
        """Input `number`, so many times as fast; its deadline (monotonic ns)."""
        self.seq += 1
        deadline_ns = time.monotonic_ns() + round(VALID_S * 1e9)
        moves = {name: times * value for name, value in moves_of(number).items()}
        self.send("drive", seq=self.seq, deadline_us=deadline_ns // 1000, intent="correct", moves=moves)
        return deadline_ns

    def take(self) -> str:
        """What is answered."""
        self.send("take")
        until_s = time.monotonic() + 20.0
        while True:
            message = self.socket.recv(timeout=max(0.0, until_s - time.monotonic()))
            answer = json.loads(message) if isinstance(message, str) else {}
            if answer.get("about") == "take":
                return str(answer["text"])

    def vanish(self) -> None:
        """Gone without a word: the connection is reset."""
        raw = self.socket.socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        with suppress(OSError):
            raw.shutdown(socket.SHUT_RD)
        raw.close()


def observe(edge: Edge, happened: Happened) -> None:
    """Write down what seat and robot do."""
    seat, robot = edge.seat, edge.robot
    names, upper = robot.spec.action.names, robot.spec.action.upper_array().tolist()
    take, part, command, tick = seat.take, seat.part, robot._command, robot._tick

    def taken(holder: str, *, by_force: bool) -> SeatTaken | str:
        with seat._lock:
            answer = take(holder, by_force=by_force)
            if isinstance(answer, SeatTaken):
                happened.takes += 1
                happened.events.append(("take", happened.takes, time.monotonic_ns()))
        return answer

    def parted(share: float) -> FloatArray | None:
        with seat._lock:
            before_ns = time.monotonic_ns()
            action = part(share)
            if action is not None:
                happened.events.append(("part", number_of_action(action.tolist(), names, upper), before_ns))
        return action

    def commanded(action: FloatArray) -> CommandResult:
        happened.events.append(("command", number_of_action(action.tolist(), names, upper), time.monotonic_ns()))
        return command(action)

    def ticked() -> None:
        before = robot.guard.state().features[STATE][:3]
        tick()
        moved = np.linalg.norm(robot.guard.state().features[STATE][:3] - before)
        happened.moved_m.append((time.monotonic_ns(), float(moved)))

    seat.take, seat.part = taken, parted  # type: ignore[method-assign]
    robot._command, robot._tick = commanded, ticked  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("teleop-links")

    def generous(config: TeleopConfig) -> TeleopConfig:
        return replace(config, logins_per_minute=1000.0, message_rate_hz=1e6)

    with teleop_world(directory, "hg_dagger", config=generous) as (server, edge):
        happened = Happened()
        observe(edge, happened)
        yield World(server, edge, happened, directory)


@pytest.fixture(autouse=True)
def free_seat(world: World) -> Iterator[None]:
    """Every test begins with a free seat, a running episode, and nothing written down."""
    assert eventually(lambda: not world.edge.seat.read().holder, 10.0)
    assert eventually(lambda: world.edge.seat.read().episode is not None, 20.0)
    world.happened.events.clear()
    world.happened.moved_m.clear()
    world.happened.takes = 0
    yield


# ---- connections that are lost -----------------------------------------------------------------------------------


def test_of_a_thousand_lost_connections_no_old_command_is_executed(world: World) -> None:
    """Each page drives one input for a moment and is lost: reset at once, or (every third) still open when the next one
    takes over, and then it sends once more."""
    rng = np.random.default_rng(0)
    lost: list[Tab] = []
    for number in range(1, RECONNECTS + 1):
        tab = world.tab()
        assert "you have control" in tab.take()
        for old in lost:  # it does not know yet that it is lost
            old.drive(number - 1)
            old.vanish()
        lost = []
        until_s = time.monotonic() + rng.uniform(0.0, 0.03)
        while time.monotonic() < until_s:
            tab.drive(number)
            time.sleep(0.01)
        if number % 3:
            tab.vanish()
        else:
            lost = [tab]
    for old in lost:
        old.vanish()
    assert eventually(lambda: not world.edge.seat.read().holder, 5.0)
    time.sleep(2 * VALID_S)
    assert world.happened.takes == RECONNECTS
    executed = set(world.happened.moving("command"))
    print(f"{len(executed)} of {RECONNECTS} inputs reached the robot before their page was lost")
    assert len(executed) > RECONNECTS / 50
    assert _old_commands(world.happened) == []
    assert world.happened.moving("part", time.monotonic_ns() - round(VALID_S * 1e9)) == []


def _old_commands(happened: Happened) -> list[tuple[str, int, int]]:
    """Those made of an input of an earlier holder of the seat, with the holder at that time. The one that was made just
    before the change of hands may still be on its way to the robot."""
    old, holder, on_its_way = [], 0, STILL
    for kind, number, _ in happened.events:
        if kind == "take":
            holder = number
        elif kind == "part":
            on_its_way = number
            old += [(kind, number, holder)] if number not in (STILL, holder) else []
        elif number not in (STILL, holder, on_its_way):
            old.append((kind, number, holder))
    return old


@pytest.mark.parametrize("how", ["silent", "reset"])
def test_when_the_connection_is_lost_in_motion_the_robot_stands_by_the_deadline_and_one_period(
    world: World, how: str
) -> None:
    """In one period it brakes to a third of its speed, and then comes to rest: the arm swings a little."""
    tab = world.tab()
    assert "you have control" in tab.take()
    deadline_ns = 0
    for number in range(20) if how == "silent" else range(30, 50):  # to and fro
        deadline_ns = tab.drive(number, 3.0)
        time.sleep(0.03)
    assert max(size for _, size in list(world.happened.moved_m)[-10:]) > 0.8 * DRIVEN_M, "it moved"
    if how == "reset":
        tab.vanish()
    assert eventually(lambda: world.edge.seat.phase.value == "paused", 10.0)
    happened, spec = world.happened, world.edge.robot.spec
    ticks = round(spec.tick_rate_hz / spec.control_rate_hz)
    assert eventually(lambda: sum(when_ns >= deadline_ns for when_ns, _ in happened.moved_m) > 6 * ticks, 20.0)
    if how == "silent":
        tab.vanish()
    assert happened.moving("part", deadline_ns) == []
    assert len(happened.moving("command", deadline_ns)) <= 1, "what was on its way to the robot at the deadline"
    moved = [size for when_ns, size in happened.moved_m if when_ns >= deadline_ns]
    assert max(moved[ticks:]) < DRIVEN_M / 3 and max(moved[5 * ticks :]) < REST_M


# ---- two people --------------------------------------------------------------------------------------------------


def test_two_who_race_for_control_never_have_it_both(world: World) -> None:
    """Both ask at once, again and again; who gets it drives an input of their own, and leaves."""
    tabs = {1: world.tab("operator"), 2: world.tab("admin")}
    outcomes: list[bool] = []
    wins: dict[int, int] = {1: 0, 2: 0}
    both = 0
    start, end = threading.Barrier(2), threading.Barrier(2)
    has = {1: False, 2: False}

    def compete(who: int) -> None:
        nonlocal both
        tab, other = tabs[who], 3 - who
        for _ in range(RACES):
            start.wait(60.0)
            won = "you have control" in tab.take()
            has[who] = won
            both += won and has[other]
            wins[who] += won
            tab.drive(who)  # of whoever has lost, it is refused
            outcomes.append(won)
            end.wait(60.0)
            if won:
                has[who] = False
                tab.send("leave")
            time.sleep(0.005)

    threads = [threading.Thread(target=compete, args=(who,)) for who in tabs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
    print(f"wins: {wins}")
    assert len(outcomes) == 2 * RACES and both == 0
    assert wins[1] + wins[2] >= RACES and min(wins.values()) > 0
    for tab in tabs.values():
        tab.vanish()


# ---- viewers and babble ------------------------------------------------------------------------------------------


def _sample(info: msgspec.inspect.Type) -> object:
    """Something of that type."""
    if isinstance(info, msgspec.inspect.StructType):
        return {one.encode_name: _sample(one.type) for one in info.fields if one.required}
    if isinstance(info, msgspec.inspect.EnumType):
        return next(iter(info.cls)).value
    if isinstance(info, msgspec.inspect.UnionType):
        return _sample(info.types[0])
    plain = {
        msgspec.inspect.StrType: "franka_0",
        msgspec.inspect.IntType: 1,
        msgspec.inspect.FloatType: 0.5,
        msgspec.inspect.BoolType: True,
    }
    return plain.get(type(info), [])


COMMANDS = [kind for kind in get_args(PageMessage) if kind not in (Ping, Watch, Ack)]


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_whatever_a_viewer_commands_is_refused_in_words(world: World, kind: type[msgspec.Struct]) -> None:
    fields = _sample(msgspec.inspect.type_info(kind))
    assert isinstance(fields, dict)
    with world.page("viewer") as page:
        page.send(kind.__name__.lower(), **fields)
        assert "viewer" in page.told("viewer")["text"]
    assert world.happened.takes == 0 and world.happened.moving("part") == []
    assert not world.edge.robot.stops and not world.edge.labels


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["type", "robot", "seq", "deadline_us", "intent", "moves", "force", "page", "episode", "number", "cameras"]
KINDS = st.sampled_from([kind.__name__.lower() for kind in get_args(PageMessage)])
BABBLE = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200),
    VALUES.map(json.dumps),
    st.fixed_dictionaries({"type": KINDS, "nonsense": VALUES}).map(json.dumps),
    st.dictionaries(st.sampled_from(NAMES), VALUES).map(lambda one: json.dumps({**one, "nonsense": 1})),
)
DEEP_AND_LONG = ("[" * 9000, '{"type":' * 1500, "9" * 15_000, "\x00", "NaN", '{"type": "drive", "seq": 1e999}')


def test_babble_is_answered_in_words_and_neither_its_page_nor_others_end(world: World) -> None:
    with world.page("viewer") as babbling, world.page("viewer") as other:
        other.watch()

        def is_told(message: str | bytes) -> None:
            before = len(babbling.said)
            babbling.socket.send(message)
            babbling.until(lambda: any(one.get("level") == "error" for one in babbling.said[before:]))

        settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))(given(BABBLE)(is_told))()
        for message in DEEP_AND_LONG:
            is_told(message)
        babbling.socket.send(json.dumps({"type": "ping", "sent_us": 7.5}))
        babbling.until(lambda: babbling.of("pong"))
        seen = len(other.states)
        other.until(lambda: len(other.states) > seen + 3)
    assert world.happened.takes == 0 and world.happened.moving("part") == []


# ---- log-ins and servers that end --------------------------------------------------------------------------------


def test_a_log_in_that_ends_in_motion_stops_the_robot_and_says_so(world: World, tmp_path: Path) -> None:
    short = replace(world.server.config, directory=str(tmp_path), session_s=3.0)
    with TeleopServer(short) as server, PlainPage(server.url, server.new_tokens["operator"]) as page:
        page.take()
        number = 0
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                number += 1
                page.drive("correct", moves=moves_of(number))
                page.read(0.03)
        ended_ns = time.monotonic_ns()
        with suppress(ConnectionClosed):  # what came before the end, and was not read yet
            while True:
                page.read(0.2)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
        expired = page.of("expired")
        assert expired is not None and "log in again" in expired["text"]
        assert world.happened.moving("part"), "it was driven until then"
        assert eventually(lambda: world.edge.seat.read().holder == "", 5.0)
        assert world.edge.seat.phase.value == "paused"
        reply = page.http.get("/api/who")
        assert reply.status_code == 401
    time.sleep(0.3)
    until_ns = ended_ns + round(VALID_S * 1e9)  # the last deadline that it sent
    assert world.happened.moving("part", until_ns) == []


def test_when_the_teleop_server_is_killed_in_motion_the_robot_stands_and_another_server_goes_on(
    world: World, tmp_path: Path
) -> None:
    apart = replace(world.server.config, directory=str(tmp_path / "apart"))
    command = [sys.executable, "-m", "tests.faults.teleop_process", msgspec.json.encode(apart).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        served = json.loads(process.stdout.readline())
        with PlainPage(served["url"], served["tokens"]["operator"]) as page:
            page.take()
            for number in range(30, 60):
                page.drive("correct", moves=moves_of(number))
                page.read(0.03)
            assert world.happened.moving("part")
            os.kill(process.pid, signal.SIGKILL)
            killed_ns = time.monotonic_ns()
            with pytest.raises(ConnectionClosed):
                page.read(5.0)
    finally:
        process.kill()
        process.wait()
    assert eventually(lambda: world.edge.seat.phase.value == "paused", 5.0)
    commands = len(world.happened.of("command"))
    assert eventually(lambda: len(world.happened.of("command")) > commands + 3, 10.0), "the loop goes on"
    assert world.happened.moving("part", killed_ns + round(0.5 * 1e9)) == []
    assert not world.edge.errors
    with world.page() as page:
        page.watch()
        assert eventually(lambda: not world.edge.seat.read().holder, 10.0), "nobody keeps the seat"
        page.take()
        page.drive_for(0.5, "correct", moves=moves_of(1))
        assert 1 in world.happened.moving("part")
        page.send("leave")
