"""The row `kill -9` of ingest and edge: nothing acknowledged is lost, nothing counts twice, nothing is damaged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import Struct
from tqdm import tqdm

from benchmarks.faults.content import problem_of
from benchmarks.faults.processes import EdgeSide, Fork, Site, make_site, read_acks, read_counts, serve_steps
from benchmarks.faults.stores import SERVED, open_store
from robot_stack.core.clock import Pacer
from robot_stack.core.errors import StorageError

BURST_STEPS = 80
PAUSE_S = 0.01
PACE_S = 0.01
BACKLOG_STEPS = 2000
KILL_WITHIN_S = 0.12
RECOVER_WITHIN_S = 60.0
DRAIN_WITHIN_S = 120.0
STORM_SHARE = 0.25
POLL_S = 0.002
TARGETS = ("ingest", "edge", "both")
TARGET_SHARES = (0.45, 0.45, 0.1)


class KillRow(Struct, frozen=True, kw_only=True):
    """`recorded`: steps that the spool had kept; all of them must come through too. `resent`: steps that came to the
    store more than once (and count once). `unkept_lost_max`: the most steps that one kill of the edge cost before they
    were in the spool, at a robot's pace (100 Hz); `_in_bursts`: where steps come faster than they can be written.

    Times: from the kill to the first step acknowledged on a request begun afterwards; a kill that another one followed
    at once (a storm) has none.
    """

    kills: int
    kills_of_ingest: int
    kills_of_edge: int
    acked: int
    recorded: int
    stored: int
    lost: int
    recorded_lost: int
    unkept_lost_max: int
    unkept_lost_max_in_bursts: int
    duplicates: int
    corrupt: int
    sealed_files: int
    resent: int
    cut_bytes: int
    recover_n: int
    recover_p50_s: float
    recover_p99_s: float
    recover_max_s: float
    recover_ingest_p50_s: float
    recover_edge_p50_s: float
    store_bytes: int
    wall_s: float


@dataclass(slots=True)
class Observed:
    """What the observer's files tell: acknowledged identities and, as they grow, the newest acknowledgement."""

    site: Site
    read: dict[Path, int] = field(default_factory=dict)
    acked: set[tuple[str, int]] = field(default_factory=set)
    repeated: int = 0

    def refresh(self, after_ns: int) -> int | None:
        """Read on; when the first of the new acknowledgements of requests begun after `after_ns` was there."""
        return self._read(sorted(self.site.observed.glob("acks-*"))[-2:], after_ns)

    def complete(self) -> None:
        """Read on in the files of all lives: in a storm of kills some of them were passed over."""
        self._read(sorted(self.site.observed.glob("acks-*")), 0)

    def _read(self, paths: list[Path], after_ns: int) -> int | None:
        first: int | None = None
        for path in paths:
            acks = read_acks(path, self.read.get(path, 0))
            self.read[path] = self.read.get(path, 0) + len(acks)
            for ack in acks:
                self.repeated += ack.repeated
                self.acked.add((ack.session, ack.seq))
                if ack.begun_ns > after_ns and (first is None or ack.acked_ns < first):
                    first = ack.acked_ns
        return first

    def acked_within(self, spans_ns: Sequence[tuple[int, int]]) -> int:
        """Acknowledgements that came within these spans of time."""
        times = [ack.acked_ns for path in self.site.observed.glob("acks-*") for ack in read_acks(path)]
        return sum(any(begun <= at <= ended for begun, ended in spans_ns) for at in times)

    def recorded(self) -> Iterator[tuple[str, int]]:
        """Every identity that the spool had kept."""
        for count in read_counts(self.site.observed):
            yield from ((count.session, seq) for seq in range(count.kept))

    def lost_unkept(self, stored: set[tuple[str, int]], *, paced: bool) -> int:
        """The most steps of one life of the edge that the recorder was given and the store has not."""
        counts = [count for count in read_counts(self.site.observed) if count.paced == paced]
        return max((sum((one.session, seq) not in stored for seq in range(one.given)) for one in counts), default=0)


class Pair:
    """The two processes of a site, started again after every kill."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self._seed = seed
        self._life = 0
        self._running: dict[str, Fork] = {}

    def start(self, names: tuple[str, ...] = ("ingest", "edge")) -> None:
        for name in names:
            log = self.site.root / f"{name}.log"
            if name == "ingest":
                self._running[name] = Fork(partial(serve_steps, self.site), log)
            else:
                self._life += 1
                self._running[name] = Fork(partial(_produce, self.site, self._life, self._seed), log)

    def start_draining(self) -> Fork:
        self._life += 1
        self._running["edge"] = Fork(partial(_drain, self.site, self._life), self.site.root / "edge.log")
        return self._running["edge"]

    def kill(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name in self._running:
                self._running.pop(name).kill()

    def check(self) -> None:
        """SystemExit if one of them died of itself."""
        for name, process in self._running.items():
            if process.ended():
                raise SystemExit(f"the process '{name}' came to an end of itself")

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(tuple(self._running))


def _produce(site: Site, life: int, seed: int) -> None:
    """Until killed, in every other life bursts of steps as fast as they can be recorded, else steps at 100 Hz."""
    rng, paced = np.random.default_rng((seed, life)), life % 2 == 0
    pacer = Pacer(PACE_S)
    with EdgeSide(site, life, paced=paced) as edge:
        while True:
            for _ in range(1 if paced else int(rng.integers(1, BURST_STEPS))):
                if edge.waiting < BACKLOG_STEPS:
                    edge.record()
            if paced:
                pacer.wait()
            else:
                time.sleep(float(rng.uniform(0.0, PAUSE_S)))


def _drain(site: Site, life: int) -> None:
    with EdgeSide(site, life) as edge:
        edge.drain(DRAIN_WITHIN_S)


def kill_row(root: Path, kills: int, seed: int) -> KillRow:
    """Kill the ingest side, the edge side or both at random instants, then let the spool drain and check the store."""
    begun_s, rng = time.monotonic(), np.random.default_rng(seed)
    site = make_site(root)
    observed, struck = Observed(site), {"kills": 0, "ingest": 0, "edge": 0}
    recovered: dict[str, list[float]] = {target: [] for target in TARGETS}
    with Pair(site, seed) as pair:
        pair.start()
        _recovered_at(pair, observed, 0)
        with suppress(KeyboardInterrupt):  # Ctrl-C: what was measured until then
            for _ in tqdm(range(kills), desc="kill -9", unit="kill"):
                time.sleep(float(rng.uniform(0.0, KILL_WITHIN_S)))
                _strike(pair, observed, rng, struck, recovered)
        pair.kill(("edge", "ingest"))
        pair.start(("ingest",))
        draining = pair.start_draining()
        while not draining.ended():
            time.sleep(0.05)
    observed.complete()
    return _judge(site, observed, struck, recovered, time.monotonic() - begun_s)


def _strike(
    pair: Pair,
    observed: Observed,
    rng: np.random.Generator,
    struck: dict[str, int],
    recovered: dict[str, list[float]],
) -> None:
    """One kill, the restart and, unless the next kill is to follow at once, the wait until steps are acknowledged."""
    pair.check()
    target = TARGETS[int(rng.choice(len(TARGETS), p=TARGET_SHARES))]
    names = ("ingest", "edge") if target == "both" else (target,)
    pair.kill(names)
    killed_ns = time.monotonic_ns()
    struck["kills"] += 1
    for name in names:
        struck[name] += 1
    pair.start(names)
    if rng.random() >= STORM_SHARE:
        recovered[target].append((_recovered_at(pair, observed, killed_ns) - killed_ns) / 1e9)


def _recovered_at(pair: Pair, observed: Observed, killed_ns: int) -> int:
    """When the first step was acknowledged after the kill."""
    deadline = time.monotonic() + RECOVER_WITHIN_S
    while time.monotonic() < deadline:
        acked_ns = observed.refresh(killed_ns)
        if acked_ns is not None:
            return acked_ns
        pair.check()
        time.sleep(POLL_S)
    raise SystemExit(f"no step was acknowledged within {RECOVER_WITHIN_S:.0f} s after a kill; logs: {pair.site.root}")


def _judge(
    site: Site,
    observed: Observed,
    struck: dict[str, int],
    recovered: dict[str, list[float]],
    wall_s: float,
) -> KillRow:
    stored, duplicates, corrupt, cut_bytes = read_store(site)
    recorded = set(observed.recorded())
    all_s = [time_s for times_s in recovered.values() for time_s in times_s]
    return KillRow(
        kills=struck["kills"],
        kills_of_ingest=struck["ingest"],
        kills_of_edge=struck["edge"],
        acked=len(observed.acked),
        recorded=len(recorded),
        stored=len(stored),
        lost=len(observed.acked - stored),
        recorded_lost=len(recorded - stored),
        unkept_lost_max=observed.lost_unkept(stored, paced=True),
        unkept_lost_max_in_bursts=observed.lost_unkept(stored, paced=False),
        duplicates=duplicates,
        corrupt=corrupt,
        sealed_files=len(list((site.store / "episodes").glob("*.zip"))),
        resent=observed.repeated,
        cut_bytes=cut_bytes,
        recover_n=len(all_s),
        recover_p50_s=_quantile(all_s, 0.5),
        recover_p99_s=_quantile(all_s, 0.99),
        recover_max_s=_quantile(all_s, 1.0),
        recover_ingest_p50_s=_quantile(recovered["ingest"], 0.5),
        recover_edge_p50_s=_quantile(recovered["edge"], 0.5),
        store_bytes=sum(path.stat().st_size for path in site.store.rglob("*") if path.is_file()),
        wall_s=round(wall_s, 1),
    )


def read_store(site: Site) -> tuple[set[tuple[str, int]], int, int, int]:
    """(identities stored, how many of them twice, how many steps with a wrong content, bytes cut at opening)."""
    stored: set[tuple[str, int]] = set()
    duplicates = corrupt = 0
    with open_store(site.store, SERVED) as store:
        try:
            for _, step in tqdm(store.iterate(0), total=store.next_index, desc="check", unit="step", leave=False):
                duplicates += (step.session, step.seq) in stored
                corrupt += problem_of(step) != ""
                stored.add((step.session, step.seq))
        except StorageError:
            corrupt += store.next_index - len(stored)
        return stored, duplicates, corrupt, store.cut_bytes


def _quantile(times_s: list[float], quantile: float) -> float:
    return round(float(np.quantile(times_s, quantile)), 4) if times_s else float("nan")
