"""OpenCV's driver on generated video files, and the simulated camera's pace."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed")

from hardware.cameras.config import RealSenseConfig, Ros2CameraConfig, SimulatedCameraConfig, UvcConfig
from hardware.cameras.drivers import make_camera
from hardware.cameras.sim import SimulatedCamera, simulated_spec
from hardware.cameras.uvc import UvcCamera
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.protocols import Camera, Frame
from tests.camera_kit import HEIGHT, WIDTH, red, write_video

FAST = {"width": WIDTH, "height": HEIGHT, "rate_hz": 200.0}


def film(folder: Path, count: int = 5) -> str:
    """Grey pictures, each 40 brighter than the last."""
    pictures = [np.full((HEIGHT, WIDTH, 3), 40 * (index + 1), dtype=np.uint8) for index in range(count)]
    return str(write_video(folder / "film.avi", pictures))


def take(camera: Camera, count: int) -> list[Frame]:
    frames = [camera.grab(1.0) for _ in range(count)]
    assert all(frame is not None for frame in frames)
    return [frame for frame in frames if frame is not None]


def test_a_file_gives_every_picture_once_in_order_and_ends_with_an_error(tmp_path: Path) -> None:
    camera = UvcCamera(UvcConfig(name="front", device=film(tmp_path), **FAST))
    camera.connect()
    frames = take(camera, 5)
    assert [round(float(frame.image.mean()) / 40) for frame in frames] == [1, 2, 3, 4, 5]
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    with pytest.raises(RobotError, match=r"'front': the video file .*film\.avi has ended after 5 pictures; set loop"):
        camera.grab(1.0)
    camera.close()


def test_a_looping_file_begins_again_and_its_numbers_go_on(tmp_path: Path) -> None:
    camera = UvcCamera(UvcConfig(name="front", device=film(tmp_path), loop=True, **FAST))
    camera.connect()
    frames = take(camera, 12)
    assert [round(float(frame.image.mean()) / 40) for frame in frames] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
    assert [frame.number for frame in frames] == list(range(12))
    assert all(np.diff([frame.device_time_ns for frame in frames]) == 5_000_000)
    camera.close()


def test_a_file_is_played_at_its_rate(tmp_path: Path) -> None:
    camera = UvcCamera(UvcConfig(name="front", device=film(tmp_path), loop=True, **(FAST | {"rate_hz": 50.0})))
    camera.connect()
    began_s = time.monotonic()
    take(camera, 26)
    assert time.monotonic() - began_s >= 0.49
    camera.close()


def test_another_size_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    camera = UvcCamera(UvcConfig(name="front", device=film(tmp_path), width=640, height=480))
    with pytest.raises(RobotError, match=r"'front' \(uvc\) delivers 64x48, expected 640x480"):
        camera.connect()
    with pytest.raises(RobotError, match="not connected"):
        camera.grab(0.0)


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(RobotError, match=r"'front': '.*notes\.txt' cannot be opened"):
        UvcCamera(UvcConfig(name="front", device=str(tmp_path / "notes.txt"))).connect()


def test_an_index_without_a_device_is_refused_with_what_there_is() -> None:
    with pytest.raises(RobotError, match=r"'front': there is no device or video file '63'; video devices here: "):
        UvcCamera(UvcConfig(name="front", device="63")).connect()


def test_a_simulated_camera_counts_the_pictures_that_nobody_took() -> None:
    camera = SimulatedCamera(simulated_spec(SimulatedCameraConfig(name="front", **(FAST | {"rate_hz": 100.0}))), red)
    camera.connect()
    first = take(camera, 1)[0]
    time.sleep(0.1)
    later = take(camera, 1)[0]
    assert first.number >= 1
    assert later.number - first.number >= 10
    assert (later.device_time_ns - first.device_time_ns) == later.stamp_ns - first.stamp_ns
    camera.close()


@pytest.mark.parametrize("image", [red(65), red().astype(np.float32), red()[:, :, 0]], ids=["size", "dtype", "grey"])
def test_a_simulated_picture_of_another_kind_is_refused(image: np.ndarray) -> None:
    camera = SimulatedCamera(simulated_spec(SimulatedCameraConfig(name="front", **FAST)), lambda: image)
    with pytest.raises(RobotError, match=r"'front' \(simulated\): a picture of shape .* expected \(48, 64, 3\) uint8"):
        camera.connect()


def test_every_kind_of_settings_makes_its_driver_and_opens_nothing() -> None:
    made = [
        make_camera(RealSenseConfig(name="a", serial="1", depth=True)),
        make_camera(Ros2CameraConfig(name="b", topic="x/image_raw")),
        make_camera(UvcConfig(name="c", device="7")),
        make_camera(SimulatedCameraConfig(name="d"), red),
    ]
    assert [camera.spec.name for camera in made] == ["a", "b", "c", "d"]
    assert [camera.spec.has_depth for camera in made] == [True, False, False, False]
    with pytest.raises(ConfigError, match="'d' is simulated"):
        make_camera(SimulatedCameraConfig(name="d"))
