"""Everything the teleop server knows of one robot, and every way to it. Threads bring the newest; nobody waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

from robot_stack.core.clock import s_to_ns
from robot_stack.core.messages import CameraFrame, RobotState
from robot_stack.core.seat import SeatState
from robot_stack.core.specs import IMAGES
from robot_stack.teleop.config import RobotStatus, TeleopConfig, TeleopRobot
from robot_stack.teleop.messages import BodyView, CameraView, Card, ControlView, DeviceView, State
from robot_stack.teleop.pictures import PictureBox
from robot_stack.teleop.robot_links import RenderedCameras, StopLink, take_frame
from robot_stack.teleop.seat_link import SeatLink
from robot_stack.teleop.threads import LinkThread, Newest, Peer, Watcher
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.services import SERVICES

STALE_S = 1.0
FOLLOW_RATE_HZ = 60.0
PICTURE_STALE_MS = 1000.0

Status = Callable[[], RobotStatus | None]


class RobotLink:
    """One robot, connected while entered.

    Args:
        status: what else is known of the robot's edge and learner; called often, must not block.
        lost: called in a thread when the edge's seat was lost; in words.
    """

    def __init__(self, config: TeleopConfig, robot: TeleopRobot, status: Status, lost: Callable[[str], None]) -> None:
        self.config, self._status = robot, status
        keys = KeyStore(Path(robot.keys_directory))
        edge = Peer(robot.seat_address, keys, robot.operator_key, robot.edge_key)
        server = Peer(robot.robot_address, keys, robot.operator_key, robot.robot_key)
        self.seat = SeatLink(robot.name, edge, lost)
        self.stop = StopLink(robot.name, server, robot.stop_level)
        self.boxes = {one.name: PictureBox(robot.name, one.name, config.jpeg_quality) for one in robot.cameras}
        self._seat_state: Newest[SeatState] | None = None
        self._body: Newest[BodyView] | None = None
        every_s = 1.0 / config.state_rate_hz
        self._seat_watch: Watcher[SeatState] = Watcher(
            f"seat state of {robot.name}",
            SERVICES["seat.state"],
            Peer(robot.seat_state_address, keys, robot.operator_key, robot.edge_key),
            SeatState,
            self._take_seat,
            every_s,
        )
        self._body_watch: Watcher[RobotState] = Watcher(
            f"state of {robot.name}",
            SERVICES["robot.state"],
            Peer(robot.state_address, keys, robot.operator_key, robot.robot_key),
            RobotState,
            self._take_body,
            1.0 / FOLLOW_RATE_HZ if config.devices else every_s,
        )
        self._threads: list[LinkThread] = [self.seat, self.stop, self._seat_watch, self._body_watch]
        self._threads += self._cameras(config, server, keys)
        self._opened = ExitStack()

    def _cameras(self, config: TeleopConfig, server: Peer, keys: KeyStore) -> list[LinkThread]:
        robot = self.config
        threads: list[LinkThread] = []
        rendered = tuple(self.boxes[one.name] for one in robot.cameras if not one.address)
        if rendered:
            threads.append(RenderedCameras(robot.name, server, rendered, config.camera_rate_hz))
        for camera in robot.cameras:
            if camera.address:
                watch: Watcher[CameraFrame] = Watcher(
                    f"camera {camera.name} of {robot.name}",
                    SERVICES["camera.frame"],
                    Peer(camera.address, keys, robot.operator_key, camera.server_key),
                    CameraFrame,
                    partial(take_frame, self.boxes[camera.name]),
                    1.0 / config.camera_rate_hz,
                )
                threads.append(watch)
        return threads

    def __enter__(self) -> RobotLink:
        for thread in self._threads:
            self._opened.enter_context(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def _take_seat(self, state: SeatState, came_ns: int) -> None:
        before = self.seat_state
        if before is not None and before.boot != state.boot:
            self.seat.edge_is_new()
        self._seat_state = Newest(state, came_ns)

    def _take_body(self, state: RobotState, came_ns: int) -> None:
        features = {key: value for key, value in state.features.items() if not key.startswith(IMAGES)}
        body = BodyView(
            lifecycle=state.lifecycle,
            fault=state.fault,
            held_back=state.held_back,
            stopping=state.stopping,
            moving=state.moving,
            features=features,
        )
        self._body = Newest(body, came_ns)

    @property
    def seat_state(self) -> SeatState | None:
        """The newest, however old."""
        newest = self._seat_state
        return None if newest is None else newest.message

    @property
    def body(self) -> Newest[BodyView] | None:
        """The robot's newest state, however old."""
        return self._body

    def card(self) -> Card:
        return Card(
            robot=self.config.name, cameras=tuple(self.boxes), skeleton=self.config.skeleton, info=self.seat.info
        )

    def state(self, control: ControlView, number: int, devices: tuple[DeviceView, ...] = ()) -> State:
        """What the page shows now."""
        seat, body = self._seat_state, self._body
        return State(
            robot=self.config.name,
            number=number,
            server_us=time.monotonic_ns() // 1000,
            control=control,
            seat=None if seat is None else seat.message,
            seat_age_ms=-1.0 if seat is None else seat.age_ms,
            seat_problem=self._problem(seat, self._seat_watch.problem) or self.seat.problem,
            seat_trip_ms=self.seat.clock.trip_ms,
            body=None if body is None else body.message,
            body_age_ms=-1.0 if body is None else body.age_ms,
            body_problem=self._problem(body, self._body_watch.problem),
            stop_problem=self.stop.problem,
            cameras=tuple(self._camera(box) for box in self.boxes.values()),
            status=self._status(),
            devices=devices,
        )

    @staticmethod
    def _problem(newest: Newest[SeatState] | Newest[BodyView] | None, problem: str) -> str:
        if newest is not None and time.monotonic_ns() - newest.came_ns < s_to_ns(STALE_S):
            return ""
        return problem

    @staticmethod
    def _camera(box: PictureBox) -> CameraView:
        picture = box.newest
        age_ms = -1.0 if picture is None else (time.monotonic_ns() - picture.stamp_ns) / 1e6
        problem = box.problem
        if not problem and age_ms > PICTURE_STALE_MS:
            problem = f"no picture for {age_ms / 1e3:.0f} s"
        return CameraView(name=box.camera, age_ms=age_ms, problem=problem)
