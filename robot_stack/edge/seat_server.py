"""The seat's end of the wire: a thread that answers teleop servers and publishes what they show.

It shares no lock with the control loop for longer than an assignment takes, and rests after a burst of requests: a
client that hangs or floods hardly costs the loop anything. Where this thread ends by itself, the seat is closed, and
the robot stops: nobody could tell it to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import SCHEMA_VERSION, Done, Failed, Hello, Ping, Pong
from robot_stack.core.seat import (
    Drive,
    Driven,
    GetSeat,
    KeepSeat,
    LabelEpisode,
    LeaveSeat,
    SceneReady,
    SeatReply,
    SeatRequest,
    TakeSeat,
)
from robot_stack.edge.seat import Seat
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.server import RequestServer
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher

logger = logging.getLogger(__name__)

POLL_S = 0.005
PUBLISH_EVERY_S = 0.02
_BURST, _REST_S = 16, 0.01
_NOT_YOURS = "the seat is not yours (any more); take it again"

OnLabel = Callable[[LabelEpisode], None]
"""Keeps a label; RobotStackError if it cannot be kept."""


class SeatServer:
    """Serves one seat while entered. The addresses are known once it is.

    Args:
        on_label: called in the server's thread.
    """

    def __init__(
        self, seat: Seat, request_address: str, state_address: str, keys: KeyStore, key_name: str, on_label: OnLabel
    ) -> None:
        self._seat, self._on_label = seat, on_label
        self._addresses = (request_address, state_address)
        self._keys, self._key_name = keys, key_name
        self._end = threading.Event()
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="seat", daemon=True)

    def __enter__(self) -> SeatServer:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    @property
    def addresses(self) -> tuple[str, str]:
        """Where it answers, and where it publishes; the chosen ports included."""
        return self._addresses

    def _run(self) -> None:
        requests: RequestServer[SeatRequest] = RequestServer(
            SERVICES["seat.request"], self._addresses[0], self._keys, self._key_name, SeatRequest
        )
        states = Publisher(SERVICES["seat.state"], self._addresses[1], self._keys, self._key_name)
        try:
            with requests, states:
                self._addresses = (requests.address, states.address)
                self._ready.set()
                self._serve(requests, states)
        except Exception as error:  # whatever it is: a robot that nobody can hold must not go on
            logger.exception("the operator's seat is closed")
            self._error = error
            self._seat.close(f"{type(error).__name__}: {error}; start the edge again")
        finally:
            self._ready.set()

    def _serve(self, requests: RequestServer[SeatRequest], states: Publisher) -> None:
        due_s = time.monotonic()
        while not self._end.is_set():
            asked = requests.poll(min(POLL_S, max(0.0, due_s - time.monotonic())))
            for request in asked:
                request.reply(self._answer(request.message))
            if len(asked) > _BURST:
                self._end.wait(_REST_S)
            now_s = time.monotonic()
            if now_s >= due_s:
                due_s = max(due_s + PUBLISH_EVERY_S, now_s)
                states.send(self._seat.read())

    def _answer(self, message: SeatRequest) -> SeatReply:
        seat = self._seat
        match message:
            case Ping():
                return Pong(stamp_ns=time.monotonic_ns())
            case Hello() if message.schema_version != SCHEMA_VERSION:
                text = f"{message.peer} speaks schema version {message.schema_version}, this edge {SCHEMA_VERSION}"
                return Failed(reason="schema_version", message=f"{text}; install the same release on both")
            case GetSeat() | Hello():
                return seat.info
            case TakeSeat():
                taken = seat.take(message.holder, by_force=message.by_force)
                return Failed(reason="taken", message=taken) if isinstance(taken, str) else taken
            case Drive():
                refusal, phase = seat.drive(message)
                return Driven(seq=message.seq, phase=phase, refusal=refusal)
            case KeepSeat():
                return Done() if seat.keep(message.session) else Failed(reason="no_seat", message=_NOT_YOURS)
            case LeaveSeat():
                return Done() if seat.leave(message.session) else Failed(reason="no_seat", message=_NOT_YOURS)
            case LabelEpisode() | SceneReady():
                return self._noted(message)

    def _noted(self, message: LabelEpisode | SceneReady) -> SeatReply:
        if not self._seat.keep(message.session):
            return Failed(reason="no_seat", message=_NOT_YOURS)
        if isinstance(message, SceneReady):
            self._seat.scene_ready()
            return Done()
        try:
            self._on_label(message)
        except RobotStackError as error:
            return Failed(reason="label", message=str(error))
        if message.reset_needed:
            self._seat.wait_for_scene()
        return Done()
