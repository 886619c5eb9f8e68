"""What goes into a report. Sections whose data is None or empty say so in the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import Array
from robot_stack.evaluation.curves import LearningCurve
from robot_stack.evaluation.results import EvaluationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One quantity over learning: x and y (N,); labels carry the units (`learner updates`, `critic loss`)."""

    x: Array
    y: Array
    x_label: str
    y_label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopPeriods:
    """Measured periods (N,) of one periodic loop, and how many periods it missed since its start."""

    name: str
    target_s: float
    periods_s: NDArray[np.float64]
    overruns: int
    ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Measured durations (N,) of one piece of work, such as one inference."""

    name: str
    durations_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictCounts:
    """What the safety filter did with the commands; `refused` lists (reason, count)."""

    accepted: int
    clipped: int
    refused: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """Whether the promise was kept: every acknowledged step is there, once."""

    acknowledged_steps: int
    lost_steps: int
    duplicate_steps: int
    process_restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A rollout to look at: the bytes of a GIF, and which episode it shows."""

    gif: bytes
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: heading.
        about: one or two sentences: which robot, which task, what was run.
        created: date and time as people read it.
        before, after: evaluations on the same seeds, to be compared in pairs.
        others: further evaluated policies, such as the expert.
        replanning: the base policy at several re-planning intervals.
        curve: online success, from the recorded steps.
        training: losses, updates and whatever else the learner reports.
        loops, inference: timing.
        verdicts, integrity: what safety and storage did.
        configuration: the resolved configuration as text.
        clips: rollouts.
    """

    title: str
    about: str
    created: str
    before: EvaluationResult | None = None
    after: EvaluationResult | None = None
    others: tuple[EvaluationResult, ...] = ()
    replanning: tuple[EvaluationResult, ...] = ()
    curve: LearningCurve | None = None
    training: tuple[Series, ...] = ()
    loops: tuple[LoopPeriods, ...] = ()
    inference: tuple[Durations, ...] = ()
    verdicts: VerdictCounts | None = None
    integrity: Integrity | None = None
    configuration: str = ""
    clips: tuple[Clip, ...] = ()
