"""All runs that were asked for: base policies first, then every algorithm on every task with every seed."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec
from msgspec import Struct
from tqdm import tqdm

from benchmarks.inference.rollouts import Simulation
from benchmarks.learning.base import make_base
from benchmarks.learning.curve import Point
from benchmarks.learning.practice import Measuring, Practice, is_finished, measure_base
from benchmarks.learning.robot import LocalRobot
from benchmarks.learning.tasks import BASE, LearningTask
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.build import build_simulated
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.train import read_demonstrations
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import StackConfig


class Job(Struct, frozen=True, kw_only=True):
    """One run, or with algorithm '' the base policy that the runs of its task and seed begin with."""

    work: str
    task: LearningTask
    seed: int
    algorithm: str
    steps: int
    measuring: Measuring

    @property
    def runs(self) -> Path:
        return Path(self.work) / self.task.name / f"seed-{self.seed}"

    def config(self) -> StackConfig:
        return self.task.config(
            self.runs, self.algorithm, self.seed, self.algorithm, (f"learner.target_steps={self.steps}",)
        )

    def base_config(self) -> StackConfig:
        return self.task.config(self.runs, BASE, self.seed, BASE)


def run_all(jobs: list[Job], workers: int) -> None:
    """Every job, those without an algorithm first, in as many processes as asked for; goes on where it was."""
    for stage in ([job for job in jobs if not job.algorithm], [job for job in jobs if job.algorithm]):
        if workers == 1:
            for job in stage:
                run_job(job)
            continue
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(_run_encoded, msgspec.msgpack.encode(job)) for job in stage]
            for future in as_completed(futures):
                future.result()


def run_job(job: Job) -> None:
    use_one_torch_thread()
    if not job.algorithm:
        make_base(job.base_config(), success_reward=job.task.success_reward)
        return
    config, base_config = job.config(), job.base_config()
    layout, of_base = RunLayout.of(config), RunLayout.of(base_config)
    layout.remember(config)
    if is_finished(config):
        return
    base = load_base_policy(base_config, RuntimeConfig())
    layout.remember_robot(of_base.robot_spec())

    def show(point: Point) -> None:
        tqdm.write(
            f"{job.task.name} seed {job.seed} {job.algorithm}: {point.env_steps} steps, {point.updates} updates, "
            f"success {point.successes}/{point.n}, {point.cpu_s:.0f} s of CPU, {point.wall_s:.0f} s",
            file=sys.stderr,
        )

    with Simulation(lambda: build_simulated(config)) as simulation:
        if job.algorithm == BASE:
            measure_base(config, base, simulation, job.measuring, show)
            return
        with (
            LocalRobot(build_simulated(config), success_reward=job.task.success_reward) as robot,
            StepStore(layout.steps, config.learner.durability, config.learner.store) as store,
        ):
            Practice(config, base, read_demonstrations(of_base), robot, simulation, store, job.measuring).run(show)


def _run_encoded(job: bytes) -> None:
    run_job(msgspec.msgpack.decode(job, type=Job))
