"""The stages of the benchmark over tasks and policy families."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from msgspec import Struct

from benchmarks.inference.configurations import MARGIN, BackendName, Configuration, Family, family_on
from benchmarks.inference.latency import BASELINE, Latencies
from benchmarks.inference.outcomes import OutcomeFile
from benchmarks.inference.report import Measured, PolicyFigures, Report, all_rivals, fronts
from benchmarks.inference.schedules import Schedules, action_rmse, block_calls, observations_of, schedules_of
from benchmarks.inference.success import Job, identity, jobs_of, run_jobs
from benchmarks.inference.tasks import BenchmarkTask
from benchmarks.inference.training import Workshop
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import Observation
from robot_stack.evaluation.statistics import wilson_interval

THREADS = 1
BASELINE_FAMILY = "transformer"


class Timed(Struct, frozen=True, kw_only=True):
    """What the latency stage found for one task; keys are names of configurations, of times with `@<backend>`."""

    load_average: float
    baseline_ms: float
    latency_ms: dict[str, float]
    block_calls: dict[str, int]
    action_rmse: dict[str, float]
    backend_rmse: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `calibration`, `checked`: observations that schedules are made from, and that chunks are compared
    on. `only`: parts of the names of the configurations to look at, beside each family's reference; () for all.
    `most_compiled_calls`: torch.compile takes minutes for longer solvers."""

    work: Path
    tasks: Mapping[str, BenchmarkTask]
    families: Mapping[str, Family]
    backends: tuple[BackendName, ...]
    episodes: int
    rounds: int
    workers: int
    seed: int
    quick: bool
    only: tuple[str, ...] = ()
    calibration: int = 16
    checked: int = 64
    most_compiled_calls: int = 10


@dataclass(frozen=True, slots=True)
class Entry:
    """A trained policy with its schedules, and observations that were not calibrated on."""

    task: BenchmarkTask
    name: str
    family: Family
    directory: Path
    policy: GenerativePolicy
    configurations: list[Configuration]
    schedules: Schedules
    checked: list[Observation]
    demonstrations: int


class Bench:
    """One work folder."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        torch.set_num_threads(THREADS)

    def train(self) -> None:
        for task in self._plan.tasks.values():
            workshop = Workshop(self._plan.work, task, self._plan.seed)
            for name, family in self._plan.families.items():
                workshop.policy(name, family)

    def success(self) -> None:
        plan, done = self._plan, self._outcomes()
        jobs: list[Job] = []
        for entry in self._entries():
            ways = [(configuration, entry.schedules[str(configuration)]) for configuration in entry.configurations]
            jobs += jobs_of(entry.task, entry.directory, ways, plan.episodes, done)
        run_jobs(jobs, done, plan.workers)

    def latency(self) -> None:
        """One task after the other; what was found of a task before is replaced."""
        plan = self._plan
        for name in plan.tasks:
            entries = [entry for entry in self._entries() if entry.task.task == name]
            timed = self._time(entries)
            write_atomically(self._timed_path(name), msgspec.json.encode(timed))

    def report(self) -> Report:
        """Of what the other stages left."""
        plan, done = self._plan, self._outcomes()
        timed = {name: msgspec.json.decode(self._timed_path(name).read_bytes(), type=Timed) for name in plan.tasks}
        entries = list(self._entries())
        measured = [self._measured(entry, timed[entry.task.task], done, entries) for entry in entries]
        rows = [row for one in measured for row in one.rows()]
        front, default = fronts(rows)
        return Report(
            seed=plan.seed,
            quick=plan.quick,
            threads=THREADS,
            load_average=max(one.load_average for one in timed.values()),
            episodes=plan.episodes,
            margin=MARGIN,
            baseline_ms={name: round(one.baseline_ms, 3) for name, one in timed.items()},
            policies=[_policy_figures(entry, found) for entry, found in zip(entries, measured, strict=True)],
            caching=[row for one in measured for row in one.caching(rows)],
            rows=rows,
            front=front,
            default=default,
            rivals=all_rivals(measured, rows),
            backend_rmse={
                backend: max(
                    (
                        rmse
                        for one in timed.values()
                        for at, rmse in one.backend_rmse.items()
                        if at.endswith(f"@{backend}")
                    ),
                    default=0.0,
                )
                for backend in plan.backends
            },
            refused={f"{name}/{key}": why for name, one in timed.items() for key, why in one.refused.items()},
        )

    def _entries(self) -> Iterator[Entry]:
        plan = self._plan
        for task in plan.tasks.values():
            workshop = Workshop(plan.work, task, plan.seed)
            data = workshop.demonstrations()
            for name, chosen in plan.families.items():
                family = family_on(task.task, name, chosen)
                policy = workshop.policy(name, family)
                configurations = self._chosen(family.configurations(name))
                spec, directory = policy.spec, workshop.directory / name
                observations = observations_of(
                    data, spec.observation, spec.history, plan.calibration + plan.checked, plan.seed
                )
                kept = directory / "schedules" / identity(directory / "policy")
                schedules = schedules_of(policy, configurations, observations[: plan.calibration], kept)
                yield Entry(
                    task,
                    name,
                    family,
                    directory / "policy",
                    policy,
                    configurations,
                    schedules,
                    observations[plan.calibration :],
                    len(data.episode_ends),
                )

    def _chosen(self, configurations: list[Configuration]) -> list[Configuration]:
        reference, *others = configurations
        only = self._plan.only
        return [reference, *(one for one in others if not only or any(part in str(one) for part in only))]

    def _time(self, entries: Sequence[Entry]) -> Timed:
        plan, latencies = self._plan, Latencies(self._plan.work / "graphs")
        calls: dict[str, int] = {}
        rmse: dict[str, float] = {}
        load_average = os.getloadavg()[0]
        for entry in entries:
            if entry.name == BASELINE_FAMILY:
                latencies.add_baseline(entry.policy, entry.checked[0])
            for backend in plan.backends:
                most = plan.most_compiled_calls if backend == "compiled" else math.inf
                latencies.add(
                    entry.policy,
                    [one for one in entry.configurations if one.solver.steps <= most],
                    entry.schedules,
                    RuntimeConfig(backend=backend, threads=THREADS),
                    entry.checked[:2],
                )
            for one in entry.configurations:
                schedule = entry.schedules[str(one)]
                calls[str(one)] = block_calls(entry.policy, one, schedule)
                rmse[str(one)] = action_rmse(entry.policy, one, schedule, entry.checked) if schedule else 0.0
        medians = dict(latencies.medians_ms(plan.rounds))
        return Timed(
            load_average=load_average,
            baseline_ms=medians.pop(BASELINE),
            latency_ms=medians,
            block_calls=calls,
            action_rmse=rmse,
            backend_rmse=latencies.differences,
            refused=latencies.refused,
        )

    def _measured(self, entry: Entry, timed: Timed, done: OutcomeFile, entries: Sequence[Entry]) -> Measured:
        def outcomes(of: Entry) -> dict[str, Sequence[bool]]:
            weights = identity(of.directory)
            keys = [str(one) for one in of.configurations]
            return {key: done.successes(of.task.task, weights, key, self._plan.episodes) for key in keys}

        base = next(one for one in entries if one.name == BASELINE_FAMILY and one.task.task == entry.task.task)
        return Measured(
            task=entry.task.task,
            name=entry.name,
            family=entry.family,
            block_calls=timed.block_calls,
            action_rmse=timed.action_rmse,
            latency_ms=timed.latency_ms,
            baseline_ms=timed.baseline_ms,
            outcomes=outcomes(entry),
            baseline=outcomes(base)[str(base.family.headline_pair(base.name)[0])],
        )

    def _outcomes(self) -> OutcomeFile:
        return OutcomeFile(self._plan.work / "outcomes.jsonl")

    def _timed_path(self, task: str) -> Path:
        return self._plan.work / f"latency-{task}.json"


def _policy_figures(entry: Entry, measured: Measured) -> PolicyFigures:
    reference = measured.outcomes[str(entry.family.headline_pair(entry.name)[0])]
    wins, interval = sum(reference), wilson_interval(sum(reference), len(reference))
    return PolicyFigures(
        task=entry.task.task,
        family=entry.name,
        parameters=sum(value.numel() for value in entry.policy.sampler.denoiser.parameters()),
        training_steps=entry.family.steps,
        demonstrations=entry.demonstrations,
        n=len(reference),
        success=wins / max(len(reference), 1),
        ci=(interval.lower, interval.upper),
    )
