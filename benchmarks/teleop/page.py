"""A page without a browser: a real WebSocket to a real teleop server, with the times of what it sends and gets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import httpx
import simplejpeg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin

from benchmarks.teleop.taps import moves_of
from robot_stack.teleop.pictures import HEADER

VALID_S = 0.3
PATIENCE_S = 20.0
ROBOT = "franka_0"
CAMERA = "front"


def log_in(url: str, token: str) -> str:
    """The cookie of a new log-in."""
    with httpx.Client(base_url=url, headers={"Origin": url.rstrip("/")}) as client:
        reply = client.post("/api/login", json={"token": token})
        reply.raise_for_status()
        return client.cookies["teleop"]


def socket_address(url: str) -> str:
    return url.rstrip("/").replace("http", "ws", 1) + "/ws"


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture: number, when it was taken, and when it was here as pixels (monotonic ns)."""

    number: int
    taken_ns: int
    here_ns: int


@dataclass
class Page:
    """Logged in, talking and acknowledging while entered. `sent_ns`: when each numbered input was sent; `pictures` in
    order; `refusals`: of what was sent, in words."""

    url: str
    cookie: str
    sent_ns: dict[int, int] = field(default_factory=dict)
    pictures: list[Seen] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    state: dict[str, object] = field(default_factory=dict)
    number: int = -1
    _seq: int = 0
    _opened: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Page:
        base = self.url.rstrip("/")
        self._socket = self._opened.enter_context(
            connect(
                socket_address(self.url),
                additional_headers={"Cookie": f"teleop={self.cookie}"},
                origin=Origin(base),
                compression=None,
                close_timeout=0.5,
            )
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(lambda: self.number >= 0, "a welcome")
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        self._reader.join(5.0)

    def watch(self) -> None:
        self._send("watch", cameras=[CAMERA])
        self._wait(lambda: bool(self.state and self.pictures), "a state and a picture")

    def take(self) -> None:
        """Take control, and have the robot stand still."""
        self._send("take")
        self._wait(lambda: self._control() == self.number, "control")
        self.hold()
        self._wait(lambda: self._phase() == "paused", "a robot that stands still")

    def leave(self) -> None:
        self.hold()
        self._send("leave")

    def hold(self) -> int:
        """Stand still; when that was sent."""
        sent_ns = time.monotonic_ns()
        self._drive("hold", {})
        return sent_ns

    def drive(self, number: int) -> None:
        self.sent_ns[number] = time.monotonic_ns()
        self._drive("correct", moves_of(number))

    def _drive(self, intent: str, moves: dict[str, float]) -> None:
        self._seq += 1
        deadline_us = (time.monotonic_ns() + round(VALID_S * 1e9)) // 1000
        self._send("drive", seq=self._seq, deadline_us=deadline_us, intent=intent, moves=moves)

    def _send(self, kind: str, **fields: object) -> None:
        self._socket.send(json.dumps({"type": kind, "robot": ROBOT, **fields}))

    def _read(self) -> None:
        with suppress(ConnectionClosed):
            for message in self._socket:
                self._take_in(message)

    def _take_in(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            _, robot_size, camera_size, _, number, taken_us = HEADER.unpack_from(message)
            simplejpeg.decode_jpeg(message[HEADER.size + robot_size + camera_size :], colorspace="RGB")
            self.pictures.append(Seen(number, round(taken_us * 1e3), time.monotonic_ns()))
            self._socket.send(json.dumps({"type": "ack", "camera": CAMERA, "number": number}))
            return
        content = json.loads(message)
        if content["type"] == "state":
            self.state = content
            self._socket.send(json.dumps({"type": "ack", "number": content["number"]}))
        elif content["type"] == "welcome":
            self.number = content["page"]
        elif content["type"] == "driven" and content["refusal"]:
            self.refusals.append(content["refusal"])
        elif content["type"] == "notice" and content["level"] == "error":
            self.refusals.append(content["text"])

    def _control(self) -> object:
        control = self.state.get("control")
        return control["page"] if isinstance(control, dict) else -1

    def _phase(self) -> object:
        seat = self.state.get("seat")
        return seat["phase"] if isinstance(seat, dict) else ""

    def _wait(self, found: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not found():
            if time.monotonic() > until_s:
                raise SystemExit(f"the page waited {PATIENCE_S:.0f} s for {what}; refused: {self.refusals[-3:]}")
            time.sleep(0.01)
