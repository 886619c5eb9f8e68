"""The serving end of a request service: only authenticated, permitted, well-formed requests get through.

Wire layout, caps and thread rules: see `wire.py`. Nothing that a peer sends makes `poll` raise.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import zmq

from robot_stack.core.codec import decode, encode
from robot_stack.core.errors import MessageError
from robot_stack.core.messages import Failed
from robot_stack.transport.gate import BoundSocket, Peer, RefusedPeer
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.services import Service
from robot_stack.transport.wire import (
    MALFORMED,
    OVERSIZED,
    QUOTA,
    REQUEST_ID_BYTES,
    REVOKED,
    ROLE,
    OneThread,
    Throttle,
    TokenBucket,
    check_size,
    to_ms,
)

_log = logging.getLogger(__name__)
_audit = logging.getLogger("robot_stack.audit")

_KEPT_FRAMES = 1100  # more than the codec takes: what lies beyond is dropped unread
_FRAMES_AT_ONCE = 8192
_POLL_BUDGET_NS = 25_000_000
_MAX_WORDS = 400

RequestT = TypeVar("RequestT")


class _Quota:
    """What one peer may still ask for: requests and bytes per second."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._requests = TokenBucket(service.quota_hz)
        self._bytes = TokenBucket(service.quota_bytes_per_s)

    def why_refused(self, size_bytes: int) -> str:
        """Empty if there was room for this request, which is then counted."""
        if not self._requests.take():
            return f"more than {self._service.quota_hz:g} requests per second; send fewer"
        if not self._bytes.take(size_bytes):
            return f"more than {self._service.quota_bytes_per_s:g} bytes per second; send less"
        return ""


@dataclass(frozen=True, slots=True)
class Request(Generic[RequestT]):
    """A request that passed every check. `peer` and `role` come from the peer's key, not from the message."""

    message: RequestT
    peer: str
    role: Role
    _answer: Callable[[object], None] = field(repr=False)

    def reply(self, message: object) -> None:
        """Answer, once, from the server's own thread. Never blocks; a peer that has left gets nothing."""
        self._answer(message)


class RequestServer(Generic[RequestT]):
    """Answers requests of one service.

    Attributes:
        address: where it listens, the chosen port included.
        counts: refused requests by reason (`malformed`, `role`, `quota`, `revoked`) and `oversized` replies.
    """

    def __init__(
        self, service: Service, address: str, keys: KeyStore, key_name: str, request_type: type[RequestT] | Any
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._service = service
        self._asked_address = address
        self._request_type = request_type
        self._bound = BoundSocket(zmq.ROUTER, service, keys, key_name)
        self._quotas: dict[str, _Quota] = {}
        self._partial: list[zmq.Frame] = []
        self._throttle = Throttle(period_s=1.0)
        self._thread = OneThread()

    def __enter__(self) -> RequestServer[RequestT]:
        self._partial = []
        self._bound.open(self._asked_address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def poll(self, timeout_s: float) -> list[Request[RequestT]]:
        """Wait up to `timeout_s` for the first message, then take what is there, `service.queue` messages at most.

        Returns early once it has computed for `_POLL_BUDGET_NS`; the rest is there at the next call.
        """
        self._thread.check()
        socket = self._bound.socket
        requests: list[Request[RequestT]] = []
        if not socket.poll(to_ms(timeout_s)):
            return requests
        until_ns = time.thread_time_ns() + _POLL_BUDGET_NS
        for _ in range(self._service.queue):
            frames = self._receive(socket)
            if frames is None:
                break
            request = self._admit(frames)
            if request is not None:
                requests.append(request)
            if time.thread_time_ns() > until_ns:
                break
        return requests

    def _receive(self, socket: zmq.Socket[bytes]) -> list[zmq.Frame] | None:
        """The frames of the next message; None if there is none, or too much of it for one call.

        A peer may send a message of millions of frames. Their rest is dropped, over several calls if need be.
        """
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            if len(self._partial) < _KEPT_FRAMES:
                self._partial.append(frame)
            if not frame.more:
                frames, self._partial = self._partial, []
                return frames
        return None

    def _admit(self, frames: list[zmq.Frame]) -> Request[RequestT] | None:
        """Every check, cheapest first; None if one failed, and then it has been answered."""
        self._bound.gate.heard_from(frames[0])
        request_id = frames[1].bytes[:_MAX_WORDS] if len(frames) > 1 else b""
        answer = partial(self._send, frames[0].bytes, request_id[:REQUEST_ID_BYTES])
        peer = self._peer(frames[0])
        if peer is None:
            self._refuse(answer, "?", REVOKED, "this key is no longer authorised (robot-stack keys list)")
            return None
        payload = [frame.buffer for frame in frames[2:]]
        words = self._quotas.setdefault(peer.name, _Quota(self._service)).why_refused(sum(map(len, frames)))
        if words:
            self._refuse(answer, peer.name, QUOTA, words)
            return None
        try:
            if len(request_id) != REQUEST_ID_BYTES:
                raise MessageError(f"the request id has {len(request_id)} bytes, not {REQUEST_ID_BYTES}")
            check_size(payload, self._service.max_message_bytes)
            message: RequestT = decode(payload, self._request_type)
        except MessageError as error:
            self._refuse(answer, peer.name, MALFORMED, str(error))
            return None
        if not self._service.may_send(peer.role, type(message).__name__):
            self._refuse_role(answer, peer, type(message).__name__)
            return None
        return Request(message, peer.name, peer.role, answer)

    def _peer(self, frame: zmq.Frame) -> Peer | None:
        try:
            user_id, address = str(frame.get("User-Id")), str(frame.get("Peer-Address"))
        except zmq.ZMQError:  # no such property: it cannot have passed the gate
            return None
        peer = self._bound.gate.peer(user_id)
        if peer is None:
            self._bound.refusals.add(address, f"its key {user_id} was revoked while it was connected")
        return peer

    def _refuse(self, answer: Callable[[object], None], peer: str, reason: str, words: str) -> None:
        self.counts[reason] += 1
        words = words if len(words) <= _MAX_WORDS else f"{words[:_MAX_WORDS]}..."  # they may quote the message
        if self._throttle.allows(peer, reason):
            _log.warning("%s refused a request of '%s' (%s): %s", self._service.name, peer, reason, words)
        answer(Failed(reason=reason, message=words))

    def _refuse_role(self, answer: Callable[[object], None], peer: Peer, asked: str) -> None:
        self.counts[ROLE] += 1
        _audit.warning("%s: '%s' (%s) asked for %s: refused", self._service.name, peer.name, peer.role.value, asked)
        allowed = ", ".join(sorted(self._service.requests.get(peer.role, ())))
        words = f"the role {peer.role.value} of '{peer.name}' may not send {asked}; it may send: {allowed}"
        answer(Failed(reason=ROLE, message=words))

    def _send(self, routing: bytes, request_id: bytes, message: object) -> None:
        self._thread.check()
        frames = encode(message)
        try:
            check_size(frames, self._service.max_reply_bytes)
        except MessageError as error:
            self.counts[OVERSIZED] += 1
            _log.error("%s: a reply of type %s was not sent: %s", self._service.name, type(message).__name__, error)
            frames = encode(Failed(reason=OVERSIZED, message=f"the reply is too large: {error}"))
        # Copied: the caller may overwrite its arrays as soon as this returns. A ROUTER drops, it does not block.
        self._bound.socket.send_multipart([routing, request_id, *frames], zmq.NOBLOCK, copy=True)
