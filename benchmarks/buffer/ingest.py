"""Sampling while robots send: four robots at 50 Hz with two cameras, every batch of steps durable before its answer.

Another process plays the robots and sends packed steps over a pipe as the edges would: the steps that an edge's uplink
gathers go together, each robot at another time. A thread appends what has arrived, as the learner's ingest does (one
fsync for each append, durability `power`; the store seals episodes meanwhile). The sampling thread takes the new steps
out of the store into its replay every few batches, and goes on sampling through a prefetcher.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import statistics
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from benchmarks.buffer.figures import Clock, IngestFigures, Passed
from benchmarks.buffer.scene import Scene
from benchmarks.buffer.stack import StackReplay, to_replay_step
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.core.codec import pack
from robot_stack.edge.uplink import GATHER_S

ROBOTS = 4
RATE_HZ = 50.0

_SPAWN = multiprocessing.get_context("spawn")
_BATCHES_PER_INTAKE = 8
_MAX_RECORDS = 64
_POLL_S = 0.02
_SETTLE_S = 0.2
_PIPE_BYTES = 1 << 20


def play_robots(pipe: Connection, scene: Scene, codec: ImageCodec, sending: Event, ending: Event) -> None:
    """Sends packed steps at ROBOTS x RATE_HZ while `sending` is set, late ones as soon as it can; b"" at the end."""
    period_s = GATHER_S / ROBOTS
    sent, turn, next_s = [0] * ROBOTS, 0, time.monotonic()
    while not ending.is_set():
        if not sending.wait(_POLL_S):
            next_s = time.monotonic()
            continue
        time.sleep(max(0.0, next_s - time.monotonic()))
        robot, due = turn % ROBOTS, int((turn // ROBOTS + 1) * GATHER_S * RATE_HZ)
        for record in [pack(scene.step(robot, number, codec)) for number in range(sent[robot], due)]:
            pipe.send_bytes(record)
        sent[robot] = due
        turn += 1
        next_s += period_s
    pipe.send_bytes(b"")


class Intake:
    """The thread that makes steps durable. `append_s`: how long each append took."""

    def __init__(self, pipe: Connection, store: StepStore) -> None:
        self._pipe = pipe
        self._store = store
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._is_over = False
        self.append_s: list[float] = []
        self.accepted = 0

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Returns when the robots have ended and everything they sent is stored."""
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over:
            records = self._arrived()
            start_s = time.perf_counter()
            self.accepted += self._store.append(records)[0]
            self.append_s.append(time.perf_counter() - start_s)

    def _arrived(self) -> list[bytes]:
        """Waits for a record, then takes all that lie in the pipe."""
        records: list[bytes] = []
        while not records or (len(records) < _MAX_RECORDS and self._pipe.poll()):
            record = self._pipe.recv_bytes()
            if not record:
                self._is_over = True
                break
            records.append(record)
        return records


@dataclass(frozen=True, slots=True)
class Block:
    """So many batches in so much time, while so many steps became durable."""

    batches: int
    passed: Passed
    steps: int

    @property
    def batches_per_s(self) -> float:
        return self.batches / self.passed.wall_s


class Consumer:
    """The sampling thread's part: batches through a prefetcher, new steps from the store in between."""

    def __init__(self, replay: StackReplay, store: StepStore) -> None:
        self._replay = replay
        self._store = store
        self._taken = 0

    def sample(self, duration_s: float) -> Block:
        """Batches for this long; the process's CPU time includes the ingest and the sealing meanwhile."""
        count, first = 0, self._store.next_index
        with self._replay.prefetcher() as batches:
            clock = Clock()
            while (passed := clock.read()).wall_s < duration_s:
                self.take_in()
                batches.expect(_BATCHES_PER_INTAKE)
                for _ in range(_BATCHES_PER_INTAKE):
                    batches.next()
                count += _BATCHES_PER_INTAKE
        return Block(count, passed, self._store.next_index - first)

    def take_in(self) -> None:
        """New steps from the store into the replay."""
        for log_index, step in self._store.iterate(self._taken):
            self._replay.replay.add(to_replay_step(step))
            self._taken = log_index + 1


def measure_ingest(
    directory: Path, scene: Scene, codec: ImageCodec, replay: StackReplay, *, pairs: int, block_s: float
) -> IngestFigures:
    """`pairs` of blocks of `block_s` without and with robots sending, in changing order, from the full `replay`."""
    ours, theirs = _SPAWN.Pipe(duplex=False)
    fcntl.fcntl(ours.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # several steps, as a socket's queue holds
    sending, ending = _SPAWN.Event(), _SPAWN.Event()
    robots = _SPAWN.Process(target=play_robots, args=(theirs, scene, codec, sending, ending), daemon=True)
    robots.start()
    theirs.close()
    blocks: list[tuple[Block, Block]] = []
    with StepStore(directory) as store:
        intake, consumer = Intake(ours, store), Consumer(replay, store)
        intake.start()
        for pair in range(pairs):
            measured: dict[bool, Block] = {}
            for is_sending in (False, True) if pair % 2 == 0 else (True, False):
                if is_sending:
                    sending.set()
                measured[is_sending] = consumer.sample(block_s)
                sending.clear()
                _settle(store, consumer)
            blocks.append((measured[False], measured[True]))
        ending.set()
        intake.join()
    robots.join()
    return _figures(blocks, intake.append_s)


def _figures(blocks: list[tuple[Block, Block]], append_s: list[float]) -> IngestFigures:
    batch_cpu_s = statistics.median(alone.passed.cpu_s / alone.batches for alone, _ in blocks)
    extra_cpu_s = sum(block.passed.cpu_s - batch_cpu_s * block.batches for _, block in blocks)
    cores = len(os.sched_getaffinity(0))
    steps, sending_s = sum(block.steps for _, block in blocks), sum(block.passed.wall_s for _, block in blocks)
    return IngestFigures(
        batches_per_s=statistics.median(alone.batches_per_s for alone, _ in blocks),
        batches_per_s_with_ingest=statistics.median(block.batches_per_s for _, block in blocks),
        loss_percent=100.0 * (1.0 - statistics.median(b.batches_per_s / a.batches_per_s for a, b in blocks)),
        wanted_steps_per_s=ROBOTS * RATE_HZ,
        steps_per_s=steps / sending_s,
        cpu_ms_per_step=1e3 * extra_cpu_s / max(1, steps),
        cores_percent=100.0 * ROBOTS * RATE_HZ * extra_cpu_s / max(1, steps) / cores,
        append_p50_ms=1e3 * float(np.percentile(append_s, 50)),
        append_p99_ms=1e3 * float(np.percentile(append_s, 99)),
    )


def _settle(store: StepStore, consumer: Consumer) -> None:
    """Waits until the pipe is empty and what is complete is sealed, so that the next block has none of it."""
    seen = -1
    while store.next_index != seen or store.waiting_stretches:
        seen = store.next_index
        time.sleep(_SETTLE_S)
    consumer.take_in()
