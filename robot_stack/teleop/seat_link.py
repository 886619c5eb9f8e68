"""The way from the teleop server to one edge's seat: one thread, one client, wishes in order, nothing old.

A newer drive takes the place of an older one that still waits. What waits when the connection is lost is refused, and
nothing that was not answered is ever sent again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from robot_stack.core.clock import ClockOffset
from robot_stack.core.errors import RobotStackError, UnreachableError
from robot_stack.core.messages import Done, Failed, Ping, Pong
from robot_stack.core.seat import (
    DRIVING,
    Drive,
    Driven,
    GetSeat,
    Intent,
    KeepSeat,
    LabelEpisode,
    LeaveSeat,
    SceneReady,
    SeatInfo,
    SeatReply,
    SeatRequest,
    SeatTaken,
    TakeSeat,
)
from robot_stack.teleop.threads import LinkThread, Peer
from robot_stack.transport.client import RequestClient
from robot_stack.transport.services import SERVICES

KEEP_EVERY_S = 0.5
PING_EVERY_S = 2.0
PINGS = 30
"""Clocks of two hosts drift: the offset is that of the best of so many newest pings."""
DRIVE_TIMEOUT_S = 0.5
TIMEOUT_S = 2.0
QUEUE = 16

Wish = TakeSeat | LeaveSeat | Drive | LabelEpisode | SceneReady
Answer = Callable[[SeatReply], None]
"""Called in the link's thread."""


@dataclass(slots=True)
class _Waiting:
    wish: Wish
    page: int
    answer: Answer


class BestOffset:
    """The distance to a peer's clock by the newest pings. One thread measures, any thread reads."""

    def __init__(self, pings: int = PINGS) -> None:
        self._pings: deque[ClockOffset] = deque(maxlen=pings)
        self._best = ClockOffset()
        self.trip_ms = -1.0

    def measured(self, sent_ns: int, peer_ns: int, received_ns: int) -> None:
        ping = ClockOffset()
        ping.update(sent_ns, peer_ns, received_ns)
        self._pings.append(ping)
        self.trip_ms = (received_ns - sent_ns) / 1e6
        self._best = min(self._pings, key=lambda one: one.error_ns)

    def forget(self) -> None:
        self._pings.clear()
        self._best, self.trip_ms = ClockOffset(), -1.0

    @property
    def known(self) -> bool:
        return bool(self._pings)

    def safe_deadline_ns(self, local_ns: int) -> int:
        """A deadline on the peer's clock; the offset's possible error makes it earlier, never later."""
        return self._best.to_peer_ns(local_ns) - self._best.error_ns

    def to_local_ns(self, peer_ns: int) -> int:
        return peer_ns - self._best.offset_ns


class SeatLink(LinkThread):
    """One edge's seat. `info` once it has answered.

    Args:
        lost: called in the thread when the seat, which this link had, is gone; in words.
    """

    def __init__(self, robot: str, peer: Peer, lost: Callable[[str], None]) -> None:
        super().__init__(f"seat of {robot}")
        self._peer, self._lost = peer, lost
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._session, self._holder = "", -1
        self._is_new = threading.Event()
        self._seq = 0
        self.clock = BestOffset()
        self.info: SeatInfo | None = None

    def ask(self, wish: Wish, page: int, answer: Answer) -> None:
        """Send this when its turn comes. `answer` is called once, except for a drive that a newer one replaced.

        Drives have their deadline on this host's clock; their session and number are filled in here.
        """
        refused = None
        with self._changed:
            last = self._waiting[-1] if self._waiting else None
            if last is not None and last.page == page and _streamed(last.wish) and _streamed(wish):
                self._waiting.pop()
            if len(self._waiting) >= QUEUE:
                refused = Failed(reason="busy", message="too many commands wait for the edge; this one was dropped")
            else:
                self._waiting.append(_Waiting(wish, page, answer))
                self._changed.notify()
        if refused is not None:
            answer(refused)

    def drop(self, page: int) -> None:
        """Forget what this page wanted: it is gone."""
        with self._changed:
            self._waiting = deque(waiting for waiting in self._waiting if waiting.page != page)

    def edge_is_new(self) -> None:
        """The edge was started again: what was known of it, and of its clock, is old."""
        self._is_new.set()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _next(self, timeout_s: float) -> _Waiting | None:
        with self._changed:
            if not self._waiting and not self._end.is_set():
                self._changed.wait(timeout_s)
            return self._waiting.popleft() if self._waiting else None

    def _serve(self) -> None:
        peer = self._peer
        service = SERVICES["seat.request"]
        client: RequestClient[SeatReply] = RequestClient(
            service, peer.address, peer.keys, peer.key_name, peer.server_key_name, SeatReply
        )
        with client:
            self._meet(client)
            pinged_s = kept_s = time.monotonic()
            while not self._end.is_set():
                if self._is_new.is_set():
                    self._meet(client)
                waiting = self._next(KEEP_EVERY_S / 4)
                if waiting is not None:
                    self._send(client, waiting)
                now_s = time.monotonic()
                if self._session and now_s - kept_s > KEEP_EVERY_S:
                    kept_s = now_s
                    self._keep(client)
                if now_s - pinged_s > PING_EVERY_S:
                    pinged_s = now_s
                    self._ping(client)
            if self._session:
                client.request(LeaveSeat(session=self._session), DRIVE_TIMEOUT_S, raise_failed=False)

    def _meet(self, client: RequestClient[SeatReply]) -> None:
        self._is_new.clear()
        info = client.request(GetSeat(), TIMEOUT_S)
        self.clock.forget()
        for _ in range(5):
            self._ping(client)
        if isinstance(info, SeatInfo):
            self.info = info
        self.problem = ""

    def _ping(self, client: RequestClient[SeatReply]) -> None:
        sent_ns = time.monotonic_ns()
        pong = client.request(Ping(), TIMEOUT_S)
        if isinstance(pong, Pong):
            self.clock.measured(sent_ns, pong.stamp_ns, time.monotonic_ns())

    def _keep(self, client: RequestClient[SeatReply]) -> None:
        reply = client.request(KeepSeat(session=self._session), TIMEOUT_S, raise_failed=False)
        if isinstance(reply, Failed):
            self._lose(reply.message)

    def _send(self, client: RequestClient[SeatReply], waiting: _Waiting) -> None:
        message = self._message(waiting)
        if isinstance(message, Failed):
            waiting.answer(message)
            return
        try:
            timeout_s = DRIVE_TIMEOUT_S if isinstance(message, Drive) else TIMEOUT_S
            reply = client.request(message, timeout_s, raise_failed=False)
        except RobotStackError as error:
            waiting.answer(Failed(reason="edge", message=str(error)))
            if isinstance(error, UnreachableError) and isinstance(message, Drive):
                return  # the robot stands still by itself; the next sign of life tells whether the seat is lost
            raise
        if isinstance(reply, SeatTaken):
            self._session, self._holder = reply.session, waiting.page
        elif isinstance(message, LeaveSeat):
            self._session = ""
        waiting.answer(reply)

    def _message(self, waiting: _Waiting) -> SeatRequest | Failed:
        """The wish as the edge reads it, or why it is not sent."""
        wish = waiting.wish
        if isinstance(wish, TakeSeat):
            return wish
        if not self._session or self._holder != waiting.page:
            return Failed(reason="no_seat", message="you do not have control of the robot (any more); take it first")
        if not isinstance(wish, Drive):
            return replace(wish, session=self._session)
        late_ms = (time.monotonic_ns() - wish.deadline_ns) / 1e6
        if late_ms >= 0.0 and wish.intent is not Intent.HOLD:
            return Failed(reason="late", message=f"the command came {late_ms:.0f} ms too late and was dropped")
        self._seq += 1
        deadline_ns = self.clock.safe_deadline_ns(wish.deadline_ns)
        return replace(wish, session=self._session, seq=self._seq, deadline_ns=deadline_ns)

    def _lose(self, words: str) -> None:
        if self._session:
            self._session = ""
            self._lost(words)

    def _failed(self, words: str) -> None:
        with self._changed:
            dropped, self._waiting = self._waiting, deque()
        for waiting in dropped:
            waiting.answer(Failed(reason="edge", message=words))
        self._lose(words)


def _streamed(wish: Wish) -> bool:
    return isinstance(wish, Drive) and wish.intent in DRIVING


def words_of(reply: SeatReply) -> str:
    """Why a wish was refused, or ''."""
    if isinstance(reply, Failed):
        return reply.message
    if isinstance(reply, Driven):
        return reply.refusal
    return "" if isinstance(reply, (Done, SeatTaken)) else f"the edge answered with {type(reply).__name__}"
