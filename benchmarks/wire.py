"""Hostile peers: `python -m benchmarks.wire [--quick] [--seed N] [--messages N] [--keys N]`.

A request server of the learner, in its own process, gets mutated, random, oversized and truncated messages from a peer
with a good key, and noise from programs without one, while a well-behaved peer asks for progress throughout. Then keys
that must not get in are tried, and keys in use are revoked. A hang is a call of the server's `poll` that computes for
more than 100 ms. The quotas of the service table are lifted, so that every message reaches the decoder.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import random
import resource
import socket as tcp
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import zmq
from msgspec import Struct
from tqdm import tqdm

from benchmarks.wire_keys import KeyResult, revoke_in_use, try_keys
from benchmarks.wire_messages import MIB, HostileMessages
from robot_stack.core.codec import unpack
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import (
    Done,
    Failed,
    GetProgress,
    Hello,
    LearnerProgress,
    LearnerReply,
    LearnerRequest,
    Step,
    StepAck,
    StepBatch,
)
from robot_stack.learner.publication import WeightPublisher
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.server import RequestServer
from robot_stack.transport.services import SERVICES

SERVICE = dataclasses.replace(SERVICES["learner.request"], quota_hz=1e12, quota_bytes_per_s=1e15)
HANG_NS = 100_000_000
OUTSTANDING = SERVICE.queue // 2  # the server drops replies that pile up unread
CONNECTIONS = 4
HEAVY_EVERY = 10_001
CUT_EVERY = 20_001
WARM_UP = 2_000
ANSWER_WITHIN_MS = 20_000


class ServerStats(Struct, frozen=True, kw_only=True):
    """What the server's process saw of itself; memory beside that after the warm-up."""

    polls: int
    hangs: int
    longest_poll_ms: float
    served: int
    refused: dict[str, int]
    memory_growth_mb: float
    memory_peak_mb: float


@dataclass(frozen=True, slots=True)
class FuzzResult:
    messages: int
    unanswered: int
    crashes: int
    noise_connections: int
    good_served: int
    good_failed: int
    good_longest_ms: float
    server: ServerStats | None


def make_keys(directory: Path) -> KeyStore:
    keys = KeyStore(directory)
    for name, role in (("learner", Role.LEARNER), ("edge", Role.EDGE), ("good", Role.EDGE)):
        keys.make(name, role)
    return keys


# ---- the server's process -------------------------------------------------------------------------------------------


def serve(directory: Path, told: Connection) -> None:
    """Answer as a learner does, until told to stop; `told` carries the address, then a mark, then the figures."""
    logging.disable(logging.CRITICAL)
    publisher = WeightPublisher("residual")
    publisher.publish(3, {"weight": np.zeros(1000, np.float32)}, 1)
    server: RequestServer[LearnerRequest] = RequestServer(
        SERVICE, "tcp://127.0.0.1:*", KeyStore(directory), "learner", LearnerRequest
    )
    process, marked, polls, hangs, longest_ns, served = psutil.Process(), 0, 0, 0, 0, 0
    with server:
        told.send(server.address)
        while True:
            began_ns = time.thread_time_ns()
            requests = server.poll(0.02)
            took_ns = time.thread_time_ns() - began_ns
            polls, hangs, longest_ns = polls + 1, hangs + (took_ns > HANG_NS), max(longest_ns, took_ns)
            for request in requests:
                request.reply(_reply(publisher, request.message))
                served += 1
            if (not requests or polls % 64 == 0) and told.poll():
                if told.recv() == "stop":
                    break
                marked = process.memory_info().rss
        grown = process.memory_info().rss - marked
    stats = ServerStats(
        polls=polls,
        hangs=hangs,
        longest_poll_ms=longest_ns / 1e6,
        served=served,
        refused=dict(server.counts),
        memory_growth_mb=grown / 1e6,
        memory_peak_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - marked) / 1e6,
    )
    told.send(stats)


def _reply(publisher: WeightPublisher, message: LearnerRequest) -> LearnerReply:
    try:
        if isinstance(message, StepBatch):
            for record in message.records[:100]:
                unpack(record, Step)
            return StepAck(records=len(message.records), duplicates=0)
        if isinstance(message, GetProgress):
            return LearnerProgress(
                durable_steps=0,
                trained_steps=0,
                updates=0,
                weights_version=3,
                target_steps=1,
                finished=False,
                metrics={},
            )
        if isinstance(message, Hello):
            return Done()
        return publisher.answer(message)
    except RobotStackError as error:
        return Failed(reason=type(error).__name__, message=str(error))


# ---- the peers ------------------------------------------------------------------------------------------------------


class GoodPeer(threading.Thread):
    """Asks for progress, a hundred times a second, and counts what it got."""

    def __init__(self, keys: KeyStore, address: str) -> None:
        super().__init__(daemon=True)
        self._keys, self._address = keys, address
        self.stop = threading.Event()
        self.served = self.failed = 0
        self.longest_s = 0.0

    def run(self) -> None:
        client: RequestClient[LearnerReply]
        client = RequestClient(SERVICE, self._address, self._keys, "good", "learner", LearnerReply)
        with client:
            while not self.stop.wait(0.01):
                began_s = time.monotonic()
                try:
                    client.request(GetProgress(), 5.0)
                    self.served += 1
                except RobotStackError:
                    self.failed += 1
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)


class NoisyPeer(threading.Thread):
    """Programs without a key: bytes of another protocol, half a greeting, silence; up to thirty connections at once."""

    _OPENINGS = (
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        b"\xff" * 64,
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03",
        b"\x16\x03\x01\x02\x00",
    )

    def __init__(self, address: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._port, self._rng = int(address.rsplit(":", 1)[1]), random.Random(seed)
        self.stop = threading.Event()
        self.connections = 0

    def run(self) -> None:
        held: list[tcp.socket] = []
        while not self.stop.wait(0.02):
            with contextlib.suppress(OSError):
                connection = tcp.create_connection(("127.0.0.1", self._port), timeout=1.0)
                held.append(connection)
                self.connections += 1
                connection.sendall(self._rng.choice(self._OPENINGS) + self._rng.randbytes(self._rng.randrange(2000)))
            if len(held) > 30:
                held.pop(0).close()
        for connection in held:
            connection.close()


class Fuzzer:
    """A peer with a good key that sends what it likes, and reads its answers: one for every whole message."""

    def __init__(self, keys: KeyStore, address: str, seed: int) -> None:
        self._keys, self._address = keys, address
        self._messages = HostileMessages(seed)
        self._context = zmq.Context()
        self._socket = self._connect()
        self._outstanding = 0
        self.unanswered = 0

    def close(self) -> None:
        self._context.destroy(linger=0)

    def send(self, index: int) -> None:
        """One hostile message; now and then one that costs the server as much as possible, or the connection."""
        if index % CUT_EVERY == CUT_EVERY // 2:
            self.drain()
            self._send_and_lose([struct.pack("<q", index), bytes(SERVICE.max_message_bytes + 1000)])
            return
        heavy = index % HEAVY_EVERY == HEAVY_EVERY - 1
        frames = self._messages.heavy(SERVICE.max_message_bytes) if heavy else self._messages.next()
        self._socket.send_multipart([self._messages.request_id(index), *frames])
        self._outstanding += 1
        while self._outstanding >= OUTSTANDING or self._socket.poll(0):
            if not self._receive():
                break

    def send_far_too_much(self, size_bytes: int) -> None:
        """One message of frames that are each small enough; refused, or the connection cut while it still arrives."""
        self.drain()
        self._send_and_lose([struct.pack("<q", 0), *[bytes(MIB)] * (size_bytes // MIB)])

    def drain(self) -> None:
        while self._outstanding and self._receive():
            pass

    def _receive(self) -> bool:
        if not self._socket.poll(ANSWER_WITHIN_MS):
            self.unanswered += self._outstanding
            self._outstanding = 0
            self._replace()
            return False
        self._socket.recv_multipart()
        self._outstanding -= 1
        return True

    def _send_and_lose(self, frames: list[bytes]) -> None:
        self._socket.send_multipart(frames)
        self._socket.poll(500)
        self._replace()

    def _replace(self) -> None:
        self._socket.close(linger=0)
        self._socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        pair, dealer = self._keys.load("edge"), self._context.socket(zmq.DEALER)
        dealer.linger, dealer.sndtimeo, dealer.sndhwm, dealer.rcvhwm = 0, 5000, 1000, 0
        dealer.curve_publickey, dealer.curve_secretkey = pair.public_key, pair.secret_key
        dealer.curve_serverkey = self._keys.public("learner").public_key
        dealer.connect(self._address)
        return dealer


@contextmanager
def server_process(directory: Path) -> Iterator[tuple[multiprocessing.process.BaseProcess, Connection]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(directory, theirs), daemon=True)
    process.start()
    try:
        yield process, ours
    finally:
        process.join(timeout=10.0)
        if process.is_alive():
            process.kill()
            process.join()


def fuzz(directory: Path, messages: int, seed: int) -> FuzzResult:
    """Send so many messages and give the figures of all who took part."""
    keys = make_keys(directory)
    with server_process(directory) as (process, told):
        address = str(told.recv())
        good, noisy = GoodPeer(keys, address), NoisyPeer(address, seed)
        fuzzers = [Fuzzer(keys, address, seed * CONNECTIONS + number) for number in range(CONNECTIONS)]
        try:
            good.start()
            noisy.start()
            for index in tqdm(range(-WARM_UP, messages), file=sys.stderr, mininterval=5.0, unit="messages"):
                if index == 0:
                    for fuzzer in fuzzers:
                        fuzzer.drain()
                    told.send("mark")
                fuzzers[index % CONNECTIONS].send(index)
                if index % 1000 == 0 and not process.is_alive():
                    break
            for fuzzer in fuzzers:
                fuzzer.drain()
            fuzzers[0].send_far_too_much(4 * SERVICE.max_message_bytes)
        finally:
            for thread in (good, noisy):
                thread.stop.set()
                thread.join()
            for fuzzer in fuzzers:
                fuzzer.close()
        time.sleep(1.0)
        stats = None
        with contextlib.suppress(EOFError, OSError):
            told.send("stop")
            stats = told.recv() if told.poll(30.0) else None
    return FuzzResult(
        messages=messages,
        unanswered=sum(fuzzer.unanswered for fuzzer in fuzzers),
        crashes=int(stats is None),
        noise_connections=noisy.connections,
        good_served=good.served,
        good_failed=good.failed,
        good_longest_ms=good.longest_s * 1e3,
        server=stats,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 messages and 60 keys; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--messages", type=int, default=None, help="1,000,000 unless --quick")
    parser.add_argument("--keys", type=int, default=None, help="1,000 unless --quick")
    options = parser.parse_args(arguments)
    messages = options.messages or (20_000 if options.quick else 1_000_000)
    count = options.keys or (60 if options.quick else 1_000)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="wire-benchmark-") as name:
        began_s = time.monotonic()
        fuzzed = fuzz(Path(name) / "fuzz", messages, options.seed)
        fuzz_s = time.monotonic() - began_s
        tried = try_keys(Path(name) / "keys", count, options.seed)
        revoked_s = revoke_in_use(Path(name) / "revoked", 5 if options.quick else 20)
    print(json.dumps(summary(fuzzed, tried, revoked_s) | {"fuzz_s": round(fuzz_s, 1), "seed": options.seed}))
    return 0


def summary(fuzzed: FuzzResult, tried: KeyResult, revoked_s: list[float]) -> dict[str, object]:
    stats = fuzzed.server
    return {
        "benchmark": "wire",
        "messages": fuzzed.messages,
        "crashes": fuzzed.crashes,
        "unanswered": fuzzed.unanswered,
        "hangs_over_100ms": stats.hangs if stats else -1,
        "longest_poll_ms": round(stats.longest_poll_ms, 1) if stats else -1,
        "memory_growth_mb": round(stats.memory_growth_mb, 1) if stats else -1,
        "memory_peak_mb": round(stats.memory_peak_mb, 1) if stats else -1,
        "served": stats.served if stats else -1,
        "refused": stats.refused if stats else {},
        "noise_connections": fuzzed.noise_connections,
        "good_peer_served": fuzzed.good_served,
        "good_peer_failed": fuzzed.good_failed,
        "good_peer_longest_ms": round(fuzzed.good_longest_ms, 1),
        "keys_tried": tried.tried,
        "keys_accepted": tried.accepted,
        "shown_within_2s": tried.shown,
        "shown_max_s": round(tried.shown_max_s, 3),
        "revocations": len(revoked_s),
        "revocation_s_max": round(max(revoked_s), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
