"""The seeds of every algorithm pooled into one curve, and what is read off it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from benchmarks.learning.curve import CurveFile, Point
from benchmarks.learning.tasks import BASE
from robot_stack.core.errors import ConfigError
from robot_stack.evaluation.statistics import wilson_interval

LEVELS = (0.5, 0.8, 0.9)


class Pooled(Struct, frozen=True, kw_only=True):
    """One point of all seeds together.

    Attributes:
        env_steps: after which the evaluation was due.
        successes, n, rate, ci: over the episodes of all seeds; Wilson's 95 % interval. It tells how well the mean over
            these very seeds is known, not how another seed would fare: `by_seed` shows that.
        by_seed: success rate of each seed.
        updates, wall_s, cpu_s: median over the seeds.
    """

    env_steps: int
    successes: int
    n: int
    rate: float
    ci: tuple[float, float]
    by_seed: tuple[float, ...]
    updates: float
    wall_s: float
    cpu_s: float


class Curve(Struct, frozen=True, kw_only=True):
    """One algorithm on one task.

    Attributes:
        seeds: of the points; a point is there where all seeds have it.
        points: in the order of environment steps; the last one is on fresh episodes.
        steps_to: environment steps of the first point whose pooled rate reaches the level (keys '50', '80', '90'); None
            if none does.
        human_share: of the recorded steps, those in which a (scripted) person acted, median over the seeds.
    """

    algorithm: str
    seeds: tuple[int, ...]
    points: list[Pooled]
    steps_to: dict[str, int | None]
    human_share: float = 0.0

    @property
    def last(self) -> Pooled:
        return self.points[-1]


class Report(Struct, frozen=True, kw_only=True):
    """One task. `base`: the base policy alone by re-planning interval, on the episodes of the last points."""

    benchmark: str = "learning"
    command: str
    task: str
    quick: bool
    load_average: float
    execute_steps: int
    base: dict[str, Pooled]
    curves: list[Curve]


def pooled(points: Sequence[Point]) -> Pooled:
    """The same point of several seeds as one."""
    successes, n = sum(point.successes for point in points), sum(point.n for point in points)
    interval = wilson_interval(successes, n)
    return Pooled(
        env_steps=points[0].due,
        successes=successes,
        n=n,
        rate=successes / n,
        ci=(interval.lower, interval.upper),
        by_seed=tuple(point.successes / point.n for point in points),
        updates=statistics.median(point.updates for point in points),
        wall_s=round(statistics.median(point.wall_s for point in points), 1),
        cpu_s=round(statistics.median(point.cpu_s for point in points), 1),
    )


def curve_of(algorithm: str, runs: Mapping[int, Sequence[Point]]) -> Curve:
    """From the points of each seed; those that not every seed has are left out."""
    seeds = tuple(sorted(runs))
    by_due = [{point.due: point for point in runs[seed]} for seed in seeds]
    common = sorted(set.intersection(*(set(points) for points in by_due)))
    points = [pooled([found[due] for found in by_due]) for due in common]
    ends = [found[common[-1]] for found in by_due]
    return Curve(
        algorithm=algorithm,
        seeds=seeds,
        points=points,
        steps_to={f"{100 * level:.0f}": steps_to(points, level) for level in LEVELS},
        human_share=statistics.median(end.human_steps / max(1, end.env_steps) for end in ends),
    )


def steps_to(points: Sequence[Pooled], level: float) -> int | None:
    """Environment steps of the first point at or above the level."""
    return next((point.env_steps for point in points if point.rate >= level), None)


def read_points(task_folder: Path, algorithm: str, seeds: Sequence[int]) -> dict[int, list[Point]]:
    """The points of each seed that has any."""
    found = {seed: CurveFile(task_folder / f"seed-{seed}" / algorithm / "curve.jsonl").points for seed in seeds}
    return {seed: points for seed, points in found.items() if points}


def report_of(
    task: str,
    task_folder: Path,
    algorithms: Sequence[str],
    seeds: Sequence[int],
    *,
    execute_steps: int,
    command: str,
    quick: bool,
    load_average: float,
) -> Report:
    """What the runs of a task have kept so far; algorithms without a point that all seeds have are left out."""
    base = read_points(task_folder, BASE, seeds)
    intervals = sorted({point.replan_every for points in base.values() for point in points}, reverse=True)
    return Report(
        command=command,
        task=task,
        quick=quick,
        load_average=round(load_average, 2),
        execute_steps=execute_steps,
        base={
            str(every): pooled([point for points in base.values() for point in points if point.replan_every == every])
            for every in intervals
        },
        curves=[
            curve_of(algorithm, runs)
            for algorithm in algorithms
            if algorithm != BASE and (runs := read_points(task_folder, algorithm, seeds))
        ],
    )


def table(report: Report) -> str:
    """Markdown: one row for each algorithm, best last point first."""
    lines = [
        "| | steps to 50 % | 80 % | 90 % | at the end | seeds | steps, updates | CPU | wall clock |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for every, point in report.base.items():
        name = "base policy" if int(every) == report.execute_steps else f"base policy, re-planned every {every}"
        lines.append(f"| {name} | | | | {_success(point)} | {_seeds(point)} | | | |")
    for curve in sorted(report.curves, key=lambda curve: -curve.last.rate):
        last = curve.last
        reached = " | ".join("-" if steps is None else f"{steps:,}" for steps in curve.steps_to.values())
        corrected = f" ({100 * curve.human_share:.0f} % of the steps corrected)" if curve.human_share else ""
        lines.append(
            f"| `{curve.algorithm}`{corrected} | {reached} | {_success(last)} | {_seeds(last)} | "
            f"{last.env_steps:,}, {last.updates:,.0f} | {last.cpu_s / 60:.1f} min | {last.wall_s / 60:.1f} min |"
        )
    return "\n".join(lines) + "\n"


def filled(text: str, report: Report) -> str:
    """The document with the report's table and picture between its marks; ConfigError if it has none for the task."""
    begin, end = f"<!-- learning: {report.task} -->\n", "<!-- end -->"
    before, mark, rest = text.partition(begin)
    _, close, after = rest.partition(end)
    if not mark or not close:
        raise ConfigError(f"the document has no place for {report.task}: a line '{begin.strip()}', and then '{end}'")
    shown = f"### {report.task}\n\n![Learning curves](images/learning-{report.task}.png)\n\n"
    return f"{before}{begin}{shown}`{report.command}`:\n\n{table(report)}{end}{after}"


def _success(point: Pooled) -> str:
    return f"**{100 * point.rate:.1f} %** [{100 * point.ci[0]:.1f}, {100 * point.ci[1]:.1f}], n = {point.n}"


def _seeds(point: Pooled) -> str:
    return f"{len(point.by_seed)}: {100 * min(point.by_seed):.0f} to {100 * max(point.by_seed):.0f} %"
