"""Measures LeRobot's `ReplayBuffer` inside LeRobot's own environment; started by `python -m benchmarks.buffer`.

    .venv-lerobot/bin/python -P benchmarks/lerobot_buffer.py --capacity N --height 128 --width 128 [--seed N]

It holds two full buffers, the default one and one with `optimize_memory=True`, and answers one JSON line for every
line on its standard input: `KIND insert COUNT`, `KIND sample COUNT` or `KIND prefetch COUNT`, where KIND is `standard`
or `optimized`. The answer has `wall_s` and `cpu_s`. The first line it prints, when both buffers are full, has the
versions and `bytes_KIND`, the growth of its resident memory while that buffer was filled.

LeRobot's settings are its own defaults but for one that would cost it time: no random shift of the images (`use_drq`),
because no other buffer measured here changes the images.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 256
CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE_SIZE = 18
ACTION_SIZE = 7
EPISODE = 100
POOL = 64
KINDS = {"standard": False, "optimized": True}


def load_replay_buffer() -> Any:
    """LeRobot's class, unchanged. Its module also imports LeRobot's datasets, for export only, and with them some 60
    packages; an empty stand-in for that one module keeps the environment small."""
    name = "lerobot.datasets.lerobot_dataset"
    stand_in = types.ModuleType(name)
    stand_in.LeRobotDataset = type("LeRobotDataset", (), {})  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    return importlib.import_module("lerobot.rl.buffer").ReplayBuffer


def make_pool(height: int, width: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Observations as LeRobot's actor hands them over: float32, images (1, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {camera: torch.rand((1, 3, height, width), generator=generator) for camera in CAMERAS}
        | {"observation.state": torch.randn((1, STATE_SIZE), generator=generator)}
        for _ in range(POOL)
    ]


class Measured:
    """One buffer and the steps that have gone into it."""

    def __init__(self, buffer: Any, pool: list[dict[str, torch.Tensor]]) -> None:
        self._buffer = buffer
        self._pool = pool
        self._action = torch.zeros((1, ACTION_SIZE))
        self._added = 0

    def insert(self, count: int) -> dict[str, float]:
        clock = Clock()
        for i in range(self._added, self._added + count):
            self._buffer.add(
                state=self._pool[i % POOL],
                action=self._action,
                reward=0.0,
                next_state=self._pool[(i + 1) % POOL],
                done=i % EPISODE == EPISODE - 1,
                truncated=False,
            )
        self._added += count
        return clock.read()

    def sample(self, count: int) -> dict[str, float]:
        clock = Clock()
        for _ in range(count):
            self._buffer.sample(BATCH)
        return clock.read()

    def prefetch(self, count: int) -> dict[str, float]:
        """Batches out of LeRobot's own background thread, from its first batch on. It is ended after each call: left
        alone with a full queue it goes on making batches and throws them away."""
        batches = self._buffer.get_iterator(BATCH, async_prefetch=True, queue_size=2)
        next(batches)
        clock = Clock()
        for _ in range(count):
            next(batches)
        passed = clock.read()
        batches.close()
        return passed


class Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacity", type=int, required=True, help="transitions in each of the two buffers")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    replay_buffer = load_replay_buffer()
    pool = make_pool(options.height, options.width, options.seed)
    warm_up = Measured(replay_buffer(8, device="cpu", use_drq=False), pool)  # torch's own memory is not the buffer's
    warm_up.insert(16)
    warm_up.sample(2)
    buffers: dict[str, Measured] = {}
    hello: dict[str, object] = {
        "lerobot": version("lerobot"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    for kind, optimize in KINDS.items():
        before = resident_bytes()
        buffer = replay_buffer(
            options.capacity, device="cpu", storage_device="cpu", use_drq=False, optimize_memory=optimize
        )
        buffers[kind] = Measured(buffer, pool)
        buffers[kind].insert(options.capacity)
        hello[f"bytes_{kind}"] = resident_bytes() - before
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        kind, action, count = line.split()
        measured = buffers[kind]
        actions = {"insert": measured.insert, "sample": measured.sample, "prefetch": measured.prefetch}
        print(json.dumps(actions[action](int(count))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
