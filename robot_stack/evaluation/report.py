"""One self-contained HTML file that says what was achieved and how far it can be trusted.

It needs no network and no other file, reads on a phone, and prints.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.files import write_atomically
from robot_stack.evaluation import report_plots as plots
from robot_stack.evaluation.report_data import Integrity, ReportData, VerdictCounts
from robot_stack.evaluation.results import EvaluationResult, compare
from robot_stack.evaluation.statistics import Interval

_SIGNIFICANT = 0.05


def write_report(path: Path, data: ReportData) -> None:
    """Write the report, atomically. ConfigError if `before` and `after` are not about the same seeds."""
    sections = (
        _section("Success", _success(data)),
        _section("Re-planning interval", _replanning(data)),
        _section("Learning", _learning(data)),
        _section("Timing", _timing(data)),
        _section("Commands and safety", _verdicts(data.verdicts)),
        _section("Data integrity", _integrity(data.integrity)),
        _section("Rollouts", _clips(data)),
        _section("Configuration", _configuration(data.configuration)),
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)}</title><style>{_CSS}</style></head><body><main>"
        f"<header><h1>{escape(data.title)}</h1><p>{escape(data.about)}</p>"
        f'<p class="muted">{escape(data.created)}</p></header>'
        f'<p class="summary">{escape(summary(data))}</p>{"".join(sections)}</main></body></html>\n'
    )
    write_atomically(path, page.encode())


def summary(data: ReportData) -> str:
    """The result in words."""
    before, after = data.before, data.after
    if before is None or after is None or before.n == 0:
        shown = [result for result in (before, after, *data.others) if result is not None and result.n > 0]
        if not shown:
            return "No evaluation was run, so nothing can be said about success."
        return "; ".join(f"{r.subject.policy}: {_rate(r)} success in {r.n} episodes" for r in shown) + "."
    comparison = compare(before, after)
    change = "raised" if comparison.difference > 0 else "lowered" if comparison.difference < 0 else "left"
    interval = comparison.difference_interval()
    sentence = (
        f"{after.subject.policy} {change} success from {_rate(before)} to {_rate(after)} "
        f"on {comparison.n} paired episodes: {100 * comparison.difference:+.0f} points "
        f"[{100 * interval.lower:+.0f}, {100 * interval.upper:+.0f}], "
        f"McNemar's exact test {_p_value(comparison.p_value)}."
    )
    if comparison.p_value > _SIGNIFICANT:
        sentence += " Chance alone explains such a difference easily: do not count on it."
    return sentence


# ---- sections -----------------------------------------------------------------------------------------------------


def _success(data: ReportData) -> str:
    results = [result for result in (data.before, data.after, *data.others) if result is not None]
    if not results:
        return _absent("No policy was evaluated.")
    rows = [
        (
            f"<b>{escape(result.subject.policy)}</b>",
            _bar(result),
            _rate(result),
            str(result.n),
            f"{result.mean_steps:.0f}",
            str(result.subject.weights_version),
            str(result.subject.replan_every),
        )
        for result in results
    ]
    head = ("policy", "", "success, 95 % interval", "episodes", "mean steps", "weights", "replan every")
    text = _table(head, rows) + _note("Bars: success rate. Lines: 95 % Wilson interval.")
    if data.before is None or data.after is None:
        return text
    comparison = compare(data.before, data.after)
    before, after = escape(data.before.subject.policy), escape(data.after.subject.policy)
    pairs = (
        ("both succeeded", str(comparison.both)),
        (f"only {after} succeeded", str(comparison.only_after)),
        (f"only {before} succeeded", str(comparison.only_before)),
        ("neither succeeded", str(comparison.neither)),
    )
    return text + "<h3>The same episodes, paired by seed</h3>" + _table(("outcome", "episodes"), pairs)


def _replanning(data: ReportData) -> str:
    if not data.replanning:
        return _absent("The base policy was evaluated at one re-planning interval only.")
    names = ", ".join(sorted({result.subject.policy for result in data.replanning}))
    episodes = ", ".join(sorted({str(result.n) for result in data.replanning}))
    return _image(plots.replanning(data.replanning), "success over re-planning interval") + _note(
        f"{names}, {episodes} episodes at each interval; lines: 95 % Wilson interval."
    )


def _learning(data: ReportData) -> str:
    text = _absent("No online steps were recorded.")
    if data.curve is not None and len(data.curve.env_steps) > 0:
        curve = data.curve
        text = _image(plots.success_over_learning(curve), "online success over recorded steps") + _note(
            f"{len(curve.env_steps)} finished episodes ({curve.unfinished} without an end), "
            f"{int(curve.env_steps[-1]):,} control steps, {int(curve.human_steps.sum()):,} of them by a person. "
            f"Line: moving average with exploration on; band: 95 % Wilson interval; ticks: single episodes."
        )
    series = [one for one in data.training if len(one.x) > 0]
    if not series:
        return text + _absent("The learner reported no metrics.")
    return text + "<h3>What the learner reported</h3>" + _image(plots.training(series), "learner metrics")


def _timing(data: ReportData) -> str:
    loops = [loop for loop in data.loops if len(loop.periods_s) > 0]
    inference = [one for one in data.inference if len(one.durations_s) > 0]
    text = _absent("No control loop ran on the wall clock, so there are no periods to show.")
    if loops:
        rows = [
            (
                escape(loop.name),
                f"{1e3 * loop.target_s:g}",
                *_percentiles_ms(loop.periods_s),
                str(loop.overruns),
                f"{loop.ticks:,}",
            )
            for loop in loops
        ]
        head = ("loop", "target (ms)", "median (ms)", "99 % (ms)", "longest (ms)", "missed periods", "ticks")
        text = _table(head, rows) + _image(plots.loop_periods(loops), "histogram of periods")
    if not inference:
        return text + _absent("Inference time was not measured.")
    times = [(escape(one.name), *_percentiles_ms(one.durations_s), str(len(one.durations_s))) for one in inference]
    head_times = ("inference", "median (ms)", "99 % (ms)", "longest (ms)", "times")
    return text + _table(head_times, times) + _image(plots.durations(inference), "histogram of inference times")


def _verdicts(verdicts: VerdictCounts | None) -> str:
    if verdicts is None:
        return _absent("Verdicts of the safety filter were not recorded.")
    refused = sum(count for _, count in verdicts.refused)
    total = max(1, verdicts.accepted + verdicts.clipped + refused)
    counts = [("accepted", verdicts.accepted), ("clipped to the limits", verdicts.clipped), ("refused", refused)]
    counts += [(f"refused: {reason}", count) for reason, count in verdicts.refused]
    rows = [(escape(name), f"{count:,}", f"{100 * count / total:.2f} %") for name, count in counts]
    return _table(("verdict", "commands", "share"), rows)


def _integrity(integrity: Integrity | None) -> str:
    if integrity is None:
        return _absent("The recorded data was not audited.")
    kept = integrity.lost_steps == 0 and integrity.duplicate_steps == 0
    verdict = (
        "Every acknowledged step is there, exactly once."
        if kept
        else "The promise was broken: acknowledged steps are missing or stored twice."
    )
    rows = (
        ("steps acknowledged", f"{integrity.acknowledged_steps:,}"),
        ("acknowledged and lost", f"{integrity.lost_steps:,}"),
        ("stored more than once", f"{integrity.duplicate_steps:,}"),
        ("restarts of processes meanwhile", f"{integrity.process_restarts:,}"),
    )
    return f'<p class="{"good" if kept else "bad"}">{verdict}</p>' + _table(("", ""), rows)


def _clips(data: ReportData) -> str:
    if not data.clips:
        return _absent("No rollout was filmed.")
    return "".join(
        f'<figure><img class="clip" alt="rollout" src="data:image/gif;base64,{base64.b64encode(clip.gif).decode()}">'
        f"<figcaption>{escape(clip.caption)}</figcaption></figure>"
        for clip in data.clips
    )


def _configuration(configuration: str) -> str:
    return f"<pre>{escape(configuration)}</pre>" if configuration else _absent("The configuration was not recorded.")


# ---- pieces -------------------------------------------------------------------------------------------------------


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _absent(text: str) -> str:
    return f'<p class="absent">{text}</p>'


def _note(text: str) -> str:
    return f'<p class="muted">{escape(text)}</p>'


def _image(svg: bytes, description: str) -> str:
    return f'<img class="plot" alt="{description}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _bar(result: EvaluationResult) -> str:
    rate, interval = 100 * result.success_rate, result.interval()
    lower, upper = 100 * interval.lower, 100 * interval.upper
    return (
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" role="img">'
        f'<rect width="100" height="12" fill="{plots.GRID}"/><rect width="{rate:.1f}" height="12" fill="{plots.TEAL}"/>'
        f'<path d="M{lower:.1f} 6H{upper:.1f}M{lower:.1f} 3V9M{upper:.1f} 3V9" stroke="{plots.INK}" '
        'vector-effect="non-scaling-stroke" stroke-width="1.5"/></svg>'
    )


def _rate(result: EvaluationResult) -> str:
    return f"{100 * result.success_rate:.0f} % {_interval(result.interval())}"


def _interval(interval: Interval) -> str:
    return f"[{100 * interval.lower:.0f}, {100 * interval.upper:.0f}]"


def _p_value(p_value: float) -> str:
    return f"p = {p_value:.3f}" if p_value >= 0.001 else f"p = {p_value:.1e}"


def _percentiles_ms(values_s: NDArray[np.float64]) -> tuple[str, str, str]:
    median, high, longest = (1e3 * float(np.percentile(values_s, percent)) for percent in (50, 99, 100))
    return f"{median:.2f}", f"{high:.2f}", f"{longest:.2f}"


_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f5f8; color: #1f2933; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 0 0 .8rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
header p { margin: .2rem 0; }
section, .summary { background: #fff; border: 1px solid #e4e9ee; border-radius: .6rem; padding: 1.1rem 1.2rem;
  margin: 1rem 0 0; break-inside: avoid; }
.summary { font-size: 1.2rem; font-weight: 600; line-height: 1.45; border-left: .4rem solid #128a7e; }
.muted, figcaption { color: #66788a; font-size: .87rem; margin: .5rem 0 0; }
.absent { color: #66788a; font-style: italic; margin: 0; }
.absent + .absent { margin-top: .5rem; }
.good, .bad { font-weight: 600; margin: 0 0 .6rem; }
.good { color: #128a7e; } .bad { color: #b3261e; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid #e4e9ee; white-space: nowrap; }
th { color: #66788a; font-size: .82rem; font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; }
.bar { display: block; width: 11rem; height: 1.1rem; }
.plot { display: block; width: 100%; height: auto; margin: .6rem 0 0; }
figure { margin: 0 0 1.2rem; } figure:last-child { margin: 0; }
.clip { display: block; max-width: 100%; height: auto; border-radius: .3rem; }
pre { background: #f3f5f8; border-radius: .4rem; padding: .8rem; margin: 0; font-size: .8rem; line-height: 1.45;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .bar { width: 6rem; } .summary { font-size: 1.05rem; } h1 { font-size: 1.5rem; } }
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  section, .summary { border-radius: 0; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; } pre { break-inside: auto; }
}
"""
