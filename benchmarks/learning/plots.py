"""Learning curves, drawn: success against environment steps and against time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.learning.report import Curve, Pooled, Report
from benchmarks.plot_style import COLOURS, MUTED, STYLE

LINES = ("-", "--", ":")


def draw(report: Report, path: Path) -> None:
    """Two panels: over environment steps, and over the median CPU time of practice and learning; bands are the pooled
    intervals."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_curves(left, report, lambda point: point.env_steps)
        _draw_curves(right, report, lambda point: point.cpu_s / 60)
        left.set_xlabel("environment steps")
        right.set_xlabel("minutes on one core (CPU time of practice and learning, median)")
        left.set_ylabel(f"success on {report.task} (%)")
        left.set_ylim(-2, 102)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def _draw_curves(axes: Axes, report: Report, x: Callable[[Pooled], float]) -> None:
    for number, curve in enumerate(report.curves):
        _draw_curve(axes, curve, x, COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)])
    base = report.base.get(str(report.execute_steps))
    if base is not None:
        axes.axhline(100 * base.rate, color=MUTED, lw=1.2, ls="--", label="base policy")
        axes.axhspan(100 * base.ci[0], 100 * base.ci[1], color=MUTED, alpha=0.12, lw=0)


def _draw_curve(axes: Axes, curve: Curve, x: Callable[[Pooled], float], colour: str, line: str) -> None:
    along = [x(point) for point in curve.points]
    axes.plot(along, [100 * point.rate for point in curve.points], color=colour, ls=line, lw=1.6, label=curve.algorithm)
    lower, upper = ([100 * point.ci[end] for point in curve.points] for end in (0, 1))
    axes.fill_between(along, lower, upper, color=colour, alpha=0.15, lw=0)
