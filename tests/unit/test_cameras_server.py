"""The camera process's loop over a real socket: it publishes what is fresh, says what is wrong, gives up in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from hardware.cameras.config import CameraServerConfig, SimulatedCameraConfig
from hardware.cameras.sim import SimulatedCamera, simulated_spec
from robot_stack.apps.camera import CAMERA_FRAME, CameraServer
from robot_stack.core.errors import CameraHangsError, ConfigError, MissingDependencyError, RobotError, RobotStackError
from robot_stack.core.messages import Array, CameraFrame
from robot_stack.core.protocols import Frame
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.stream import Publisher, Subscriber
from tests.transport_kit import LOOPBACK, make_keys

CONFIG = SimulatedCameraConfig(name="front", width=8, height=6, rate_hz=50.0)
PERIOD_S = 1.0 / CONFIG.rate_hz


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


def picture() -> Array:
    return np.full((CONFIG.height, CONFIG.width, 3), 9, dtype=np.uint8)


class ScriptedCamera(SimulatedCamera):
    """A simulated camera; `script` may change or take away each frame, or raise."""

    def __init__(self, script: Callable[[Frame], Frame | None] = lambda frame: frame) -> None:
        super().__init__(simulated_spec(CONFIG), picture)
        self.script = script
        self.connect_errors: list[RobotStackError] = []
        self.connected = 0
        self.closed = 0

    def connect(self) -> None:
        if self.connect_errors:
            raise self.connect_errors.pop(0)
        super().connect()
        self.connected += 1

    def grab(self, timeout_s: float) -> Frame | None:
        frame = super().grab(timeout_s)
        return None if frame is None else self.script(frame)

    def close(self) -> None:
        super().close()
        self.closed += 1


class Running:
    """A server in a thread, for `for_s`, or until it fails; all that a watcher saw meanwhile."""

    def __init__(self, keys: KeyStore, camera: ScriptedCamera, give_up_s: float = 30.0) -> None:
        self.seen: list[CameraFrame] = []
        self.error: BaseException | None = None
        self._keys = keys
        self._camera = camera
        self._config = CameraServerConfig(give_up_s=give_up_s, max_age_s=0.2)
        self._opened = threading.Event()
        self._ended = threading.Event()
        self._address = ""
        self.server: CameraServer | None = None

    def watch(self, enough: Callable[[list[CameraFrame]], bool], within_s: float = 20.0) -> Running:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            assert self._opened.wait(5.0)
            deadline_s = time.monotonic() + within_s
            with Subscriber(CAMERA_FRAME, self._address, self._keys, "viewer", "robot", CameraFrame) as watcher:
                while thread.is_alive() and not enough(self.seen):
                    assert time.monotonic() < deadline_s, f"{len(self.seen)} messages came"
                    message = watcher.newest(0.05)
                    if message is not None:
                        self.seen.append(message)
        finally:
            self._ended.set()
            thread.join()
        return self

    def _run(self) -> None:
        try:
            with Publisher(CAMERA_FRAME, LOOPBACK, self._keys, "robot") as frames:
                self._address = frames.address
                self.server = CameraServer(self._camera, self._config, frames)
                self._opened.set()
                self.server.run(lambda: not self._ended.is_set())
        except RobotStackError as error:
            self.error = error

    @property
    def faults(self) -> list[CameraFrame]:
        return [message for message in self.seen if message.fault]

    @property
    def pictures(self) -> list[CameraFrame]:
        return [message for message in self.seen if not message.fault]


def test_pictures_are_published_whole_with_one_boot_and_the_camera_is_closed(keys: KeyStore) -> None:
    camera = ScriptedCamera()
    ran = Running(keys, camera).watch(lambda seen: len(seen) >= 10)
    assert ran.error is None
    assert {message.camera for message in ran.pictures} == {"front"}
    assert len({message.boot for message in ran.pictures}) == 1
    numbers = [message.number for message in ran.pictures]
    assert all(np.diff(numbers) > 0)
    np.testing.assert_array_equal(ran.pictures[0].image, picture())
    assert camera.closed >= 1


def test_depth_travels_too(keys: KeyStore) -> None:
    depth_mm = np.arange(48, dtype=np.uint16).reshape(6, 8)
    camera = ScriptedCamera(lambda frame: replace(frame, depth_mm=depth_mm))
    ran = Running(keys, camera).watch(lambda seen: len(seen) >= 2)
    received = ran.pictures[0].depth_mm
    assert received is not None
    np.testing.assert_array_equal(received, depth_mm)


def test_a_camera_that_falls_silent_is_told_once_per_period_and_given_up_in_time(keys: KeyStore) -> None:
    good_until_s = time.monotonic() + 0.6
    camera = ScriptedCamera(lambda frame: frame if time.monotonic() < good_until_s else None)
    ran = Running(keys, camera, give_up_s=1.0).watch(lambda seen: False)
    assert isinstance(ran.error, CameraHangsError)
    assert "nothing fresh for" in str(ran.error)
    assert ran.pictures
    last_ns, told_ns = ran.pictures[-1].stamp_ns, [message.stamp_ns for message in ran.faults]
    assert 3 * PERIOD_S <= (told_ns[0] - last_ns) / 1e9 < 3 * PERIOD_S + 0.5
    assert 5 <= len(told_ns) <= 1.1 / PERIOD_S
    assert all(np.diff(told_ns) >= PERIOD_S * 1e9)
    assert all(message.image.size == 0 and "front" in message.fault for message in ran.faults)
    assert camera.closed >= 1


def test_a_single_repeated_picture_is_dropped_and_no_fault(keys: KeyStore) -> None:
    memory: list[Frame] = []

    def every_fifth_again(frame: Frame) -> Frame:
        again = frame.number % 5 == 0 and bool(memory)
        memory[:] = [memory[0] if again else frame]
        return memory[0]

    ran = Running(keys, ScriptedCamera(every_fifth_again)).watch(lambda seen: len(seen) >= 20)
    assert ran.server is not None
    assert ran.server.dropped["repeated"] + ran.server.dropped["backwards"] > 0
    assert all(np.diff([message.number for message in ran.pictures]) > 0)


def test_an_error_of_the_driver_is_passed_on_in_its_words(keys: KeyStore) -> None:
    def fail(frame: Frame) -> Frame:
        raise RobotError("camera 'front': the file has ended")

    ran = Running(keys, ScriptedCamera(fail)).watch(lambda seen: len(seen) >= 3)
    assert all("the file has ended" in message.fault for message in ran.faults)
    assert not ran.pictures


def test_a_camera_that_is_plugged_in_late_is_connected_late(keys: KeyStore) -> None:
    camera = ScriptedCamera()
    camera.connect_errors = [RobotError("camera 'front': nothing is plugged in")] * 2
    ran = Running(keys, camera).watch(lambda seen: bool(seen) and not seen[-1].fault)
    assert ran.error is None
    assert camera.connected == 1
    assert any("nothing is plugged in" in message.fault for message in ran.faults)


def test_a_camera_that_never_comes_is_given_up_with_its_words(keys: KeyStore) -> None:
    camera = ScriptedCamera()
    camera.connect_errors = [RobotError("camera 'front': nothing is plugged in")] * 100
    ran = Running(keys, camera, give_up_s=0.5).watch(lambda seen: False)
    assert isinstance(ran.error, CameraHangsError)
    assert "nothing is plugged in" in str(ran.error)


@pytest.mark.parametrize("error", [ConfigError("no such mode"), MissingDependencyError("sdk", "extra", "cameras")])
def test_what_a_restart_cannot_cure_ends_the_process_at_once(keys: KeyStore, error: RobotStackError) -> None:
    camera = ScriptedCamera()
    camera.connect_errors = [error]
    with Publisher(CAMERA_FRAME, LOOPBACK, keys, "robot") as frames, pytest.raises(type(error)) as raised:
        CameraServer(camera, CameraServerConfig(), frames).run(lambda: True)
    assert raised.value is error
    assert camera.closed == 1


def test_old_pictures_are_not_published(keys: KeyStore) -> None:
    camera = ScriptedCamera(lambda frame: replace(frame, stamp_ns=frame.stamp_ns - 300_000_000))
    ran = Running(keys, camera).watch(lambda seen: len(seen) >= 3)
    assert not ran.pictures
    assert "too old" in ran.faults[-1].fault


def test_a_viewer_that_never_reads_holds_up_nobody(keys: KeyStore) -> None:
    big = SimulatedCameraConfig(name="front", width=1280, height=720, rate_hz=100.0)
    camera = SimulatedCamera(simulated_spec(big), lambda: np.zeros((720, 1280, 3), dtype=np.uint8))
    with (
        Publisher(CAMERA_FRAME, LOOPBACK, keys, "robot") as frames,
        Subscriber(CAMERA_FRAME, frames.address, keys, "viewer", "robot", CameraFrame) as frozen,
    ):
        assert frozen.newest(0.1) is None
        until_s = time.monotonic() + 2.0  # hundreds of MB, more than any queue or TCP buffer holds
        server = CameraServer(camera, CameraServerConfig(), frames)
        server.run(lambda: time.monotonic() < until_s)
        assert server.published > 20
        assert time.monotonic() < until_s + 1.0
        newest = None
        while (message := frozen.newest(1.0)) is not None:
            newest = message
        assert newest is not None
        assert newest.stamp_ns / 1e9 > until_s - 0.5
