"""Learning curves: tasks, algorithms and seeds, every run in one process through the stack's own parts.

    python -m benchmarks.learning [--tasks A,B] [--algorithms X,Y] [--seeds K] [--steps N] [--workers W] [--quick]

run: for each task and seed demonstrations and a base policy, then practice with every algorithm; `base` is the base
policy alone. Everything is kept in the work folder and goes on where it was. report: the seeds of all finished
evaluations pooled into `benchmarks/results/learning-<task>.json`, drawn in `docs/images/learning-<task>.png`, and as a
table in `docs/learning.md`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.learning.bench import Job, run_all
from benchmarks.learning.plots import draw
from benchmarks.learning.practice import Measuring
from benchmarks.learning.report import Report, filled, report_of, table
from benchmarks.learning.tasks import BASE, DEFAULT_TASKS, TASKS, check_algorithm, quick, task_of
from robot_stack.core.files import write_atomically
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS

RESULTS = Path(__file__).parents[1] / "results"
DOCUMENT = Path(__file__).parents[2] / "docs" / "learning.md"
QUICK_ALGORITHMS = tuple(name for name in ("residual_td3", "rlpd") if name in ALGORITHM_PRESETS)
QUICK_STEPS = 300


def jobs_of(options: argparse.Namespace, work: Path) -> list[Job]:
    """Base policies and runs, in the order of seeds: every algorithm has one seed before any has two."""
    tasks = [task_of(name) for name in options.tasks]
    return [
        Job(
            work=str(work),
            task=quick(task) if options.quick else task,
            seed=seed,
            algorithm=algorithm,
            steps=options.steps,
            measuring=Measuring(
                every=options.eval_every,
                episodes=options.eval_episodes,
                last_episodes=options.last_episodes,
                lanes=task.lanes,
            ),
        )
        for seed in range(options.seed, options.seed + options.seeds)
        for task in tasks
        for algorithm in ("", *options.algorithms)
        if task.offers(algorithm)
    ]


def reports_of(jobs: list[Job], options: argparse.Namespace, work: Path) -> list[Report]:
    command = " ".join(["python -m benchmarks.learning", *sys.argv[1:]])
    return [
        report_of(
            name,
            work / name,
            options.algorithms,
            range(options.seed, options.seed + options.seeds),
            execute_steps=next(job for job in jobs if job.task.name == name).base_config().policy.execute_steps,
            command=command,
            quick=options.quick,
            load_average=os.getloadavg()[0],
        )
        for name in options.tasks
    ]


def run(options: argparse.Namespace, work: Path) -> list[Report]:
    jobs = jobs_of(options, work)
    if options.stage in ("run", "all"):
        run_all(jobs, options.workers)
    return reports_of(jobs, options, work) if options.stage in ("report", "all") else []


def _names(text: str) -> list[str]:
    return list(filter(None, text.split(",")))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    everything = (BASE, *sorted(ALGORITHM_PRESETS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=("run", "report", "all"), default="all")
    parser.add_argument("--work", type=Path, default=Path("runs/learning"), help="what is kept from run to run")
    parser.add_argument("--tasks", type=_names, default=list(DEFAULT_TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--algorithms", type=_names, default=list(everything), help=f"of {', '.join(everything)}")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of practice")
    parser.add_argument("--eval-every", type=int, default=2_000, help="environment steps")
    parser.add_argument("--eval-episodes", type=int, default=100, help="along the way, on the same held-out seeds")
    parser.add_argument("--last-episodes", type=int, default=200, help="at the end, on other held-out seeds")
    parser.add_argument("--workers", type=int, default=1, help="processes; every run is in one")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one seed, a few hundred steps")
    options = parser.parse_args(arguments)
    for name in options.algorithms:
        check_algorithm(name)
    for name in options.tasks:
        task_of(name)
    if options.quick:
        options.tasks, options.algorithms, options.seeds = ["peg_insertion"], [BASE, *QUICK_ALGORITHMS], 1
        options.steps, options.eval_every, options.workers = QUICK_STEPS, QUICK_STEPS // 2, 1
        options.eval_episodes = options.last_episodes = 4
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory() as work:
            reports = run(options, Path(work))
    else:
        reports = run(options, options.work)
    for report in reports:
        print(f"{report.task}\n\n{table(report)}")
        if not options.quick:
            RESULTS.mkdir(exist_ok=True)
            content = msgspec.json.format(msgspec.json.encode(report), indent=1)
            write_atomically(RESULTS / f"learning-{report.task}.json", content + b"\n")
            draw(report, DOCUMENT.parent / "images" / f"learning-{report.task}.png")
            write_atomically(DOCUMENT, filled(DOCUMENT.read_text(), report).encode())
    print(msgspec.json.encode(reports[0] if len(reports) == 1 else reports).decode())


if __name__ == "__main__":
    main()
