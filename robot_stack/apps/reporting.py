"""The report and result.json of a run, from what lies in its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from robot_stack.apps.evaluate import BASE, IMPROVED
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.showing import WallClockRecord
from robot_stack.apps.timing import LoopRecord, read_timing
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.config.schema import StackConfig
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import Refusal, Step, Verdict
from robot_stack.edge.spool import Spool
from robot_stack.evaluation.curves import learning_curve
from robot_stack.evaluation.report import write_report
from robot_stack.evaluation.report_data import (
    Clip,
    Durations,
    Integrity,
    LoopPeriods,
    ReportData,
    Series,
    VerdictCounts,
)
from robot_stack.evaluation.results import EvaluationResult, compare
from robot_stack.learner.metrics import MetricsLine, read_metrics


class Result(Struct, frozen=True, kw_only=True):
    """The one JSON object that a run ends with. Confidence intervals are Wilson's, 95 %."""

    run: str
    task: str
    robot: str
    seed: int
    bc_success: float
    bc_ci: tuple[float, float]
    bc_replanning: dict[str, tuple[float, float, float]]
    rl_success: float | None
    rl_ci: tuple[float, float] | None
    p_value: float | None
    episodes: int
    env_steps: int
    updates: int
    acknowledged_steps: int
    lost_steps: int
    duplicate_steps: int
    restarts: dict[str, int]
    wall_s: float


class Findings(Struct, frozen=True, kw_only=True):
    """Everything measured about a run that the report and the result are written from."""

    results: list[EvaluationResult]
    restarts: dict[str, int]
    wall_s: float
    clips: list[Path]
    wall_clock: WallClockRecord | None


def write_run_report(config: StackConfig, findings: Findings) -> Result:
    """Write report.html and result.json; the result."""
    layout = RunLayout.of(config)
    steps = _recorded(layout)
    integrity = check_integrity(layout, steps, sum(findings.restarts.values()))
    metrics = read_metrics(layout.metrics)
    data = _report_data(config, findings, steps, integrity, metrics)
    write_report(layout.report, data)
    result = _result(config, findings, integrity, metrics)
    write_atomically(layout.result, msgspec.json.encode(result))
    return result


def _recorded(layout: RunLayout) -> list[Step]:
    """The steps without what was observed: pictures of a whole run do not fit into the memory."""
    if not layout.steps.exists():
        return []
    with StepStore(layout.steps, settings=StoreSettings(seal=False)) as store:
        return [
            msgspec.structs.replace(step, observation={}, final_observation=None)
            for _, step in store.iterate(store.first_index)
        ]


def check_integrity(layout: RunLayout, steps: Sequence[Step], restarts: int) -> Integrity:
    """Count what was promised against what is there.

    The edges' spools know how many steps were acknowledged over all their lives. Lost: acknowledged but not in the
    learner's store, or missing between two steps of one session and not set aside by the spool. Duplicates: an
    identity that stands there twice.
    """
    seen = Counter((step.session, step.seq) for step in steps)
    duplicates = sum(count - 1 for count in seen.values())
    newest: dict[str, int] = {}
    for session, seq in seen:
        newest[session] = max(newest.get(session, -1), seq)
    gaps = sum(last + 1 for last in newest.values()) - len(seen)
    acknowledged = set_aside = 0
    for folder in layout.edges.values():
        if (folder / "spool").exists():
            with Spool(folder / "spool", capacity_bytes=1 << 62) as spool:
                acknowledged, set_aside = acknowledged + spool.acknowledged, set_aside + spool.refused
    return Integrity(
        acknowledged_steps=acknowledged,
        lost_steps=max(0, acknowledged - len(seen)) + max(0, gaps - set_aside),
        duplicate_steps=duplicates,
        process_restarts=restarts,
    )


def _find(results: Sequence[EvaluationResult], policy: str) -> EvaluationResult | None:
    return next((result for result in results if result.subject.policy == policy), None)


def _result(config: StackConfig, findings: Findings, integrity: Integrity, metrics: Sequence[MetricsLine]) -> Result:
    base, improved = _find(findings.results, BASE), _find(findings.results, IMPROVED)
    if base is None:
        raise ValueError("a result needs an evaluation of the base policy")
    replanning = {
        str(result.subject.replan_every): (result.success_rate, *_ends(result))
        for result in findings.results
        if result.subject.policy == BASE
    }
    return Result(
        run=config.run,
        task=config.task.name,
        robot=config.robot.name,
        seed=config.seed,
        bc_success=base.success_rate,
        bc_ci=_ends(base),
        bc_replanning=replanning,
        rl_success=improved.success_rate if improved else None,
        rl_ci=_ends(improved) if improved else None,
        p_value=compare(base, improved).p_value if improved else None,
        episodes=base.n,
        env_steps=metrics[-1].trained_steps if metrics else 0,
        updates=metrics[-1].updates if metrics else 0,
        acknowledged_steps=integrity.acknowledged_steps,
        lost_steps=integrity.lost_steps,
        duplicate_steps=integrity.duplicate_steps,
        restarts=findings.restarts,
        wall_s=findings.wall_s,
    )


def _ends(result: EvaluationResult) -> tuple[float, float]:
    interval = result.interval()
    return (interval.lower, interval.upper)


def _report_data(
    config: StackConfig,
    findings: Findings,
    steps: Sequence[Step],
    integrity: Integrity,
    metrics: Sequence[MetricsLine],
) -> ReportData:
    layout = RunLayout.of(config)
    timing = read_timing(layout.edge / "timing.json")
    return ReportData(
        title=f"{config.task.name} with {config.robot.name}",
        about=(
            f"Run '{config.run}', seed {config.seed}: a {config.policy.name} policy cloned from "
            f"{config.task.demonstrations} demonstrations, then improved by residual reinforcement learning. "
            f"All episodes went through the robot server and its safety filter."
        ),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        before=_find(findings.results, BASE),
        after=_find(findings.results, IMPROVED),
        replanning=tuple(result for result in findings.results if result.subject.policy == BASE),
        curve=learning_curve(steps) if steps else None,
        training=_series(metrics),
        loops=_loops(findings.wall_clock),
        inference=_durations(timing),
        verdicts=_verdicts(steps),
        integrity=integrity,
        configuration=msgspec.json.format(msgspec.json.encode(config), indent=2).decode(),
        clips=tuple(Clip(gif=path.read_bytes(), caption=_caption(path)) for path in findings.clips),
    )


def _caption(path: Path) -> str:
    seed = path.stem.split("-")[1]
    return f"Episode with seed {seed}: base policy on the left, with the learned residual on the right"


def _series(metrics: Sequence[MetricsLine]) -> tuple[Series, ...]:
    names = sorted({name for line in metrics for name in line.metrics})
    found = []
    for name in names:
        points = [(line.trained_steps, line.metrics[name]) for line in metrics if name in line.metrics]
        x, y = np.asarray(points, dtype=np.float64).T
        found.append(Series(x=x, y=y, x_label="environment steps", y_label=name.replace("_", " ")))
    return tuple(found)


def _loops(record: WallClockRecord | None) -> tuple[LoopPeriods, ...]:
    if record is None:
        return ()
    periods = np.asarray(record.periods_s, dtype=np.float64)
    return (
        LoopPeriods(
            name="edge control loop, wall clock",
            target_s=record.target_s,
            periods_s=periods,
            overruns=record.overruns,
            ticks=record.ticks,
        ),
    )


def _durations(timing: LoopRecord) -> tuple[Durations, ...]:
    if not timing.step_s:
        return ()
    name = "whole control step in lock-step (policy, wire, safety filter, simulation, record)"
    return (Durations(name=name, durations_s=np.asarray(timing.step_s, dtype=np.float64)),)


def _verdicts(steps: Sequence[Step]) -> VerdictCounts | None:
    if not steps:
        return None
    verdicts = Counter(step.verdict for step in steps)
    refused = Counter(step.refusal or Refusal.DRIVER for step in steps if step.verdict is Verdict.REFUSED)
    return VerdictCounts(
        accepted=verdicts[Verdict.ACCEPTED],
        clipped=verdicts[Verdict.CLIPPED],
        refused=tuple((reason.value, count) for reason, count in sorted(refused.items(), key=lambda item: -item[1])),
    )
