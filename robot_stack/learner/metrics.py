"""Training metrics as lines of JSON: what the report draws its curves from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct


class MetricsLine(Struct, frozen=True, kw_only=True):
    """`unix_s` is wall time, for the log only."""

    unix_s: float
    trained_steps: int
    updates: int
    weights_version: int
    metrics: dict[str, float]


class MetricsLog:
    """Appends a line per publication. After a resume some points may stand twice; readers keep the last."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, trained_steps: int, updates: int, version: int, metrics: Mapping[str, float]) -> None:
        line = MetricsLine(
            unix_s=time.time(),
            trained_steps=trained_steps,
            updates=updates,
            weights_version=version,
            metrics=dict(metrics),
        )
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def read_metrics(path: Path) -> list[MetricsLine]:
    """The last line written for every weights version, in order; a torn last line is left out."""
    lines: dict[int, MetricsLine] = {}
    if not path.exists():
        return []
    for text in path.read_bytes().splitlines():
        try:
            line = msgspec.json.decode(text, type=MetricsLine)
        except msgspec.DecodeError:
            continue
        lines[line.weights_version] = line
    return [lines[version] for version in sorted(lines)]
