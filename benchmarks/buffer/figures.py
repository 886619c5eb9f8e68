"""What is measured of each buffer, and what is wanted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

_PAGE = 4096


class Passed(Struct, frozen=True):
    """Time that one block of work took: on the clock, and of all cores together."""

    wall_s: float
    cpu_s: float


class Buffer(Protocol):
    """A full buffer under measurement. Each call does `count` things once more and says how long they took."""

    def insert(self, count: int) -> Passed: ...

    def sample(self, count: int) -> Passed: ...

    def prefetch(self, count: int) -> Passed: ...


class Figures(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Medians of one buffer; batches are of 256 transitions with both cameras' images of both observations.

    `reopen_s`: until 100,000 steps can be drawn again after a restart, scaled linearly; None: they are lost.
    """

    insert_per_s: float
    batches_per_s: float
    prefetched_batches_per_s: float
    cpu_ms_per_batch: float
    bytes_per_100k: float
    reopen_s: float | None = None
    note: str = ""


class IngestFigures(Struct, frozen=True, kw_only=True):
    """Batches per second while steps arrive and are made durable, beside none arriving, block by block in turn.

    `loss_percent` is the median over pairs of neighbouring blocks. `cpu_ms_per_step`: what one step costs the learner's
    process from the pipe to the replay, sealing included; `cores_percent`: the share of all cores that this is at the
    wanted rate, about the loss to expect on an idle machine. `append_*`: of one append of all steps that had arrived.
    """

    batches_per_s: float
    batches_per_s_with_ingest: float
    loss_percent: float
    wanted_steps_per_s: float
    steps_per_s: float
    cpu_ms_per_step: float
    cores_percent: float
    append_p50_ms: float
    append_p99_ms: float


class Target(Struct, frozen=True, kw_only=True):
    wanted: str
    measured: float | None
    met: bool | None


class Report(Struct, frozen=True, kw_only=True):
    """The last line of the output."""

    benchmark: str
    seed: int
    quick: bool
    cores: int
    load_average: float
    steps: int
    image_shape: tuple[int, int, int]
    jpeg_bytes_per_image: float
    buffers: dict[str, Figures]
    not_measured: dict[str, str] = field(default_factory=dict)
    ingest: dict[str, IngestFigures]
    ratios: dict[str, float]
    targets: dict[str, Target]


@dataclass(slots=True)
class Clock:
    """Starts when made."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __post_init__(self) -> None:
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> Passed:
        return Passed(time.perf_counter() - self.wall_s, time.process_time() - self.cpu_s)


def timed(action: Callable[[], object]) -> Passed:
    clock = Clock()
    action()
    return clock.read()


def resident_bytes() -> int:
    """Memory of this process that lies in RAM, file pages that it has mapped left out."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each: `rounds` times, in turn with the other buffers, this many per block."""

    rounds: int
    inserts: int
    batches: int


class Blocks:
    """The blocks measured of one buffer."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._inserts: list[Passed] = []
        self._samples: list[Passed] = []
        self._prefetches: list[Passed] = []

    def measure(self, buffer: Buffer) -> None:
        self._inserts.append(buffer.insert(self._plan.inserts))
        self._samples.append(buffer.sample(self._plan.batches))
        self._prefetches.append(buffer.prefetch(self._plan.batches))

    def figures(self, bytes_per_100k: float, reopen_s: float | None = None, note: str = "") -> Figures:
        return Figures(
            insert_per_s=_rate(self._plan.inserts, self._inserts),
            batches_per_s=_rate(self._plan.batches, self._samples),
            prefetched_batches_per_s=_rate(self._plan.batches, self._prefetches),
            cpu_ms_per_batch=1e3 * statistics.median(block.cpu_s for block in self._samples) / self._plan.batches,
            bytes_per_100k=bytes_per_100k,
            reopen_s=reopen_s,
            note=note,
        )


def _rate(count: int, blocks: Sequence[Passed]) -> float:
    return count / statistics.median(block.wall_s for block in blocks)
