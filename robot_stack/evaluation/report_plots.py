"""The report's figures, each as one SVG. Axes carry their units."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from robot_stack.evaluation.curves import LearningCurve
from robot_stack.evaluation.report_data import Durations, LoopPeriods, Series
from robot_stack.evaluation.results import EvaluationResult

INK, MUTED, GRID = "#1f2933", "#66788a", "#e4e9ee"
BLUE, TEAL, AMBER = "#3b6fb6", "#128a7e", "#c8791b"
_WIDTH_IN = 7.0
_MAX_POINTS = 2000
_STYLE = mpl.RcParams(
    {
        "font.size": 11,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
        "legend.frameon": False,
        "svg.hashsalt": "report",
    }
)


def success_over_learning(curve: LearningCurve) -> bytes:
    """Moving success rate with its interval, single episodes as ticks, human share below where people acted."""
    helped = bool(curve.human_steps.any())
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 4.6 if helped else 3.4), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1), squeeze=False)[:, 0] if helped else None
        top: Axes = axes[0] if axes is not None else figure.add_subplot()
        keep = _thinned(len(curve.env_steps))
        keep = keep[keep >= min(curve.window, len(curve.env_steps)) // 5]  # an average of a few episodes only jumps
        steps = curve.env_steps[keep]
        top.fill_between(steps, 100 * curve.lower[keep], 100 * curve.upper[keep], color=TEAL, alpha=0.16, lw=0)
        top.plot(steps, 100 * curve.success_rate[keep], color=TEAL, lw=2)
        for wins, height in ((True, 103), (False, -3)):
            shown = curve.env_steps[curve.success == wins]
            shown = shown[_thinned(len(shown))]
            top.plot(shown, np.full(len(shown), height), "|", color=MUTED, ms=5, alpha=0.4)
        top.set_ylim(-6, 106)
        top.set_ylabel(f"success of last {curve.window}\nepisodes (%)")
        bottom = top
        if axes is not None:
            bottom = axes[1]
            bottom.vlines(curve.env_steps, 0, curve.human_steps, color=AMBER, lw=1)
            bottom.set_ylabel("human steps\nper episode")
        bottom.set_xlabel("recorded control steps (all robots)")
        _thousands(bottom)
        return _svg(figure)


def training(series: Sequence[Series]) -> bytes:
    """One small plot per quantity, two in a row."""
    with mpl.rc_context(_STYLE):
        rows = (len(series) + 1) // 2
        figure = Figure(figsize=(_WIDTH_IN, 2.4 * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).ravel()
        for ax, one in zip(axes, series, strict=False):
            keep = _thinned(len(one.x))
            ax.plot(np.asarray(one.x)[keep], np.asarray(one.y)[keep], color=BLUE, lw=1.4)
            ax.set_xlabel(one.x_label)
            ax.set_title(one.y_label, loc="left", fontsize=11)
            _thousands(ax)
        for ax in axes[len(series) :]:
            ax.set_visible(False)
        return _svg(figure)


def replanning(results: Sequence[EvaluationResult]) -> bytes:
    """Success with its interval over the number of steps executed from each chunk."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 2.8), layout="constrained")
        ax = figure.add_subplot()
        ordered = sorted(results, key=lambda result: result.subject.replan_every)
        places = np.arange(len(ordered))
        rates = np.asarray([100 * result.success_rate for result in ordered])
        ends = np.asarray([[100 * result.interval().lower, 100 * result.interval().upper] for result in ordered])
        errors = np.abs(ends - rates[:, None]).T
        ax.errorbar(places, rates, errors, fmt="o-", color=BLUE, ecolor=MUTED, capsize=5, lw=1.6, ms=7)
        ax.set_xticks(places, [str(result.subject.replan_every) for result in ordered])
        ax.set_xlim(-0.5, len(ordered) - 0.5)
        ax.set_ylim(0, 104)
        ax.set_xlabel("control steps executed from each action chunk")
        ax.set_ylabel("success (%)")
        return _svg(figure)


def loop_periods(loops: Sequence[LoopPeriods]) -> bytes:
    """Histogram of each loop's period, counts on a logarithmic axis so that rare late ticks are seen."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 2.5 * len(loops)), layout="constrained")
        for ax, loop in zip(figure.subplots(len(loops), 1, squeeze=False)[:, 0], loops, strict=True):
            ax.hist(1e3 * loop.periods_s, bins=60, color=BLUE)
            ax.axvline(1e3 * loop.target_s, color=AMBER, lw=1.6, ls="--", label=f"target {1e3 * loop.target_s:g} ms")
            ax.set_yscale("log")
            ax.set_ylim(bottom=0.7)
            ax.set_xlabel(f"period of the {loop.name} (ms)")
            ax.set_ylabel("ticks")
            ax.legend(loc="upper right")
        return _svg(figure)


def durations(measured: Sequence[Durations]) -> bytes:
    """Histograms of durations over one another."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, 2.8), layout="constrained")
        ax = figure.add_subplot()
        longest_ms = max(1e3 * float(np.max(one.durations_s)) for one in measured)
        bins = np.linspace(0.0, longest_ms, 80).tolist()
        for color, one in zip((BLUE, TEAL, AMBER, MUTED) * len(measured), measured, strict=False):
            ax.hist(1e3 * one.durations_s, bins=bins, color=color, alpha=0.65, label=one.name)
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.7)
        ax.set_xlabel("duration (ms)")
        ax.set_ylabel("times")
        ax.legend(loc="upper right")
        return _svg(figure)


def _thinned(length: int) -> NDArray[np.int64]:
    """At most `_MAX_POINTS` evenly spaced indices, the last included: more cannot be seen and only fill the file."""
    return np.unique(np.linspace(0, length - 1, min(length, _MAX_POINTS)).astype(np.int64))


def _thousands(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}".replace(",", "\u2009"))


def _svg(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
