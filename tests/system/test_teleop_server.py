"""The teleop server with a real robot, edge and seat behind it, and real sockets before it; only the browser is not."""

from __future__ import annotations

import json
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from robot_stack.core.errors import ConfigError, TransportError
from robot_stack.core.messages import Lifecycle, Source, Step
from robot_stack.teleop.config import TeleopConfig
from robot_stack.teleop.server import TeleopServer
from tests.teleop_kit import Edge, PlainPage, teleop_world
from tests.transport_kit import eventually


@dataclass
class World:
    server: TeleopServer
    edge: Edge
    directory: Path

    def page(self, user: str = "operator", *, acknowledges: bool = True) -> PlainPage:
        return PlainPage(self.server.url, self.server.new_tokens[user], acknowledges=acknowledges)

    @property
    def base(self) -> str:
        return self.server.url.rstrip("/")

    @property
    def config(self) -> TeleopConfig:
        return self.server.config

    def audit(self) -> list[dict[str, str]]:
        lines = (self.directory / "gui" / "audit.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def steps_of(self, source: Source) -> list[Step]:
        return [step for step in list(self.edge.steps) if step.source is source]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("teleop")
    with teleop_world(directory, config=lambda config: replace(config, logins_per_minute=200.0)) as (server, edge):
        yield World(server, edge, directory)


@pytest.fixture(autouse=True)
def free_seat(world: World) -> Iterator[None]:
    """Every test leaves the seat to the next, which begins with a running episode."""
    assert eventually(lambda: not world.edge.seat.read().holder, 10.0)
    assert eventually(lambda: world.edge.seat.read().episode is not None, 20.0)
    yield


# ---- log-in ------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_refused_in_words_and_noted(world: World) -> None:
    for token in ("operator.guess", "nobody.guess", "", "." * 150):
        reply = httpx.post(f"{world.base}/api/login", json={"token": token}, headers={"Origin": world.base})
        assert reply.status_code == 401 and "not known" in reply.json()["error"]
        assert "set-cookie" not in reply.headers
    assert any(entry["what"] == "log in" and entry["outcome"] == "unknown token" for entry in world.audit())


@pytest.mark.parametrize("body", [b"", b"{", b'{"token": 3}', b'{"token": "a", "role": "admin"}', b"x" * 5000])
def test_a_malformed_login_is_refused_in_words(world: World, body: bytes) -> None:
    reply = httpx.post(f"{world.base}/api/login", content=body, headers={"Origin": world.base})
    assert reply.status_code == 400 and "malformed" in reply.json()["error"]


def test_the_cookie_can_be_read_by_no_script_and_no_other_site(world: World) -> None:
    body = {"token": world.server.new_tokens["viewer"]}
    reply = httpx.post(f"{world.base}/api/login", json=body, headers={"Origin": world.base})
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "max-age=" in cookie
    assert "default-src 'self'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {}, {"Host": "evil.example"}])
def test_a_request_of_another_sites_page_is_refused(world: World, headers: dict[str, str]) -> None:
    token = world.server.new_tokens["admin"]
    reply = httpx.post(f"{world.base}/api/login", json={"token": token}, headers=headers)
    assert reply.status_code == 403 and "set-cookie" not in reply.headers


def test_a_socket_needs_a_login_and_our_own_page(world: World) -> None:
    url = world.base.replace("http", "ws", 1) + "/ws"
    with world.page("viewer") as page:
        cookie = {"Cookie": f"teleop={page.http.cookies['teleop']}"}
        with pytest.raises(InvalidStatus):
            connect(url, additional_headers=cookie, origin=Origin("http://evil.example"))
        with pytest.raises(InvalidStatus):
            connect(url, additional_headers=cookie)
    for headers in ({}, {"Cookie": "teleop=made-up"}):
        with connect(url, additional_headers=headers, origin=Origin(world.base)) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10.0)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403


def test_a_login_that_ended_says_so(world: World, tmp_path: Path) -> None:
    short = replace(world.config, directory=str(tmp_path), session_s=2.0)
    with TeleopServer(short) as server, PlainPage(server.url, server.new_tokens["operator"]) as page:
        page.take()
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                page.read(0.5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
        expired = page.of("expired")
        assert expired is not None and "log in again" in expired["text"]
        reply = page.http.post("/api/stop", json={"robot": "franka_0"})
        assert reply.status_code == 403 and not world.edge.robot.stops


def test_logging_out_ends_the_page_and_lets_go(world: World) -> None:
    with world.page() as page:
        page.take()
        assert page.http.post("/api/logout", json={}).status_code == 200
        with pytest.raises(ConnectionClosed):
            while True:
                page.read(0.5)
    assert eventually(lambda: not world.edge.seat.read().holder, 5.0)


# ---- what a page is shown ----------------------------------------------------------------------------------------


def test_a_page_sees_state_and_pictures_move_on(world: World) -> None:
    with world.page("viewer") as page:
        page.watch()
        page.until(lambda: len(page.pictures) > 4 and len(page.states) > 8)
        assert page.pictures == sorted(set(page.pictures))
        first, last = page.states[0], page.states[-1]
        assert last["server_us"] > first["server_us"] and last["seat"]["seq"] > first["seat"]["seq"]
        assert (
            last["body"]["lifecycle"] == "active" and len(last["body"]["features"]["observation.joint_position"]) == 7
        )
        card = page.of("card")
        assert card is not None and card["info"]["drivable"] == ["dx_m", "dy_m", "dz_m", "dyaw_rad"]
        assert card["info"]["rewinds"] and card["cameras"] == ["front"] and card["skeleton"]["links"]
        assert not last["stop_problem"] and not last["cameras"][0]["problem"]


def test_a_page_that_takes_nothing_gets_nothing_old_and_hinders_nobody(world: World) -> None:
    with world.page("viewer", acknowledges=False) as slow, world.page("viewer") as quick:
        slow.watch()
        quick.watch()
        quick.until(lambda: len(quick.states) > 20 and len(quick.pictures) > 10)
        slow.read(0.3)
        assert len(slow.states) == 2 and len(slow.pictures) == 2
        before = quick.pictures[-1]
        slow.socket.send(json.dumps({"type": "ack", "camera": "front", "number": slow.pictures[-1]}))
        slow.until(lambda: len(slow.pictures) > 2)
        assert slow.pictures[2] >= before  # the newest, not the third


# ---- who may do what ---------------------------------------------------------------------------------------------

LABEL = {"episode": {"run": "r", "robot": "franka_0", "session": "s", "episode": 0}, "success": True}
COMMANDS: list[tuple[str, dict[str, object]]] = [
    ("take", {}),
    ("take", {"force": True}),
    ("ask", {}),
    ("grant", {"page": 1}),
    ("leave", {}),
    ("drive", {"seq": 1, "deadline_us": 2**50, "intent": "recover"}),
    ("label", LABEL),
    ("ready", {}),
    ("stop", {}),
]


@pytest.mark.parametrize(("kind", "fields"), COMMANDS)
def test_a_viewer_commands_nothing(world: World, kind: str, fields: dict[str, object]) -> None:
    with world.page("viewer") as page:
        page.send(kind, **fields)
        assert page.told("viewer")["about"] == kind
    assert not world.edge.seat.read().holder and not world.edge.robot.stops and not world.edge.labels


def test_a_viewer_cannot_stop_by_http_either(world: World) -> None:
    with world.page("viewer") as page:
        reply = page.http.post("/api/stop", json={"robot": "franka_0"})
    assert reply.status_code == 403 and "viewer" in reply.json()["error"] and not world.edge.robot.stops


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ('{"type": "fly", "robot": "franka_0"}', "fly"),
        ('{"type": "take", "robot": "franka_0", "root": 1}', "root"),
        ('{"type": "drive", "robot": "franka_0", "seq": "1", "deadline_us": 1, "intent": "hold"}', "seq"),
        ('{"type": "drive", "robot": "franka_0", "seq": 1, "deadline_us": 1, "intent": "fly"}', "fly"),
        ('{"type": "take", "robot": "r2_d2"}', "there is no robot 'r2_d2' here; there are: franka_0"),
        ('{"type": "watch", "robot": "franka_0", "cameras": ["rear"]}', "has no camera 'rear'; it has: front"),
    ],
)
def test_a_message_that_is_wrong_is_answered_in_words_and_the_page_goes_on(world: World, text: str, words: str) -> None:
    with world.page() as page:
        page.socket.send(text)
        assert page.told(words)["level"] == "error"
        page.socket.send(json.dumps({"type": "ping", "sent_us": 7.5}))
        pong = page.until(lambda: page.of("pong"))
        assert pong is not None and pong["sent_us"] == 7.5


def test_a_message_that_is_too_large_ends_the_connection(world: World) -> None:
    with world.page() as page:
        page.socket.send('{"type": "take", "robot": "' + "x" * 40_000 + '"}')
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                page.read(1.0)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_a_page_that_floods_is_cut_off_and_others_go_on(world: World) -> None:
    with world.page() as flooding, world.page("viewer") as other:
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(200):
                for _ in range(50):
                    flooding.socket.send("{")
                flooding.read(0.01)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4429
        other.watch()


# ---- control -----------------------------------------------------------------------------------------------------


def test_two_people_want_control(world: World) -> None:
    with world.page() as first, world.page("admin") as second:
        first.take()
        second.watch().send("take")
        second.told("operator has control of franka_0")
        second.drive("recover", moves={"dx_m": 1.0})
        second.told("operator has control of franka_0; ask for it")
        second.send("ask")
        first.told("admin asks for control")
        askers = first.until(lambda: first.states[-1]["control"]["askers"])
        first.send("grant", page=askers[0]["page"])
        second.until(lambda: second.states[-1]["control"]["page"] == second.page)
        first.told("admin has control of franka_0 now")
        assert eventually(lambda: world.edge.seat.read().holder == "admin", 5.0)
        first.drive("recover", moves={"dx_m": 1.0})
        first.told("admin has control of franka_0; ask for it")


def test_only_an_admin_takes_control_by_force(world: World) -> None:
    with world.page("admin") as admin, world.page() as operator:
        admin.take()
        operator.watch().send("take", force=True)
        operator.told("only an admin")
        admin.send("leave")
        operator.take()
        admin.send("take", force=True)
        admin.until(lambda: admin.states[-1]["control"]["page"] == admin.page)
        operator.told("admin has control of franka_0 now")


def test_another_server_has_the_seat_and_takes_it(world: World, tmp_path: Path) -> None:
    with (
        TeleopServer(replace(world.config, directory=str(tmp_path))) as other,
        world.page() as here,
        PlainPage(other.url, other.new_tokens["admin"]) as there,
    ):
        here.take()
        there.watch().send("take")
        there.told("operator has the seat")
        there.send("take", force=True)
        there.until(lambda: there.states[-1]["control"]["page"] == there.page)
        here.told("control of franka_0 was lost")
        here.until(lambda: here.states[-1]["control"]["page"] == -1)


# ---- driving -----------------------------------------------------------------------------------------------------


def tool_x_m(world: World) -> float:
    return float(world.edge.seat.read().features["observation.state"][0])


def test_a_person_drives_rewinds_corrects_and_finishes(world: World) -> None:
    with world.page() as page:
        page.take()
        steps_before, start_m = len(world.edge.steps), tool_x_m(world)
        page.drive("hold")
        page.until(lambda: page.phase == "paused")
        page.drive_for(1.5, "recover", moves={"dx_m": 0.8})
        assert tool_x_m(world) > start_m + 0.01
        page.until(lambda: page.phase == "paused")
        driven_m = tool_x_m(world)
        page.drive_for(1.5, "rewind", speed=1.0)
        assert tool_x_m(world) < driven_m - 0.01
        page.drive_for(1.0, "correct", moves={"dz_m": 0.5})
        episode = page.states[-1]["seat"]["episode"]["episode"]
        page.drive("recover", moves={"dx_m": 1.0})
        page.told("no recovery after a correction")
        page.drive("finish")
        page.until(lambda: page.states[-1]["seat"]["last_episode"] is not None)
        page.until(lambda: page.states[-1]["seat"]["last_episode"]["episode"] == episode)
    steps = [step for step in world.edge.steps[steps_before:] if step.episode == episode]
    order = [step.source for i, step in enumerate(steps) if i == 0 or step.source is not steps[i - 1].source]
    assert order[-2:] == [Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION] and steps[-1].truncated
    assert all(abs(float(step.action_sent[0])) <= 0.0101 for step in steps)


def test_what_is_late_old_or_too_far_ahead_is_refused_in_words(world: World) -> None:
    with world.page() as page:
        page.take()
        page.drive("recover", valid_s=-0.2, moves={"dx_m": 1.0})
        page.told("ms too late")
        page.drive("recover", valid_s=3.0, moves={"dx_m": 1.0})
        page.told("reload the page")
        page.drive("hold", seq=50)
        page.drive("recover", seq=50, moves={"dx_m": 1.0})
        page.told("command 50 came after 50")
        page.told_of("there is no action element 'left_dx_m'", {"left_dx_m": 1.0})
        page.told_of("allowed: -1 to 1", {"dx_m": 7.0})
    assert not world.steps_of(Source.EXPERT)


def test_a_page_that_vanishes_while_driving_lets_go(world: World) -> None:
    with world.page() as page:
        page.take()
        for _ in range(10):
            page.drive("recover", moves={"dx_m": 0.3})
            page.read(0.03)
        assert world.edge.seat.phase.value == "recovering"
        gone_s = time.monotonic()
        page.socket.socket.close()  # no closing words: the link is cut
    assert eventually(lambda: world.edge.seat.phase.value == "paused", 3.0)
    assert eventually(lambda: not world.edge.seat.read().holder, 5.0), time.monotonic() - gone_s
    with world.page() as page:  # nobody resumes by themselves: the next person does
        page.take()
        assert page.phase == "paused"
        page.drive("recover", moves={})
        page.until(lambda: page.phase == "recovering")
        page.drive("finish")
        page.until(lambda: page.phase in ("between", "autonomous"))


# ---- labels ------------------------------------------------------------------------------------------------------


def test_labels_reach_the_edge_with_who_said_them(world: World) -> None:
    with world.page() as page:
        page.take()
        episode = page.states[-1]["seat"]["episode"]
        page.send("label", episode=episode, success=False, reset_needed=True, note="peg fell")
        page.told("kept: label of episode")
        label = world.edge.labels[-1]
        assert (label.who, label.success, label.reset_needed, label.note) == ("operator", False, True, "peg fell")
        assert label.episode.episode == episode["episode"]
        page.until(lambda: page.states[-1]["seat"]["waits_for_scene"])
        page.send("ready")
        page.told("kept: scene ready")
        page.until(lambda: not page.states[-1]["seat"]["waits_for_scene"])
    world.edge.labels.clear()


# ---- stop --------------------------------------------------------------------------------------------------------


def clear(world: World) -> None:
    world.edge.robot.clear()
    world.edge.robot.stops.clear()


def test_a_second_person_stops_the_robot_that_somebody_drives(world: World) -> None:
    with world.page("admin") as driver, world.page() as other:
        driver.take()
        other.watch()
        driver.drive("recover", moves={"dx_m": 0.3})
        other.send("stop")
        driver.told("operator stopped franka_0")
        assert world.edge.robot.guard.lifecycle is Lifecycle.FAULT
        driver.until(lambda: driver.states[-1]["body"]["lifecycle"] == "fault")
        assert "operator" in world.edge.robot.stops[0]
    clear(world)
    assert any(entry["what"] == "stop" and entry["outcome"] == "done" for entry in world.audit())


def test_the_stop_works_by_http_alone(world: World) -> None:
    with world.page() as page:
        page.socket.close()
        reply = page.http.post("/api/stop", json={"robot": "franka_0"})
        assert reply.status_code == 200 and world.edge.robot.guard.lifecycle is Lifecycle.FAULT
        unknown = page.http.post("/api/stop", json={"robot": "r2_d2"})
        assert unknown.status_code == 403 and "r2_d2" in unknown.json()["error"]
    clear(world)


def test_a_stop_that_does_not_arrive_is_shouted(world: World) -> None:
    world.edge.server.silent = True
    try:
        with world.page() as page:
            page.watch().send("stop")
            assert "emergency stop on the robot" in page.told("DID NOT REACH")["text"]
            page.until(lambda: page.states[-1]["stop_problem"])
    finally:
        world.edge.server.silent = False
    with world.page() as page:
        page.watch()
        page.until(lambda: not page.states[-1]["stop_problem"])
    clear(world)


# ---- the process -------------------------------------------------------------------------------------------------


def test_over_tls_with_the_certificate_it_made(world: World, tmp_path: Path) -> None:
    secure = replace(world.config, directory=str(tmp_path), tls=True)
    with TeleopServer(secure) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
        with PlainPage(server.url, server.new_tokens["viewer"], verify=context) as page:
            page.watch()
        for name in ("private-key.pem", "tokens.json", "audit.jsonl"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    with TeleopServer(secure) as again:
        assert not again.new_tokens  # shown once


def test_beyond_this_machine_only_with_tls(world: World, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "robot-pc"):
        with pytest.raises(ConfigError, match="without TLS"), TeleopServer(replace(world.config, host=host)):
            pass


def test_a_taken_port_is_told_in_words(world: World, tmp_path: Path) -> None:
    port = int(world.base.rsplit(":", 1)[1])
    taken = replace(world.config, directory=str(tmp_path), port=port)
    with pytest.raises(TransportError, match="choose another port"), TeleopServer(taken):
        pass
