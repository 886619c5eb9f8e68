"""The RealSense driver on librealsense's own software device: numbers, clock, alignment, units, what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyrealsense2", reason="pyrealsense2 is not installed")

from hardware.cameras.config import RealSenseConfig
from hardware.cameras.realsense import PipelineSource, RealSenseCamera
from robot_stack.core.errors import RobotError
from robot_stack.core.protocols import Frame
from tests.camera_kit import FOCAL_PX, HEIGHT, RATE_HZ, SIZE, WIDTH, SoftwareSource, red

COUNTS = np.full((HEIGHT, WIDTH), 1000, dtype=np.uint16)


class Opened:
    def __init__(self, *, depth: bool = True, source: SoftwareSource | None = None, **changes: Any) -> None:
        self.source = source or SoftwareSource("D435i")
        settings: dict[str, Any] = {"name": "front", "serial": "000000000001", "depth": depth, **SIZE}
        self.camera = RealSenseCamera(RealSenseConfig(**(settings | changes)), self.source)
        self.camera.connect()
        self.number = 0

    def pair(self, image: np.ndarray | None = None, counts: np.ndarray = COUNTS) -> Frame:
        """Feed pictures until one pair comes out; the syncer gives the first ones out one by one."""
        for _ in range(20):
            self.number += 1
            self.source.feed(self.number, red() if image is None else image, counts)
            frame = self.camera.grab(0.1)
            if frame is not None:
                return frame
        raise AssertionError("no frame came")


@pytest.fixture
def opened() -> Iterator[Opened]:
    made = Opened()
    yield made
    made.camera.close()


def test_number_and_device_time_are_the_devices_own(opened: Opened) -> None:
    opened.number = 500
    for _ in range(5):
        frame = opened.pair()
        assert frame.number == opened.number > 500
        assert frame.device_time_ns == pytest.approx(opened.number * 1e9 / RATE_HZ, abs=1000)


def test_every_pixel_arrives_where_it_was(opened: Opened) -> None:
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    np.testing.assert_array_equal(opened.pair(image).image, image)


@pytest.mark.parametrize(("units_m", "count", "wanted_mm"), [(0.001, 730, 730), (0.0001, 7304, 730), (0.01, 6600, 0)])
def test_depth_is_in_millimetres_whatever_the_device_counts_in(units_m: float, count: int, wanted_mm: int) -> None:
    opened = Opened(source=SoftwareSource("D435i", units_m=units_m))
    try:
        depth_mm = opened.pair(counts=np.full((HEIGHT, WIDTH), count, dtype=np.uint16)).depth_mm
    finally:
        opened.camera.close()
    assert depth_mm is not None
    assert depth_mm.dtype == np.uint16
    assert int(depth_mm[HEIGHT // 2, WIDTH // 2]) == wanted_mm


def test_depth_is_aligned_to_the_colour_picture() -> None:
    """A bar 1 m away, seen by two eyes 0.1 m apart, lies focal length * 0.1 / 1 further to the right."""
    opened = Opened(source=SoftwareSource("D435i", color_x_m=0.1))
    bar = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    bar[:, 20:24] = 1000
    try:
        depth_mm = opened.pair(counts=bar).depth_mm
    finally:
        opened.camera.close()
    assert depth_mm is not None
    seen = np.flatnonzero(depth_mm[HEIGHT // 2])
    assert abs(seen.mean() - (21.5 + FOCAL_PX * 0.1)) <= 1.0
    assert set(depth_mm[HEIGHT // 2][seen]) == {1000}


def test_pictures_that_are_kept_do_not_starve_the_device(opened: Opened) -> None:
    kept = [opened.pair() for _ in range(100)]
    assert len({frame.number for frame in kept}) == 100
    assert opened.number < 110, "the device ran out of memory for new pictures"
    assert all(frame.image.flags.owndata for frame in kept), "the memory is librealsense's, which has little of it"


def test_without_depth_the_picture_comes_alone() -> None:
    opened = Opened(depth=False)
    try:
        assert not opened.camera.spec.has_depth
        assert opened.pair().depth_mm is None
    finally:
        opened.camera.close()


def test_the_latency_is_taken_off_the_stamp() -> None:
    opened = Opened(latency_s=5.0)
    try:
        assert opened.pair().stamp_ns < time.monotonic_ns() - 5 * 10**9
    finally:
        opened.camera.close()


def test_a_picture_of_another_size_or_format_is_refused_with_what_was_expected() -> None:
    wide = Opened(width=640, height=480)
    with pytest.raises(RobotError, match=r"'front'.*\(48, 64, 3\).*expected \(480, 640, 3\)"):
        wide.pair()
    wide.camera.close()
    swapped = Opened(source=SoftwareSource("D435i", color_format="bgr8"))
    with pytest.raises(RobotError, match=r"'front'.*format\.bgr8, expected format\.rgb8"):
        swapped.pair()
    swapped.camera.close()


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(RobotError, match=r"'front': model = 'L515' is not known; expected D435i or D405"):
        RealSenseCamera(RealSenseConfig(name="front", serial="1", model="L515")).connect()


def test_a_device_that_is_not_there_is_refused_with_the_list_of_those_that_are() -> None:
    with pytest.raises(RobotError, match=r"'front': no RealSense with serial '42' is plugged in; found: "):
        RealSenseCamera(RealSenseConfig(name="front", serial="42")).connect()


def test_a_device_that_goes_between_the_look_and_the_start_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """librealsense would wait 15 s for it."""
    monkeypatch.setattr(PipelineSource, "_find", lambda self, rs: None)
    began_s = time.monotonic()
    with pytest.raises(RobotError, match=r"'front' \(D435i 42\) does not start with 640x480 at 30 Hz: No device"):
        RealSenseCamera(RealSenseConfig(name="front", serial="42")).connect()
    assert time.monotonic() - began_s < 2.0
