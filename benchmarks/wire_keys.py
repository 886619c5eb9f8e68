"""Keys that must not get in, and keys that lose their right while in use."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq
from tqdm import tqdm

from robot_stack.core.codec import encode
from robot_stack.core.errors import AuthenticationError
from robot_stack.core.messages import Done, GetProgress, LearnerReply, LearnerRequest
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.server import RequestServer
from robot_stack.transport.services import SERVICES

SERVICE = SERVICES["learner.request"]
SHOWN_WITHIN_S = 2.0
REVOKED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class KeyResult:
    """`shown`: keys whose refusal, with its reason, was in the server's list within two seconds."""

    tried: int
    accepted: int
    shown: int
    shown_max_s: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a peer tries to get in (no own key: without CURVE), and what the server must say about it."""

    public_key: bytes
    secret_key: bytes
    server_key: bytes
    reason: str


class Serving:
    """A server of the learner's service in a thread of its own; counts what reached it."""

    def __init__(self, keys: KeyStore) -> None:
        self.server: RequestServer[LearnerRequest] = RequestServer(
            SERVICE, "tcp://127.0.0.1:*", keys, "learner", LearnerRequest
        )
        self.served = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Serving:
        self.server.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.server.__exit__(None, None, None)

    def _run(self) -> None:
        while not self._stop.is_set():
            for request in self.server.poll(0.02):
                self.served += 1
                request.reply(Done())


def attempts(keys: KeyStore, count: int) -> Iterator[Attempt]:
    """Unknown, none, revoked, of a role that is not let in, and with another key in the server's place; in turn."""
    server_key = keys.public("learner").public_key
    for index in range(count):
        kind = index % 5
        if kind == 0:
            public, secret = zmq.curve_keypair()
            yield Attempt(public, secret, server_key, f"its key {public.decode()} is not on the allow-list")
        elif kind == 1:
            yield Attempt(
                b"", b"", b"", "not use CURVE"
            )  # it may be the first to hang up, then the server can only guess
        elif kind == 2:
            pair = keys.make(f"revoked-{index}", Role.EDGE)
            keys.revoke(pair.name)
            reason = f"its key {pair.public_key.decode()} is not on the allow-list"
            yield Attempt(pair.public_key, pair.secret_key, server_key, reason)
        elif kind == 3:
            pair = keys.make(f"other-{index}", Role.OPERATOR)
            yield Attempt(pair.public_key, pair.secret_key, server_key, f"its key '{pair.name}' has the role operator")
        else:
            pair, other = keys.load("edge"), zmq.curve_keypair()[0]
            yield Attempt(pair.public_key, pair.secret_key, other, "it expects another server key than ours")


def try_keys(directory: Path, count: int, seed: int) -> KeyResult:
    """Try to get in `count` times; each attempt sends a request that would be answered."""
    keys = KeyStore(directory)
    keys.make("learner", Role.LEARNER)
    keys.make("edge", Role.EDGE)
    accepted = shown = 0
    longest_s = 0.0
    with Serving(keys) as serving:
        for attempt in tqdm(attempts(keys, count), total=count, file=sys.stderr, mininterval=5.0, unit="keys"):
            answered, took_s = _try(serving, attempt)
            accepted += answered
            shown += took_s <= SHOWN_WITHIN_S
            longest_s = max(longest_s, took_s)
            if attempt.reason.endswith("operator"):
                keys.revoke(attempt.reason.split("'")[1])
        accepted += serving.served
    return KeyResult(count, accepted, shown, longest_s)


def _try(serving: Serving, attempt: Attempt) -> tuple[bool, float]:
    """Whether there was an answer, and after how long the refusal was shown."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger, dealer.reconnect_ivl = 0, 10_000
        if attempt.public_key:
            dealer.curve_publickey, dealer.curve_secretkey = attempt.public_key, attempt.secret_key
            dealer.curve_serverkey = attempt.server_key
        began_ns = time.monotonic_ns()
        dealer.connect(serving.server.address)
        dealer.send_multipart([b"12345678", *encode(GetProgress())])

        def is_shown() -> bool:
            newest = list(serving.server.refused)[-8:]
            return any(peer.stamp_ns >= began_ns and attempt.reason in peer.reason for peer in newest)

        took_s = _wait(is_shown, 2 * SHOWN_WITHIN_S)
        return bool(dealer.poll(20)), took_s


def revoke_in_use(directory: Path, count: int) -> list[float]:
    """For each of `count` connected keys, how long it was still served after it was revoked."""
    keys = KeyStore(directory)
    keys.make("learner", Role.LEARNER)
    keys.make("edge", Role.EDGE)
    found = []
    with Serving(keys) as serving:
        for index in range(count):
            name = keys.make(f"edge-{index}", Role.EDGE).name
            with _client(keys, serving.server.address, name) as client:
                client.request(GetProgress(), 5.0)
                keys.revoke(name)
                found.append(_wait(lambda client=client: not _is_served(client), REVOKED_WITHIN_S))  # type: ignore[misc]
                before = serving.served
                if _is_served(client) or serving.served != before:
                    found[-1] = REVOKED_WITHIN_S
    return found


def _is_served(client: RequestClient[LearnerReply]) -> bool:
    try:
        client.request(GetProgress(), 1.0)
    except AuthenticationError:
        return False
    return True


@contextmanager
def _client(keys: KeyStore, address: str, name: str) -> Iterator[RequestClient[LearnerReply]]:
    client: RequestClient[LearnerReply] = RequestClient(SERVICE, address, keys, name, "learner", LearnerReply)
    with client:
        yield client


def _wait(condition: Callable[[], bool], limit_s: float) -> float:
    """Seconds until the condition held; infinity if it did not within the limit."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > limit_s:
            return float("inf")
        time.sleep(0.002)
    return time.monotonic() - began_s
