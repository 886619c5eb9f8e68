"""Episodes that were run, in a file that survives an interruption at any instant and is only ever appended to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import CorruptDataError

PORTION = 250


class Portion(Struct, frozen=True, kw_only=True):
    """Episodes of seeds `first`, `first` + 1, ... under one configuration of one policy.

    `policy`: hash of the weights. `success`: one character per episode, 1 or 0. `cpu_s`: what they cost.
    """

    task: str
    policy: str
    configuration: str
    first: int
    success: str
    steps: tuple[int, ...]
    clipped: int
    refused: int
    cpu_s: float


class OutcomeFile:
    """The portions of a work folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._portions: dict[tuple[str, str, str, int], Portion] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the power was cut while the last line was written
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            try:
                self._keep(msgspec.json.decode(line, type=Portion))
            except msgspec.DecodeError as error:
                raise CorruptDataError(f"{path} is damaged: {error}; move it away to begin anew") from error

    def append(self, portion: Portion) -> None:
        """Keep a portion, synced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(portion) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(portion)

    def has(self, task: str, policy: str, configuration: str, first: int, count: int) -> bool:
        """Whether so many episodes from that seed on are there."""
        found = self._portions.get((task, policy, configuration, first))
        return found is not None and len(found.success) >= count

    def successes(self, task: str, policy: str, configuration: str, episodes: int) -> Sequence[bool]:
        """Outcomes of seeds 0, 1, ..., without a gap, at most `episodes`."""
        outcomes: list[bool] = []
        while len(outcomes) < episodes:
            portion = self._portions.get((task, policy, configuration, len(outcomes)))
            if portion is None:
                break
            outcomes += [character == "1" for character in portion.success]
        return outcomes[:episodes]

    def _keep(self, portion: Portion) -> None:
        self._portions[portion.task, portion.policy, portion.configuration, portion.first] = portion


def portions(episodes: int) -> list[tuple[int, int]]:
    """(first seed, count) of the portions that make up so many episodes."""
    return [(first, min(PORTION, episodes - first)) for first in range(0, episodes, PORTION)]
