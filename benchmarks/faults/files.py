"""Rows of torn files: what power loss, damage and short writes may leave of a store, and what it makes of that.

The store runs for real on a watched folder (`crash_disk.py`). At every fsync on its way, sealing included, the power is
cut in several ways; each folder left behind is opened anew and read through. Acknowledged steps must all be there, and
nothing may be returned that was never recorded.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec import Struct
from tqdm import tqdm

from benchmarks.faults.content import RECORDING, loop_step, problem_of
from benchmarks.faults.crash_disk import Content, CrashDisk, cut_at, everything, nothing, sectors
from benchmarks.faults.stores import TORN, open_store, seal
from robot_stack.buffer.segment import RECORD_HEADER_BYTES
from robot_stack.core.codec import pack
from robot_stack.core.errors import RobotStackError, StorageError
from robot_stack.core.messages import Step
from robot_stack.edge.recorder import Recorder

SESSION_STEPS = 90
SEAL_EVERY = 4


class PowerRow(Struct, frozen=True, kw_only=True):
    """`instants`: at which the power was cut; `left`: folders opened after it. `refused`: of them, those that the store
    would not open (none may be); the first is in words in `first_problem`."""

    instants: int
    left: int
    truncations: int
    acked_lost: int
    bad_returned: int
    twice: int
    refused: int
    first_problem: str


class DamageRow(Struct, frozen=True, kw_only=True):
    """One bit flipped at a time, in any file. `found`: the store said so; `harmless`: everything was returned right;
    `shown`: steps were cut and the store tells so (`cut_bytes`)."""

    flips: int
    found: int
    harmless: int
    shown: int
    bad_returned: int
    silently_missing: int


class ShortWriteRow(Struct, frozen=True, kw_only=True):
    """The kernel cuts writes short at a size and then refuses them, as a full disk does; later there is room again."""

    limits: int
    refused_batches: int
    acked: int
    acked_lost: int
    bad_returned: int
    twice: int


class Source:
    """Packed steps in order, each of them known by its place."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._recorder = Recorder(RECORDING, self._steps.append)

    def take(self, count: int) -> tuple[list[bytes], list[tuple[str, int]]]:
        """(records, identities) of the next `count` steps; a new session, as after a restart, now and then."""
        self._steps.clear()
        identities: list[tuple[str, int]] = []
        for _ in range(count):
            if self._recorder.recorded >= SESSION_STEPS:
                self._recorder = Recorder(RECORDING, self._steps.append)
            session, seq = self._recorder.session, self._recorder.recorded
            self._recorder.on_step(loop_step(session, seq))
            identities.append((session, seq))
        return [pack(step) for step in self._steps], identities


@dataclass(slots=True)
class Reading:
    """What a reopened store holds."""

    stored: set[tuple[str, int]] = field(default_factory=set)
    bad: int = 0
    twice: int = 0
    cut_bytes: int = 0
    problem: str = ""


def read_through(folder: Path) -> Reading:
    """Open a store, read everything, append one more step."""
    verdict = Reading()
    try:
        with open_store(folder, TORN, "process") as store:
            verdict.cut_bytes = store.cut_bytes
            for _, step in store.iterate(0):
                identity = (step.session, step.seq)
                verdict.twice += identity in verdict.stored
                verdict.bad += problem_of(step) != ""
                verdict.stored.add(identity)
            store.append(Source().take(1)[0])
    except RobotStackError as error:
        verdict.problem = str(error)
    return verdict


@dataclass(slots=True)
class PowerCut:
    """Cuts the power of a watched store in several ways at every instant, and keeps the counts."""

    disk: CrashDisk
    scratch: Path
    rng: np.random.Generator
    acked: set[tuple[str, int]] = field(default_factory=set)
    instants: int = 0
    left: int = 0
    lost: int = 0
    bad: int = 0
    twice: int = 0
    refused: int = 0
    first_problem: str = ""

    def now(self) -> None:
        """Cut the power at this instant: one folder for each of the ways."""
        rng = self.rng
        self.instants += 1
        ways: list[tuple[Content, float]] = [
            (nothing, 0.0),
            (nothing, 1.0),
            (everything, 1.0),
            (everything, 0.5),
            (sectors(rng, 0.5), 0.5),
            (sectors(rng, 0.1), 1.0),
            (sectors(rng, 0.9), 1.0),
            (cut_at(int(rng.integers(0, 4096))), 1.0),
        ]
        for content, names in ways:
            self.once(content, names)

    def every_truncation(self, size: int, stride: int) -> None:
        """What was written since the last fsync, cut at every byte."""
        for offset in range(0, size + 1, stride):
            self.once(cut_at(offset), 1.0)

    def once(self, content: Content, names: float) -> None:
        """Leave one folder and judge what the store makes of it."""
        self.disk.leave(self.scratch, self.rng, content, names)
        verdict = read_through(self.scratch)
        shutil.rmtree(self.scratch)
        self.left += 1
        self.lost += len(self.acked - verdict.stored)
        self.bad += verdict.bad
        self.twice += verdict.twice
        self.refused += verdict.problem != ""
        self.first_problem = self.first_problem or verdict.problem


def power_cuts(root: Path, seed: int, *, batches: int, stride: int) -> PowerRow:
    """Append, seal and reopen a store, and cut its power at every fsync on the way; in the end cut the last three
    records at every byte (of `stride`)."""
    root.mkdir(parents=True)
    folder, shadow = root / "store", root / "shadow"
    shadow.mkdir()
    rng = np.random.default_rng(seed)
    cut = PowerCut(CrashDisk(folder, shadow), root / "left", rng)
    with cut.disk.watching(lambda: cut.now() if folder.exists() else None):
        source = _fill(folder, cut.acked, batches, rng)
    truncations = cut.left
    _truncate(cut, source, folder, stride)
    return PowerRow(
        instants=cut.instants,
        left=cut.left,
        truncations=cut.left - truncations,
        acked_lost=cut.lost,
        bad_returned=cut.bad,
        twice=cut.twice,
        refused=cut.refused,
        first_problem=cut.first_problem[:500],
    )


def _fill(folder: Path, acked: set[tuple[str, int]], batches: int, rng: np.random.Generator) -> Source:
    """Batches of one to eight steps, sealed now and then, the store reopened now and then."""
    source, store = Source(), open_store(folder, TORN)
    store.open()
    try:
        for batch in tqdm(range(batches), desc="power cuts", unit="batch", leave=False):
            records, identities = source.take(int(rng.integers(1, 9)))
            store.append(records)
            acked.update(identities)
            if batch % SEAL_EVERY == SEAL_EVERY - 1:
                seal(store)
            if batch % (5 * SEAL_EVERY) == SEAL_EVERY:
                store.close()
                store = open_store(folder, TORN)
                store.open()
    finally:
        store.close()
    return source


def _truncate(cut: PowerCut, source: Source, folder: Path, stride: int) -> None:
    """The power fails while three records are being written: their bytes end anywhere."""
    records, _ = source.take(3)
    size = sum(len(record) + RECORD_HEADER_BYTES for record in records)
    with open_store(folder, TORN) as store:
        done: list[bool] = []

        def before_fsync() -> None:
            if not done:
                done.append(True)
                cut.every_truncation(size, stride)

        with cut.disk.watching(before_fsync):
            store.append(records)


# ---- damage -------------------------------------------------------------------------------------------------------


def bit_flips(root: Path, seed: int, *, flips: int, batches: int) -> DamageRow:
    """Flip one bit of one file of a finished store, read it through, put the bit back."""
    rng, folder = np.random.default_rng(seed), root / "store"
    whole: set[tuple[str, int]] = set()
    _fill(folder, whole, batches, rng)
    counts = dict.fromkeys(("found", "harmless", "shown", "bad_returned", "silently_missing"), 0)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    sizes = np.array([path.stat().st_size for path in files], dtype=np.float64)
    for _ in tqdm(range(flips), desc="bit flips", unit="flip", leave=False):
        # by the root of the size: small files (catalog, indexes) get their share
        name = files[int(rng.choice(len(files), p=np.sqrt(sizes) / np.sqrt(sizes).sum()))].relative_to(folder)
        damaged = root / "damaged"
        shutil.copytree(folder, damaged)
        data = bytearray((damaged / name).read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        (damaged / name).write_bytes(data)
        counts[_outcome(read_through(damaged), whole)] += 1
        shutil.rmtree(damaged)
    return DamageRow(flips=flips, **counts)


def _outcome(verdict: Reading, whole: set[tuple[str, int]]) -> str:
    if verdict.bad or verdict.twice:
        return "bad_returned"
    if verdict.problem:
        return "found"
    if whole <= verdict.stored:
        return "harmless"
    return "shown" if verdict.cut_bytes else "silently_missing"


# ---- short writes -------------------------------------------------------------------------------------------------


def short_writes(root: Path, seed: int, *, limits: int, batches: int) -> ShortWriteRow:
    """Fill stores under file-size limits; what was refused is appended again when the limit is gone."""
    rng = np.random.default_rng(seed)
    refused = acked_count = lost = bad = twice = 0
    for limit in tqdm(rng.integers(64, 40_000, limits), desc="short writes", unit="limit", leave=False):
        folder = root / f"store-{limit}"
        acked: set[tuple[str, int]] = set()
        refused += _fill_limited(folder, acked, batches, int(limit), rng)
        verdict = read_through(folder)
        acked_count += len(acked)
        lost += len(acked - verdict.stored)
        bad += verdict.bad
        twice += verdict.twice
        shutil.rmtree(folder)
    return ShortWriteRow(
        limits=limits, refused_batches=refused, acked=acked_count, acked_lost=lost, bad_returned=bad, twice=twice
    )


def _fill_limited(folder: Path, acked: set[tuple[str, int]], batches: int, limit: int, rng: np.random.Generator) -> int:
    """Append and seal; each time the limit strikes, go on without it for one batch. How often a batch was refused."""
    source, refused = Source(), 0
    with open_store(folder, TORN) as store:
        for batch in range(batches):
            records, identities = source.take(int(rng.integers(1, 9)))
            try:
                with _file_size_limit(limit):
                    store.append(records)
            except StorageError:
                refused += 1
                store.append(records)
            acked.update(identities)
            if batch % SEAL_EVERY == SEAL_EVERY - 1:
                with suppress(StorageError), _file_size_limit(limit):
                    seal(store)
    return refused


@contextmanager
def _file_size_limit(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
