"""Evaluate a run: the base policy at several re-planning intervals, and the improved policy, on the same seeds.

Episodes go through a robot server and its safety filter, like everything else. Workers share the seeds; each has a
robot server of its own. Everything found is on the disk at once, so an interrupted evaluation goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from policies.generative.policy import GenerativePolicy
from robot_stack.apps.actors import Improved, load_improved
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.rollouts import RemoteRunner, rollout_robot
from robot_stack.apps.seeds import EVALUATION_LIMIT
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import ConfigError, RobotStackError
from robot_stack.edge.control_loop import NoCorrection
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.evaluation.results import (
    EpisodeOutcome,
    EvaluationResult,
    EvaluationSubject,
    combined,
    load,
    save,
)
from robot_stack.evaluation.rollouts import evaluate

BASE = "base"
IMPROVED = "after practice"


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing to evaluate: a subject, and on how many of the evaluation's seeds."""

    subject: EvaluationSubject
    episodes: int

    def file(self, directory: Path, worker: int | None = None) -> Path:
        subject = self.subject
        kind = "base" if subject.policy == BASE else f"practised-v{subject.weights_version}"
        name = f"{kind}-every{subject.replan_every}-n{self.episodes}"
        return directory / (f"{name}.json" if worker is None else f"{name}-worker{worker}.jsonl")


def trials(config: StackConfig, improved: Improved | None) -> list[Trial]:
    """What is evaluated: the base as it is run, the improved policy beside it, the base re-planning more often."""
    evaluation, every = config.evaluation, config.policy.execute_steps

    def trial(policy: str, version: int, replan_every: int, episodes: int) -> Trial:
        subject = EvaluationSubject(
            policy=policy,
            task=config.task.name,
            robot=config.robot.name,
            weights_version=version,
            replan_every=replan_every,
        )
        return Trial(subject, episodes)

    found = [trial(BASE, 0, every, evaluation.episodes)]
    if improved is not None:
        found.append(trial(IMPROVED, improved.version, every, evaluation.episodes))
    found += [
        trial(BASE, 0, other, min(evaluation.replan_episodes, evaluation.episodes))
        for other in evaluation.replan_every
        if other != every
    ]
    return found


def evaluation_seeds(config: StackConfig, episodes: int) -> range:
    first = config.evaluation.first_seed
    if not 0 <= first <= EVALUATION_LIMIT - episodes:
        raise ConfigError(f"evaluation seeds are {first} to {first + episodes}; allowed: 0 to {EVALUATION_LIMIT}")
    return range(first, first + episodes)


def runner_of(
    config: StackConfig, robot: RemoteRobot, base: GenerativePolicy, improved: Improved | None, trial: Trial
) -> RemoteRunner:
    """What runs the episodes of a trial on that robot."""
    every = trial.subject.replan_every
    if trial.subject.policy == IMPROVED and improved is not None:
        return RemoteRunner(robot, improved.policy, every, improved.corrector, config)
    return RemoteRunner(robot, base, every, NoCorrection(), config)


def run_worker(config: StackConfig, overrides: Sequence[str], worker: int) -> None:
    """One worker's share of all trials: seeds worker, worker + W, worker + 2W, ..."""
    use_one_torch_thread()
    layout = RunLayout.of(config)
    base = load_base_policy(config)
    improved = load_improved(config, base)
    with rollout_robot(config, overrides, f"robot-server-evaluation-{worker}", base.spec) as robot:
        for trial in trials(config, improved):
            runner = runner_of(config, robot, base, improved, trial)
            seeds = evaluation_seeds(config, trial.episodes)[worker :: config.evaluation.workers]
            evaluate(runner, trial.subject, seeds, progress_path=trial.file(layout.evaluation, worker))


def evaluate_run(
    config: StackConfig, overrides: Sequence[str], keep_running: Callable[[], bool]
) -> list[EvaluationResult]:
    """All trials of a run, in parallel workers with a progress bar; results are saved in the run's folder."""
    layout = RunLayout.of(config)
    planned = trials(config, load_improved(config, load_base_policy(config)))
    missing = [trial for trial in planned if not trial.file(layout.evaluation).exists()]
    if missing:
        _run_workers(config, overrides, planned, keep_running)
        for trial in missing:
            save(_collect(config, trial), trial.file(layout.evaluation))
    return [load(trial.file(layout.evaluation)) for trial in planned]


def _run_workers(
    config: StackConfig, overrides: Sequence[str], planned: Sequence[Trial], keep_running: Callable[[], bool]
) -> None:
    layout, workers = RunLayout.of(config), config.evaluation.workers
    layout.evaluation.mkdir(parents=True, exist_ok=True)
    files = [trial.file(layout.evaluation, worker) for trial in planned for worker in range(workers)]
    total = sum(trial.episodes for trial in planned)
    names = [f"evaluation-{worker}" for worker in range(workers)]
    with (
        Supervisor(layout.logs, announce=tqdm.write) as supervisor,
        tqdm(total=total, desc="evaluate", unit="episode") as bar,
    ):
        for worker, name in enumerate(names):
            supervisor.start(name, robot_stack_command("evaluate", "--worker", str(worker), *overrides))
        while not all(supervisor.finished(name) for name in names):
            if not keep_running():
                raise RobotStackError("evaluation interrupted; the same command goes on where it stopped")
            supervisor.watch()
            bar.update(sum(_finished_episodes(file) for file in files) - bar.n)
            time.sleep(0.3)
        bar.update(total - bar.n)


def _finished_episodes(file: Path) -> int:
    return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0


def _collect(config: StackConfig, trial: Trial) -> EvaluationResult:
    directory, workers = RunLayout.of(config).evaluation, config.evaluation.workers

    class Finished:
        def run(self, seed: int) -> EpisodeOutcome:
            raise RobotStackError(f"the evaluation of {trial.subject} lacks seed {seed}; run it again")

    shares = [
        evaluate(
            Finished(),
            trial.subject,
            evaluation_seeds(config, trial.episodes)[worker::workers],
            progress_path=trial.file(directory, worker),
        )
        for worker in range(workers)
    ]
    return combined(shares)
