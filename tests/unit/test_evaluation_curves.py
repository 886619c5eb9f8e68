"""Learning curves from recorded steps, and rollout GIFs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robot_stack.core.errors import StorageError
from robot_stack.core.messages import Source, Step, Verdict
from robot_stack.evaluation.curves import learning_curve
from robot_stack.evaluation.statistics import wilson_interval
from robot_stack.evaluation.video import side_by_side, write_gif


def episode(
    number: int, length: int, success: bool, *, robot: str = "a", ended: bool = True, **changes: object
) -> list[Step]:
    action = np.zeros(2, dtype=np.float32)
    steps = []
    for index in range(length):
        last = ended and index == length - 1
        fields: dict[str, object] = {
            "run": "r",
            "robot": robot,
            "task": "t",
            "session": "s",
            "seq": number * 100 + index,
            "episode": number,
            "episode_seed": number,
            "segment": 0,
            "index": index,
            "stamp_ns": 0,
            "observation": {},
            "action_base": action,
            "action_asked": action,
            "action_sent": action,
            "verdict": Verdict.ACCEPTED,
            "refusal": None,
            "source": Source.POLICY,
            "weights_version": number,
            "reward": 0.5,
            "success": success and last,
            "terminated": success and last,
            "truncated": not success and last,
            **changes,
        }
        steps.append(Step(**fields))  # type: ignore[arg-type]
    return steps


def test_the_curve_counts_steps_successes_and_people() -> None:
    steps = (
        episode(0, 3, False)
        + episode(1, 2, True, source=Source.HUMAN_CORRECTION)
        + episode(2, 4, True)
        + episode(3, 5, True, ended=False)
    )
    curve = learning_curve(steps, window=2)
    assert curve.env_steps.tolist() == [3, 5, 9]
    assert curve.success.tolist() == [False, True, True]
    assert curve.success_rate.tolist() == [0.0, 0.5, 1.0]
    assert curve.return_.tolist() == [1.5, 1.0, 2.0]
    assert curve.human_steps.tolist() == [0, 2, 0]
    assert curve.weights_version.tolist() == [0, 1, 2]
    assert curve.unfinished == 1
    interval = wilson_interval(1, 2)
    assert (curve.lower[1], curve.upper[1]) == (interval.lower, interval.upper)


def test_interleaved_robots_keep_their_episodes_apart() -> None:
    left, right = episode(0, 3, True, robot="a"), episode(0, 3, False, robot="b")
    curve = learning_curve([step for pair in zip(left, right, strict=True) for step in pair])
    assert curve.success.tolist() == [True, False]
    assert curve.env_steps.tolist() == [5, 6]
    assert curve.return_.tolist() == [1.5, 1.5]


def test_no_steps_make_an_empty_curve() -> None:
    curve = learning_curve([])
    assert len(curve.env_steps) == len(curve.success_rate) == curve.unfinished == 0


# ---- GIF --------------------------------------------------------------------------------------------------------


def moving_square(length: int, size: int = 96) -> np.ndarray:
    frames = np.full((length, size, size, 3), 240, dtype=np.uint8)
    for index in range(length):
        frames[index, 20:40, index % 60 : index % 60 + 20] = (200, 40, 40)
    return frames


def played(path: Path) -> tuple[int, float]:
    """Number of frames and playing time in seconds."""
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        total_ms = 0
        for index in range(frames):
            image.seek(index)
            total_ms += image.info["duration"]
    return frames, total_ms / 1000.0


def test_a_gif_keeps_frames_colours_and_speed(tmp_path: Path) -> None:
    path = tmp_path / "rollout.gif"
    write_gif(path, moving_square(30), rate_hz=15.0)
    frames, duration_s = played(path)
    assert frames == 30
    assert duration_s == pytest.approx(2.0, abs=0.011)
    with Image.open(path) as image:
        image.seek(10)
        assert np.abs(np.asarray(image.convert("RGB"), dtype=int)[30, 15] - (200, 40, 40)).max() < 12


def test_a_large_gif_shrinks_to_its_limit_and_plays_as_long(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    path = tmp_path / "noise.gif"
    write_gif(path, noise, rate_hz=20.0, max_bytes=60_000)
    assert path.stat().st_size <= 60_000
    assert played(path)[1] == pytest.approx(2.0, abs=0.011)
    with pytest.raises(StorageError, match="do not fit"):
        write_gif(path, noise, rate_hz=20.0, max_bytes=1000)


def test_a_wide_film_becomes_as_wide_as_a_page(tmp_path: Path) -> None:
    path = tmp_path / "wide.gif"
    write_gif(path, np.zeros((2, 340, 1360, 3), dtype=np.uint8), rate_hz=10.0)
    with Image.open(path) as image:
        assert image.size == (640, 160)


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float64"):
        write_gif(tmp_path / "x.gif", np.zeros((2, 8, 8, 3)), rate_hz=10.0)  # type: ignore[arg-type]


def test_side_by_side_holds_the_last_frame_of_the_shorter() -> None:
    left, right = moving_square(4), moving_square(9)
    both = side_by_side(left, right)
    assert both.shape == (9, 96, 96 + 8 + 96, 3)
    assert np.array_equal(both[8, :, :96], left[3])
    assert np.array_equal(both[8, :, -96:], right[8])
