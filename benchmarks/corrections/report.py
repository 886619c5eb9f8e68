"""What the study found, in figures and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from msgspec import Struct

from benchmarks.corrections.study import Plan, Point
from benchmarks.inference.plots import COLOURS, GRID, INK, MUTED
from robot_stack.evaluation.statistics import wilson_interval

_STYLE = mpl.RcParams(
    {
        "font.size": 10,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "text.color": INK,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


class Pooled(Struct, frozen=True, kw_only=True):
    """All seeds of a round together. `ci`: 95 % (Wilson), over episodes; `seeds`: success of each seed."""

    way: str
    round: int
    operator_steps: float
    interventions: float
    recoveries: float
    success: float
    ci: tuple[float, float]
    n: int
    seeds: tuple[float, ...]


class Report(Struct, frozen=True, kw_only=True):
    plan: Plan
    seeds: tuple[int, ...]
    pooled: tuple[Pooled, ...]
    points: tuple[Point, ...]


def report_of(plan: Plan, seeds: Sequence[int], points: Sequence[Point]) -> Report:
    """The points of one round of one way are put together."""
    keys = list(dict.fromkeys((point.way, point.round) for point in points))
    pooled = [_pool([point for point in points if (point.way, point.round) == key]) for key in keys]
    return Report(plan=plan, seeds=tuple(seeds), pooled=tuple(pooled), points=tuple(points))


def _pool(points: Sequence[Point]) -> Pooled:
    won, n = sum(point.successes for point in points), sum(point.n for point in points)
    interval = wilson_interval(won, n)
    return Pooled(
        way=points[0].way,
        round=points[0].round,
        operator_steps=float(np.mean([point.operator_steps for point in points])),
        interventions=float(np.mean([point.interventions for point in points])),
        recoveries=float(np.mean([point.recoveries for point in points])),
        success=won / n,
        ci=(interval.lower, interval.upper),
        n=n,
        seeds=tuple(point.successes / point.n for point in points),
    )


def table(report: Report) -> str:
    """For people."""
    lines = [f"{'way':16s} {'round':>5s} {'operator steps':>15s} {'interventions':>14s} {'success':>8s}  95 % interval"]
    for row in report.pooled:
        lines.append(
            f"{row.way:16s} {row.round:5d} {row.operator_steps:15.0f} {row.interventions:14.0f} "
            f"{100 * row.success:7.1f}%  [{100 * row.ci[0]:.1f}, {100 * row.ci[1]:.1f}]"
            f"  seeds {' '.join(f'{100 * one:.0f}' for one in row.seeds)}"
        )
    return "\n".join(lines)


def draw(report: Report, path: Path) -> None:
    """Success against what the operator did: steps, and interventions."""
    rows: dict[str, list[Pooled]] = {}
    for row in report.pooled:
        rows.setdefault(row.way, []).append(row)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, rows, "operator_steps")
        _draw(
            right, {way: found for way, found in rows.items() if way in ("rac", "hg_dagger", "base")}, "interventions"
        )
        left.set_xlabel("operator steps")
        right.set_xlabel("interventions")
        left.set_ylabel("success (%)")
        left.legend(loc="lower right", fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw(axes: Axes, rows: Mapping[str, Sequence[Pooled]], across: str) -> None:
    begin = rows["base"][0]
    ways = [way for way in rows if way not in ("base", "more_training")]
    for way, colour in zip(ways, COLOURS, strict=False):
        points = [begin, *rows[way]]
        x = [getattr(row, across) if row is not begin else 0.0 for row in points]
        axes.plot(x, [100 * row.success for row in points], "o-", ms=4, color=colour, label=way.replace("_", "-"))
        low, high = ([100 * row.ci[end] for row in points] for end in (0, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    for row in rows.get("more_training", ()):
        axes.axhline(100 * row.success, color=MUTED, lw=1.0, ls="--", label="more updates, no operator")
