"""A bad link in user space: a TCP proxy on loopback with delay, loss, bandwidth, connection resets and partition.

TCP repeats what is lost, so loss shows as delay: what is read at once is one flight of segments, and it is delivered
when its slowest segment has come through; each lost transmission costs one retransmission time-out (round trip +
200 ms, Linux's smallest). Bytes keep their order. A partition holds everything back in both directions, as TCP does
while it repeats in vain, and lets it go when it ends: the hardest case for what must not be late.
"""

from __future__ import annotations

import math
import selectors
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

SEGMENT_BYTES = 1448
WINDOW_BYTES = 64 * 1024
RETRANSMIT_S = 0.2
IDLE_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """The state of a link.

    Attributes:
        delay_s: one way, in each direction; `delay_back_s` where the way back differs.
        loss: probability that a transmission of a segment is lost.
        bandwidth_bytes_s: of each direction; 0: unlimited.
        reset_every_s: mean time between resets of a connection; 0: none.
        partitioned: nothing passes.
    """

    delay_s: float = 0.0
    delay_back_s: float | None = None
    loss: float = 0.0
    bandwidth_bytes_s: float = 0.0
    reset_every_s: float = 0.0
    partitioned: bool = False

    def one_way_s(self, *, back: bool) -> float:
        return self.delay_back_s if back and self.delay_back_s is not None else self.delay_s

    @property
    def round_trip_s(self) -> float:
        return self.one_way_s(back=False) + self.one_way_s(back=True)


FAIR = Weather()
PARTITIONED = Weather(partitioned=True)


@dataclass(slots=True)
class _Way:
    """One direction of one connection. `waiting`: (when it may be delivered, bytes), b"" for the end."""

    source: socket.socket
    target: socket.socket
    back: bool
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    free_s: float = 0.0
    ended: bool = False


@dataclass(slots=True)
class _Connection:
    near: socket.socket
    far: socket.socket
    ways: tuple[_Way, _Way]
    resets_at_s: float


class Proxy:
    """Passes connections to `address` on to `target` through the weather of the moment, in a thread of its own.

    Attributes:
        passed_bytes, connections, lost_segments, resets: counters.
    """

    def __init__(self, address: str, target: str, seed: int = 0) -> None:
        self.passed_bytes = 0
        self.connections = 0
        self.lost_segments = 0
        self.resets = 0
        self._weather = FAIR
        self._target = _endpoint(target)
        self._address = _endpoint(address)
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._cut = threading.Event()
        self._open: list[_Connection] = []
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(self._address, backlog=64)
        self._listener.setblocking(False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for connection in self._open:
            _reset(connection)
        self._listener.close()

    def set(self, weather: Weather) -> None:
        """From now on the link is like this; what is on its way already keeps its delay."""
        self._weather = weather

    def cut(self) -> None:
        """Reset every connection."""
        self._cut.set()

    # ---- the proxy's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._cut.is_set():
                self._cut.clear()
                self._reset(list(self._open))
            if self._weather.partitioned:
                time.sleep(IDLE_S)
                continue
            self._reset([one for one in self._open if time.monotonic() > one.resets_at_s])
            self._take_in()
            self._deliver()

    def _take_in(self) -> None:
        """Wait a little for new connections and new bytes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            for connection in self._open:
                for way in connection.ways:
                    if not way.ended and way.waiting_bytes < WINDOW_BYTES:
                        selector.register(way.source, selectors.EVENT_READ, (connection, way))
            for key, _ in selector.select(self._patience_s()):
                weather = self._weather  # of now, not of before the wait
                if weather.partitioned:
                    return
                if key.data is None:
                    self._accept(weather)
                else:
                    connection, way = key.data
                    self._read(connection, way, weather)

    def _patience_s(self) -> float:
        due = [way.waiting[0][0] for connection in self._open for way in connection.ways if way.waiting]
        return max(0.0, min([IDLE_S, *(at_s - time.monotonic() for at_s in due)]))

    def _accept(self, weather: Weather) -> None:
        near = self._listener.accept()[0]
        try:
            far = socket.create_connection(self._target, timeout=1.0)
        except OSError:  # nobody serves there
            near.close()
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lives_s = self._rng.exponential(weather.reset_every_s) if weather.reset_every_s else math.inf
        ways = (_Way(near, far, back=False), _Way(far, near, back=True))
        self._open.append(_Connection(near, far, ways, time.monotonic() + lives_s))
        self.connections += 1

    def _read(self, connection: _Connection, way: _Way, weather: Weather) -> None:
        try:
            data = way.source.recv(WINDOW_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._reset([connection])
            return
        now_s = time.monotonic()
        delay_s = weather.one_way_s(back=way.back) + self._stall_s(len(data), weather)
        way.free_s = max(way.free_s, now_s + delay_s)
        if weather.bandwidth_bytes_s:
            way.free_s += len(data) / weather.bandwidth_bytes_s
        way.waiting.append((way.free_s, data))
        way.waiting_bytes += len(data)
        way.ended = not data

    def _stall_s(self, size_bytes: int, weather: Weather) -> float:
        if weather.loss <= 0.0 or not size_bytes:
            return 0.0
        tries = self._rng.geometric(1.0 - weather.loss, math.ceil(size_bytes / SEGMENT_BYTES))
        self.lost_segments += int((tries - 1).sum())
        return float(tries.max() - 1) * (weather.round_trip_s + RETRANSMIT_S)

    def _deliver(self) -> None:
        for connection in list(self._open):
            try:
                for way in connection.ways:
                    self._send_due(way)
            except OSError:
                self._reset([connection])
                continue
            if any(way.ended and not way.waiting for way in connection.ways):
                self._open.remove(connection)
                connection.near.close()
                connection.far.close()

    def _send_due(self, way: _Way) -> None:
        while not self._weather.partitioned and way.waiting and way.waiting[0][0] <= time.monotonic():
            due_s, data = way.waiting.popleft()
            try:
                sent = way.target.send(data) if data else 0
            except BlockingIOError:
                sent = 0
                way.waiting.appendleft((due_s, data))
                return
            self.passed_bytes += sent
            way.waiting_bytes -= sent
            if sent < len(data):
                way.waiting.appendleft((due_s, data[sent:]))
                return

    def _reset(self, connections: list[_Connection]) -> None:
        for connection in connections:
            self._open.remove(connection)
            self.resets += 1
            _reset(connection)


def _reset(connection: _Connection) -> None:
    """Close both ends so that the peers see a reset, not an orderly end."""
    for end in (connection.near, connection.far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()


def _endpoint(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)
