"""What durability costs: the log beside raw writes of the same bytes, in the same run on the same disk.

    python -m benchmarks.storage [--quick] [--seed N] [--steps N] [--directory PATH]

The directory decides which disk is measured (default: the system's temporary directory; a tmpfs makes fsync free).
The last line is one JSON object; `*_ratio` compares the log with `os.write` + `os.fsync` and means something on a busy
machine too, times do not. `reopen_store_*`: opening a store of `--steps` steps, most of them in sealed episodes of 200
steps, the rest in the log; `reopen_store_ratio` compares its time for a step with that of a log without sealing.
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

import msgspec
import numpy as np
from tqdm import tqdm

from robot_stack.buffer.episode_file import write_episode_file
from robot_stack.buffer.log import DurableLog
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.buffer.steps import StepLog
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.codec import pack
from robot_stack.core.messages import Source, Step, Verdict

STATE_BYTES = 1_000
IMAGE_BYTES = 98_304
GROUP = 100
BATCH = 256
EPISODE_STEPS = 200
N_STEP = 3
UNSEALED_STEPS = 20_000


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
            steps.append([pack(_step(seq, rng)) for seq in range(start, start + 1000)])
    log, steps = DurableLog(directory / "steps"), StepLog(directory / "steps")
    log_ms = _time_ms(log.open)
    log.close()
    steps_ms = _time_ms(steps.open)
    steps.close()
    scale = 1e-3 * 100_000 / count
    return {"reopen_log_s_per_100k": log_ms * scale, "reopen_step_log_s_per_100k": steps_ms * scale}


def measure_store(directory: Path, count: int, rng: np.random.Generator) -> dict[str, float]:
    """Opening a store of `count` steps, with its catalog and after the catalog was deleted."""
    unsealed = min(UNSEALED_STEPS, count // 5)
    episodes = (count - unsealed) // EPISODE_STEPS
    template = [_step(seq, rng) for seq in range(EPISODE_STEPS)]
    for episode in tqdm(range(episodes), desc="sealed episodes", disable=None):
        _write_episode(directory / "store" / "episodes", template, episode)
    settings = StoreSettings(seal=False)
    with StepStore(directory / "store", settings=settings) as store:
        for start in range(0, unsealed, 1000):
            store.append([pack(_as_step(template, seq)) for seq in range(start, start + 1000)])
        steps = len(store)
    opened = StepStore(directory / "store", settings=settings)
    with_catalog = []
    for _ in range(3):
        with_catalog.append(_time_ms(opened.open))
        opened.close()
    (directory / "store" / "catalog").unlink()
    without_catalog = _time_ms(opened.open)
    opened.close()
    return {
        "reopen_store_steps": float(steps),
        "reopen_store_unsealed_steps": float(unsealed),
        "reopen_store_s": float(np.median(with_catalog)) * 1e-3,
        "reopen_store_without_catalog_s": without_catalog * 1e-3,
    }


def _as_step(template: list[Step], seq: int) -> Step:
    return msgspec.structs.replace(template[seq % EPISODE_STEPS], seq=seq, episode=seq // EPISODE_STEPS)


def _write_episode(directory: Path, template: list[Step], episode: int) -> None:
    """A sealed episode of a session of its own; the arrays are those of the template."""
    replace, first = msgspec.structs.replace, episode * EPISODE_STEPS
    steps = [
        (first + seq, replace(step, session=f"sealed-{episode}", episode=episode, episode_seed=episode))
        for seq, step in enumerate(template)
    ]
    write_episode_file(directory, steps, ended=True, durability="process")


def measure_sampling(rng: np.random.Generator, capacity: int, repeats: int) -> dict[str, float]:
    """A batch of 256 from one full replay (D = 40, A = 7), from two mixed, and bare fancy indexing of the same rows."""
    replays = [_full_replay(rng, capacity) for _ in range(2)]
    samplers = [Sampler([Part(replay) for replay in replays[:count]], seed=0) for count in (1, 2)]
    widths = (40, 7, 7, 1, 1, 40, 7)
    arrays = [np.zeros((capacity, width), np.float32) for width in widths]
    one, mixed, bare = np.empty(repeats), np.empty(repeats), np.empty(repeats)

    def index() -> None:
        rows = rng.integers(0, capacity, BATCH)
        for array in arrays:
            array[rows]

    def sample(sampler: Sampler) -> None:
        sampler.transitions(sampler.draw(BATCH), n_step=N_STEP, discount=0.99)

    for i in range(repeats):
        one[i] = _time_ms(lambda: sample(samplers[0]))
        mixed[i] = _time_ms(lambda: sample(samplers[1]))
        bare[i] = _time_ms(index)
    return {
        "sample_256_p50_ms": float(np.median(one)),
        "sample_256_mixed_p50_ms": float(np.median(mixed)),
        "sample_256_ratio": float(np.median(one) / np.median(bare)),
    }


def _full_replay(rng: np.random.Generator, capacity: int) -> Replay:
    replay = Replay(ReplayConfig(capacity, observation_size=40, action_size=7, lookahead=N_STEP))
    vectors = rng.standard_normal((100, 54)).astype(np.float32)
    for i in range(capacity):
        row, last = vectors[i % 100], i % 100 == 99
        parts = (row[:40], row[40:47], row[47:])
        replay.add(ReplayStep(i // 100, i % 100, Stratum.ONLINE, *parts, 0.0, terminated=last, truncated=False))
    return replay


def _step(seq: int, rng: np.random.Generator) -> Step:
    action = rng.standard_normal(7).astype(np.float32)
    return Step(
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


def _time_ms(action: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / 1e6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="in the store that is opened (1000000; quick: 100000)")
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
        results |= measure_store(directory, options.steps or 100_000 * size, rng)
    plain_s = results["reopen_step_log_s_per_100k"] * 1e-5 * results["reopen_store_steps"]
    results["reopen_store_ratio"] = results["reopen_store_s"] / plain_s
    results |= measure_sampling(rng, capacity=20_000 * size, repeats=300 * size)
    for key, value in results.items():
        print(f"{key:40s} {value:12.3f}")
    summary = {"benchmark": "storage", "seed": options.seed, "quick": options.quick}
    print(json.dumps(summary | {key: round(value, 4) for key, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
