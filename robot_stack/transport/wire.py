"""What goes over a socket, and the socket options that every end shares.

Layout on the wire (ZeroMQ multipart; every frame encrypted and authenticated by CURVE):

    request, as the client sends it   [request id][header][array]...
    reply                             [request id][header][array]...     the id of its request, repeated
    stream                            [header, sizes and arrays packed into one frame]

The request id is 8 bytes chosen by the client, unique on its connection. Header and arrays are those of
`robot_stack.core.codec`. A stream uses one frame because only then ZeroMQ can keep just the newest message
(ZMQ_CONFLATE), at both ends and with no work by the reader.

Caps: each frame before libzmq takes it in (a peer that sends a larger one is disconnected), then the sum of the
frames, then the codec's own checks; only then anything is decoded.

Threads: a socket belongs to one thread. An object of this package may be opened in one thread and handed to
another before its first use, and from then on is used there alone; `OneThread` enforces it.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Sequence

import zmq

from robot_stack.core.clock import NS_PER_S, s_to_ns
from robot_stack.core.codec import Buffer
from robot_stack.core.errors import ConfigError, MessageError, TransportError
from robot_stack.transport.services import Service

# `Failed.reason` of what the transport itself refuses; the words stand in `Failed.message`.
MALFORMED = "malformed"
ROLE = "role"
QUOTA = "quota"
REVOKED = "revoked"
OVERSIZED = "oversized"

REQUEST_ID_BYTES = 8

_FRAME_OVERHEAD_BYTES = 64  # what CURVE adds to a frame, rounded up
_HANDSHAKE_TIMEOUT_MIN_S = 5.0
_RECONNECT_MIN_S = 0.05
_RECONNECT_MAX_S = 0.5
_ADDRESS = re.compile(r"tcp://[A-Za-z0-9.\-]+:(\*|\d{1,5})")


def check_address(address: str) -> None:
    """ConfigError unless this is tcp://<host>:<port>; port 0 or * lets a server choose."""
    match = _ADDRESS.fullmatch(address)
    if match is None or (match[1] != "*" and int(match[1]) > 65535):
        raise ConfigError(f"'{address}' is no address; write tcp://<host>:<port>, for example tcp://127.0.0.1:7710")


def set_common_options(socket: zmq.Socket[bytes], service: Service, max_bytes: int) -> None:
    """Size cap, dead-link detection and reconnection; closing never waits for unsent messages."""
    link_timeout_ms = to_ms(service.link_timeout_s)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes + _FRAME_OVERHEAD_BYTES)
    # Three round trips: a link that may be silent for long, because it is bad, gets longer for them too.
    socket.setsockopt(zmq.HANDSHAKE_IVL, to_ms(max(_HANDSHAKE_TIMEOUT_MIN_S, service.link_timeout_s / 2)))
    socket.setsockopt(zmq.HEARTBEAT_IVL, link_timeout_ms // 4)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, link_timeout_ms)
    socket.setsockopt(zmq.RECONNECT_IVL, to_ms(_RECONNECT_MIN_S))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, to_ms(_RECONNECT_MAX_S))


def to_ms(duration_s: float) -> int:
    """Whole milliseconds, as ZeroMQ counts; rounded up, never negative."""
    return max(0, math.ceil(duration_s * 1000.0))


def check_size(frames: Sequence[Buffer], max_bytes: int) -> None:
    """MessageError if the frames together exceed the cap."""
    size = sum(memoryview(frame).nbytes for frame in frames)
    if size > max_bytes:
        raise MessageError(f"a message of {size} bytes is larger than the {max_bytes} bytes allowed here")


class OneThread:
    """Remembers the first thread that used a socket and refuses every other."""

    def __init__(self) -> None:
        self._owner: int | None = None

    def check(self) -> None:
        """TransportError when called from a second thread."""
        ident = threading.get_ident()
        if self._owner is None:
            self._owner = ident
        elif self._owner != ident:
            raise TransportError("a socket was used by a second thread; give each thread its own client or server")


class Throttle:
    """Lets each key pass at most once per period, so that a flood of refusals cannot flood the log."""

    _MAX_KEYS = 1024

    def __init__(self, period_s: float) -> None:
        self._period_ns = s_to_ns(period_s)
        self._passed_ns: dict[tuple[str, ...], int] = {}

    def allows(self, *key: str) -> bool:
        now_ns = time.monotonic_ns()
        last_ns = self._passed_ns.get(key)
        if last_ns is not None and now_ns - last_ns < self._period_ns:
            return False
        if len(self._passed_ns) >= self._MAX_KEYS:
            self._passed_ns.clear()
        self._passed_ns[key] = now_ns
        return True


class TokenBucket:
    """`rate` tokens per second, at most one second's worth saved up."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._filled_ns = time.monotonic_ns()

    def take(self, tokens: float = 1.0) -> bool:
        """Take so many tokens; False, and none taken, if there are fewer."""
        now_ns = time.monotonic_ns()
        self._tokens = min(self._rate, self._tokens + (now_ns - self._filled_ns) / NS_PER_S * self._rate)
        self._filled_ns = now_ns
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True
