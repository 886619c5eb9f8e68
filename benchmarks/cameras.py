"""Two cameras in processes of their own, one reader: `python -m benchmarks.cameras [--quick] [--seed N]`.

Two simulated cameras of 640x480 at 30 Hz publish over CURVE on loopback; this process is the edge and watches both
through its feeds. Told are the rate, the time from capture to the feed, what was lost, and the processor time of a
camera process. Every other round a viewer that has been stopped (SIGSTOP) watches the first camera too: the ratios say
what it costs. The last line is one JSON object. Absolute figures belong to this machine, the ratios travel.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from hardware.cameras.config import CameraServerConfig, SimulatedCameraConfig
from hardware.cameras.sim import SimulatedCamera, simulated_spec
from robot_stack.apps.camera import CAMERA_FRAME, run_camera
from robot_stack.apps.process import Lifetime
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Array, CameraFrame
from robot_stack.edge.camera_feed import CameraFeed
from robot_stack.edge.freshness import FreshnessJudge
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.stream import Subscriber

NAMES = ("front", "wrist")
RATE_HZ, WIDTH, HEIGHT = 30.0, 640, 480
POLL_S = 0.001
START_S = 30.0
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class Figures:
    """What one kind of round gave: latencies of every picture, and sums over the rounds."""

    latency_s: list[float] = field(default_factory=list)
    skipped: int = 0
    paused: int = 0
    duration_s: float = 0.0
    camera_cpu_s: float = 0.0
    reader_cpu_s: float = 0.0

    def summary(self) -> dict[str, float]:
        p50, p99 = np.quantile(self.latency_s, [0.5, 0.99]) if self.latency_s else (float("nan"), float("nan"))
        return {
            "rate_hz": round(len(self.latency_s) / self.duration_s / len(NAMES), 2),
            "latency_p50_ms": round(1e3 * float(p50), 2),
            "latency_p99_ms": round(1e3 * float(p99), 2),
            "lost_share": round(self.skipped / max(1, self.skipped + len(self.latency_s)), 4),
            "paused_share": round(self.paused * POLL_S / self.duration_s / len(NAMES), 4),
            "cpu_share_per_camera": round(self.camera_cpu_s / self.duration_s / len(NAMES), 4),
            "cpu_share_reader": round(self.reader_cpu_s / self.duration_s, 4),
        }


def scene(image: Array) -> Array:
    """The next picture, as a copy: a renderer fills a new buffer each time."""
    return image.copy()


def camera_process(name: str, address: str, keys: Path, seed: int) -> None:
    config = SimulatedCameraConfig(name=name, width=WIDTH, height=HEIGHT, rate_hz=RATE_HZ)
    image = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    camera = SimulatedCamera(simulated_spec(config), partial(scene, image))
    with Lifetime() as lifetime:
        run_camera(CameraServerConfig(address=address), camera, KeyStore(keys), "robot", lifetime.running)


def viewer_process(address: str, keys: Path, watching: multiprocessing.synchronize.Event) -> None:
    subscriber: Subscriber[CameraFrame] = Subscriber(
        CAMERA_FRAME, address, KeyStore(keys), "viewer", "robot", CameraFrame
    )
    with subscriber as frames:
        while True:
            if frames.newest(1.0) is not None:
                watching.set()


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def running(process: BaseProcess) -> Iterator[BaseProcess]:
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def stopped_viewer(address: str, keys: Path) -> Iterator[None]:
    """A viewer that has watched for a moment and then stands still."""
    watching = _SPAWN.Event()
    viewer = _SPAWN.Process(target=viewer_process, args=(address, keys, watching))
    viewer.start()
    try:
        if not watching.wait(START_S):
            raise RobotError(f"the viewer saw nothing within {START_S:g} s")
        os.kill(viewer.pid or 0, signal.SIGSTOP)
        yield
    finally:
        viewer.kill()
        viewer.join()


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(feeds: list[CameraFeed], cameras: list[BaseProcess], duration_s: float, figures: Figures) -> None:
    """Poll the feeds for so long and add what they gave."""
    for feed in feeds:  # what passed since the last round does not count
        feed.wait(START_S)
    pids = [camera.pid or 0 for camera in cameras]
    skipped_before = sum(feed.skipped for feed in feeds)
    cameras_before_s, reader_before_s = sum(map(cpu_s, pids)), time.process_time()
    began_s = time.monotonic()
    while time.monotonic() - began_s < duration_s:
        for feed in feeds:
            before = feed.taken
            try:
                _, age_ns = feed.newest(time.monotonic_ns())
            except RobotError:
                figures.paused += 1
                continue
            if feed.taken > before:
                figures.latency_s.append(age_ns / 1e9)
        time.sleep(POLL_S)
    took_s = time.monotonic() - began_s
    figures.duration_s += took_s
    figures.skipped += sum(feed.skipped for feed in feeds) - skipped_before
    figures.camera_cpu_s += sum(map(cpu_s, pids)) - cameras_before_s
    figures.reader_cpu_s += time.process_time() - reader_before_s


def measure(folder: Path, seed: int, rounds: int, round_s: float) -> dict[str, Figures]:
    keys = KeyStore(folder / "keys")
    for name, role in (("robot", Role.ROBOT), ("edge", Role.EDGE), ("viewer", Role.VIEWER)):
        keys.make(name, role)
    addresses = [free_address() for _ in NAMES]
    alone, frozen = Figures(), Figures()
    with ExitStack() as opened:
        cameras = []
        for index, (name, address) in enumerate(zip(NAMES, addresses, strict=True)):
            arguments = (name, address, keys.directory, seed + index)
            cameras.append(opened.enter_context(running(_SPAWN.Process(target=camera_process, args=arguments))))
        feeds = []
        for name, address in zip(NAMES, addresses, strict=True):
            subscriber: Subscriber[CameraFrame] = Subscriber(CAMERA_FRAME, address, keys, "edge", "robot", CameraFrame)
            feeds.append(opened.enter_context(CameraFeed(name, subscriber, FreshnessJudge(RATE_HZ, 0.2))))
        for feed in feeds:
            feed.wait(START_S)
        for _ in range(rounds):
            watch(feeds, cameras, round_s, alone)
            with stopped_viewer(addresses[0], keys.directory):
                watch(feeds, cameras, round_s, frozen)
    return {"alone": alone, "with_a_stopped_viewer": frozen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rounds, round_s = (2, 4.0) if options.quick else (5, 20.0)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.seed, rounds, round_s)
    result = {name: figures.summary() for name, figures in found.items()}
    for name, figures in result.items():
        print(name, *(f"{key}={value}" for key, value in figures.items()))
    alone, frozen = result["alone"], result["with_a_stopped_viewer"]
    ratios = {
        f"stopped_viewer_{key}_ratio": round(frozen[key] / alone[key], 3)
        for key in ("rate_hz", "latency_p50_ms", "cpu_share_per_camera")
    }
    print(json.dumps({"benchmark": "cameras", "seed": options.seed, **result, **ratios}))


if __name__ == "__main__":
    main()
