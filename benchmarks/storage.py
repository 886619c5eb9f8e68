"""What durability costs: the log beside raw writes of the same bytes, in the same run on the same disk.

    python -m benchmarks.storage [--quick] [--seed N] [--directory PATH]

The directory decides which disk is measured (default: the system's temporary directory; a tmpfs makes fsync free).
The last line is one JSON object; `*_ratio` compares the log with `os.write` + `os.fsync` and means something on a busy
machine too, times do not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from robot_stack.buffer.log import DurableLog
from robot_stack.buffer.steps import StepLog
from robot_stack.buffer.transitions import StepVectors, TransitionBuffer, sample_mixed
from robot_stack.core.codec import pack
from robot_stack.core.messages import Source, Step, Verdict

STATE_BYTES = 1_000
IMAGE_BYTES = 98_304
GROUP = 100
BATCH = 256


def measure_append(directory: Path, record: bytes, count: int) -> dict[str, float]:
    """Times of append + sync, and of raw write + fsync, alternating so that both see the same machine."""
    ours, raw = np.empty(count), np.empty(count)
    raw_fd = os.open(directory / f"raw-{len(record)}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with DurableLog(directory / f"log-{len(record)}") as log:

        def append() -> None:
            log.append(record)
            log.sync()

        def write() -> None:
            os.write(raw_fd, record)
            os.fsync(raw_fd)

        for i in range(count):
            ours[i] = _time_ms(append)
            raw[i] = _time_ms(write)
    os.close(raw_fd)
    return {
        "append_fsync_p50_ms": float(np.percentile(ours, 50)),
        "append_fsync_p99_ms": float(np.percentile(ours, 99)),
        "raw_fsync_p50_ms": float(np.percentile(raw, 50)),
        "append_fsync_p50_ratio": float(np.percentile(ours, 50) / np.percentile(raw, 50)),
    }


def measure_groups(directory: Path, record: bytes, groups: int) -> dict[str, float]:
    """Appends per second when one sync covers a group, beside one raw write + fsync of the group's bytes."""
    batch, blob = [record] * GROUP, record * GROUP
    ours = raw = 0.0
    raw_fd = os.open(directory / f"raw-group-{len(record)}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with DurableLog(directory / f"group-{len(record)}") as log:

        def append() -> None:
            log.append_many(batch)
            log.sync()

        def write() -> None:
            os.write(raw_fd, blob)
            os.fsync(raw_fd)

        for _ in range(groups):
            ours += _time_ms(append)
            raw += _time_ms(write)
    os.close(raw_fd)
    return {"group_commit_appends_per_s": 1e3 * groups * GROUP / ours, "group_commit_ratio": ours / raw}


def measure_reopen(directory: Path, count: int, rng: np.random.Generator) -> dict[str, float]:
    """Opening a log and a step log of `count` records of a state-only robot, scaled to 100k records."""
    with StepLog(directory / "steps") as steps:
        for start in range(0, count, 1000):
            steps.append([_step(seq, rng) for seq in range(start, start + 1000)])
    log, steps = DurableLog(directory / "steps"), StepLog(directory / "steps")
    log_ms = _time_ms(log.open)
    log.close()
    steps_ms = _time_ms(steps.open)
    steps.close()
    scale = 1e-3 * 100_000 / count
    return {"reopen_log_s_per_100k": log_ms * scale, "reopen_step_log_s_per_100k": steps_ms * scale}


def measure_sampling(rng: np.random.Generator, capacity: int, repeats: int) -> dict[str, float]:
    """A batch of 256 from one full buffer (D = 40, A = 7), from two mixed, and bare fancy indexing of the same rows."""
    buffers = [_full_buffer(rng, capacity) for _ in range(2)]
    widths = (40, 7, 7, 1, 1, 40, 7)
    arrays = [np.zeros((capacity, width), np.float32) for width in widths]
    one, mixed, bare = np.empty(repeats), np.empty(repeats), np.empty(repeats)

    def index() -> None:
        rows = rng.integers(0, capacity, BATCH)
        for array in arrays:
            array[rows]

    for i in range(repeats):
        one[i] = _time_ms(lambda: buffers[0].sample(BATCH, rng))
        mixed[i] = _time_ms(lambda: sample_mixed([(buffer, 0.5) for buffer in buffers], BATCH, rng))
        bare[i] = _time_ms(index)
    return {
        "sample_256_p50_ms": float(np.median(one)),
        "sample_256_mixed_p50_ms": float(np.median(mixed)),
        "sample_256_ratio": float(np.median(one) / np.median(bare)),
    }


def _full_buffer(rng: np.random.Generator, capacity: int) -> TransitionBuffer:
    buffer = TransitionBuffer(capacity, observation_size=40, action_size=7, n_step=3, discount=0.99)
    vectors = rng.standard_normal((100, 54)).astype(np.float32)
    for i in range(capacity):
        row = vectors[i % 100]
        buffer.add(StepVectors(i // 100, i % 100, row[:40], row[40:47], row[47:], 0.0, i % 100 == 99, False))
    return buffer


def _step(seq: int, rng: np.random.Generator) -> bytes:
    action = rng.standard_normal(7).astype(np.float32)
    return pack(
        Step(
            run="benchmark",
            robot="robot_0",
            task="reach",
            session=f"session-{seq // 5000}",
            seq=seq,
            episode=seq // 100,
            episode_seed=seq // 100,
            segment=0,
            index=seq % 100,
            stamp_ns=seq,
            observation={"observation.state": rng.standard_normal(40).astype(np.float32)},
            action_base=action,
            action_asked=action,
            action_sent=action,
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=Source.POLICY,
            weights_version=1,
            reward=0.0,
            success=False,
            terminated=False,
            truncated=False,
        )
    )


def _time_ms(action: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / 1e6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    size = 1 if options.quick else 10
    results: dict[str, float] = {}
    gc.disable()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="storage-benchmark-") as name:
        directory = Path(name)
        for label, bytes_ in (("state", STATE_BYTES), ("image", IMAGE_BYTES)):
            record = rng.bytes(bytes_)
            measured = measure_append(directory, record, 200 * size) | measure_groups(directory, record, 3 * size)
            results |= {f"{label}_{key}": value for key, value in measured.items()}
        results |= measure_reopen(directory, 10_000 * size, rng)
    results |= measure_sampling(rng, capacity=20_000 * size, repeats=300 * size)
    for key, value in results.items():
        print(f"{key:40s} {value:12.3f}")
    summary = {"benchmark": "storage", "seed": options.seed, "quick": options.quick}
    print(json.dumps(summary | {key: round(value, 4) for key, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
