"""The front of success against latency, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.inference.figures import Row
from benchmarks.inference.report import Report
from benchmarks.plot_style import COLOURS, INK, MUTED, STYLE

MARKERS = {"eager": "o", "onnx": "s", "compiled": "D"}


def draw_front(report: Report, path: Path) -> None:
    """One panel for each task: every configuration with its interval, the front as a line, the default named.

    Full marks: with caching; hollow ones: without.
    """
    tasks = sorted(report.front)
    families = list(dict.fromkeys(row.family for row in report.rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.6 * len(tasks)), layout="constrained")
        panels = figure.subplots(len(tasks), 1, squeeze=False)[:, 0]
        for axes, task in zip(panels, tasks, strict=True):
            rows = [row for row in report.rows if row.task == task]
            for family, colour in zip(families, COLOURS, strict=False):
                _draw_rows(axes, [row for row in rows if row.family == family], colour)
            _draw_best(axes, rows, report.front[task], report.default[task])
            axes.set_xscale("log")
            axes.set_xlabel("time of one chunk, batch 1, one thread (ms)")
            axes.set_ylabel(f"success on {task} (%)")
        _legend(panels[0], families)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw_rows(axes: Axes, rows: Sequence[Row], colour: str) -> None:
    for row in rows:
        success = row.success
        low, high = (100 * abs(success.rate - end) for end in success.ci)
        axes.errorbar(
            row.ms,
            100 * success.rate,
            yerr=[[low], [high]],
            fmt=MARKERS[row.backend],
            ms=6,
            color=colour,
            mfc=colour if row.cache else "white",
            elinewidth=0.7,
            alpha=0.85,
        )


def _draw_best(axes: Axes, rows: Sequence[Row], front: Sequence[str], default: str) -> None:
    named = {row.name: row for row in rows}
    best = [named[name] for name in front]
    axes.plot([row.ms for row in best], [100 * row.success.rate for row in best], color=INK, lw=1.2, zorder=0)
    if default in named:
        row = named[default]
        axes.annotate(
            f"default: {default.partition('/')[2]}",
            (row.ms, 100 * row.success.rate),
            xytext=(0, -38),
            textcoords="offset points",
            ha="center",
            arrowprops={"arrowstyle": "-", "color": MUTED},
        )


def _legend(axes: Axes, families: Sequence[str]) -> None:
    for family, colour in zip(families, COLOURS, strict=False):
        axes.plot([], [], "o", color=colour, label=family)
    for backend, marker in MARKERS.items():
        axes.plot([], [], marker, color=MUTED, label=backend)
    axes.plot([], [], "o", color=MUTED, mfc="white", label="without caching")
    axes.plot([], [], color=INK, lw=1.2, label="front")
    axes.legend(loc="lower right", fontsize=8, ncols=2)
