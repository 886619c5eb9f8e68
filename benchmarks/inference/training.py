"""The policies that are compared, trained here and kept in the work folder; what is there already is not made anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from msgspec import structs
from tqdm import tqdm

from benchmarks.inference import demonstrations
from benchmarks.inference.configurations import Family, family_on
from benchmarks.inference.rollouts import Simulation
from benchmarks.inference.tasks import BenchmarkTask
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.seeds import practice_seed
from robot_stack.core.specs import PolicySpec
from robot_stack.learner.imitation import ImitationProgress, train
from robot_stack.learner.imitation_config import ImitationConfig
from robot_stack.learner.imitation_data import DemonstrationArrays
from robot_stack.learner.imitation_log import jsonl_log

WATCHED = 50


class Workshop:
    """The folder of one task's demonstrations and policies: `<work>/<task>/`."""

    def __init__(self, work: Path, task: BenchmarkTask, seed: int) -> None:
        self.task = task
        self.directory = work / task.task
        self._seed = seed

    def demonstrations(self) -> DemonstrationArrays:
        """Of the task's expert, collected once."""
        path = self.directory / "demonstrations.npz"
        if not path.exists():
            task = self.task
            with tqdm(desc=f"demonstrations {task.task}", total=task.demonstrations, file=sys.stderr) as bar:
                data = demonstrations.collect(
                    task.make_robot,
                    task.make_expert,
                    self._spec("expert").observation,
                    task.demonstrations,
                    task.noise,
                    self._seed,
                    lambda success: _count(bar, success),
                )
            demonstrations.save(path, data)
        return demonstrations.load(path)

    def policy(self, name: str, family: Family) -> GenerativePolicy:
        """The trained policy, sampled by the family's first solver; an interrupted training goes on where it was.

        Losses and the success of short rollouts while it trained stand in `training.jsonl` beside it.
        """
        directory = self.directory / name
        if not (directory / "policy").exists():
            self._train(directory, name, family_on(self.task.task, name, family)).save(directory / "policy")
        return GenerativePolicy.load(directory / "policy")

    def _train(self, directory: Path, name: str, family: Family) -> GenerativePolicy:
        task, seeds = self.task, [practice_seed(self._seed, episode) for episode in range(WATCHED)]

        def success(policy: GenerativePolicy) -> float:
            watched = policy.with_solver(family.watched)
            return float(simulation.rollouts(watched, seeds, task.execute_steps, len(seeds)).success.mean())

        def show(progress: ImitationProgress) -> None:
            bar.set_postfix_str(f"loss {progress.loss:.4f}")
            bar.update(progress.step - bar.n)

        data = self.demonstrations()
        with (
            Simulation(task.make_robot) as simulation,
            tqdm(desc=f"train {name} {task.task}", total=family.steps, file=sys.stderr) as bar,
        ):
            return train(
                data,
                self._spec(name, family),
                training_of(family, self._seed),
                progress=show,
                resume_dir=directory / "training",
                log=jsonl_log(directory / "training.jsonl"),
                rollout=success,
            )

    def _spec(self, name: str, family: Family | None = None) -> PolicySpec:
        robot = self.task.make_robot()
        try:
            spec = self.task.policy_spec(robot.spec, name)
        finally:
            robot.close()
        shipped = None if family is None else family.shipped
        return spec if shipped is None else structs.replace(spec, horizon=shipped.horizon, history=shipped.history)


def training_of(family: Family, seed: int) -> ImitationConfig:
    """The settings that a family is trained with."""
    if family.shipped is not None:
        shipped = family.shipped.training
        return structs.replace(
            shipped, device="cpu", checkpoint_every=250, rollout_every=family.rollout_every, seed=seed
        )
    return ImitationConfig(
        net=family.net,
        process=family.process,
        solver=family.solvers[0],
        steps=family.steps,
        batch_size=family.batch_size,
        lr=family.lr,
        warmup_steps=200,
        betas=(0.9, 0.95),
        clip_norm=1.0,
        device="cpu",
        checkpoint_every=250,
        rollout_every=family.rollout_every,
        seed=seed,
    )


def _count(bar: tqdm[NoReturn], success: bool) -> None:
    if success:
        bar.update()
