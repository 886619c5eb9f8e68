"""All ways in all worlds with every seed; what is finished is kept, way by way."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import torch
from msgspec import Struct
from tqdm import tqdm

from benchmarks.corrections.peg import Peg
from benchmarks.corrections.study import WAYS, Point, run_way, test, train_base
from benchmarks.corrections.worlds import Gate, Plan, World
from policies.generative.policy import GenerativePolicy
from robot_stack.core.files import write_atomically

_GATE = Plan(
    rounds=3,
    budget=120,
    demonstrations=5,
    base_steps=1200,
    updates=1000,
    test_episodes=100,
    last_episodes=200,
    lr=1e-3,
)
_PEG = Plan(
    rounds=3,
    budget=200,
    demonstrations=30,
    base_steps=2000,
    updates=1000,
    test_episodes=50,
    last_episodes=200,
    lr=1e-3,
)
PLANS = {"gate": _GATE, "rough_gate": _GATE, "peg": _PEG, "biased_peg": _PEG}
QUICK = Plan(
    rounds=1,
    budget=60,
    demonstrations=8,
    base_steps=150,
    updates=60,
    test_episodes=40,
    last_episodes=40,
)
BIAS_M = 0.004
WORLDS: dict[str, Callable[[], World]] = {
    "gate": lambda: Gate(rough=False),
    "rough_gate": lambda: Gate(rough=True),
    "peg": lambda: Peg(bias_m=0.0),
    "biased_peg": lambda: Peg(bias_m=BIAS_M),
}


BASE = "base"
NAMES = (BASE, *(way.name for way in WAYS))


class Job(Struct, frozen=True, kw_only=True):
    """One seed in one world; what is finished of it lies in `folder`. `ways`: which are wanted, the base too."""

    world: str
    plan: Plan
    seed: int
    folder: str
    ways: tuple[str, ...]


class Kept(Struct, frozen=True, kw_only=True):
    """A finished way."""

    points: tuple[Point, ...]
    cpu_s: float


def run_job(job: Job) -> None:
    """Base policy and all ways of a seed; those that are finished stay."""
    torch.set_num_threads(1)
    todo = [name for name in job.ways if not _path(job, name).exists()]
    if not todo:
        return
    folder, world = Path(job.folder), WORLDS[job.world]()
    folder.mkdir(parents=True, exist_ok=True)
    started_s = time.process_time()
    base, shown = train_base(world, job.plan, job.seed)
    with tqdm(total=len(todo), desc=f"{job.world} seed {job.seed}", unit="way", file=sys.stderr) as bar:
        for name in todo:
            if name == BASE:
                points = _base_points(job, world, base)
            else:
                way, steps = next(way for way in WAYS if way.name == name), folder / f"steps-{name}"
                shutil.rmtree(steps, ignore_errors=True)  # what an interrupted run left
                points = run_way(world, job.plan, way, job.seed, base, shown, steps, bar.set_postfix_str)
            _keep(job, name, points, started_s)
            started_s = time.process_time()
            bar.update()


def _base_points(job: Job, world: World, base: GenerativePolicy) -> list[Point]:
    outcomes = test(world, base, job.seed, job.plan.last_episodes)
    return [Point(world=world.name, way=BASE, seed=job.seed, round=0, outcomes=outcomes)]


def _path(job: Job, name: str) -> Path:
    return Path(job.folder) / f"{name}.json"


def _keep(job: Job, name: str, points: Sequence[Point], started_s: float) -> None:
    kept = Kept(points=tuple(points), cpu_s=round(time.process_time() - started_s, 1))
    write_atomically(_path(job, name), msgspec.json.encode(kept))


def _run_encoded(job: bytes) -> None:
    run_job(msgspec.json.decode(job, type=Job))


def run_all(jobs: Sequence[Job], workers: int) -> None:
    if workers == 1:
        for job in jobs:
            run_job(job)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        list(processes.map(_run_encoded, [msgspec.json.encode(job) for job in jobs]))


def jobs_of(
    worlds: Sequence[str], seeds: Sequence[int], work: Path, plans: dict[str, Plan], ways: Sequence[str] = NAMES
) -> list[Job]:
    """Every plan has a folder of its own in `work`."""
    jobs = []
    for world in worlds:
        plan = plans[world]
        digest = hashlib.sha256(msgspec.json.encode(plan)).hexdigest()[:12]
        for seed in seeds:
            folder = str(work / f"{world}-{digest}" / f"{seed}")
            jobs.append(Job(world=world, plan=plan, seed=seed, folder=folder, ways=tuple(ways)))
    return jobs


def finished(jobs: Sequence[Job]) -> list[Kept]:
    """The ways of these jobs that are finished."""
    paths = [_path(job, name) for job in jobs for name in job.ways]
    return [msgspec.json.decode(path.read_bytes(), type=Kept) for path in paths if path.exists()]
