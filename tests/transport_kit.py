"""What the transport tests share: a key store with one key per role, and a server that answers in a thread."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from robot_stack.core.messages import (
    Command,
    CommandResult,
    GetState,
    Lifecycle,
    Ping,
    Pong,
    RobotReply,
    RobotRequest,
    RobotState,
    Verdict,
)
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.server import Request, RequestServer
from robot_stack.transport.services import SERVICES, Service

ROBOT = SERVICES["robot.request"]
LOOPBACK = "tcp://127.0.0.1:*"


def make_keys(directory: Path) -> KeyStore:
    keys = KeyStore(directory / "keys")
    for role in Role:
        keys.make(role.value, role)
    return keys


def state(seq: int = 0) -> RobotState:
    features = {"observation.state": np.arange(7, dtype=np.float32) + seq}
    return RobotState(boot="b", seq=seq, stamp_ns=time.monotonic_ns(), lifecycle=Lifecycle.ACTIVE, features=features)


def command(action: np.ndarray, seq: int = 1) -> Command:
    return Command(session="s", seq=seq, deadline_ns=2**62, action=action)


def answer(request: Request[RobotRequest]) -> None:
    message = request.message
    if isinstance(message, Command):
        request.reply(
            CommandResult(
                seq=message.seq, verdict=Verdict.ACCEPTED, refusal=None, message=request.peer, sent=message.action
            )
        )
    elif isinstance(message, GetState):
        request.reply(state())
    else:
        request.reply(Pong(stamp_ns=7))


class Serving:
    """A robot.request server that polls in its own thread and keeps every message that reached it."""

    def __init__(
        self,
        keys: KeyStore,
        address: str = LOOPBACK,
        handler: Callable[[Request[RobotRequest]], None] = answer,
        service: Service = ROBOT,
    ) -> None:
        self.server: RequestServer[RobotRequest] = RequestServer(service, address, keys, "robot", RobotRequest)
        self.messages: list[object] = []
        self._handler = handler
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
            for request in self.server.poll(0.01):
                self.messages.append(request.message)
                self._handler(request)


def client(keys: KeyStore, address: str, key: str = "edge", server_key: str = "robot") -> RequestClient[RobotReply]:
    return RequestClient(ROBOT, address, keys, key, server_key, RobotReply)


def ping(asking: RequestClient[RobotReply], timeout_s: float = 5.0) -> RobotReply:
    return asking.request(Ping(), timeout_s)


def eventually(condition: Callable[[], bool], within_s: float) -> bool:
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def service_with(service: Service, **changes: object) -> Service:
    fields = {f.name: getattr(service, f.name) for f in dataclasses.fields(service) if f.init}
    return Service(**{**fields, **changes})  # type: ignore[arg-type]
