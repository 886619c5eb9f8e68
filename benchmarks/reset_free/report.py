"""From the runs of all seeds to one table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from benchmarks.reset_free.curve import Point, read
from benchmarks.reset_free.variants import BASE, VARIANTS
from robot_stack.evaluation.statistics import wilson_interval

BEGIN, END = "<!-- reset_free -->", "<!-- end -->"


class Row(Struct, frozen=True, kw_only=True):
    """One variant, its seeds pooled. `success`: forward, share with its Wilson interval (95 %). `by_seed`: successes of
    each. `curve`: share at each evaluation on the way, by environment steps. `calls`, `resets`, `cpu_s`: means over the
    seeds. `false_positives`, `false_negatives`: of the verdicts in practice, shares of the steps that were no success,
    and that were one, by the task's own verdict; None where there were none."""

    variant: str
    seeds: int
    episodes: int
    env_steps: int
    success: tuple[float, float, float]
    by_seed: tuple[int, ...]
    curve: tuple[tuple[int, float], ...]
    calls: float
    resets: float
    perturbations: float
    forward_attempts: float
    forward_reached: float
    backward_attempts: float
    backward_reached: float
    false_positives: float | None
    false_negatives: float | None
    cpu_s: float


class Report(Struct, frozen=True, kw_only=True):
    command: str
    algorithm: str
    task: str
    demonstrations: int
    quick: bool
    load_average: float
    rows: tuple[Row, ...]


def row_of(name: str, runs: Sequence[Sequence[Point]]) -> Row | None:
    """None if no seed is finished."""
    finished = [points for points in runs if points and points[-1].last]
    if not finished:
        return None
    last = [points[-1] for points in finished]
    won, n = sum(point.successes for point in last), sum(len(point.success) for point in last)
    interval = wilson_interval(won, n)
    verdicts = [counts for point in last for counts in (point.forward, point.backward)]
    false_positives = sum(one.false_positives for one in verdicts)
    false_negatives = sum(one.false_negatives for one in verdicts)
    negatives = false_positives + sum(one.true_negatives for one in verdicts)
    positives = false_negatives + sum(one.true_positives for one in verdicts)
    practice = [point.practice for point in last]
    return Row(
        variant=name,
        seeds=len(finished),
        episodes=n,
        env_steps=last[0].env_steps,
        success=(won / n, interval.lower, interval.upper),
        by_seed=tuple(point.successes for point in last),
        curve=_curve(finished),
        calls=_mean([point.calls for point in last]),
        resets=_mean([point.resets for point in last]),
        perturbations=_mean([point.perturbations for point in last]),
        forward_attempts=_mean([one.forward.attempts for one in practice]),
        forward_reached=_mean([one.forward.reached for one in practice]),
        backward_attempts=_mean([one.backward.attempts for one in practice]),
        backward_reached=_mean([one.backward.reached for one in practice]),
        false_positives=false_positives / negatives if negatives else None,
        false_negatives=false_negatives / positives if positives else None,
        cpu_s=_mean([point.cpu_s for point in last]),
    )


def _curve(runs: Sequence[Sequence[Point]]) -> tuple[tuple[int, float], ...]:
    """Evaluations that all seeds have, in their order; steps are the mean of the seeds'."""
    return tuple(
        (
            round(_mean([point.env_steps for point in points])),
            sum(point.successes for point in points) / sum(len(point.success) for point in points),
        )
        for points in zip(*(run[:-1] for run in runs), strict=False)
    )


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 1)


def rows_of(runs: Path, seeds: Sequence[int], names: Sequence[str]) -> tuple[Row, ...]:
    rows = [row_of(name, [read(runs / f"seed-{seed}" / name / "curve.jsonl") for seed in seeds]) for name in names]
    return tuple(row for row in rows if row is not None)


def table(report: Report) -> str:
    """In Markdown."""
    lines = [
        "| practice | forward success | by seed | human calls | scene resets | forward reached | backward reached "
        "| false positives, per step | CPU, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        share, lower, upper = (100.0 * value for value in row.success)
        words = "base policy, no practice" if row.variant == BASE else VARIANTS[row.variant].words
        per_seed = row.episodes // row.seeds
        cells = [f"**{row.variant}**: {words}", f"{share:.1f} % [{lower:.1f}, {upper:.1f}]"]
        cells.append(", ".join(f"{won}/{per_seed}" for won in row.by_seed))
        if row.variant == BASE:
            lines.append("| " + " | ".join([*cells, *["-"] * 6]) + " |")
            continue
        wrong = "-" if row.false_positives is None else f"{100 * row.false_positives:.2f} %"
        cells += [f"{row.calls:.1f}", f"{row.resets:.1f}"]
        cells += [f"{row.forward_reached:.0f} of {row.forward_attempts:.0f}"] if row.forward_attempts else ["-"]
        cells += [f"{row.backward_reached:.0f} of {row.backward_attempts:.0f}"] if row.backward_attempts else ["-"]
        lines.append("| " + " | ".join([*cells, wrong, f"{row.cpu_s:.0f}"]) + " |")
    return "\n".join(lines)


def filled(document: str, report: Report) -> str:
    """The document with the table between its marks."""
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    about = (
        f"`{report.command}`: {report.algorithm} on `{report.task}`, {report.demonstrations} demonstrations, "
        f"{max(row.env_steps for row in report.rows)} steps of practice."
    )
    return f"{before}{BEGIN}\n{about}\n\n{table(report)}\n{END}{after}"
