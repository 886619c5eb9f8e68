"""Where the numbers of a training go: lines of JSON, and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import MissingDependencyError

TrainingLog = Callable[[int, Mapping[str, float]], None]
"""Takes a step of the training and what was measured there."""


class TrainingLine(Struct, frozen=True, kw_only=True):
    """`unix_s` is wall time, for the log only."""

    unix_s: float
    step: int
    metrics: dict[str, float]


def jsonl_log(path: Path) -> TrainingLog:
    """Appends a line for every report. After a resume some may stand twice; readers keep the last."""

    def write(step: int, metrics: Mapping[str, float]) -> None:
        line = TrainingLine(unix_s=time.time(), step=step, metrics=dict(metrics))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    return write


def read_training_log(path: Path) -> list[TrainingLine]:
    """The last line written for every step, in order; a torn last line is left out."""
    lines: dict[int, TrainingLine] = {}
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = msgspec.json.decode(text, type=TrainingLine)
        except msgspec.DecodeError:
            continue
        lines[line.step] = line
    return [lines[step] for step in sorted(lines)]


def tensorboard_log(directory: Path) -> TrainingLog:
    """Writes event files for TensorBoard; MissingDependencyError without it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "tensorboard", "", "policy.tensorboard=true or learner.tensorboard=true"
        ) from error
    writer = SummaryWriter(str(directory))

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def both(*logs: TrainingLog) -> TrainingLog:
    """Everything to each of them."""

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for log in logs:
            log(step, metrics)

    return write
