"""Learning curves from recorded steps: how success went while the policy learned. Reads only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import HUMAN_SOURCES, Step
from robot_stack.evaluation.statistics import wilson_interval


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """One entry per finished episode, in the order in which episodes ended. All arrays are (N,).

    Attributes:
        env_steps: recorded steps of all robots up to the episode's end.
        success: whether the task called its last step a success.
        success_rate: share of successes among the last `window` episodes up to this one.
        lower, upper: Wilson's 95 % interval of that share.
        return_: undiscounted sum of the episode's rewards.
        weights_version: newest weights that acted in the episode.
        human_steps: steps in which a person acted.
        unfinished: episodes without a recorded end (the process died, or the episode still runs); not in the arrays.
    """

    window: int
    env_steps: NDArray[np.int64]
    success: NDArray[np.bool_]
    success_rate: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    return_: NDArray[np.float64]
    weights_version: NDArray[np.int64]
    human_steps: NDArray[np.int64]
    unfinished: int


@dataclass(slots=True)
class _Episode:
    return_: float = 0.0
    weights_version: int = 0
    human_steps: int = 0


@dataclass(slots=True)
class _Ended:
    env_steps: list[int] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    episodes: list[_Episode] = field(default_factory=list)


def learning_curve(steps: Iterable[Step], window: int = 50) -> LearningCurve:
    """Curve of the steps, which come in recorded order; episodes of several robots and sessions may interleave."""
    running: dict[tuple[str, str, str, int], _Episode] = {}
    ended = _Ended()
    for count, step in enumerate(steps, start=1):
        key = (step.run, step.robot, step.session, step.episode)
        episode = running.setdefault(key, _Episode())
        episode.return_ += step.reward
        episode.weights_version = max(episode.weights_version, step.weights_version)
        episode.human_steps += step.source in HUMAN_SOURCES
        if step.terminated or step.truncated:
            ended.env_steps.append(count)
            ended.success.append(step.success)
            ended.episodes.append(running.pop(key))
    return _curve(ended, window, unfinished=len(running))


def _curve(ended: _Ended, window: int, unfinished: int) -> LearningCurve:
    success = np.asarray(ended.success, dtype=np.bool_)
    total = np.concatenate([[0], np.cumsum(success)])
    ends = np.arange(1, len(success) + 1)
    starts = np.maximum(0, ends - window)
    counts = [(int(total[end] - total[start]), int(end - start)) for start, end in zip(starts, ends, strict=True)]
    intervals = [wilson_interval(successes, n) for successes, n in counts]
    return LearningCurve(
        window=window,
        env_steps=np.asarray(ended.env_steps, dtype=np.int64),
        success=success,
        success_rate=np.asarray([successes / n for successes, n in counts], dtype=np.float64),
        lower=np.asarray([interval.lower for interval in intervals], dtype=np.float64),
        upper=np.asarray([interval.upper for interval in intervals], dtype=np.float64),
        return_=np.asarray([episode.return_ for episode in ended.episodes], dtype=np.float64),
        weights_version=np.asarray([episode.weights_version for episode in ended.episodes], dtype=np.int64),
        human_steps=np.asarray([episode.human_steps for episode in ended.episodes], dtype=np.int64),
        unfinished=unfinished,
    )
