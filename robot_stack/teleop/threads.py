"""Threads that own a transport client: they connect, come back after every error, and say what is wrong in words."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from robot_stack.core.errors import RobotStackError
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import Service
from robot_stack.transport.stream import Subscriber

logger = logging.getLogger(__name__)

RETRY_S = 1.0
WAIT_S = 0.2
SILENT_S = 1.0

MessageT = TypeVar("MessageT")


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a server is, and by which keys."""

    address: str
    keys: KeyStore
    key_name: str
    server_key_name: str


class LinkThread:
    """A thread of its own from `start` to `stop`. `problem`: what is wrong now, in words, or ''."""

    def __init__(self, name: str) -> None:
        self.problem = "not connected yet"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def __enter__(self) -> LinkThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._wake()
        self._thread.join()

    def _live(self) -> None:
        while not self._end.is_set():
            try:
                self._serve()
            except RobotStackError as error:
                if str(error) != self.problem:
                    logger.warning("%s: %s", self._thread.name, error)
                self._fail(str(error))
            except Exception as error:  # whatever it is: a stop button must not lose its thread
                logger.exception("%s", self._thread.name)
                self._fail(f"{self._thread.name}: {type(error).__name__}: {error}")

    def _fail(self, words: str) -> None:
        self.problem = words
        self._failed(words)
        self._end.wait(RETRY_S)

    def _serve(self) -> None:
        """Open the client and use it until `_end`; a RobotStackError is shown, and it is called again."""
        raise NotImplementedError

    def _failed(self, words: str) -> None:
        """What has to be let go of after an error."""

    def _wake(self) -> None:
        """End a wait of `_serve`."""


class Watcher(LinkThread, Generic[MessageT]):
    """Keeps the newest message of a stream.

    Args:
        take: called in the thread with every message and when it came (monotonic ns).
        every_s: messages are looked at no more often than this.
    """

    def __init__(
        self,
        name: str,
        service: Service,
        peer: Peer,
        message_type: type[MessageT] | Any,
        take: Callable[[MessageT, int], None],
        every_s: float,
    ) -> None:
        super().__init__(name)
        self._service, self._peer, self._type = service, peer, message_type
        self._take, self._every_s = take, every_s

    def _serve(self) -> None:
        peer = self._peer
        stream: Subscriber[MessageT] = Subscriber(
            self._service, peer.address, peer.keys, peer.key_name, peer.server_key_name, self._type
        )
        heard_s = time.monotonic()
        with stream:
            while not self._end.is_set():
                began_s = time.monotonic()
                message = stream.newest(WAIT_S)
                if message is not None:
                    heard_s = time.monotonic()
                    self._take(message, time.monotonic_ns())
                    self.problem = ""
                elif time.monotonic() - heard_s > SILENT_S:
                    self.problem = (
                        f"nothing from {self._service.name} at {peer.address} for {time.monotonic() - heard_s:.0f} s; "
                        f"is it running? Start it with: {self._service.start_with}"
                    )
                self._end.wait(max(0.0, began_s + self._every_s - time.monotonic()))


@dataclass(frozen=True, slots=True)
class Newest(Generic[MessageT]):
    """A message, and when it came (monotonic ns)."""

    message: MessageT
    came_ns: int

    @property
    def age_ms(self) -> float:
        return (time.monotonic_ns() - self.came_ns) / 1e6
