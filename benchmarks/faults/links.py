"""Rows of the learner link: a partition, and 30 % loss with 300 ms, while a 50 Hz control loop records.

The loop's stand-in does what the edge does at every control step beside policy and robot: it records a step while
outbox and uplink work in their threads. Beside it a witness, a process with the same pace and nothing to do, tells what
the machine itself does to such a loop.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import Struct
from tqdm import tqdm

from benchmarks.faults.data import Observed, read_store
from benchmarks.faults.processes import EdgeSide, Fork, Site, make_site, serve_steps
from benchmarks.faults.proxy import FAIR, PARTITIONED, Proxy, Weather
from robot_stack.core.clock import Pacer

PERIOD_S = 0.02
BAD = Weather(delay_s=0.3, loss=0.3, reset_every_s=20.0)
SETTLE_S = 0.3
CAUGHT_UP_STEPS = 10
DRAIN_WITHIN_S = 300.0
START_WITHIN_S = 120.0
QUEUED_STEPS = 500
SPOOL_BYTES = 1 << 30
TICK = struct.Struct("<QQQQ")  # woke, overruns so far, unacknowledged steps, time that the step took


class Kept(Struct, frozen=True, kw_only=True):
    """What became of the steps."""

    recorded: int
    acked: int
    lost: int
    recorded_lost: int
    duplicates: int
    corrupt: int


class PartitionRow(Struct, frozen=True, kw_only=True):
    """`overruns`: of the loop from the beginning of the partition until it has caught up; `witness_overruns`: of a
    loop that does nothing. `catch_up`: seconds of recording that were shipped per second after the partition."""

    partition_s: float
    steps_waiting: int
    overruns: int
    witness_overruns: int
    longest_step_ms: float
    catch_up_s: float
    catch_up: float
    steps: Kept


class LossRow(Struct, frozen=True, kw_only=True):
    """p99 of the distance of the loop's periods from 20 ms, in fair and in bad weather; the same of the witness."""

    weather_s: float
    delay_one_way_ms: float
    loss: float
    lost_segments: int
    resets: int
    acked_in_bad_weather: int
    p99_fair_ms: float
    p99_bad_ms: float
    p99_change_ms: float
    witness_p99_change_ms: float
    steps: Kept


class Loops:
    """Ingest side, recording loop and witness, forked; the proxy between the first two is up to the caller."""

    def __init__(self, root: Path, seed: int, ahead_steps: int = 0) -> None:
        self.site = make_site(root, proxied=True)
        self._ahead_steps = ahead_steps
        self.proxy = Proxy(self.site.uplink_address, self.site.ingest_address, seed)
        self._stop = root / "stop"
        self._forks: list[Fork] = []

    def __enter__(self) -> Loops:
        for name, work in self._works().items():
            self._forks.append(Fork(work, self.site.root / f"{name}.log"))
        self.proxy.__enter__()
        self.until(lambda: self.ticks("loop").shape[0] > 0, START_WITHIN_S)
        return self

    def __exit__(self, *_: object) -> None:
        for fork in self._forks:
            fork.kill()
        self.proxy.__exit__()

    def _works(self) -> dict[str, Callable[[], None]]:
        return {
            "ingest": partial(serve_steps, self.site),
            "loop": partial(_record_at_pace, self.site, self._stop, self._ahead_steps),
            "witness": partial(_keep_pace, self.site, self._stop),
        }

    def ticks(self, name: str) -> np.ndarray:
        """(N, 4) int64: the fields of TICK of every period so far."""
        path = self.site.observed / f"ticks-{name}"
        data = path.read_bytes() if path.exists() else b""
        return np.frombuffer(data[: len(data) // TICK.size * TICK.size], np.int64).reshape(-1, 4)

    def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for fork in self._forks:
                fork.ended()
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {timeout_s:.0f} s in vain; logs: {self.site.root}")
            time.sleep(0.01)

    def finish(self) -> Kept:
        """Let the loop end and drain, and judge what is in the store."""
        self._stop.touch()
        self.until(self._forks[1].ended, DRAIN_WITHIN_S)
        self._forks[0].kill()
        return judge(self.site)


def judge(site: Site) -> Kept:
    """Compare the observer's files with the store, which nobody has open."""
    observed = Observed(site)
    observed.complete()
    recorded = set(observed.recorded())
    stored, duplicates, corrupt, _ = read_store(site)
    return Kept(
        recorded=len(recorded),
        acked=len(observed.acked),
        lost=len(observed.acked - stored),
        recorded_lost=len(recorded - stored),
        duplicates=duplicates,
        corrupt=corrupt,
    )


def _record_at_pace(site: Site, stop: Path, ahead_steps: int) -> None:
    """`ahead_steps` as fast as they can be recorded, then one every 20 ms until `stop` is there; then drain."""
    pacer, ticks = Pacer(PERIOD_S), _ticks_file(site, "loop")
    with EdgeSide(site, life=0, spool_bytes=SPOOL_BYTES) as edge:
        for _ in range(ahead_steps):
            edge.record()
            while edge.outbox.waiting > QUEUED_STEPS:
                time.sleep(0.001)
        while not stop.exists():
            pacer.wait()
            woke_ns = time.monotonic_ns()
            edge.record()
            waiting = edge.waiting
            os.write(ticks, TICK.pack(woke_ns, pacer.overruns, waiting, time.monotonic_ns() - woke_ns))
        edge.drain(DRAIN_WITHIN_S)


def _keep_pace(site: Site, stop: Path) -> None:
    pacer, ticks = Pacer(PERIOD_S), _ticks_file(site, "witness")
    while not stop.exists():
        pacer.wait()
        os.write(ticks, TICK.pack(time.monotonic_ns(), pacer.overruns, 0, 0))


def _ticks_file(site: Site, name: str) -> int:
    return os.open(site.observed / f"ticks-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def partition_learner(
    root: Path, seed: int, *, fair_s: float, partition_s: float, ahead_steps: int = 0
) -> PartitionRow:
    """Cut the learner off, let it come back, and wait until the spool is shipped.

    ahead_steps: so many steps lie in the spool beforehand, as after a much longer partition; the link is then cut from
    the beginning.
    """
    loops = Loops(root, seed, ahead_steps)
    if ahead_steps:
        loops.proxy.set(PARTITIONED)
    with loops:
        _pass(fair_s, "fair weather")
        loops.proxy.set(PARTITIONED)
        parted_ns = time.monotonic_ns()
        _pass(partition_s, "partition")
        waiting = int(loops.ticks("loop")[-1, 2])
        healed_ns = time.monotonic_ns()
        loops.proxy.set(FAIR)
        loops.until(lambda: int(loops.ticks("loop")[-1, 2]) <= CAUGHT_UP_STEPS, DRAIN_WITHIN_S)
        caught_up_ns = time.monotonic_ns()
        steps = loops.finish()
        loop, witness = loops.ticks("loop"), loops.ticks("witness")
    catch_up_s = (caught_up_ns - healed_ns) / 1e9
    return PartitionRow(
        partition_s=partition_s,
        steps_waiting=waiting,
        overruns=_overruns(loop, parted_ns, caught_up_ns),
        witness_overruns=_overruns(witness, parted_ns, caught_up_ns),
        longest_step_ms=round(float(loop[loop[:, 0] > parted_ns, 3].max()) / 1e6, 2),
        catch_up_s=round(catch_up_s, 3),
        catch_up=round(waiting * PERIOD_S / catch_up_s, 1),
        steps=steps,
    )


def loss_learner(root: Path, seed: int, *, turns: int, weather_s: float) -> LossRow:
    """Fair and bad weather in turns; how regular the loop is in each, and whether anything acknowledged is lost."""
    spans: dict[Weather, list[tuple[int, int]]] = {FAIR: [], BAD: []}
    with Loops(root, seed) as loops:
        for _ in range(turns):
            for weather, name in ((FAIR, "fair weather"), (BAD, "30 % loss, 300 ms")):
                loops.proxy.set(weather)
                loops.proxy.cut()  # what was on its way belongs to the other weather
                begun_ns = time.monotonic_ns()
                _pass(weather_s, name)
                spans[weather].append((begun_ns + int(SETTLE_S * 1e9), time.monotonic_ns()))
        loops.proxy.set(FAIR)
        steps = loops.finish()
        loop, witness = loops.ticks("loop"), loops.ticks("witness")
        lost_segments, resets = loops.proxy.lost_segments, loops.proxy.resets
    acks = Observed(loops.site).acked_within(spans[BAD])
    fair_ms, bad_ms = _p99_ms(loop, spans[FAIR]), _p99_ms(loop, spans[BAD])
    return LossRow(
        weather_s=turns * weather_s,
        delay_one_way_ms=BAD.delay_s * 1e3,
        loss=BAD.loss,
        lost_segments=lost_segments,
        resets=resets,
        acked_in_bad_weather=acks,
        p99_fair_ms=fair_ms,
        p99_bad_ms=bad_ms,
        p99_change_ms=round(bad_ms - fair_ms, 3),
        witness_p99_change_ms=round(_p99_ms(witness, spans[BAD]) - _p99_ms(witness, spans[FAIR]), 3),
        steps=steps,
    )


def _overruns(ticks: np.ndarray, begun_ns: int, ended_ns: int) -> int:
    within = ticks[(ticks[:, 0] > begun_ns) & (ticks[:, 0] < ended_ns), 1]
    return int(within[-1] - within[0])


def _p99_ms(ticks: np.ndarray, spans: list[tuple[int, int]]) -> float:
    off: list[np.ndarray] = []
    for begun_ns, ended_ns in spans:
        woke = ticks[(ticks[:, 0] > begun_ns) & (ticks[:, 0] < ended_ns), 0]
        off.append(np.abs(np.diff(woke) / 1e6 - PERIOD_S * 1e3))
    return round(float(np.quantile(np.concatenate(off), 0.99)), 3)


def _pass(duration_s: float, name: str) -> None:
    for _ in tqdm(range(round(duration_s * 10)), desc=name, unit="ds", leave=False):
        time.sleep(0.1)
