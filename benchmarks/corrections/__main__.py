"""What an operator's time is best spent on: `python -m benchmarks.corrections [--quick] [--seed N] [--seeds N]`.

A small policy learned from few demonstrations, and often gets stuck. An operator has so many steps of time: for
recoveries and corrections after which the episode ends (RaC, arXiv 2509.07953), for corrections alone with hand-back
(HG-DAgger), or for further full demonstrations. All three train with the same number of updates from the same base
policy; `more_training` does so without an operator. Episodes have room for several tries. The operators are scripts.

Worlds: `peg` (insertion on the simulated Franka, through the stack's own control loop), `biased_peg` (the socket is
observed with an error), `gate` and `rough_gate` (a point and a wall, seconds; see `gate.py`). `--quick` is the gate,
one seed, one round, hardly trained. Success on held-out seeds, every round, all seeds; 95 % intervals (Wilson).

Stages: `run` does what is not yet in the work folder, way by way; `report` puts together what is there, writes the
results (JSON) and draws the figure. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.corrections.bench import NAMES, PLANS, QUICK, WORLDS, Job, finished, jobs_of, run_all
from benchmarks.corrections.report import Report, draw, pool, table
from robot_stack.core.files import write_atomically

RESULTS = Path(__file__).parents[1] / "results" / "corrections.json"
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "corrections.png"


def report_of(jobs: Sequence[Job], command: str) -> Report:
    """What is finished."""
    kept = finished(jobs)
    points = tuple(point for one in kept for point in one.points)
    return Report(
        command=command,
        load_average=round(os.getloadavg()[0], 1),
        cpu_s=round(sum(one.cpu_s for one in kept)),
        plans={job.world: job.plan for job in jobs},
        seeds=tuple(dict.fromkeys(point.seed for point in points)),
        pooled=pool(points),
        points=points,
    )


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corrections",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("runs/corrections"), help="what is kept from run to run")
    parser.add_argument("--worlds", default=",".join(WORLDS), help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--ways", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--stage", choices=("run", "report", "all"), default="all")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes, one seed of one world each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--quick", action="store_true", help="the gate, one seed, hardly trained; under 45 s")
    options = parser.parse_args(arguments)
    unknown = set(options.worlds.split(",")) - set(WORLDS)
    if unknown:
        parser.error(f"there is no world {', '.join(sorted(unknown))}; choose of {', '.join(WORLDS)}")
    unknown = set(options.ways.split(",")) - set(NAMES)
    if unknown:
        parser.error(f"there is no way {', '.join(sorted(unknown))}; choose of {', '.join(NAMES)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = _parsed(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            jobs = jobs_of(["gate"], [options.seed], Path(folder), dict.fromkeys(WORLDS, QUICK))
            run_all(jobs, 1)
            _show(report_of(jobs, f"python -m benchmarks.corrections --quick --seed {options.seed}"))
        return
    seeds = range(options.seed, options.seed + options.seeds)
    jobs = jobs_of(options.worlds.split(","), seeds, options.work, PLANS, options.ways.split(","))
    if options.stage in ("run", "all"):
        run_all(jobs, options.workers)
    sizes = f"--worlds {options.worlds} --seed {options.seed} --seeds {options.seeds}"
    report = report_of(jobs, f"python -m benchmarks.corrections {sizes}")
    if options.stage in ("report", "all"):
        write_atomically(options.results, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        draw(report, options.figure)
    _show(report)


def _show(report: Report) -> None:
    print(table(report.pooled))
    print(msgspec.json.encode(report).decode())


if __name__ == "__main__":
    main()
