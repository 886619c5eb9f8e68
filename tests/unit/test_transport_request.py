"""Requests and replies over real sockets: content, order, restarts, refusals that are shown."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zmq

from robot_stack.core.errors import (
    AuthenticationError,
    CommandRefusedError,
    ConfigError,
    MessageError,
    TransportError,
    UnreachableError,
)
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    CommandResult,
    Done,
    Failed,
    GetState,
    Hello,
    Ping,
    Pong,
    RobotReply,
    RobotRequest,
    RobotState,
    StopRobot,
)
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.link import Link
from robot_stack.transport.server import Request, RequestServer
from tests.transport_kit import ROBOT, Serving, client, command, eventually, make_keys, ping, service_with

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\x01" + bytes(31)
"""Of a server that speaks ZMTP 3.0 with CURVE: 64 bytes."""


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


def test_arrays_make_the_round_trip_and_the_peer_is_named_by_its_key(keys: KeyStore) -> None:
    action = np.linspace(-1, 1, 14, dtype=np.float32)[::2]  # not contiguous
    with Serving(keys) as serving, client(keys, serving.server.address) as asking:
        reply = asking.request(command(action, seq=5), 5.0)
        state = asking.request(GetState(), 5.0)
    assert isinstance(reply, CommandResult)
    assert reply.seq == 5
    assert reply.message == "edge"
    np.testing.assert_array_equal(reply.sent, action)
    assert reply.sent.dtype == np.float32
    assert isinstance(state, RobotState)
    np.testing.assert_array_equal(state.features["observation.state"], np.arange(7, dtype=np.float32))


def test_several_servers_and_clients_live_in_one_process(keys: KeyStore) -> None:
    with Serving(keys) as one, Serving(keys) as two:
        with client(keys, one.server.address) as a, client(keys, two.server.address, "viewer") as b:
            assert isinstance(ping(a), Pong)
            assert isinstance(ping(b), Pong)
        assert len(one.messages) == len(two.messages) == 1


def test_an_unreachable_server_is_reported_in_the_time_asked(keys: KeyStore) -> None:
    with client(keys, "tcp://127.0.0.1:9") as asking:
        began_s = time.monotonic()
        with pytest.raises(UnreachableError, match=r"robot\.request at tcp://127\.0\.0\.1:9.*robot-stack robot"):
            ping(asking, 0.3)
        assert 0.3 <= time.monotonic() - began_s < 1.0


def test_a_silent_server_is_reported_and_its_late_reply_is_not_mixed_up(keys: KeyStore) -> None:
    held: list[Request[RobotRequest]] = []

    def hold_first(request: Request[RobotRequest]) -> None:
        held.append(request)
        if len(held) == 2:
            held[0].reply(Failed(reason="late", message="the reply to the first request"))
            held[0].reply(Failed(reason="late", message="and once more"))
            held[1].reply(Done())

    with Serving(keys, handler=hold_first) as serving, client(keys, serving.server.address) as asking:
        with pytest.raises(UnreachableError, match="connected but silent"):
            ping(asking, 1.0)
        assert isinstance(ping(asking), Done)


class CutLink(Link):
    """A link whose server is taken away right after the socket was found ready to send."""

    def cut_with(self, cut: Callable[[], None]) -> None:
        self._cut: Callable[[], None] | None = cut

    def _wait(self, event: int, deadline_s: float) -> zmq.Socket[bytes] | None:
        socket = super()._wait(event, deadline_s)
        if socket is not None and event == zmq.POLLOUT and self._cut is not None:
            self._cut()
            self._cut = None
            time.sleep(0.3)
        return socket


def test_a_connection_lost_between_poll_and_send_is_no_error(keys: KeyStore) -> None:
    serving = Serving(keys)
    serving.__enter__()
    address = serving.server.address
    link = CutLink(zmq.DEALER, ROBOT, address, keys, "edge", "robot")
    link.cut_with(serving.__exit__)
    link.open()
    try:
        assert not link.send([b"12345678", b"x"], time.monotonic() + 2.0)
        with Serving(keys, address):
            assert link.send([b"12345678", b"x"], time.monotonic() + 5.0)
    finally:
        link.close()


def test_a_client_survives_the_restart_of_its_server(keys: KeyStore) -> None:
    with Serving(keys) as serving:
        address = serving.server.address
        asking = client(keys, address)
        with asking:
            assert isinstance(ping(asking), Pong)
            serving.__exit__()
            with pytest.raises(UnreachableError):
                ping(asking, 0.2)
            with Serving(keys, address):
                assert isinstance(ping(asking), Pong)


@pytest.mark.parametrize("_", range(5))  # what is asked in the moment of the loss must not be lost with it
def test_a_lost_connection_ends_a_request_at_once_and_a_greeting_asks_again(keys: KeyStore, _: int) -> None:
    asked, lost = threading.Event(), threading.Event()

    def silent(request: Request[RobotRequest]) -> None:
        asked.set()

    def ask(address: str) -> tuple[float, RobotReply]:
        with client(keys, address) as asking:
            begun_s = time.monotonic()
            with pytest.raises(UnreachableError):
                ping(asking, 30.0)
            took_s = time.monotonic() - begun_s
            lost.set()
            return took_s, asking.greet(Hello(schema_version=SCHEMA_VERSION, peer="edge"), 30.0)

    with ThreadPoolExecutor() as pool:
        with Serving(keys, handler=silent) as serving:
            answered = pool.submit(ask, serving.server.address)
            assert asked.wait(10.0)
        assert lost.wait(10.0)
        with Serving(keys, serving.server.address):
            took_s, reply = answered.result(30.0)
    assert took_s < 15.0
    assert isinstance(reply, Pong)


def test_a_request_that_was_given_up_is_not_carried_out_after_a_reconnect(keys: KeyStore) -> None:
    with Serving(keys) as serving:
        address = serving.server.address
    with client(keys, address) as asking:
        for _ in range(3):
            with pytest.raises(UnreachableError, match="no connection"):
                asking.request(StopRobot(reason="old"), 0.05)
        with Serving(keys, address) as serving:
            ping(asking)
            assert serving.messages == [Ping()]


def test_an_unknown_key_is_refused_and_shown_on_both_sides(
    keys: KeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = make_keys(tmp_path / "elsewhere")
    public = tmp_path / "elsewhere" / "keys" / "public" / "robot.json"
    public.write_bytes((tmp_path / "keys" / "public" / "robot.json").read_bytes())
    with Serving(keys) as serving, client(stranger, serving.server.address) as asking:
        began_s = time.monotonic()
        for _ in range(3):
            with pytest.raises(AuthenticationError, match=r"refused our key 'edge'.*robot-stack keys list"):
                ping(asking, 5.0)
        assert eventually(lambda: serving.server.refused_count == 3, within_s=2.0)
        assert time.monotonic() - began_s < 5.0
        assert serving.messages == []
        refusal = serving.server.refused[0]
    assert refusal.address == "127.0.0.1"
    assert stranger.public("edge").public_key.decode() in refusal.reason
    assert "127.0.0.1" in caplog.text
    assert "not on the allow-list" in caplog.text


def test_a_key_that_is_authorised_later_works_without_a_restart(keys: KeyStore, tmp_path: Path) -> None:
    elsewhere = KeyStore(tmp_path / "elsewhere")
    elsewhere.make("edge_2", Role.EDGE)
    theirs, ours = tmp_path / "elsewhere" / "public", tmp_path / "keys" / "public"
    (theirs / "robot.json").write_bytes((ours / "robot.json").read_bytes())
    with Serving(keys) as serving, client(elsewhere, serving.server.address, "edge_2") as asking:
        with pytest.raises(AuthenticationError):
            ping(asking)
        (ours / "edge_2.json").write_bytes((theirs / "edge_2.json").read_bytes())
        assert isinstance(ping(asking), Pong)


def test_a_wrong_server_key_is_shown_on_both_sides(keys: KeyStore) -> None:
    keys.make("robot_2", Role.ROBOT)
    with Serving(keys) as serving, client(keys, serving.server.address, server_key="robot_2") as asking:
        with pytest.raises(AuthenticationError, match="not the one we know as 'robot_2'"):
            ping(asking, 1.0)
        refused = serving.server.refused
        assert eventually(lambda: any(peer.address.startswith("127.0.0.1:") for peer in list(refused)), within_s=2.0)
        assert all("another server key" in peer.reason for peer in list(refused))


def test_a_server_that_dies_in_the_middle_of_a_handshake_is_away_and_its_key_is_not_doubted(keys: KeyStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dying:
        address = f"tcp://127.0.0.1:{dying.getsockname()[1]}"
        with client(keys, address) as asking:
            begun, _ = dying.accept()
            with begun:
                begun.sendall(GREETING)
                assert len(begun.recv(64, socket.MSG_WAITALL)) == 64
            dying.close()
            with pytest.raises(UnreachableError, match="there is no connection"):
                asking.request(Ping(), 0.5)


def test_a_peer_without_curve_is_refused_and_shown(keys: KeyStore) -> None:
    with Serving(keys) as serving, zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(serving.server.address)
        plain.send_multipart([b"12345678", b"\x81\xa4type\xa4Ping"])
        assert eventually(lambda: serving.server.refused_count > 0, within_s=2.0)
        assert not plain.poll(100)
        assert serving.messages == []


def test_a_server_whose_gate_is_gone_lets_nobody_in(keys: KeyStore) -> None:
    with Serving(keys) as serving:
        bound = serving.server._bound
        bound.gate.stop(bound.socket)
        with client(keys, serving.server.address) as asking, pytest.raises((UnreachableError, AuthenticationError)):
            ping(asking, 0.5)
        assert serving.messages == []


def test_a_revoked_key_is_refused_on_its_established_connection_within_a_second(keys: KeyStore) -> None:
    with Serving(keys) as serving, client(keys, serving.server.address) as asking:
        ping(asking)
        keys.revoke("edge")
        revoked_s = time.monotonic()
        with pytest.raises(AuthenticationError, match="no longer authorised"):
            while time.monotonic() < revoked_s + 1.0:
                ping(asking)
        served = len(serving.messages)
        with pytest.raises(AuthenticationError):
            ping(asking)
        assert len(serving.messages) == served
        assert serving.server.counts["revoked"] == 2
        assert "revoked while it was connected" in serving.server.refused[-1].reason


def test_a_revoked_key_is_refused_on_a_new_connection(keys: KeyStore, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "keys", tmp_path / "edge_computer")
    theirs = KeyStore(tmp_path / "edge_computer")
    with Serving(keys) as serving:
        with client(theirs, serving.server.address) as asking:
            ping(asking)
        keys.revoke("edge")
        time.sleep(0.5)
        with client(theirs, serving.server.address) as asking, pytest.raises(AuthenticationError, match="revoked"):
            ping(asking)


def test_a_viewer_may_watch_and_its_commands_are_refused_counted_and_logged(
    keys: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    with Serving(keys) as serving, client(keys, serving.server.address, "viewer") as asking:
        asking.request(GetState(), 5.0)
        with pytest.raises(CommandRefusedError, match="the role viewer of 'viewer' may not send Command") as refused:
            asking.request(command(np.zeros(2, np.float32)), 5.0)
        assert refused.value.reason == "role"
        failed = asking.request(StopRobot(reason="x"), 5.0, raise_failed=False)
        assert isinstance(failed, Failed)
        assert serving.messages == [GetState()]
        assert serving.server.counts["role"] == 2
    audited = [record.getMessage() for record in caplog.records if record.name == "robot_stack.audit"]
    assert len(audited) == 2
    assert "'viewer' (viewer) asked for Command" in audited[0]


def test_an_operator_and_an_edge_may_stop_the_robot(keys: KeyStore) -> None:
    with Serving(keys) as serving:
        for name in ("operator", "edge"):
            with client(keys, serving.server.address, name) as asking:
                asking.request(StopRobot(reason=name), 5.0)
        assert serving.messages == [StopRobot(reason="operator"), StopRobot(reason="edge")]


def test_a_role_that_is_not_in_the_service_table_is_turned_away_at_the_door(keys: KeyStore) -> None:
    with Serving(keys) as serving:
        with pytest.raises(AuthenticationError, match="role learner"), client(keys, serving.server.address, "learner"):
            pass
        open_to_all = service_with(ROBOT, requests={role: frozenset({"Ping"}) for role in Role})
        asking: RequestClient[RobotReply] = RequestClient(
            open_to_all, serving.server.address, keys, "learner", "robot", RobotReply
        )
        with asking, pytest.raises(AuthenticationError, match="refused our key"):
            ping(asking)
        assert eventually(lambda: serving.server.refused_count > 0, within_s=2.0)
        assert "has the role learner" in serving.server.refused[0].reason


def test_a_peer_that_asks_too_much_is_refused_and_another_is_served(keys: KeyStore) -> None:
    slow = service_with(ROBOT, quota_hz=5.0)
    with Serving(keys, service=slow) as serving, client(keys, serving.server.address) as asking:
        for _ in range(5):
            ping(asking)
        with pytest.raises(CommandRefusedError, match="5 requests per second") as refused:
            for _ in range(10):
                ping(asking)
        assert refused.value.reason == "quota"
        with client(keys, serving.server.address, "operator") as other:
            assert isinstance(ping(other), Pong)
        time.sleep(0.3)
        assert isinstance(ping(asking), Pong)


def test_the_client_refuses_to_send_what_the_server_would_not_take(keys: KeyStore) -> None:
    with Serving(keys) as serving, client(keys, serving.server.address) as asking:
        with pytest.raises(MessageError, match="larger than the 65536 bytes"):
            asking.request(command(np.zeros(20_000, np.float32)), 5.0)
        assert isinstance(ping(asking), Pong)


def test_a_reply_that_is_too_large_becomes_a_refusal(keys: KeyStore) -> None:
    small = service_with(ROBOT, max_reply_bytes=100)
    with Serving(keys, service=small) as serving, client(keys, serving.server.address) as asking:
        with pytest.raises(CommandRefusedError, match="the reply is too large"):
            asking.request(GetState(), 5.0)
        assert serving.server.counts["oversized"] == 1


def test_an_idle_connection_outlives_the_link_timeout(keys: KeyStore) -> None:
    brief = service_with(ROBOT, link_timeout_s=0.4)
    asking: RequestClient[RobotReply]
    with Serving(keys, service=brief) as serving:
        asking = RequestClient(brief, serving.server.address, keys, "edge", "robot", RobotReply)
        with asking:
            ping(asking)
            time.sleep(1.0)
            asking._link.receive(time.monotonic())  # reads the monitor
            assert asking._link._connected
            ping(asking)


def test_a_taken_port_and_a_malformed_address_are_named(keys: KeyStore) -> None:
    with Serving(keys) as serving:
        server: RequestServer[RobotRequest] = RequestServer(ROBOT, serving.server.address, keys, "robot", RobotRequest)
        with pytest.raises(TransportError, match="choose another port"), server:
            pass
    for address in ("127.0.0.1:7710", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "ipc:///tmp/x"):
        with pytest.raises(ConfigError, match="no address"), client(keys, address):
            pass


def test_a_server_needs_a_key_of_its_own_role(keys: KeyStore) -> None:
    server: RequestServer[RobotRequest] = RequestServer(ROBOT, "tcp://127.0.0.1:*", keys, "edge", RobotRequest)
    with pytest.raises(ConfigError, match="served with a key of role robot"), server:
        pass
    with pytest.raises(ConfigError, match="role edge"), client(keys, "tcp://127.0.0.1:1", server_key="edge"):
        pass


def test_a_client_is_used_by_one_thread_and_inside_with(keys: KeyStore) -> None:
    errors: list[BaseException] = []

    def use(asking: RequestClient[RobotReply]) -> None:
        try:
            ping(asking)
        except TransportError as error:
            errors.append(error)

    with Serving(keys) as serving, client(keys, serving.server.address) as asking:
        ping(asking)
        thread = threading.Thread(target=use, args=(asking,))
        thread.start()
        thread.join()
    assert "second thread" in str(errors[0])
    with pytest.raises(TransportError, match="'with' block"):
        ping(asking)


def test_refusals_do_not_flood_the_log(keys: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    keys.make("robot_2", Role.ROBOT)
    caplog.set_level(logging.WARNING)
    with Serving(keys) as serving, client(keys, serving.server.address, server_key="robot_2") as asking:
        with pytest.raises(AuthenticationError):
            ping(asking, 0.9)
        assert serving.server.refused_count > 2
    assert len([record for record in caplog.records if "refused a peer" in record.getMessage()]) <= 2
