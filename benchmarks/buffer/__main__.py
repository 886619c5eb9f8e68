"""The replay buffer beside LeRobot's and beside a plain ring of numpy arrays, in one run on the same steps.

    python -m benchmarks.buffer [--quick] [--seed N] [--lerobot-python PATH] [--directory PATH]

Two cameras of 128 x 128, a state of 18 and actions of 7 numbers. A batch is 256 transitions with both cameras' images
of both observations. The buffers are measured in turn, block by block, and figures are medians over the blocks: ratios
mean something on a busy machine too, rates do not.

    lerobot, lerobot_optimized   LeRobot's ReplayBuffer (`optimize_memory` off and on), made with `make lerobot-env`
    ring                         preallocated uint8 arrays, next image one row further, no durability
    ram_raw, ram_jpeg            ours, all frames in memory
    disk_raw, disk_jpeg          ours, no frame in memory: read from sealed episode files, which the page cache holds

Memory is the growth of the process's resident memory while a buffer is filled, per 100,000 transitions that can be
drawn, scaled linearly from the number in the report. `--directory` decides which disk is measured (default: the
system's temporary directory; a tmpfs makes fsync free). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from tqdm import tqdm

from benchmarks.buffer import lerobot
from benchmarks.buffer.figures import Blocks, Buffer, IngestFigures, Plan, Report, resident_bytes
from benchmarks.buffer.ingest import measure_ingest
from benchmarks.buffer.ring import PlainRing
from benchmarks.buffer.scene import Scene, make_scene
from benchmarks.buffer.stack import StackReplay, fill_store, frame_bytes, refill
from benchmarks.buffer.targets import ratios_of, targets_of
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore

LEROBOT_PYTHON = Path(".venv-lerobot/bin/python")
CODECS = (ImageCodec.RAW, ImageCodec.JPEG)

_PORTION = 20
_B = TypeVar("_B", bound=Buffer)


@dataclass(frozen=True, slots=True)
class Sizes:
    """`steps` in each buffer, images of `side` x `side`. `fast` for what copies frames, `slow` for LeRobot and for what
    decodes JPEG files. `pairs` of blocks of `block_s` without and with ingest."""

    steps: int
    side: int
    fast: Plan
    slow: Plan
    pairs: int
    block_s: float


FULL = Sizes(steps=2000, side=128, fast=Plan(5, 200, 60), slow=Plan(5, 200, 6), pairs=8, block_s=2.0)
QUICK = Sizes(steps=400, side=128, fast=Plan(3, 100, 20), slow=Plan(3, 100, 2), pairs=3, block_s=1.2)
TINY = Sizes(steps=200, side=16, fast=Plan(1, 20, 2), slow=Plan(1, 20, 2), pairs=1, block_s=0.3)


@dataclass(slots=True)
class Entry:
    """A full buffer in the run."""

    buffer: Buffer
    blocks: Blocks
    bytes_per_100k: float
    note: str
    reopen_s: float | None = None


class Benchmark:
    """One run on `directory`'s disk. `entries`, `ingest` and `not_measured` are filled by `run`."""

    def __init__(self, sizes: Sizes, seed: int, lerobot_python: Path, directory: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self.ingest: dict[str, IngestFigures] = {}
        self.not_measured: dict[str, str] = {}
        self.scene: Scene = make_scene(sizes.side, sizes.side, seed)
        self._replays: dict[ImageCodec, StackReplay] = {}
        self._sizes = sizes
        self._seed = seed
        self._lerobot_python = lerobot_python
        self._directory = directory

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            self._add_ring()
            for codec in CODECS:
                self._add_in_memory(codec)
                self._add_on_disk(codec, stack)
            self._add_lerobot(stack)
            for _ in tqdm(range(self._sizes.fast.rounds), desc="buffers in turn", file=sys.stderr):
                for entry in self.entries.values():
                    entry.blocks.measure(entry.buffer)
        for codec in tqdm(CODECS, desc="reopening, ingest", file=sys.stderr):
            self._reopen(codec)
            self.ingest[codec.value] = self._measure_ingest(codec)

    def _add_ring(self) -> None:
        rng = np.random.default_rng(self._seed)
        ring, grown = self._filled(lambda: PlainRing(self.scene, self._sizes.steps, rng))
        note = "cannot be reopened: it lives in memory only"
        self._add("ring", ring, self._sizes.fast, grown / self._sizes.steps, note)

    def _add_in_memory(self, codec: ImageCodec) -> None:
        replay, grown = self._filled(lambda: self._in_memory(codec))
        self._replays[codec] = replay
        self._add(f"ram_{codec.value}", replay, self._plan(codec), grown / len(replay.replay), "")

    def _add_on_disk(self, codec: ImageCodec, stack: contextlib.ExitStack) -> None:
        steps = self._sizes.steps
        store = stack.enter_context(StepStore(self._directory / codec.value))
        fill_store(store, self.scene, codec, steps)
        replay, grown = self._filled(
            lambda: StackReplay(self.scene, steps, codec, self._seed, frame_budget_bytes=0, store=store)
        )
        note = "sealed episode files, which lie in the page cache"
        self._add(f"disk_{codec.value}", replay, self._plan(codec), grown / len(replay.replay), note)

    def _add_lerobot(self, stack: contextlib.ExitStack) -> None:
        names = {"standard": "lerobot", "optimized": "lerobot_optimized"}
        if not self._lerobot_python.exists():
            self.not_measured = dict.fromkeys(names.values(), lerobot.MISSING)
            return
        steps = self._sizes.steps
        process = stack.enter_context(
            lerobot.LeRobotProcess(self._lerobot_python, steps, self.scene.image_shape, self._seed)
        )
        for kind, name in names.items():
            bytes_per_step = process.ready.bytes_of(kind) / steps
            self._add(name, lerobot.LeRobotBuffer(process, kind), self._sizes.slow, bytes_per_step, process.note)

    def _add(self, name: str, buffer: Buffer, plan: Plan, bytes_per_step: float, note: str) -> None:
        self.entries[name] = Entry(buffer, Blocks(plan), 1e5 * bytes_per_step, note)

    def _in_memory(self, codec: ImageCodec) -> StackReplay:
        steps = self._sizes.steps
        budget = frame_bytes(self.scene, codec, steps)
        return StackReplay(self.scene, steps, codec, self._seed, frame_budget_bytes=budget)

    def _filled(self, make: Callable[[], _B]) -> tuple[_B, int]:
        """A buffer with two rounds of steps in it, and by how much memory has grown. In small portions: what they take
        before they are inserted must not count."""
        before = resident_bytes()
        buffer = make()
        for _ in range(0, 2 * self._sizes.steps, _PORTION):
            buffer.insert(_PORTION)
        gc.collect()
        return buffer, max(1, resident_bytes() - before)

    def _plan(self, codec: ImageCodec) -> Plan:
        return self._sizes.fast if codec is ImageCodec.RAW else self._sizes.slow

    def _reopen(self, codec: ImageCodec) -> None:
        steps = self._sizes.steps
        opened_s, filled_s = refill(self._directory / codec.value, self.scene, codec, steps)
        entry = self.entries[f"disk_{codec.value}"]
        entry.reopen_s = 1e5 / steps * (opened_s + filled_s)
        entry.note += f"; reopening: {opened_s:.3f} s to open the store of {steps} steps, {filled_s:.3f} s to refill"

    def _measure_ingest(self, codec: ImageCodec) -> IngestFigures:
        sizes = self._sizes
        directory = self._directory / f"ingest-{codec.value}"
        replay = self._replays[codec]
        return measure_ingest(directory, self.scene, codec, replay, pairs=sizes.pairs, block_s=sizes.block_s)


def measure(sizes: Sizes, seed: int, lerobot_python: Path, directory: Path, *, quick: bool) -> Report:
    benchmark = Benchmark(sizes, seed, lerobot_python, directory)
    benchmark.run()
    figures = {
        name: entry.blocks.figures(entry.bytes_per_100k, entry.reopen_s, entry.note)
        for name, entry in benchmark.entries.items()
    }
    return Report(
        benchmark="buffer",
        seed=seed,
        quick=quick,
        cores=len(os.sched_getaffinity(0)),
        load_average=os.getloadavg()[0],
        steps=sizes.steps,
        image_shape=benchmark.scene.image_shape,
        jpeg_bytes_per_image=benchmark.scene.jpeg_bytes,
        buffers=figures,
        not_measured=benchmark.not_measured,
        ingest=benchmark.ingest,
        ratios=ratios_of(figures),
        targets=targets_of(figures, benchmark.ingest),
    )


def show(report: Report) -> None:
    """A table for people."""
    print(
        f"{'':18s} {'insert/s':>10s} {'batches/s':>10s} {'prefetched':>10s} {'CPU ms':>8s} {'GB/100k':>8s} "
        f"{'reopen s':>9s}"
    )
    for name, f in report.buffers.items():
        rates = f"{f.insert_per_s:10.0f} {f.batches_per_s:10.1f} {f.prefetched_batches_per_s:10.1f}"
        reopen = "never" if f.reopen_s is None else f"{f.reopen_s:.1f}"
        print(f"{name:18s} {rates} {f.cpu_ms_per_batch:8.1f} {f.bytes_per_100k / 1e9:8.2f} {reopen:>9s}")
    for name, why in report.not_measured.items():
        print(f"{name:18s} {why}")
    for name, i in report.ingest.items():
        print(
            f"ingest {name}: {i.batches_per_s:.1f} batches/s alone, {i.batches_per_s_with_ingest:.1f} with "
            f"{i.steps_per_s:.0f} steps/s coming in ({i.loss_percent:.1f} % less)"
        )
    for name, target in report.targets.items():
        measured = "not measured" if target.measured is None else f"{target.measured:.2f}"
        print(f"{name:60s} wanted {target.wanted:>8s}  measured {measured:>12s}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.buffer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and repetitions; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lerobot-python", type=Path, default=LEROBOT_PYTHON, help="of LeRobot's own environment")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="buffer-benchmark-") as name:
        sizes = QUICK if options.quick else FULL
        report = measure(sizes, options.seed, options.lerobot_python, Path(name), quick=options.quick)
    show(report)
    print(msgspec.json.encode(report).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
