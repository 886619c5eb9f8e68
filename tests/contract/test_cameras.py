"""One suite for every camera driver: simulated, RealSense (a software device), ROS 2 (a real node), OpenCV (a file)."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_stack.core.errors import RobotError
from robot_stack.core.protocols import Frame
from tests.camera_kit import DEPTH_MM, HEIGHT, RATE_HZ, WIDTH, RealSenseRig, Ros2Rig, SimRig, UvcRig

Rig = SimRig | UvcRig | Ros2Rig | RealSenseRig

RIGS: dict[str, tuple[str, Callable[[Path], Rig]]] = {
    "sim": ("", SimRig),
    "uvc": ("cv2", UvcRig),
    "ros2": ("rclpy", Ros2Rig),
    "realsense_d435i": ("pyrealsense2", RealSenseRig),
    "realsense_d405": ("pyrealsense2", lambda folder: RealSenseRig(folder, "D405")),
}


@pytest.fixture(params=list(RIGS))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    package, make = RIGS[request.param]
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    made = make(tmp_path)
    try:
        yield made
    finally:
        made.close()


def frames(rig: Rig, count: int) -> list[Frame]:
    rig.camera.connect()
    taken: list[Frame] = []
    deadline_s = time.monotonic() + 20.0
    while len(taken) < count:
        assert time.monotonic() < deadline_s, f"{len(taken)} of {count} pictures came"
        frame = rig.camera.grab(0.5)
        if frame is not None:
            taken.append(frame)
    return taken


def test_the_spec_is_known_before_the_camera_is_opened(rig: Rig) -> None:
    spec = rig.camera.spec
    assert (spec.name, spec.width, spec.height, spec.rate_hz) == ("front", WIDTH, HEIGHT, RATE_HZ)
    assert spec.model
    assert spec.serial


def test_pictures_match_the_spec_and_red_arrives_red(rig: Rig) -> None:
    for frame in frames(rig, 3):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        mean = frame.image.reshape(-1, 3).mean(axis=0)
        assert mean[0] > 230
        assert mean[1] < 25
        assert mean[2] < 25
        assert (frame.depth_mm is not None) == rig.camera.spec.has_depth
        if frame.depth_mm is not None:
            assert frame.depth_mm.shape == (HEIGHT, WIDTH)
            assert frame.depth_mm.dtype == np.uint16
            assert frame.depth_mm[HEIGHT // 2, WIDTH // 2] == DEPTH_MM


def test_number_device_time_and_stamp_advance_and_no_stamp_lies_ahead(rig: Rig) -> None:
    before_ns = time.monotonic_ns()
    taken = frames(rig, 12)
    now_ns = time.monotonic_ns()
    for earlier, later in itertools.pairwise(taken):
        assert later.number > earlier.number
        assert later.device_time_ns > earlier.device_time_ns
        assert later.stamp_ns >= earlier.stamp_ns
    assert before_ns < taken[0].stamp_ns
    assert taken[-1].stamp_ns < now_ns


def test_a_picture_outlives_the_next_ones(rig: Rig) -> None:
    first, *rest = frames(rig, 6)
    kept = first.image.copy()
    assert rest
    np.testing.assert_array_equal(first.image, kept)
    assert not any(np.shares_memory(first.image, frame.image) for frame in rest)


def test_a_grab_without_a_picture_ends_in_time_with_none(rig: Rig) -> None:
    frames(rig, 2)
    rig.hold()
    deadline_s = time.monotonic() + 10.0
    while True:
        began_s = time.monotonic()
        frame = rig.camera.grab(rig.short_s)
        took_s = time.monotonic() - began_s
        assert took_s < rig.short_s + 1.0
        if frame is None:
            assert took_s >= rig.short_s * 0.9
            return
        assert time.monotonic() < deadline_s, "pictures never end"


def test_closing_twice_is_harmless_and_a_closed_camera_opens_again(rig: Rig) -> None:
    rig.camera.close()
    frames(rig, 1)
    rig.camera.close()
    rig.camera.close()
    with pytest.raises(RobotError, match=r"'front'.*not connected"):
        rig.camera.grab(0.01)
    assert frames(rig, 1)


def test_a_missing_device_is_named_within_two_seconds(rig: Rig) -> None:
    camera, named = rig.missing()
    began_s = time.monotonic()
    with pytest.raises(RobotError, match=r"front") as caught:
        camera.connect()
    assert named in str(caught.value)
    assert time.monotonic() - began_s < 2.0
    camera.close()
