"""The asking end of a request service. Wire layout, caps and thread rules: see `wire.py`."""

from __future__ import annotations

import struct
import time
from types import TracebackType
from typing import Any, Generic, TypeVar

import zmq

from robot_stack.core.codec import decode, encode
from robot_stack.core.errors import AuthenticationError, CommandRefusedError, UnreachableError
from robot_stack.core.messages import Failed, Hello
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.link import Link
from robot_stack.transport.services import Service
from robot_stack.transport.wire import REVOKED, check_size

ReplyT = TypeVar("ReplyT")


class RequestClient(Generic[ReplyT]):
    """Asks one server, one request at a time, from one thread.

    Can be used again after every error: it reconnects when the server comes back, and a late reply to a request
    that was given up is dropped. A request that was given up may still be carried out if it had reached a live
    connection; it cannot arrive later than the service's `link_timeout_s`, and never after a reconnect.
    """

    def __init__(
        self,
        service: Service,
        address: str,
        keys: KeyStore,
        key_name: str,
        server_key_name: str,
        reply_type: type[ReplyT] | Any,
    ) -> None:
        self._service = service
        self._reply_type = reply_type
        self._link = Link(zmq.DEALER, service, address, keys, key_name, server_key_name)
        self._last_id = 0

    def __enter__(self) -> RequestClient[ReplyT]:
        self._link.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def request(self, message: object, timeout_s: float, raise_failed: bool = True) -> ReplyT:
        """Send `message` and wait for its reply. Arrays of the reply are read-only.

        Raises:
            UnreachableError: no answer within `timeout_s`, or the connection was lost while we waited for it.
            AuthenticationError: the server refused our key (at once), or showed another key than the one we know.
            CommandRefusedError: it answered `Failed`, unless `raise_failed` is False: then that is returned.
            MessageError: the message is too large, or the reply is malformed.
        """
        deadline_s = time.monotonic() + timeout_s
        frames = encode(message)
        check_size(frames, self._service.max_message_bytes)
        self._last_id += 1
        request_id = struct.pack("<Q", self._last_id)
        if not self._link.send([request_id, *frames], deadline_s):
            self._link.raise_if_refused()
            raise self._link.unreachable(timeout_s)
        reply = self._receive(request_id, deadline_s, timeout_s, self._link.losses)
        if isinstance(reply, Failed) and reply.reason == REVOKED:
            raise AuthenticationError(f"{self._service.name} refused the request: {reply.message}")
        if isinstance(reply, Failed) and raise_failed:
            raise CommandRefusedError(reply.reason, reply.message)
        return reply

    def greet(self, hello: Hello, patience_s: float) -> ReplyT:
        """The first request to a server that may be starting, for up to `patience_s`: asked again when the connection
        is lost meanwhile. Errors as of `request`."""
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                return self.request(hello, max(0.0, deadline_s - time.monotonic()))
            except UnreachableError:
                if time.monotonic() >= deadline_s:
                    raise self._link.unreachable(patience_s) from None

    def _receive(self, request_id: bytes, deadline_s: float, timeout_s: float, losses: int) -> ReplyT:
        while True:
            frames = self._link.receive(deadline_s, losses)
            if frames is None:
                self._link.raise_if_refused()
                raise self._link.unreachable(timeout_s)
            if frames[0] != request_id:
                continue  # the late reply to a request that was given up
            check_size(frames[1:], self._service.max_reply_bytes)
            reply: ReplyT = decode(frames[1:], self._reply_type)
            return reply
