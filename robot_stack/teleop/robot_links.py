"""The other ways from the teleop server to one robot: its stop, its cameras."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from robot_stack.core.errors import CommandRefusedError, MessageError, RobotStackError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    CameraFrame,
    GetState,
    Hello,
    Ping,
    Pong,
    RobotInfo,
    RobotReply,
    RobotState,
    StopLevel,
    StopRobot,
)
from robot_stack.core.specs import IMAGES
from robot_stack.teleop.pictures import PictureBox
from robot_stack.teleop.seat_link import BestOffset
from robot_stack.teleop.threads import RETRY_S, LinkThread, Peer
from robot_stack.transport.client import RequestClient
from robot_stack.transport.services import SERVICES

CHECK_EVERY_S = 2.0
CHECK_TIMEOUT_S = 0.3
STOP_TIMEOUT_S = 0.5
STOP_TRIES = 10
PICTURE_TIMEOUT_S = 2.0
SAME_CLOCK_S = 2.0

Told = Callable[[str], None]
"""Called in the link's thread: why the robot could not be told to stop, or ''."""


def robot_client(peer: Peer) -> RequestClient[RobotReply]:
    return RequestClient(
        SERVICES["robot.request"], peer.address, peer.keys, peer.key_name, peer.server_key_name, RobotReply
    )


class StopLink(LinkThread):
    """The stop button's own way to the robot server: own thread, own connection, nothing else is ever sent on it
    but a short sign of life, which tells whether the button would work."""

    def __init__(self, robot: str, peer: Peer, level: StopLevel) -> None:
        super().__init__(f"stop of {robot}")
        self._peer, self._level = peer, level
        self._asked: deque[tuple[str, Told]] = deque()
        self._changed = threading.Condition()

    def stop(self, who: str, told: Told) -> None:
        """Stop the robot at once. `told` is called when it has been, or cannot be."""
        with self._changed:
            self._asked.append((who, told))
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _serve(self) -> None:
        with robot_client(self._peer) as client:
            self._check(client)
            while not self._end.is_set():
                with self._changed:
                    if not self._asked and not self._end.is_set():
                        self._changed.wait(RETRY_S if self.problem else CHECK_EVERY_S)
                asked = self._take()
                if asked:
                    self._tell(client, asked)
                else:
                    self._check(client)

    def _take(self) -> list[tuple[str, Told]]:
        with self._changed:
            asked, self._asked = list(self._asked), deque()
        return asked

    def _failed(self, words: str) -> None:
        for _, told in self._take():
            told(words)

    def _check(self, client: RequestClient[RobotReply]) -> None:
        try:
            client.request(Ping(), CHECK_TIMEOUT_S)
            self.problem = ""
        except RobotStackError as error:
            self.problem = str(error)

    def _tell(self, client: RequestClient[RobotReply], asked: list[tuple[str, Told]]) -> None:
        who = ", ".join(sorted({one for one, _ in asked}))
        problem = ""
        for _ in range(STOP_TRIES):
            try:
                client.request(StopRobot(reason=f"stop button of {who}", level=self._level), STOP_TIMEOUT_S)
            except RobotStackError as error:
                problem = str(error)
                if isinstance(error, CommandRefusedError) or self._end.is_set():
                    break
            else:
                problem = ""
                break
        self.problem = problem
        for _, told in asked:
            told(problem)


class RenderedCameras(LinkThread):
    """Cameras that the robot server renders on request: polled one after the other, while somebody looks."""

    def __init__(self, robot: str, peer: Peer, boxes: tuple[PictureBox, ...], rate_hz: float) -> None:
        super().__init__(f"cameras of {robot}")
        self._peer, self._boxes, self._period_s = peer, boxes, 1.0 / rate_hz
        self._clock = BestOffset()
        self._lock_step = False

    def _serve(self) -> None:
        with robot_client(self._peer) as client:
            hello = client.request(Hello(schema_version=SCHEMA_VERSION, peer=self._peer.key_name), PICTURE_TIMEOUT_S)
            self._lock_step = isinstance(hello, RobotInfo) and hello.lock_step
            for _ in range(5):
                sent_ns = time.monotonic_ns()
                pong = client.request(Ping(), PICTURE_TIMEOUT_S)
                if isinstance(pong, Pong):
                    self._clock.measured(sent_ns, pong.stamp_ns, time.monotonic_ns())
            while not self._end.is_set():
                began_s = time.monotonic()
                for box in self._boxes:
                    if box.wanted:
                        self._look(client, box)
                self.problem = ""
                self._end.wait(max(0.0, began_s + self._period_s - time.monotonic()))

    def _look(self, client: RequestClient[RobotReply], box: PictureBox) -> None:
        try:
            reply = client.request(GetState(cameras=(box.camera,)), PICTURE_TIMEOUT_S)
            if isinstance(reply, RobotState):
                came_ns = time.monotonic_ns()
                stamp_ns = came_ns if self._lock_step else min(came_ns, self._clock.to_local_ns(reply.stamp_ns))
                box.put(reply.features[IMAGES + box.camera], stamp_ns)
        except (CommandRefusedError, MessageError, KeyError) as error:
            box.problem = str(error)

    def _failed(self, words: str) -> None:
        for box in self._boxes:
            box.problem = words


def take_frame(box: PictureBox, frame: CameraFrame, came_ns: int) -> None:
    """Put a camera process's picture into its box. A stamp of another host's clock is replaced by the arrival."""
    if frame.fault or not frame.image.size:
        box.problem = frame.fault or f"camera '{box.camera}' sent an empty picture"
        return
    same_clock = abs(came_ns - frame.stamp_ns) < SAME_CLOCK_S * 1e9
    try:
        box.put(np.asarray(frame.image), min(came_ns, frame.stamp_ns) if same_clock else came_ns)
    except MessageError as error:
        box.problem = str(error)
