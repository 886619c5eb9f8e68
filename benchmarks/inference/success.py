"""Success of every configuration on the same seeds, portion by portion, in one or more processes."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import msgspec
import torch
from msgspec import Struct
from tqdm import tqdm

from benchmarks.inference.configurations import Configuration
from benchmarks.inference.outcomes import OutcomeFile, Portion, portions
from benchmarks.inference.rollouts import BATCH, Simulation
from benchmarks.inference.tasks import BenchmarkTask
from policies.acceleration.schedule import CacheSchedule
from policies.generative.digest import weights_sha256
from policies.generative.policy import GenerativePolicy


class Job(Struct, frozen=True, kw_only=True):
    """Episodes of seeds `first`, ... under one configuration of the policy in `directory`."""

    task: BenchmarkTask
    directory: str
    policy: str
    configuration: Configuration
    schedule: CacheSchedule | None
    first: int
    count: int


def jobs_of(
    task: BenchmarkTask,
    directory: Path,
    sampled: Iterable[tuple[Configuration, CacheSchedule | None]],
    episodes: int,
    done: OutcomeFile,
) -> list[Job]:
    """What is still to be run; the same seeds of all configurations before further seeds of any."""
    policy, ways = identity(directory), list(sampled)
    return [
        Job(
            task=task,
            directory=str(directory),
            policy=policy,
            configuration=configuration,
            schedule=schedule,
            first=first,
            count=count,
        )
        for first, count in portions(episodes)
        for configuration, schedule in ways
        if not done.has(task.task, policy, str(configuration), first, count)
    ]


def run_jobs(jobs: list[Job], file: OutcomeFile, workers: int) -> None:
    """Run them all, keeping each as soon as it is done."""
    with tqdm(total=sum(job.count for job in jobs), desc="episodes", unit="episode", file=sys.stderr) as bar:
        for portion in _in_turn(jobs) if workers == 1 else _beside_each_other(jobs, workers):
            file.append(portion)
            bar.set_postfix_str(f"{portion.configuration} {portion.success.count('1')}/{len(portion.success)}")
            bar.update(len(portion.success))


def identity(directory: Path) -> str:
    """Hash of a policy's weights."""
    return weights_sha256(_policy(str(directory)).sampler.denoiser)[:16]


def _in_turn(jobs: list[Job]) -> Iterator[Portion]:
    return map(_run, jobs)


def _beside_each_other(jobs: list[Job], workers: int) -> Iterator[Portion]:
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_run_encoded, msgspec.msgpack.encode(job)) for job in jobs]
        for future in as_completed(futures):
            yield future.result()


def _run_encoded(job: bytes) -> Portion:
    torch.set_num_threads(1)
    return _run(msgspec.msgpack.decode(job, type=Job))


def _run(job: Job) -> Portion:
    policy = _policy(job.directory).with_solver(job.configuration.solver, job.schedule)
    began_s = time.process_time()
    seeds = range(job.first, job.first + job.count)
    outcomes = _simulation(job.task).rollouts(policy, seeds, job.task.execute_steps, BATCH)
    return Portion(
        task=job.task.task,
        policy=job.policy,
        configuration=str(job.configuration),
        first=job.first,
        success="".join("1" if success else "0" for success in outcomes.success),
        steps=tuple(outcomes.steps.tolist()),
        clipped=outcomes.clipped,
        refused=outcomes.refused,
        cpu_s=time.process_time() - began_s,
    )


@cache
def _policy(directory: str) -> GenerativePolicy:
    return GenerativePolicy.load(Path(directory))


@cache
def _simulation(task: BenchmarkTask) -> Simulation:
    """Kept for the life of the process: making robots takes longer than an episode."""
    return Simulation(task.make_robot)
