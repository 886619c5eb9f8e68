import math
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.buffer import lerobot
from benchmarks.buffer.__main__ import TINY, measure
from benchmarks.buffer.figures import Blocks, Figures, Passed, Plan, Report
from benchmarks.buffer.ingest import RATE_HZ, ROBOTS
from benchmarks.buffer.scene import CAMERAS, EPISODE, make_scene
from benchmarks.buffer.targets import OURS, targets_of
from robot_stack.buffer.images import ImageCodec, decode_image
from robot_stack.core.errors import ConfigError


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    directory = tmp_path_factory.mktemp("buffer")
    measured = measure(TINY, 0, directory / "no-python-here", directory, quick=True)
    return msgspec.json.decode(msgspec.json.encode(measured), type=Report)


def test_every_buffer_of_ours_and_the_ring_are_measured(report: Report) -> None:
    assert set(report.buffers) == {*OURS, "ring"}
    for figures in report.buffers.values():
        rates = (figures.insert_per_s, figures.batches_per_s, figures.prefetched_batches_per_s)
        assert all(math.isfinite(rate) and rate > 0 for rate in rates)
        assert figures.bytes_per_100k > 0


def test_only_buffers_on_the_disk_can_be_reopened(report: Report) -> None:
    reopened = {name for name, figures in report.buffers.items() if figures.reopen_s is not None}
    assert reopened == {"disk_raw", "disk_jpeg"}


def test_lerobot_is_named_as_not_measured_where_its_environment_is_missing(report: Report) -> None:
    assert report.not_measured == dict.fromkeys(("lerobot", "lerobot_optimized"), lerobot.MISSING)
    unknown = [name for name, target in report.targets.items() if target.met is None]
    assert unknown == [
        "speed_over_lerobot_within_a_quarter_of_its_memory",
        "speed_over_lerobot_optimized_within_a_quarter_of_its_memory",
    ]


def test_steps_that_robots_sent_became_durable_while_batches_were_drawn(report: Report) -> None:
    assert set(report.ingest) == {"raw", "jpeg"}
    for figures in report.ingest.values():
        assert figures.wanted_steps_per_s == ROBOTS * RATE_HZ
        assert figures.steps_per_s > 0
        assert figures.batches_per_s_with_ingest > 0
        assert 0 < figures.append_p50_ms <= figures.append_p99_ms


def test_a_buffer_that_takes_more_than_a_quarter_of_lerobots_memory_does_not_count_as_faster() -> None:
    def figures(rate: float, size: float) -> Figures:
        return Figures(
            insert_per_s=1.0,
            batches_per_s=rate,
            prefetched_batches_per_s=0.0,
            cpu_ms_per_batch=1.0,
            bytes_per_100k=size,
        )

    buffers = {"ram_raw": figures(100.0, 26.0), "disk_raw": figures(40.0, 1.0), "lerobot": figures(10.0, 100.0)}
    buffers |= {"ram_jpeg": figures(5.0, 3.0), "disk_jpeg": figures(4.0, 1.0)}
    target = targets_of(buffers, {})["speed_over_lerobot_within_a_quarter_of_its_memory"]
    assert (target.measured, target.met) == (4.0, True)
    buffers["ram_raw"] = figures(100.0, 25.0)
    assert targets_of(buffers, {})["speed_over_lerobot_within_a_quarter_of_its_memory"].measured == 10.0


def test_figures_are_medians_of_the_blocks() -> None:
    class Slow:
        def __init__(self) -> None:
            self.walls = iter((9.0, 2.0, 4.0))

        def insert(self, count: int) -> Passed:
            self.wall = next(self.walls)
            return Passed(self.wall, 0.5)

        def sample(self, count: int) -> Passed:
            return Passed(self.wall, 0.5)

        prefetch = sample

    blocks, buffer = Blocks(Plan(rounds=3, inserts=8, batches=2)), Slow()
    for _ in range(3):
        blocks.measure(buffer)
    figures = blocks.figures(bytes_per_100k=1.0)
    assert (figures.insert_per_s, figures.batches_per_s, figures.cpu_ms_per_batch) == (2.0, 0.5, 250.0)


def test_an_environment_without_lerobot_is_a_clear_error() -> None:
    process = lerobot.LeRobotProcess(Path(sys.executable), capacity=4, image_shape=(8, 8, 3), seed=0)
    with pytest.raises(ConfigError, match="make lerobot-env"), process:
        pass


def test_episodes_end_by_a_time_out_with_the_observation_that_follows() -> None:
    scene = make_scene(16, 16, 0)
    last, first = scene.step(1, EPISODE - 1, ImageCodec.RAW), scene.step(1, EPISODE, ImageCodec.RAW)
    assert last.truncated and not last.terminated and not first.truncated
    assert (first.episode, first.index, last.final_observation is not None) == (1, 0, True)
    encoded = scene.step(1, 3, ImageCodec.JPEG).observation[CAMERAS[0]]
    raw = scene.step(1, 3, ImageCodec.RAW).observation[CAMERAS[0]]
    assert np.abs(decode_image(encoded).astype(int) - raw).mean() < 10.0
