"""One browser page: what it watches, what it still has to be told, and how much it may say."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

from robot_stack.teleop.access import Session
from robot_stack.teleop.messages import Driven, Notice, ToPage, encode_for_page
from robot_stack.teleop.pictures import Flow, Picture
from robot_stack.transport.wire import TokenBucket

MAX_REPLIES = 64
MALFORMED_COSTS = 20.0
MAX_DROPPED = 500


class Pictures(Protocol):
    """A camera's box."""

    @property
    def newest(self) -> Picture | None: ...


class Page:
    """One WebSocket. Used by the event loop's thread alone; whoever writes takes from `texts` and `pictures`."""

    def __init__(self, number: int, session: Session, cookie: str, address: str, rate_hz: float) -> None:
        self.number, self.session, self.cookie, self.address = number, session, cookie, address
        self.robot = ""
        self.wake = asyncio.Event()
        self.last_seq = -1
        self.last_audit = ""
        self.dropped = 0
        self.heard_s = time.monotonic()
        self.card: object = None
        self._bucket = TokenBucket(rate_hz)
        self._replies: deque[str] = deque()
        self._driven: Driven | None = None
        self._state: tuple[int, str] = (0, "")
        self._state_flow = Flow()
        self._cameras: dict[str, tuple[Pictures, Flow]] = {}

    def watch(self, robot: str, cameras: dict[str, Pictures]) -> None:
        """From now on this robot and these cameras, from their newest."""
        self.robot, self.card = robot, None
        self._state, self._state_flow = (0, ""), Flow()
        self._cameras = {name: (box, Flow()) for name, box in cameras.items()}

    def may_speak(self, cost: float = 1.0) -> bool:
        """Whether one more message is taken from this page now."""
        if self._bucket.take(cost):
            return True
        self.dropped += 1
        return False

    @property
    def floods(self) -> bool:
        return self.dropped > MAX_DROPPED

    def tell(self, message: ToPage) -> None:
        """Say this when the page can take it; of drives the newest answer only. A page that never reads loses it."""
        if isinstance(message, Driven):
            self._driven = message
        elif len(self._replies) < MAX_REPLIES:
            self._replies.append(encode_for_page(message))
        self.wake.set()

    def refuse(self, text: str, about: str = "", robot: str = "") -> None:
        self.tell(Notice(level="error", text=text, about=about, robot=robot))

    def show(self, number: int, state: str) -> None:
        """The newest state, in the place of one that was not sent yet."""
        self._state = (number, state)

    def acknowledged(self, camera: str, number: int) -> None:
        if not camera:
            self._state_flow.taken(number)
        elif camera in self._cameras:
            self._cameras[camera][1].taken(number)
        self.wake.set()

    def texts(self) -> list[str]:
        """What is to be sent now, in order."""
        texts = list(self._replies)
        self._replies.clear()
        if self._driven is not None:
            texts.append(encode_for_page(self._driven))
            self._driven = None
        number, state = self._state
        if number and self._state_flow.admits(number):
            texts.append(state)
        return texts

    def pictures(self) -> list[bytes]:
        """The newest of each camera, where the page can take one."""
        found = []
        for box, flow in self._cameras.values():
            picture = box.newest
            if picture is not None and flow.admits(picture.number):
                found.append(picture.data)
        return found
