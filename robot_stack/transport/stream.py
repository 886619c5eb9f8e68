"""Streams: one publisher, any number of watchers, each of which sees the newest message only.

A watcher that stalls costs the publisher nothing, and when it comes back it gets the newest message, not a queue
of old ones. Wire layout, caps and thread rules: see `wire.py`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from types import TracebackType
from typing import Any, Generic, TypeVar

import zmq

from robot_stack.core.codec import pack, unpack
from robot_stack.core.errors import RobotStackError
from robot_stack.transport.gate import BoundSocket, RefusedPeer
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.link import Link
from robot_stack.transport.services import Service
from robot_stack.transport.wire import OneThread, Throttle, check_size

_log = logging.getLogger(__name__)

MessageT = TypeVar("MessageT")


class Publisher:
    """Sends one stream.

    A publisher gets no messages from its watchers, so there is nothing to check a revoked key against. Instead, when
    the key of a watcher is revoked, the socket is closed and bound again: the others reconnect in a fraction of a
    second, the revoked one is refused.
    """

    def __init__(self, service: Service, address: str, keys: KeyStore, key_name: str) -> None:
        self._service = service
        self._address = address
        self._bound = BoundSocket(zmq.PUB, service, keys, key_name)
        self._thread = OneThread()
        self._throttle = Throttle(period_s=1.0)
        self._rebinding = False

    def __enter__(self) -> Publisher:
        self._bound.open(self._address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rebinding = False
        self._bound.close()

    @property
    def address(self) -> str:
        return self._bound.address

    @property
    def refused(self) -> deque[RefusedPeer]:
        """The newest peers that were not let in."""
        return self._bound.refusals.peers

    @property
    def refused_count(self) -> int:
        return self._bound.refusals.count

    def send(self, message: object) -> None:
        """Send to whoever watches; never waits for a watcher. MessageError if the message is too large."""
        self._thread.check()
        blob = pack(message)
        check_size([blob], self._service.max_message_bytes)
        if self._bound.gate.admitted_was_revoked:
            self._rebinding = True
            self._bound.close()
        if self._rebinding and not self._rebind():
            return
        self._bound.socket.send(blob, zmq.NOBLOCK, copy=False)

    def _rebind(self) -> bool:
        try:
            self._bound.open(self._bound.address)
        except RobotStackError as error:
            if self._throttle.allows("rebind"):
                _log.error("%s cannot be opened again after a key was revoked: %s", self._service.name, error)
            return False
        self._rebinding = False
        return True


class Subscriber(Generic[MessageT]):
    """Watches one stream from one thread; reconnects by itself."""

    def __init__(
        self,
        service: Service,
        address: str,
        keys: KeyStore,
        key_name: str,
        server_key_name: str,
        message_type: type[MessageT] | Any,
    ) -> None:
        self._service = service
        self._message_type = message_type
        self._link = Link(zmq.SUB, service, address, keys, key_name, server_key_name)

    def __enter__(self) -> Subscriber[MessageT]:
        self._link.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def newest(self, timeout_s: float) -> MessageT | None:
        """The newest message not yet returned; waits up to `timeout_s` for one, then None.

        Raises:
            AuthenticationError: the publisher refused our key, or showed another key than the one we know.
            MessageError: the message is malformed or of another schema version.
        """
        frames = self._link.receive(time.monotonic() + timeout_s)
        if frames is None:
            self._link.raise_if_refused()
            return None
        message: MessageT = unpack(frames[0], self._message_type)
        return message
