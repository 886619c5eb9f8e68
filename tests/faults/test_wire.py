"""Hostile and broken peers on a real socket: the server lives, answers the next good request, and forgets nothing."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import zmq

from benchmarks.wire import fuzz
from robot_stack.core.codec import encode, unpack
from robot_stack.core.errors import CommandRefusedError, UnreachableError
from robot_stack.core.messages import Failed, GetState, Ping, Pong, RobotReply, RobotRequest, RobotState, StopRobot
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.server import RequestServer
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher, Subscriber
from tests.transport_kit import (
    LOOPBACK,
    ROBOT,
    Serving,
    client,
    command,
    eventually,
    make_keys,
    ping,
    service_with,
    state,
)

MESSAGES = 10_000


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


@contextmanager
def raw_dealer(keys: KeyStore, address: str, key: str = "edge") -> Iterator[zmq.Socket[bytes]]:
    """A peer with a good key that sends whatever it likes."""
    pair, server = keys.load(key), keys.public("robot")
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.curve_publickey, dealer.curve_secretkey = pair.public_key, pair.secret_key
        dealer.curve_serverkey = server.public_key
        dealer.sndhwm = dealer.rcvhwm = 0
        dealer.connect(address)
        yield dealer


def hostile_frames(rng: random.Random) -> list[bytes]:
    """Noise, bit flips in a good message, truncations, wrong arrays, deep nesting, huge announced lengths, none."""
    good = [bytes(frame) for frame in encode(command(np.arange(7, dtype=np.float32)))]
    kind = rng.randrange(8)
    if kind == 0:
        return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(5))]
    if kind == 1:
        flipped = bytearray(good[0])
        for _ in range(rng.randrange(1, 4)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return [bytes(flipped), *good[1:]]
    if kind == 2:
        return [good[0][: rng.randrange(len(good[0]))], *good[1:]]
    if kind == 3:
        return [good[0], rng.randbytes(rng.randrange(100))]
    if kind == 4:
        return [good[0].replace(b"float32", rng.choice([b"object_", b"float64", b"complex", b"\xa7\x00\xff\xffxx"]))]
    if kind == 5:
        return [b"\x82\xa4type\xa7Command\xa6action" + b"\x91" * rng.randrange(1, 20_000)]
    if kind == 6:
        return [b"\x82\xa4type\xa8GetState\xa7cameras" + rng.choice([b"\xdd", b"\xdf"]) + rng.randbytes(4)]
    return [good[0], *([b""] * rng.randrange(30))]


def test_ten_thousand_malformed_messages_cost_the_server_nothing(
    keys: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(7)
    generous = service_with(ROBOT, quota_hz=1e9, quota_bytes_per_s=1e12)
    with Serving(keys, service=generous) as serving, client(keys, serving.server.address, "operator") as good:
        ping(good)
        before_bytes = psutil.Process().memory_info().rss
        with raw_dealer(keys, serving.server.address) as dealer:
            for index in range(MESSAGES):
                request_id = struct.pack("<Q", index) if rng.random() < 0.9 else rng.randbytes(rng.randrange(40))
                dealer.send_multipart([request_id, *hostile_frames(rng)])
                while dealer.poll(0):
                    dealer.recv_multipart()
                if index % 2_000 == 0:
                    assert isinstance(ping(good), Pong)
            counts = serving.server.counts
            assert eventually(lambda: counts["malformed"] + len(serving.messages) >= MESSAGES + 6, within_s=20.0)
        assert isinstance(ping(good), Pong)
        assert counts["malformed"] > MESSAGES * 0.8
        grown_bytes = psutil.Process().memory_info().rss - before_bytes
    assert grown_bytes < 64 * 1024 * 1024
    assert 1 <= len(caplog.records) < 60  # one line a second, not one per message


def test_a_malformed_message_is_answered_with_its_request_id(keys: KeyStore) -> None:
    with Serving(keys) as serving, raw_dealer(keys, serving.server.address) as dealer:
        dealer.send_multipart([b"12345678", b"\xc1"])
        request_id, *frames = dealer.recv_multipart()
        assert request_id == b"12345678"
        assert _failed(frames).reason == "malformed"
        dealer.send_multipart([b"too long to be a request id", *encode(Ping())])
        assert dealer.recv_multipart()[0] == b"too long"
        dealer.send_multipart([b""])
        assert _failed(dealer.recv_multipart()[1:]).reason == "malformed"
        assert serving.messages == []


def _failed(frames: list[bytes]) -> Failed:
    blob = b"".join([struct.pack(f"<I{len(frames)}I", len(frames), *map(len, frames)), *frames])
    message: Failed = unpack(blob, RobotReply)
    assert isinstance(message, Failed)
    return message


def test_an_oversized_message_is_refused_before_it_is_decoded(keys: KeyStore) -> None:
    with Serving(keys) as serving, raw_dealer(keys, serving.server.address) as dealer:
        dealer.send_multipart([b"12345678", *encode(Ping()), *[bytes(30_000)] * 3])  # each frame small, together not
        assert "larger than the 65536 bytes" in _failed(dealer.recv_multipart()[1:]).message
        dealer.send_multipart([b"12345678", bytes(5_000_000)])  # one frame over the cap: the link is cut
        assert not dealer.poll(200)
        with client(keys, serving.server.address, "operator") as good:
            assert isinstance(ping(good), Pong)
        assert serving.messages == [Ping()]


def test_noise_from_programs_that_speak_another_protocol_is_shown_and_harmless(keys: KeyStore) -> None:
    rng = random.Random(3)
    with Serving(keys) as serving:
        port = int(serving.server.address.rsplit(":", 1)[1])
        silent, plain, hello = b"", b"\xff" * 64, b"\xff\0\0\0\0\0\0\0\x01\x7f\x03"
        shown = []
        for opening in (b"GET / HTTP/1.1\r\n\r\n", silent, rng.randbytes(500), plain, hello):
            with socket.create_connection(("127.0.0.1", port)) as noise:
                if opening in {silent, plain, hello}:  # libzmq reports no others; it drops them in the same way
                    shown.append(f"127.0.0.1:{noise.getsockname()[1]}")
                noise.sendall(opening)
                time.sleep(0.02)
        assert eventually(lambda: serving.server.refused_count == 3, within_s=2.0)
        for refusal, address in zip(serving.server.refused, shown, strict=True):
            assert refusal.address in {address, "an unknown address"}  # where the link was gone before we could look
        assert serving.server.refused[0].address == shown[0]
        with client(keys, serving.server.address) as good:
            assert isinstance(ping(good), Pong)


def test_many_large_messages_in_a_row_are_no_endless_one(keys: KeyStore) -> None:
    generous = service_with(ROBOT, quota_bytes_per_s=1e12)
    with Serving(keys, service=generous) as serving, raw_dealer(keys, serving.server.address) as dealer:
        for _ in range(1500):  # 90 MB
            dealer.send_multipart([b"12345678", bytes(60_000)])
            dealer.recv_multipart()
        assert serving.server.refused_count == 0


def test_a_message_of_very_many_frames_never_holds_the_server_up(keys: KeyStore) -> None:
    server: RequestServer[RobotRequest] = RequestServer(ROBOT, LOOPBACK, keys, "robot", RobotRequest)
    with server, raw_dealer(keys, server.address) as dealer:
        for _ in range(2):
            dealer.send_multipart([b"12345678", *encode(Ping()), *[b""] * 100_000])
        dealer.send_multipart([b"87654321", *encode(Ping())])
        longest_s, requests, until_s = 0.0, [], time.monotonic() + 30.0
        while not requests and time.monotonic() < until_s:
            began_s = time.thread_time()
            requests = server.poll(0.01)
            longest_s = max(longest_s, time.thread_time() - began_s)
        assert [request.message for request in requests] == [Ping()]
        requests[0].reply(Pong(stamp_ns=1))
        dealer.rcvtimeo = 10_000
        answers = [dealer.recv_multipart() for _ in range(3)]
    assert [answer[0] for answer in answers] == [b"12345678", b"12345678", b"87654321"]
    assert all("frames" in _failed(answer[1:]).message for answer in answers[:2])
    assert longest_s < 0.1


def test_a_peer_that_sends_too_many_bytes_is_refused_and_another_is_served(keys: KeyStore) -> None:
    narrow = service_with(ROBOT, quota_bytes_per_s=100_000.0)
    big = command(np.zeros(10_000, np.float32))
    with Serving(keys, service=narrow) as serving, client(keys, serving.server.address) as asking:
        asking.request(big, 5.0)
        asking.request(big, 5.0)
        with pytest.raises(CommandRefusedError, match="100000 bytes per second") as refused:
            asking.request(big, 5.0)
        assert refused.value.reason == "quota"
        with client(keys, serving.server.address, "operator") as other:
            assert isinstance(ping(other), Pong)
        time.sleep(0.5)
        asking.request(big, 5.0)
        assert serving.server.counts["quota"] == 1


def test_a_refusal_does_not_repeat_megabytes_of_the_message(keys: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    name = "x" * 50_000
    header = msgspec.msgpack.encode(
        {"type": "Command", "session": "s", "seq": 1, "deadline_ns": 1, "action": [1, name, [1]]}
    )
    with Serving(keys) as serving, raw_dealer(keys, serving.server.address) as dealer:
        dealer.send_multipart([b"12345678", header, bytes(4)])
        assert len(_failed(dealer.recv_multipart()[1:]).message) < 500
    assert all(len(record.getMessage()) < 700 for record in caplog.records)


def test_twenty_thousand_hostile_requests_to_a_learner(tmp_path: Path) -> None:
    """The short form of `benchmarks.wire`: a server in its own process, a good peer and noise beside."""
    result = fuzz(tmp_path / "learner", messages=20_000, seed=11)
    assert result.crashes == 0 and result.server is not None
    assert result.unanswered == 0
    assert result.server.hangs == 0, result.server.longest_poll_ms
    assert result.server.memory_growth_mb < 64
    assert result.good_failed == 0 and result.good_served > 100
    assert result.noise_connections > 20
    assert result.server.refused["malformed"] > 10_000 and result.server.served > 1_000


class FreezingProxy:
    """Passes bytes both ways between clients and one server, except while frozen: then it holds them back."""

    def __init__(self, target: str, freeze_after_bytes: int | None = None) -> None:
        self._freeze_after_bytes = freeze_after_bytes
        self.frozen = threading.Event()
        self.passed_bytes = 0
        self._target = ("127.0.0.1", int(target.rsplit(":", 1)[1]))
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._others: dict[socket.socket, socket.socket] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> FreezingProxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for end in (self._listener, *self._others):
            end.close()

    def _run(self) -> None:
        while not self._stop.wait(0.01 if self.frozen.is_set() else 0.0):
            if self.frozen.is_set():
                continue
            for end in select.select([self._listener, *self._others], [], [], 0.01)[0]:
                if end is self._listener:
                    near = self._listener.accept()[0]
                    far = socket.create_connection(self._target)
                    self._others |= {near: far, far: near}
                elif end in self._others:
                    self._forward(end)

    def _forward(self, end: socket.socket) -> None:
        other = self._others[end]
        try:
            data = end.recv(65536)
            if data:
                other.sendall(data)
                self.passed_bytes += len(data)
                if self._freeze_after_bytes is not None and self.passed_bytes > self._freeze_after_bytes:
                    self.frozen.set()
                return
        except OSError:
            pass
        for closing in (end, other):
            del self._others[closing]
            closing.close()


def test_a_message_that_never_ends_is_noticed_and_its_connection_cut(keys: KeyStore) -> None:
    with (
        Serving(keys) as serving,
        client(keys, serving.server.address, "operator") as good,
        FreezingProxy(serving.server.address, freeze_after_bytes=30_000_000) as proxy,
        raw_dealer(keys, proxy.address) as dealer,
    ):
        dealer.send_multipart([b"12345678", *encode(Ping()), *[bytes(60_000)] * 1000])
        refused = serving.server.refused
        assert eventually(lambda: any("without finishing a message" in peer.reason for peer in refused), within_s=10.0)
        assert refused[0].address.startswith("127.0.0.1:")
        assert isinstance(ping(good), Pong)
        assert serving.messages == [Ping()]


def test_a_request_held_back_by_a_partition_is_not_carried_out_when_the_link_heals(keys: KeyStore) -> None:
    brief = service_with(ROBOT, link_timeout_s=0.4)
    with Serving(keys, service=brief) as serving, FreezingProxy(serving.server.address) as proxy:
        asking: RequestClient[RobotReply] = RequestClient(brief, proxy.address, keys, "edge", "robot", RobotReply)
        with asking:
            ping(asking)
            proxy.frozen.set()
            time.sleep(0.05)
            with pytest.raises(UnreachableError):
                asking.request(StopRobot(reason="old"), 0.1)
            time.sleep(1.5)
            proxy.frozen.clear()
            asking.request(GetState(), 5.0)
            time.sleep(0.2)
        assert StopRobot(reason="old") not in serving.messages
        assert serving.messages[-1] == GetState()


def test_what_a_frozen_watcher_missed_is_dropped_not_queued(keys: KeyStore) -> None:
    stream = SERVICES["robot.state"]
    with Publisher(stream, LOOPBACK, keys, "robot") as publisher, FreezingProxy(publisher.address) as proxy:
        watcher: Subscriber[RobotState] = Subscriber(stream, proxy.address, keys, "viewer", "robot", RobotState)

        def seen(seq: int) -> bool:
            newest = watcher.newest(0.05)
            return newest is not None and newest.seq == seq

        def sees(seq: int) -> bool:
            publisher.send(state(seq))
            return seen(seq)

        with watcher:
            assert eventually(lambda: sees(0), within_s=5.0)
            proxy.frozen.set()
            time.sleep(0.05)
            big = msgspec.structs.replace(state(1), features={"image": np.zeros(1_000_000, np.uint8)})
            for _ in range(100):
                publisher.send(big)
                time.sleep(0.002)
            publisher.send(state(2))
            proxy.frozen.clear()
            assert eventually(lambda: seen(2), within_s=5.0)
        assert proxy.passed_bytes < 50_000_000  # what the TCP buffers held, not the 100 MB that were sent
