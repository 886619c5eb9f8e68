"""Success of LeRobot's diffusion policy and of ours, trained alike, on the same episodes of the simulated Franka.

What is equal: demonstrations, their batches in the same order, number of updates, optimiser, learning rate, moving
average, ranges of the features; channels, kernel, groups, horizon and history of the U-Nets; seeds of the episodes,
none of which was trained on; the simulation, its safety filter, and the actions executed of each chunk. One robot after
the other, so every chunk is predicted as a robot would ask for it (ONNX Runtime's graphs are of one row).

What is not: our U-Net embeds the observation and computes what depends on it, and on the time, once per chunk;
LeRobot's computes both at every call. Ours joins the skips after going up a level, LeRobot's before, so its upper
blocks run on half the steps and parameters differ (both are reported). LeRobot's DDIM has leading time steps, ours
trailing ones. Ours clips observations to the demonstrated range. LeRobot's own presets differ from the training here:
100,000 updates of 8 windows, Adam at 1e-4 with betas (0.95, 0.999), no moving average, the environment state as it is,
and no windows from the last seven steps of an episode. Each policy is of one training seed.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from msgspec import Struct
from tqdm import tqdm

from benchmarks.inference.configurations import MARGIN, Family
from benchmarks.inference.figures import Success
from benchmarks.inference.outcomes import OutcomeFile, Portion
from benchmarks.inference.rollouts import BatchPolicy, Simulation
from benchmarks.inference.tasks import BenchmarkTask
from benchmarks.inference.training import Workshop, training_of
from benchmarks.lerobot_policy import Progress, Setup, Train, solver_name
from benchmarks.lerobot_process import LeRobotProcess
from policies.common.normalization import fit_min_max
from policies.diffusion.config import UNetConfig
from policies.generative.config import DiffusionChain, SolverConfig
from policies.generative.digest import weights_sha256
from policies.generative.runtime import backend_maker
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.specs import PolicySpec
from robot_stack.evaluation.statistics import wilson_interval

FAMILY = "unet"
PORTION = 50


class Rate(Struct, frozen=True, kw_only=True):
    """Success rate with Wilson's 95 % interval, and its paired difference to the baseline with Newcombe's interval.

    `p_value`: McNemar's exact test. `not_inferior`: the lower end of the difference is above -MARGIN. What is paired is
    None for the baseline itself, and for all where it was not run.
    """

    n: int
    rate: float
    ci: tuple[float, float]
    difference: float | None = None
    difference_ci: tuple[float, float] | None = None
    p_value: float | None = None
    not_inferior: bool | None = None

    @classmethod
    def of(cls, outcomes: Sequence[bool], baseline: Sequence[bool]) -> Rate:
        """From outcomes of the same seeds in the same order; without outcomes of the baseline the rate alone."""
        n, wins = len(outcomes), sum(outcomes)
        interval = wilson_interval(wins, n)
        alone = cls(n=n, rate=wins / max(n, 1), ci=(interval.lower, interval.upper))
        if len(baseline) != n:
            return alone
        paired = Success.of(outcomes, baseline)
        return cls(
            n=n,
            rate=alone.rate,
            ci=alone.ci,
            difference=paired.difference,
            difference_ci=paired.difference_ci,
            p_value=paired.p_value,
            not_inferior=paired.difference_ci[0] > -MARGIN,
        )


class SuccessReport(Struct, frozen=True, kw_only=True):
    """All rates are of the same episodes, by `<whose>/<solver>[@onnx]`; `baseline` is LeRobot's with its own solver."""

    task: str
    demonstrations: int
    updates: int
    batch_size: int
    execute_steps: int
    parameters: dict[str, int]
    baseline: str
    policies: dict[str, Rate]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared; `work` is laid out as that of `benchmarks.inference`, whose U-Net is taken where it is there.

    solvers: the one that LeRobot takes by itself, all steps of the chain, then the quick one.
    """

    work: Path
    task: BenchmarkTask
    family: Family
    solvers: tuple[SolverConfig, SolverConfig]
    episodes: int
    seed: int


@dataclass(frozen=True, slots=True)
class Way:
    """A policy and what its weights are known by."""

    policy: BatchPolicy
    weights: str


class RemotePolicy:
    """A checkpoint that LeRobot's process runs."""

    def __init__(self, process: LeRobotProcess, spec: PolicySpec, solver: SolverConfig) -> None:
        self._process, self._spec, self._solver = process, spec, solver

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        return self._process.chunks(self._solver, observations)


class Contest:
    """Both policies of one work folder: what is there already is neither trained nor run again."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        workshop = Workshop(plan.work, plan.task, plan.seed)
        self._directory = workshop.directory
        data = workshop.demonstrations()
        self.demonstrations = len(data.episode_ends)
        self.ours = workshop.policy(FAMILY, plan.family)
        ranges = self.ours.config.observation, self.ours.config.action
        if self.ours.config.net != plan.family.net or ranges != (fit_min_max(data.vector), fit_min_max(data.action)):
            raise ConfigError(
                f"{self._directory / FAMILY} holds a policy of another size or of other demonstrations than "
                f"{self._directory}; give another --work, or remove that folder"
            )

    @property
    def setup(self) -> Setup:
        """Of LeRobot's process."""
        net, chain = self._plan.family.net, self._plan.family.process
        if not isinstance(net, UNetConfig) or not isinstance(chain, DiffusionChain):
            raise ConfigError("LeRobot's diffusion policy is a U-Net on a diffusion chain; compare it with that family")
        folder = str((self._directory / "lerobot").absolute())
        return Setup(spec=self.ours.spec, net=net, chain=chain, seed=self._plan.seed, folder=folder)

    def train(self, process: LeRobotProcess) -> None:
        """LeRobot's, as ours was."""
        plan = self._plan
        request = Train(
            demonstrations=str((self._directory / "demonstrations.npz").absolute()),
            config=training_of(plan.family, plan.seed),
            solvers=plan.solvers,
        )
        with tqdm(desc=f"train lerobot {plan.task.task}", total=plan.family.steps, file=sys.stderr) as bar:

            def show(progress: Progress) -> None:
                bar.set_postfix_str(f"loss {progress.loss:.4f}")
                bar.update(progress.step - bar.n)

            process.train(request, show)

    def ways(self, process: LeRobotProcess | None) -> dict[str, Way]:
        """The baseline first, where LeRobot is there."""
        found = {}
        if process:
            for solver in self._plan.solvers:
                weights = Path(self.setup.folder) / solver_name(solver) / "model.safetensors"
                digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
                found[f"lerobot/{solver_name(solver)}"] = Way(RemotePolicy(process, self.ours.spec, solver), digest)
        digest = weights_sha256(self.ours.sampler.denoiser)[:16]
        for solver in self._plan.solvers:
            found[f"ours/{solver_name(solver)}"] = Way(self.ours.with_solver(solver), digest)
        quick = self._plan.solvers[1]
        onnx = backend_maker(RuntimeConfig(backend="onnx", threads=1), self._plan.work / "graphs")
        found[f"ours/{solver_name(quick)}@onnx"] = Way(self.ours.with_solver(quick).with_backend(onnx), digest)
        return found

    def report(self, process: LeRobotProcess | None) -> SuccessReport:
        """Of all episodes; those that are missing are run."""
        plan, ways = self._plan, self.ways(process)
        file = OutcomeFile(plan.work / "lerobot-outcomes.jsonl")
        run_episodes(plan, ways, file)
        outcomes = {
            name: file.successes(plan.task.task, way.weights, name, plan.episodes) for name, way in ways.items()
        }
        baseline = f"lerobot/{solver_name(plan.solvers[0])}"
        parameters = {"ours": sum(value.numel() for value in self.ours.sampler.parameters())}
        if process:
            parameters["lerobot"] = process.ready.parameters
        return SuccessReport(
            task=plan.task.task,
            demonstrations=self.demonstrations,
            updates=plan.family.steps,
            batch_size=plan.family.batch_size,
            execute_steps=plan.task.execute_steps,
            parameters=parameters,
            baseline=baseline,
            policies={
                name: Rate.of(found, () if name == baseline else outcomes.get(baseline, ()))
                for name, found in outcomes.items()
            },
        )


def run_episodes(plan: Plan, ways: Mapping[str, Way], file: OutcomeFile) -> None:
    """What is not in the file yet; the same seeds of all policies before further seeds of any."""
    task = plan.task
    with (
        Simulation(task.make_robot) as simulation,
        tqdm(desc="episodes", total=len(ways) * plan.episodes, unit="episode", file=sys.stderr) as bar,
    ):
        for first in range(0, plan.episodes, PORTION):
            seeds = range(first, min(first + PORTION, plan.episodes))
            for name, way in ways.items():
                if file.has(task.task, way.weights, name, first, len(seeds)):
                    bar.update(len(seeds))
                    continue
                began_s = time.process_time()
                outcomes = simulation.rollouts(way.policy, seeds, task.execute_steps, 1, lambda _: _count(bar))
                portion = Portion(
                    task=task.task,
                    policy=way.weights,
                    configuration=name,
                    first=first,
                    success="".join("1" if success else "0" for success in outcomes.success),
                    steps=tuple(outcomes.steps.tolist()),
                    clipped=outcomes.clipped,
                    refused=outcomes.refused,
                    cpu_s=time.process_time() - began_s,
                )
                file.append(portion)
                bar.set_postfix_str(f"{name} {portion.success.count('1')}/{len(portion.success)}")


def _count(bar: tqdm[NoReturn]) -> None:
    bar.update()
