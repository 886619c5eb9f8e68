"""The edge's end of a camera: what a feed gives out, what it refuses, and what an observation is made of."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from robot_stack.core.clock import ClockOffset
from robot_stack.core.errors import RobotError, SpecMismatchError
from robot_stack.core.messages import Array, CameraFrame
from robot_stack.core.protocols import CameraSpec
from robot_stack.core.specs import IMAGES, STATE, Feature
from robot_stack.edge.alignment import Aligner, spec_with_cameras
from robot_stack.edge.camera_feed import CameraFeed
from robot_stack.edge.freshness import FreshnessJudge
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher, Subscriber
from tests.transport_kit import LOOPBACK, make_keys
from tests.unit.test_edge_parts import SPEC, state

SERVICE = SERVICES["camera.frame"]
RATE_HZ = 30.0
KEY = IMAGES + "front"
MS = 1_000_000
CAMERA = CameraSpec(name="front", model="m", serial="s", width=4, height=3, rate_hz=RATE_HZ)


def frame(number: int, stamp_ns: int, **changes: object) -> CameraFrame:
    image: Array = np.full((3, 4, 3), number % 256, dtype=np.uint8)
    made = CameraFrame(
        boot="a", camera="front", stamp_ns=stamp_ns, device_time_ns=stamp_ns - 7, number=number, image=image
    )
    return replace(made, **changes)


class Wire:
    """A publisher and a feed over a real socket; `send` returns once the feed has the message."""

    def __init__(
        self, keys: KeyStore, offset: ClockOffset | None = None, max_age_s: float = 0.2, rate_hz: float = RATE_HZ
    ) -> None:
        self.publisher = Publisher(SERVICE, LOOPBACK, keys, "robot")
        self._keys = keys
        self._offset = offset
        self._judge = FreshnessJudge(rate_hz, max_age_s)
        self._pending: list[CameraFrame] = []

    def __enter__(self) -> Wire:
        self.publisher.__enter__()
        self._subscriber = Subscriber(SERVICE, self.publisher.address, self._keys, "edge", "robot", CameraFrame)
        self.feed = CameraFeed("front", self, self._judge, self._offset)
        self._subscriber.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._subscriber.__exit__(None, None, None)
        self.publisher.__exit__(None, None, None)

    def newest(self, timeout_s: float) -> CameraFrame | None:
        return self._pending.pop() if self._pending else self._subscriber.newest(timeout_s)

    def send(self, message: CameraFrame) -> None:
        """Until it has come out at the other end: the first ones are lost while the sockets join."""
        deadline_s = time.monotonic() + 10.0
        while True:
            assert time.monotonic() < deadline_s
            self.publisher.send(message)
            arrived = self._subscriber.newest(0.05)
            if arrived is not None and arrived.stamp_ns == message.stamp_ns and arrived.fault == message.fault:
                self._pending = [arrived]
                while self._subscriber.newest(0.01) is not None:
                    pass
                return


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


def test_the_newest_picture_comes_with_its_age_and_again_until_it_is_too_old(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    with Wire(keys) as wire:
        wire.send(frame(5, now_ns))
        for age_ns in (10 * MS, 50 * MS, 99 * MS):
            image, told_ns = wire.feed.newest(now_ns + age_ns)
            assert told_ns == age_ns
            assert int(image[0, 0, 0]) == 5
        with pytest.raises(RobotError, match=r"'front' has sent no fresh picture for 101 ms \(allowed: 100 ms\)"):
            wire.feed.newest(now_ns + 101 * MS)
        assert (wire.feed.taken, sum(wire.feed.dropped.values())) == (1, 0)


def test_pictures_that_were_never_seen_are_counted_within_one_boot(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    with Wire(keys) as wire:
        for index, (boot, number) in enumerate((("a", 5), ("a", 6), ("a", 9), ("b", 70), ("b", 72))):
            wire.send(frame(number, now_ns + index * 33 * MS, boot=boot))
            wire.feed.newest(now_ns + index * 33 * MS)
        assert (wire.feed.taken, wire.feed.skipped) == (5, 3)


def test_a_limit_shorter_than_three_periods_holds_too(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    with Wire(keys, max_age_s=0.05) as wire:
        wire.send(frame(1, now_ns))
        assert wire.feed.newest(now_ns + 50 * MS)[1] == 50 * MS
        with pytest.raises(RobotError, match=r"51 ms old \(allowed: 50 ms\)"):
            wire.feed.newest(now_ns + 51 * MS)


def test_before_the_first_picture_there_is_an_error_and_nothing_else(keys: KeyStore) -> None:
    with Wire(keys) as wire, pytest.raises(RobotError, match="no fresh picture"):
        wire.feed.newest(time.monotonic_ns())


def test_waiting_ends_with_the_first_picture_or_with_the_reason(keys: KeyStore) -> None:
    with Wire(keys, max_age_s=20.0, rate_hz=0.1) as wire:
        began_s = time.monotonic()
        with pytest.raises(RobotError, match="'front' has sent no fresh picture"):
            wire.feed.wait(0.2)
        assert 0.2 <= time.monotonic() - began_s < 2.0
        wire.send(frame(1, time.monotonic_ns()))
        wire.feed.wait(10.0)
        assert wire.feed.taken == 1


def test_repeated_old_and_backward_pictures_are_counted_and_never_given_out(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    with Wire(keys) as wire:
        wire.send(frame(5, now_ns))
        wire.feed.newest(now_ns)
        for number, later_ms in ((5, 10), (4, 20)):
            wire.send(frame(number, now_ns + later_ms * MS, image=np.full((3, 4, 3), 99, dtype=np.uint8)))
            assert int(wire.feed.newest(now_ns + later_ms * MS)[0][0, 0, 0]) == 5
        wire.send(frame(6, now_ns + 30 * MS))
        with pytest.raises(RobotError, match="what comes is stale"):
            wire.feed.newest(now_ns + 300 * MS)
        assert dict(wire.feed.dropped) == {"repeated": 1, "backwards": 1, "stale": 1}


def test_a_reported_fault_is_passed_on_until_a_fresh_picture_comes(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    with Wire(keys) as wire:
        wire.send(frame(5, now_ns))
        wire.feed.newest(now_ns)
        wire.send(frame(-1, now_ns + MS, fault="the cable is out", image=np.zeros((0, 0, 3), dtype=np.uint8)))
        for _ in range(2):
            with pytest.raises(RobotError, match=r"'front' reports: the cable is out"):
                wire.feed.newest(now_ns + MS)
        wire.send(frame(6, now_ns + 2 * MS))
        assert int(wire.feed.newest(now_ns + 2 * MS)[0][0, 0, 0]) == 6
        assert wire.feed.dropped["fault"] == 1


def test_another_camera_on_the_address_is_an_error_that_names_both(keys: KeyStore) -> None:
    with Wire(keys) as wire:
        wire.send(frame(1, time.monotonic_ns(), camera="wrist"))
        with pytest.raises(RobotError, match=r"'front' carries pictures of 'wrist'"):
            wire.feed.newest(time.monotonic_ns())


def test_a_refused_key_is_an_error_of_the_camera(keys: KeyStore) -> None:
    keys.make("edge_2", Role.EDGE)
    (keys.directory / "public" / "edge_2.json").unlink()
    with Publisher(SERVICE, LOOPBACK, keys, "robot") as publisher:
        subscriber = Subscriber(SERVICE, publisher.address, keys, "edge_2", "robot", CameraFrame)
        with CameraFeed("front", subscriber, FreshnessJudge(RATE_HZ, 0.2)) as feed:
            deadline_s = time.monotonic() + 10.0
            while time.monotonic() < deadline_s:
                with pytest.raises(RobotError, match="'front'") as caught:
                    feed.newest(time.monotonic_ns())
                if "refused our key" in str(caught.value):
                    return
                time.sleep(0.05)
    raise AssertionError("the refusal was never told")


def test_stamps_of_another_host_are_converted(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    far_ns = 12_345_678_900_000
    with Wire(keys, offset=ClockOffset(offset_ns=far_ns, error_ns=1000)) as wire:
        wire.send(frame(1, now_ns + far_ns))
        assert wire.feed.newest(now_ns + 3 * MS)[1] == 3 * MS


def test_an_observation_merges_state_and_pictures_each_with_its_own_age(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    spec = spec_with_cameras(SPEC, [CAMERA])
    assert spec.observation[KEY] == Feature(dtype="uint8", shape=(3, 4, 3))
    assert KEY not in SPEC.observation
    with Wire(keys) as wire:
        aligner = Aligner(spec, 0.5, {"front": wire.feed}, now_ns=lambda: now_ns + 20 * MS)
        wire.send(frame(9, now_ns))
        stale = {KEY: np.zeros((3, 4, 3), dtype=np.uint8)}
        seen = aligner.observe(state(1.5, features={**state(1.5).features, **stale}), 3 * MS, 4, 2)
    assert list(seen.features) == [STATE, KEY]
    assert seen.age_ns == {STATE: 3 * MS, KEY: 20 * MS}
    assert float(seen.features[STATE][0]) == 1.5
    assert int(seen.features[KEY][0, 0, 0]) == 9, "the picture came from the robot's state"


def test_the_policy_pauses_for_a_camera_that_is_too_old(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    clock = [now_ns]
    with Wire(keys) as wire:
        aligner = Aligner(spec_with_cameras(SPEC, [CAMERA]), 0.5, {"front": wire.feed}, now_ns=lambda: clock[0])
        wire.send(frame(1, now_ns))
        assert aligner.observe(state(), 0, 0, 0).id == 1
        clock[0] += 150 * MS
        with pytest.raises(RobotError, match=r"'front'.*policy pauses"):
            aligner.observe(state(), 0, 0, 1)


def test_a_picture_of_another_size_and_an_unannounced_camera_are_refused(keys: KeyStore) -> None:
    now_ns = time.monotonic_ns()
    with Wire(keys) as wire:
        with pytest.raises(SpecMismatchError, match=r"no observation\.images\.front"):
            Aligner(SPEC, 0.5, {"front": wire.feed})
        aligner = Aligner(spec_with_cameras(SPEC, [CAMERA]), 0.5, {"front": wire.feed}, now_ns=lambda: now_ns)
        wire.send(frame(1, now_ns, image=np.zeros((3, 5, 3), dtype=np.uint8)))
        with pytest.raises(RobotError, match=r"shape \(3, 5, 3\), the observation has \(3, 4, 3\)"):
            aligner.observe(state(), 0, 0, 0)


def test_a_robot_that_renders_the_same_camera_in_another_size_is_refused() -> None:
    spec = spec_with_cameras(SPEC, [CAMERA])
    assert spec_with_cameras(spec, [CAMERA]) == spec
    with pytest.raises(SpecMismatchError, match=r"\(3, 4, 3\).*\(6, 4, 3\)"):
        spec_with_cameras(spec, [replace(CAMERA, height=6)])
