"""What an operator's time is best spent on: `python -m benchmarks.corrections [--quick] [--seed N] [--seeds N]`.

A small flow policy learned from a few demonstrations to bring a point through a narrow gate, and often gets stuck
beside it. An operator has so many steps of time: for recoveries and corrections after which the episode ends (RaC,
arXiv 2509.07953), for corrections alone with hand-back (HG-DAgger), or for further full demonstrations. All three train
with the same number of updates from the same base policy; `more_training` does so without an operator. The operator is
a script and the world a toy (`gate.py`): this checks the machinery and shows a tendency, no more.

Success on held-out seeds, every round, all seeds; 95 % intervals (Wilson). What is finished is kept in the work folder.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
import torch
from tqdm import tqdm

from benchmarks.corrections.report import Report, draw, report_of, table
from benchmarks.corrections.study import WAYS, Plan, Point, run_way, successes, train_base
from robot_stack.core.files import write_atomically

RESULTS = Path(__file__).parents[1] / "results" / "corrections.json"
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "corrections.png"
FULL = Plan(rounds=4, budget=120, demonstrations=15, base_steps=1000, updates=400, test_episodes=300)
QUICK = Plan(rounds=1, budget=60, demonstrations=8, base_steps=150, updates=60, test_episodes=40)


def study(plan: Plan, seeds: Sequence[int], work: Path) -> Report:
    """All ways, all seeds; those that are finished are read from the work folder."""
    points: list[Point] = []
    with tqdm(total=len(seeds) * (len(WAYS) + 1), unit="way", file=sys.stderr) as bar:
        for seed in seeds:
            points += _seed(plan, seed, work, bar)
    return report_of(plan, seeds, points)


def _seed(plan: Plan, seed: int, work: Path, bar: tqdm[NoReturn]) -> list[Point]:
    paths = {way.name: work / f"{way.name}-{seed}.json" for way in WAYS}
    base_path = work / f"base-{seed}.json"
    base, shown = None, None
    if not base_path.exists() or not all(path.exists() for path in paths.values()):
        base, shown = train_base(plan, seed)
    if base is not None and not base_path.exists():
        _keep(base_path, [_base_point(plan, seed, successes(base, plan, seed))])
    bar.update()
    points = _kept(base_path)
    for way in WAYS:
        path, folder = paths[way.name], work / f"steps-{way.name}-{seed}"
        if not path.exists() and base is not None and shown is not None:
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
            _keep(path, run_way(plan, way, seed, base, shown, folder, bar.set_postfix_str))
        points += _kept(path)
        bar.update()
    return points


def _base_point(plan: Plan, seed: int, won: int) -> Point:
    return Point(
        way="base",
        seed=seed,
        round=0,
        episodes=0,
        operator_steps=0,
        interventions=0,
        recoveries=0,
        successes=won,
        n=plan.test_episodes,
        shares={},
    )


def _keep(path: Path, points: Sequence[Point]) -> None:
    write_atomically(path, msgspec.json.encode(points))


def _kept(path: Path) -> list[Point]:
    return msgspec.json.decode(path.read_bytes(), type=list[Point])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corrections",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("runs/corrections"), help="what is kept from run to run")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, one round, hardly trained; under 45 s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            report = study(QUICK, [options.seed], Path(folder))
    else:
        work = options.work / hashlib.sha256(msgspec.json.encode(FULL)).hexdigest()[:12]  # other sizes, other folder
        work.mkdir(parents=True, exist_ok=True)
        report = study(FULL, range(options.seed, options.seed + options.seeds), work)
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        draw(report, FIGURE)
    print(table(report))
    print(msgspec.json.encode(report).decode())


if __name__ == "__main__":
    main()
