"""Requests and responses of the G1's services (`unitree_api`): encoding, and matching answers to calls without waiting.

A service is a pair of topics, `rt/api/<service>/request` and `rt/api/<service>/response`; a response carries the
request's id. Parameters and answers are JSON.
"""

from __future__ import annotations

import json
import struct
import time
from typing import Protocol

from msgspec import Struct

from hardware.unitree_g1.codec import ENCAPSULATION
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import MessageError

SPORT = "sport"
MOTION_SWITCHER = "motion_switcher"
SERVICES = (SPORT, MOTION_SWITCHER)

_REQUEST_HEAD = struct.Struct("<qqqiB3x")
_RESPONSE_HEAD = struct.Struct("<qqi")
_LENGTH = struct.Struct("<I")


class Request(Struct, frozen=True, kw_only=True):
    """One call. `id` is the caller's, `api_id` names the function, `parameter` is JSON or ''."""

    id: int
    api_id: int
    parameter: str = ""
    lease_id: int = 0
    priority: int = 0
    no_reply: bool = False
    binary: bytes = b""


class Response(Struct, frozen=True, kw_only=True):
    """One answer. `code` is 0 for success."""

    id: int
    api_id: int
    code: int = 0
    data: str = ""
    binary: bytes = b""


def encode_request(request: Request) -> bytes:
    head = _REQUEST_HEAD.pack(request.id, request.api_id, request.lease_id, request.priority, request.no_reply)
    return ENCAPSULATION + head + _tail(request.parameter, request.binary)


def decode_request(cdr: bytes) -> Request:
    """MessageError if the bytes are no Request."""
    try:
        request_id, api_id, lease_id, priority, no_reply = _REQUEST_HEAD.unpack_from(_payload(cdr), 0)
        parameter, binary = _read_tail(_payload(cdr), _REQUEST_HEAD.size)
    except (struct.error, UnicodeDecodeError) as error:
        raise MessageError(f"a request of {len(cdr)} bytes is damaged: {error}") from error
    return Request(
        id=request_id,
        api_id=api_id,
        parameter=parameter,
        lease_id=lease_id,
        priority=priority,
        no_reply=bool(no_reply),
        binary=binary,
    )


def encode_response(response: Response) -> bytes:
    head = _RESPONSE_HEAD.pack(response.id, response.api_id, response.code)
    return ENCAPSULATION + head + _tail(response.data, response.binary)


def decode_response(cdr: bytes) -> Response:
    """MessageError if the bytes are no Response."""
    try:
        response_id, api_id, code = _RESPONSE_HEAD.unpack_from(_payload(cdr), 0)
        data, binary = _read_tail(_payload(cdr), _RESPONSE_HEAD.size)
    except (struct.error, UnicodeDecodeError) as error:
        raise MessageError(f"a response of {len(cdr)} bytes is damaged: {error}") from error
    return Response(id=response_id, api_id=api_id, code=code, data=data, binary=binary)


def _payload(cdr: bytes) -> bytes:
    if cdr[:2] != ENCAPSULATION[:2]:
        raise MessageError(f"a message of {len(cdr)} bytes is not in little-endian CDR")
    return cdr[4:]


def _tail(text: str, binary: bytes) -> bytes:
    """A string with its closing zero, then a byte sequence; each length is aligned to four bytes, and so is the end."""
    encoded = text.encode() + b"\0"
    encoded += bytes(-len(encoded) % 4)
    length = _LENGTH.pack(len(text.encode()) + 1)
    return length + encoded + _LENGTH.pack(len(binary)) + binary + bytes(-len(binary) % 4)


def _read_tail(payload: bytes, offset: int) -> tuple[str, bytes]:
    (length,) = _LENGTH.unpack_from(payload, offset)
    start = offset + 4
    text = _slice(payload, start, length).rstrip(b"\0").decode()
    offset = start + length + -length % 4
    (size,) = _LENGTH.unpack_from(payload, offset)
    return text, _slice(payload, offset + 4, size)


def _slice(payload: bytes, start: int, length: int) -> bytes:
    if start + length > len(payload):
        raise MessageError(f"a message announces {length} bytes where {len(payload) - start} are left")
    return payload[start : start + length]


class RequestLink(Protocol):
    """What a caller needs of the network."""

    def send_request(self, service: str, cdr: bytes) -> None: ...

    def take_responses(self, service: str) -> list[bytes]:
        """Every response that arrived since the last call."""


class Call(Struct):
    """A call under way. `response` is None until it is answered; `failed` says why it never will be."""

    request: Request
    sent_ns: int
    tries_left: int
    response: Response | None = None
    failed: str = ""

    @property
    def done(self) -> bool:
        return self.response is not None or bool(self.failed)


class ServiceCaller:
    """Calls one service. `call` sends at once; `poll`, at every tick, takes answers, sends again what was not
    answered within `timeout_s`, and gives up after `tries`. Nothing waits. Ids count up from the time of creation, so
    they are this caller's own; responses to others' requests, and late ones, are ignored.
    """

    def __init__(self, link: RequestLink, service: str, *, timeout_s: float = 0.2) -> None:
        self._link = link
        self._service = service
        self._timeout_ns = s_to_ns(timeout_s)
        self._next_id = time.monotonic_ns()
        self._calls: dict[int, Call] = {}

    def call(self, api_id: int, parameter: dict[str, object], now_ns: int, *, tries: int = 1) -> Call:
        request = Request(id=self._next_id, api_id=api_id, parameter=json.dumps(parameter))
        self._next_id += 1
        call = Call(request=request, sent_ns=now_ns, tries_left=tries - 1)
        self._calls[request.id] = call
        self._link.send_request(self._service, encode_request(request))
        return call

    def poll(self, now_ns: int) -> None:
        for cdr in self._link.take_responses(self._service):
            self._take(cdr)
        for call in [call for call in self._calls.values() if now_ns - call.sent_ns > self._timeout_ns]:
            self._repeat_or_give_up(call, now_ns)

    def _take(self, cdr: bytes) -> None:
        try:
            response = decode_response(cdr)
        except MessageError:
            return
        call = self._calls.get(response.id)
        if call is not None and call.request.api_id == response.api_id:
            call.response = response
            del self._calls[response.id]

    def _repeat_or_give_up(self, call: Call, now_ns: int) -> None:
        if call.tries_left > 0:
            call.tries_left -= 1
            call.sent_ns = now_ns
            self._link.send_request(self._service, encode_request(call.request))
            return
        del self._calls[call.request.id]
        call.failed = f"the service '{self._service}' did not answer request {call.request.api_id} in time"
