"""What the teleop tests share: a simulated robot behind its server on the wall clock, an edge with a seat and a still
policy, a recorder into a list, and a teleop server before them."""

from __future__ import annotations

import json
import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from msgspec.structs import replace
from websockets.sync.client import connect
from websockets.typing import Origin

from robot_stack.config.robots.base import Setting
from robot_stack.config.robots.franka import FrankaConfig
from robot_stack.core.clock import ManualClock, s_to_ns
from robot_stack.core.errors import CommandRefusedError, RobotFaultError, RobotStackError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    Command,
    CommandResult,
    Done,
    Failed,
    FloatArray,
    GetState,
    Hello,
    Lifecycle,
    Observation,
    Pong,
    Refusal,
    RobotInfo,
    RobotReply,
    RobotRequest,
    RobotState,
    Source,
    Step,
    StopLevel,
    StopRobot,
)
from robot_stack.core.seat import LabelEpisode
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, NoCorrection
from robot_stack.edge.operator import Interventions, Parts, Rule
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.remote_robot import Begun, Stepped
from robot_stack.edge.seat import Seat
from robot_stack.edge.seat_server import SeatServer
from robot_stack.safety.guard import RobotGuard
from robot_stack.teleop.config import CameraSource, Skeleton, SkeletonLink, TeleopConfig, TeleopRobot
from robot_stack.teleop.pictures import HEADER
from robot_stack.teleop.robot import Status
from robot_stack.teleop.server import TeleopServer
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.server import RequestServer
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher
from tests.transport_kit import make_keys

CAMERA = "front"
Sent = dict[str, Any]
T = TypeVar("T")
LOOPBACK = "tcp://127.0.0.1:*"
MAX_STEPS = 400
HALF = math.pi / 2

FR3_SKELETON = Skeleton(
    links=(
        SkeletonLink(name="link1", joint="fr3_joint1_rad", origin_m=(0, 0, 0.333)),
        SkeletonLink(name="link2", parent="link1", joint="fr3_joint2_rad", origin_rpy_rad=(-HALF, 0, 0)),
        SkeletonLink(
            name="link3", parent="link2", joint="fr3_joint3_rad", origin_m=(0, -0.316, 0), origin_rpy_rad=(HALF, 0, 0)
        ),
        SkeletonLink(
            name="link4", parent="link3", joint="fr3_joint4_rad", origin_m=(0.0825, 0, 0), origin_rpy_rad=(HALF, 0, 0)
        ),
        SkeletonLink(
            name="link5",
            parent="link4",
            joint="fr3_joint5_rad",
            origin_m=(-0.0825, 0.384, 0),
            origin_rpy_rad=(-HALF, 0, 0),
        ),
        SkeletonLink(name="link6", parent="link5", joint="fr3_joint6_rad", origin_rpy_rad=(HALF, 0, 0)),
        SkeletonLink(
            name="link7", parent="link6", joint="fr3_joint7_rad", origin_m=(0.088, 0, 0), origin_rpy_rad=(HALF, 0, 0)
        ),
        SkeletonLink(name="tool", parent="link7", origin_m=(0, 0, 0.2104)),
    )
)


class StillPolicy:
    """Proposes to stand still, or to move one element by a share of its reach. What a `Proposer` is."""

    version = 3
    source = Source.POLICY

    def __init__(self, spec: RobotSpec) -> None:
        self._action = np.zeros(spec.action.shape, np.float32)
        self.begun = 0

    def begin(self, episode_seed: int) -> None:
        self.begun += 1

    def at_boundary(self, index: int) -> bool:
        return True

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        return self._action


class PacedRobot:
    """The simulated Franka behind its safety filter, in this process: no control period is shorter than on the wall
    clock, but on a busy machine it may be longer, and simulated time then waits. Thread-safe.

    Episodes are long enough for a person, or for a browser. A stop latches a fault, until `clear`.
    """

    def __init__(self) -> None:
        self._robot = FrankaConfig().simulated(Setting("peg_insertion"))
        self._clock = ManualClock()
        self._lock = threading.RLock()
        self.guard = RobotGuard(self._robot, self._clock)
        self.spec = replace(self._robot.spec, max_episode_steps=MAX_STEPS)
        self._ticks = round(self.spec.tick_rate_hz / self.spec.control_rate_hz)
        self._seq = 0
        self._due_s = 0.0
        self.image = np.zeros((64, 64, 3), np.uint8)
        self.stops: list[str] = []
        self.ending = False

    def connect(self) -> None:
        self.guard.connect()
        self.guard.acquire_lease("kit", "kit")
        self.guard.transition(Lifecycle.ACTIVE)

    def close(self) -> None:
        self.guard.close()

    def reset(self, seed: int) -> Begun:
        with self._lock:
            if self.guard.lifecycle is Lifecycle.FAULT:
                raise RobotFaultError(self.guard.fault)
            self.guard.reset(seed)
            return Begun(self._looked(), 0)

    def step(self, action: FloatArray) -> Stepped:
        with self._lock:
            result = self._command(action)
            for _ in range(self._ticks):
                self._tick()
        return self._over(result)

    def step_in_parts(self, source: Parts) -> tuple[Stepped, FloatArray]:
        asked, sent = [], []
        for _ in range(self._ticks):
            while (part := source.part(1.0 / self._ticks)) is None:
                with self._lock:
                    self.guard.stop("the command of the person who drove it ran out", StopLevel.HOLD)
            with self._lock:
                result = self._command(part)
                self._tick()
            asked.append(part)
            sent.append(result.sent)
            time.sleep(0.5 * self.spec.control_period_s / self._ticks)
        return self._over(replace(result, sent=source.summed(sent))), source.summed(asked)

    def state(self) -> RobotState:
        with self._lock:
            state = self.guard.state()
            return replace(state, stamp_ns=time.monotonic_ns())

    def stop(self, reason: str, level: StopLevel) -> None:
        with self._lock:
            self.stops.append(reason)
            self.guard.stop(reason, level)

    def clear(self) -> None:
        """What a person at the robot does after a stop."""
        with self._lock:
            if self.guard.lifecycle is Lifecycle.FAULT:
                self.guard.transition(Lifecycle.INACTIVE)
            self.guard.acquire_lease("kit", "kit")
            self.guard.transition(Lifecycle.ACTIVE)

    def _command(self, action: FloatArray) -> CommandResult:
        if self.ending:
            raise RobotFaultError("the kit ends")
        self._seq += 1
        result = self.guard.command(Command(session="kit", seq=self._seq, deadline_ns=2**62, action=action))
        if result.refusal in (Refusal.NOT_ACTIVE, Refusal.NO_LEASE):
            raise CommandRefusedError(result.refusal.value, result.message)
        return result

    def _tick(self) -> None:
        tick_s = 1.0 / self.spec.tick_rate_hz
        self.guard.tick()
        self._robot.advance(tick_s)
        self._clock.advance_ns(s_to_ns(tick_s))

    def _looked(self) -> RobotState:
        self.image = self._robot.render(CAMERA).copy()
        return self.state()

    def _over(self, result: CommandResult) -> Stepped:
        with self._lock:
            state = self._looked()
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        self._due_s = time.monotonic() + self.spec.control_period_s
        return Stepped(result, state, 0, late=False)


class KitServer:
    """What a robot server answers and publishes to a teleop server, of a robot in this process."""

    def __init__(self, robot: PacedRobot, keys: KeyStore) -> None:
        self._robot, self._keys = robot, keys
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self.silent = False
        self.addresses = ("", "")

    def __enter__(self) -> KitServer:
        self._thread.start()
        assert self._ready.wait(10.0)
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        requests: RequestServer[RobotRequest] = RequestServer(
            SERVICES["robot.request"], LOOPBACK, self._keys, "robot", RobotRequest
        )
        with requests, Publisher(SERVICES["robot.state"], LOOPBACK, self._keys, "robot") as states:
            self.addresses = (requests.address, states.address)
            self._ready.set()
            while not self._end.is_set():
                for request in requests.poll(0.03):
                    if not self.silent:
                        request.reply(self._answer(request.message, request.peer))
                states.send(self._robot.state())

    def _answer(self, message: RobotRequest, peer: str) -> RobotReply:
        robot = self._robot
        if isinstance(message, StopRobot):
            robot.stop(f"{peer}: {message.reason}", message.level)
            return Done()
        if isinstance(message, GetState):
            if message.cameras != (CAMERA,):
                return Failed(reason="ConfigError", message=f"this robot server renders no {message.cameras}")
            state = robot.state()
            return replace(state, features={**state.features, f"observation.images.{CAMERA}": robot.image})
        if isinstance(message, Hello):
            return RobotInfo(schema_version=SCHEMA_VERSION, boot="kit", lock_step=False, spec=robot.spec)
        return Pong(stamp_ns=time.monotonic_ns())


class Edge:
    """An edge with a seat, in this process: episodes of a still policy, one after the other, until closed."""

    def __init__(self, robot: PacedRobot, keys: KeyStore, rule: Rule) -> None:
        self.robot, self._keys, self._rule = robot, keys, rule
        self.steps: list[Step] = []
        self.labels: list[LabelEpisode] = []
        self.errors: list[str] = []
        self._connected, self._end = threading.Event(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[Edge]:
        self.seat = Seat(self.robot.spec, self._rule, "run", lock_step=False)
        recorder = Recorder(RecordingId("run", self.robot.spec.name, self.robot.spec.task), self.steps.append)
        loop = ControlLoop(
            self.robot,
            StillPolicy(self.robot.spec),
            NoCorrection(),
            [recorder, self.seat],
            1.0,
            interventions=Interventions(self.seat, self._rule),
        )
        self.seat.recorded_as("session")
        thread = threading.Thread(target=self._practise, args=(loop,), daemon=True)
        self.server = KitServer(self.robot, self._keys)
        thread.start()
        assert self._connected.wait(60.0)
        with self.server, SeatServer(self.seat, LOOPBACK, LOOPBACK, self._keys, "edge", self.labels.append) as server:
            self.addresses = server.addresses
            try:
                yield self
            finally:
                self._end.set()
                self.robot.ending = True
                thread.join(10.0)

    def _practise(self, loop: ControlLoop) -> None:
        """All rendering is in this thread: a picture's context belongs to one."""
        number = 0
        self.robot.connect()
        self._connected.set()
        while not self._end.is_set():
            try:
                if self.seat.waits_for_scene:
                    time.sleep(0.05)
                    continue
                loop.run_episode(EpisodeId(number, number))
            except RobotStackError as error:
                self.errors.append(str(error))
                self.seat.failed()
                time.sleep(0.2)
            number += 1
        self.robot.close()

    def sources(self) -> list[Source]:
        return [step.source for step in list(self.steps)]


@contextmanager
def teleop_world(
    directory: Path,
    rule: Rule = "rac",
    *,
    config: Callable[[TeleopConfig], TeleopConfig] = lambda same: same,
    status: Status = lambda: None,
) -> Iterator[tuple[TeleopServer, Edge]]:
    """A simulated Franka at the peg, its edge, and a teleop server; everything ends with the block."""
    keys = make_keys(directory)
    robot = PacedRobot()
    with ExitStack() as opened:
        kit = opened.enter_context(Edge(robot, keys, rule).running())
        teleop = TeleopRobot(
            name=robot.spec.name,
            seat_address=kit.addresses[0],
            seat_state_address=kit.addresses[1],
            robot_address=kit.server.addresses[0],
            state_address=kit.server.addresses[1],
            keys_directory=str(keys.directory),
            cameras=(CameraSource(name=CAMERA),),
            skeleton=FR3_SKELETON,
        )
        served = TeleopConfig(robots=(teleop,), directory=str(directory / "gui"), port=0)
        yield opened.enter_context(TeleopServer(config(served), {teleop.name: status})), kit


class PlainPage:
    """A page without a browser: logs in, talks, acknowledges what it is told to, and keeps what it was sent."""

    def __init__(
        self, url: str, token: str, *, acknowledges: bool = True, verify: ssl.SSLContext | None = None
    ) -> None:
        self.base = url.rstrip("/")
        self.acknowledges = acknowledges
        self.states: list[Sent] = []
        self.said: list[Sent] = []
        self.pictures: list[int] = []
        self._seq = 0
        self.http = httpx.Client(base_url=self.base, headers={"Origin": self.base}, verify=verify or True)
        reply = self.http.post("/api/login", json={"token": token})
        assert reply.status_code == 200, reply.text
        self._opened = ExitStack()
        self._opened.callback(self.http.close)
        self.socket = self._opened.enter_context(
            connect(
                self.base.replace("http", "ws", 1) + "/ws",
                additional_headers={"Cookie": f"teleop={self.http.cookies['teleop']}"},
                origin=Origin(self.base),
                ssl=verify,
                close_timeout=0.5,
            )
        )
        self.page = int(self.until(lambda: self.of("welcome"))["page"])

    def __enter__(self) -> PlainPage:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def send(self, kind: str, robot: str = "franka_0", **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, "robot": robot, **fields}))

    def watch(self) -> PlainPage:
        self.send("watch", cameras=[CAMERA])
        self.until(lambda: bool(self.states) and self.states[-1])
        return self

    def take(self) -> PlainPage:
        """Watch, and take control."""
        self.watch().send("take")
        self.until(lambda: self.states[-1]["control"]["page"] == self.page)
        return self

    def drive(self, intent: str, *, valid_s: float = 0.4, seq: int | None = None, **more: object) -> None:
        self._seq = self._seq + 1 if seq is None else seq
        deadline_us = (time.monotonic_ns() + round(valid_s * 1e9)) // 1000
        self.send("drive", seq=self._seq, deadline_us=deadline_us, intent=intent, **more)

    def drive_for(self, seconds: float, intent: str, **more: object) -> None:
        """As a page does while something is held, and then lets go."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.drive(intent, **more)
            self.read(1 / 30)
        self.drive("hold")

    def read(self, seconds: float = 0.0) -> None:
        """Take in what came, for so long."""
        until_s = time.monotonic() + seconds
        while True:
            try:
                message = self.socket.recv(timeout=max(0.0, until_s - time.monotonic()))
            except TimeoutError:
                return
            self._take(message)

    def _take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.pictures.append(HEADER.unpack_from(message)[4])
            if self.acknowledges:
                self.socket.send(json.dumps({"type": "ack", "camera": CAMERA, "number": self.pictures[-1]}))
            return
        content = json.loads(message)
        if content["type"] != "state":
            self.said.append(content)
            return
        self.states.append(content)
        if self.acknowledges:
            self.socket.send(json.dumps({"type": "ack", "number": content["number"]}))

    def of(self, kind: str) -> Sent | None:
        """The newest message of that kind."""
        return next((one for one in reversed(self.said) if one["type"] == kind), None)

    def until(self, found: Callable[[], T], within_s: float = 20.0) -> T:
        """Read until `found` gives something true, and return that."""
        until_s = time.monotonic() + within_s
        while not (result := found()):
            assert time.monotonic() < until_s, f"not within {within_s} s; the newest was said: {self.said[-3:]}"
            self.read(0.02)
        return result

    def told(self, words: str) -> Sent:
        """The notice or answer to a drive that holds these words."""
        return self.until(
            lambda: next((one for one in self.said if words in one.get("text", "") + one.get("refusal", "")), None)
        )  # type: ignore[return-value]

    def told_of(self, words: str, moves: dict[str, float]) -> None:
        """Drive like that until the answer holds these words: on a busy machine a command may come too late."""

        def answered() -> bool:
            self.drive("recover", moves=moves)
            self.read(0.1)
            return any(words in one.get("refusal", "") for one in self.said)

        self.until(answered)

    @property
    def phase(self) -> str:
        return str(self.states[-1]["seat"]["phase"])
