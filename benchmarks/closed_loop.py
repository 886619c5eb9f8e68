"""Does practice beat imitation? The whole pipeline with real processes, over several seeds.

    python -m benchmarks.closed_loop [--quick] [--seed N] [--seeds K] [--runs DIRECTORY] [OVERRIDE ...]

For each seed: demonstrations, behaviour cloning, practice with robot server, edge and learner, and evaluation of the
base policy and the improved one on the same held-out episodes (the last point, deterministic policy, the task's own
success predicate, Wilson 95 % intervals, McNemar's exact test). Interrupted, the same command goes on. The full run
writes `benchmarks/results/closed_loop-<task>.json`; the last line of output is the same JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.apps.reporting import Result
from robot_stack.apps.supervisor import robot_stack_command

RESULTS = Path(__file__).parent / "results"
QUICK = (
    "task.demonstrations=6",
    "policy.training.steps=100",
    "algorithm.exploration.warmup_steps=150",
    "algorithm.update.critic_only_updates=20",
    "learner.target_steps=400",
    "evaluation.episodes=4",
    "evaluation.replan_every=[]",
    "evaluation.videos=0",
    "evaluation.wall_clock_episodes=0",
)


class ClosedLoopSummary(Struct, frozen=True, kw_only=True):
    """All seeds of one task. `separated`: on every seed the interval after practice lies above the base's."""

    command: str
    task: str
    seeds: list[int]
    median_bc_success: float
    median_rl_success: float
    lowest_rl_success: float
    ratio: float
    separated: bool
    highest_p_value: float
    acknowledged_steps: int
    lost_steps: int
    duplicate_steps: int
    median_wall_s: float
    results: list[Result]


def run_seed(seed: int, runs: Path, overrides: Sequence[str]) -> Result:
    """The demo of one seed; its result."""
    name = f"closed-loop-{seed}"
    command = robot_stack_command("demo", *overrides, f"run={name}", f"seed={seed}", f"runs_directory={runs}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            sys.stderr.write(f"[seed {seed}] {line}")
    if process.returncode != 0:
        raise SystemExit(f"the run of seed {seed} ended with code {process.returncode}")
    return msgspec.json.decode((runs / name / "result.json").read_bytes(), type=Result)


def summarise(command: str, results: list[Result]) -> ClosedLoopSummary:
    improved = [result.rl_success or 0.0 for result in results]
    base = statistics.median(result.bc_success for result in results)
    return ClosedLoopSummary(
        command=command,
        task=results[0].task,
        seeds=[result.seed for result in results],
        median_bc_success=base,
        median_rl_success=statistics.median(improved),
        lowest_rl_success=min(improved),
        ratio=statistics.median(improved) / base if base else float("inf"),
        separated=all(result.rl_ci is not None and result.rl_ci[0] > result.bc_ci[1] for result in results),
        highest_p_value=max(1.0 if result.p_value is None else result.p_value for result in results),
        acknowledged_steps=sum(result.acknowledged_steps for result in results),
        lost_steps=sum(result.lost_steps for result in results),
        duplicate_steps=sum(result.duplicate_steps for result in results),
        median_wall_s=statistics.median(result.wall_s for result in results),
        results=results,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, too small to learn: only that it runs")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    arguments = parser.parse_args()
    command = " ".join(["python -m benchmarks.closed_loop", *sys.argv[1:]])
    if arguments.quick:
        with tempfile.TemporaryDirectory() as scratch:
            results = [run_seed(arguments.seed, Path(scratch), [*QUICK, *arguments.overrides])]
    else:
        seeds = range(arguments.seed, arguments.seed + arguments.seeds)
        results = [run_seed(seed, arguments.runs, arguments.overrides) for seed in seeds]
    encoded = msgspec.json.encode(summarise(command, results))
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"closed_loop-{results[0].task}.json"
        path.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    sys.stdout.write(encoded.decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
