"""Success against latency of generative policies: solvers, block caching and back-ends in one table.

    python -m benchmarks.inference [--stage train|success|latency|report|all] [--work DIR] [--episodes N] [--quick]

train: demonstrations of a scripted expert, then policies. success: paired episodes of every solver and cache schedule
on simulated robots, each behind its safety filter. latency: whole predictions at batch 1 on one thread, in turn; on a
machine that does nothing else, or the figures mean little. report: the table, and after a full run its drawing in
docs/images. Every stage keeps what it has done in the work folder and goes on where it was. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec

from benchmarks.inference.bench import Bench, Plan
from benchmarks.inference.configurations import BACKENDS, FAMILIES, QUICK_FAMILIES
from benchmarks.inference.plots import draw_front
from benchmarks.inference.report import Report
from benchmarks.inference.tasks import DEFAULT_TASKS, QUICK_TASK, TASKS, task_of
from robot_stack.core.errors import ConfigError
from robot_stack.core.files import write_atomically

RESULTS = Path(__file__).parents[1] / "results" / "inference.json"
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "inference-front.png"
STAGES = ("train", "success", "latency", "report", "all")


def show(report: Report) -> None:
    """A table for people."""
    for policy in report.policies:
        print(
            f"{policy.task} {policy.family}: {policy.parameters} parameters, {policy.demonstrations} demonstrations, "
            f"success {100 * policy.success:.1f} % [{100 * policy.ci[0]:.1f}, {100 * policy.ci[1]:.1f}], n={policy.n}"
        )
    print(f"{'':58s} {'ms':>9s} {'speedup':>8s} {'blocks':>7s} {'rmse':>8s} {'success':>8s} {'difference':>24s}")
    for row in sorted(report.rows, key=lambda row: (row.task, row.ms)):
        success = row.success
        difference = f"{100 * success.difference:+.1f} [{100 * success.difference_ci[0]:+.1f}, "
        difference += f"{100 * success.difference_ci[1]:+.1f}]"
        mark = "*" if row.name in report.front[row.task] else " "
        print(
            f"{mark}{row.name:57s} {row.ms:9.2f} {row.speedup:8.1f} {row.block_calls:7d} {row.action_rmse:8.4f} "
            f"{100 * success.rate:8.1f} {difference:>24s}"
        )
    for task, name in report.default.items():
        print(f"{task}: default {name or 'none: nothing is shown to be as good as the baseline'}")
    for name, why in report.refused.items():
        print(f"not measured: {name}: {why}")


def plan_of(options: argparse.Namespace, work: Path) -> Plan:
    """What the command line asks for."""
    names, kinds = options.tasks.split(","), options.families.split(",")
    unknown = [kind for kind in kinds if kind not in FAMILIES]
    if unknown:
        raise ConfigError(f"there is no policy family '{unknown[0]}'; choose from {', '.join(FAMILIES)}")
    families = QUICK_FAMILIES if options.quick else FAMILIES
    tasks = {QUICK_TASK.task: QUICK_TASK} if options.quick else {name: task_of(name) for name in names}
    return Plan(
        work=work,
        tasks=tasks,
        families={kind: families[kind] for kind in kinds if kind in families},
        backends=("eager",) if options.quick else tuple(one for one in BACKENDS if one in options.backends.split(",")),
        episodes=4 if options.quick else options.episodes,
        rounds=2 if options.quick else options.rounds,
        workers=1 if options.quick else options.workers,
        seed=options.seed,
        quick=options.quick,
        only=tuple(filter(None, options.only.split(","))),
        calibration=2 if options.quick else 16,
        checked=4 if options.quick else 64,
    )


def run(plan: Plan, stage: str) -> Report | None:
    """The stages that were asked for; the report if it was among them."""
    bench = Bench(plan)
    if stage in ("train", "all"):
        bench.train()
    if stage in ("success", "all"):
        bench.success()
    if stage in ("latency", "all"):
        bench.latency()
    return bench.report() if stage in ("report", "all") else None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, default="all")
    parser.add_argument("--work", type=Path, default=Path("runs/inference"), help="what is kept from run to run")
    parser.add_argument("--tasks", default=",".join(DEFAULT_TASKS), help=f"separated by commas: {', '.join(TASKS)}")
    parser.add_argument(
        "--families",
        default=",".join(FAMILIES),
        help="separated by commas; transformer is the baseline, shipped what robot-stack train makes by default",
    )
    parser.add_argument(
        "--only", default="", help="parts of configurations' names, separated by commas: leave out others"
    )
    parser.add_argument("--backends", default=",".join(BACKENDS), help="separated by commas")
    parser.add_argument("--episodes", type=int, default=2000, help="of every configuration, on the same seeds")
    parser.add_argument("--rounds", type=int, default=15, help="of the timing")
    parser.add_argument("--workers", type=int, default=1, help="processes that run episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny networks, few episodes; under 45 s")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory() as work:
            report = run(plan_of(options, Path(work)), options.stage)
    else:
        report = run(plan_of(options, options.work), options.stage)
    if report is None:
        return
    show(report)
    encoded = msgspec.json.encode(report)
    if not options.quick:
        write_atomically(RESULTS, msgspec.json.format(encoded, indent=2) + b"\n")
        draw_front(report, FIGURE)
    print(encoded.decode())


if __name__ == "__main__":
    main()
