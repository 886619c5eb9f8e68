"""What the study found, in figures and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from msgspec import Struct

from benchmarks.corrections.study import Point
from benchmarks.corrections.worlds import Plan
from benchmarks.plot_style import COLOURS, MUTED, STYLE
from robot_stack.evaluation.statistics import wilson_interval

TITLES = {
    "gate": "gate, smooth wall",
    "rough_gate": "gate, rough wall",
    "peg": "peg insertion",
    "biased_peg": "peg insertion, observed with an error",
}
_WAYS = ("rac", "hg_dagger", "demonstrations")
_NAMES = {"rac": "RaC", "hg_dagger": "HG-DAgger", "demonstrations": "demonstrations"}
_ONE_TRY = 40
"""Steps that are enough for one try and not for many, in every world."""


class Pooled(Struct, frozen=True, kw_only=True):
    """All seeds of a round together; means over the seeds, but for `success` (of `n` episodes), its `ci` (95 %, Wilson,
    over episodes), `within` (success within 40 steps), and `seeds`: success of each seed."""

    world: str
    way: str
    round: int
    operator_steps: float
    interventions: float
    recoveries: float
    recovery_steps: float
    correction_steps: float
    success: float
    ci: tuple[float, float]
    within: float
    n: int
    seeds: tuple[float, ...]


class Report(Struct, frozen=True, kw_only=True):
    """`command` made `points`, on a machine with this load average; `plans` by world."""

    command: str
    load_average: float
    cpu_s: float
    plans: dict[str, Plan]
    seeds: tuple[int, ...]
    pooled: tuple[Pooled, ...]
    points: tuple[Point, ...]


def pool(points: Sequence[Point]) -> tuple[Pooled, ...]:
    """The points of one round of one way in one world are put together."""
    keys = dict.fromkeys((point.world, point.way, point.round) for point in points)
    return tuple(_pooled([one for one in points if (one.world, one.way, one.round) == key]) for key in keys)


def _pooled(points: Sequence[Point]) -> Pooled:
    won, n = sum(point.successes for point in points), sum(len(point.outcomes) for point in points)
    interval = wilson_interval(won, n)

    def mean(name: str) -> float:
        return float(np.mean([getattr(point, name) for point in points]))

    return Pooled(
        world=points[0].world,
        way=points[0].way,
        round=points[0].round,
        operator_steps=mean("operator_steps"),
        interventions=mean("interventions"),
        recoveries=mean("recoveries"),
        recovery_steps=mean("recovery_steps"),
        correction_steps=mean("correction_steps"),
        success=won / n,
        ci=(interval.lower, interval.upper),
        within=sum(point.successes_within(_ONE_TRY) for point in points) / n,
        n=n,
        seeds=tuple(point.successes / len(point.outcomes) for point in points),
    )


def table(rows: Sequence[Pooled]) -> str:
    """For people."""
    lines = [
        f"{'world':11s} {'way':15s} {'round':>5s} {'operator steps':>15s} {'interventions':>14s} {'recoveries':>11s} "
        f"{'success':>8s}  95 % interval  within {_ONE_TRY}  seeds"
    ]
    for row in rows:
        lines.append(
            f"{row.world:11s} {row.way:15s} {row.round:5d} {row.operator_steps:15.0f} {row.interventions:14.0f} "
            f"{row.recoveries:11.0f} {100 * row.success:7.1f}%  [{100 * row.ci[0]:4.1f}, {100 * row.ci[1]:4.1f}]"
            f"  {100 * row.within:8.1f}%  {' '.join(f'{100 * one:.0f}' for one in row.seeds)}"
        )
    return "\n".join(lines)


def draw(report: Report, path: Path) -> None:
    """For every world, success against operator steps, and against recoveries."""
    worlds = list(dict.fromkeys(row.world for row in report.pooled))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.3 * len(worlds)), layout="constrained")
        panels = figure.subplots(len(worlds), 2, squeeze=False, sharey="row")
        for (left, right), world in zip(panels, worlds, strict=True):
            _draw_steps(left, [row for row in report.pooled if row.world == world])
            _draw_recoveries(right, [point for point in report.points if point.world == world])
            left.set_title(TITLES.get(world, world), loc="left", fontsize=10)
            left.set_ylabel("success (%)")
            right.legend(loc="lower right", fontsize=8)
        panels[0][0].legend(loc="lower right", fontsize=8)
        panels[-1][0].set_xlabel("operator steps")
        panels[-1][1].set_xlabel("recoveries (RaC) or interventions (HG-DAgger),\none mark for each seed and round")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw_steps(axes: Axes, rows: Sequence[Pooled]) -> None:
    begin = next(row for row in rows if row.way == "base")
    for way, colour in zip(_WAYS, COLOURS, strict=False):
        points = [begin, *(row for row in rows if row.way == way)]
        steps = [row.operator_steps for row in points]
        axes.plot(steps, [100 * row.success for row in points], "o-", ms=4, color=colour, label=_NAMES[way])
        low, high = ([100 * row.ci[end] for row in points] for end in (0, 1))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    for row in rows:
        if row.way == "more_training":
            axes.axhline(100 * row.success, color=MUTED, lw=1.0, ls="--", label="more updates, no operator")


def _draw_recoveries(axes: Axes, points: Sequence[Point]) -> None:
    """A straight line is fitted to RaC's marks, the base policy's included, as the paper does it."""
    for way, colour in zip(_WAYS[:2], COLOURS, strict=False):
        marks = [point for point in points if point.way in ("base", way)]
        x = np.array([point.recoveries if way == "rac" else point.interventions for point in marks], np.float64)
        y = np.array([100 * point.successes / len(point.outcomes) for point in marks])
        label = _NAMES[way]
        if len(x) > 2 and x.std() > 0 and y.std() > 0:
            slope, offset = np.polyfit(x, y, 1)
            axes.plot([0.0, x.max()], [offset, offset + slope * x.max()], color=colour, lw=1.0)
            label += f": {slope:+.2f} % for each, r = {np.corrcoef(x, y)[0, 1]:.2f}"
        axes.plot(x, y, "o", ms=4, color=colour, alpha=0.8, label=label)
