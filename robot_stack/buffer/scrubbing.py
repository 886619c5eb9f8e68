"""Reading everything a store holds, to see whether it is still what was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from msgspec import Struct

from robot_stack.buffer.catalog import SealedFile
from robot_stack.buffer.episode_file import EpisodeFile
from robot_stack.buffer.log import DurableLog
from robot_stack.core.codec import unpack
from robot_stack.core.errors import MessageError, StorageError
from robot_stack.core.messages import Step


class VerifyReport(Struct, frozen=True):
    """What a scrub found. `damaged`: one sentence for each damaged file or record; the damaged log is read up to
    there. `unaccounted_steps`: log indices that were given but belong to no step known: what was lost with the log."""

    files: int
    sealed_steps: int
    log_steps: int
    unaccounted_steps: int
    damaged: list[str]

    @property
    def is_good(self) -> bool:
        return not self.damaged and not self.unaccounted_steps


def scrub_files(episodes: Path, files: Iterable[SealedFile]) -> list[str]:
    """Every checksum of each sealed file, and that it is the file that was sealed; one sentence for each that fails."""
    damaged = []
    for sealed in files:
        try:
            with EpisodeFile(episodes / sealed.name) as file:
                file.verify()
                if file.info != sealed.info or not np.array_equal(file.column("log_index"), sealed.indices()):
                    damaged.append(f"{episodes / sealed.name} is whole, but it is not the file that was sealed")
        except StorageError as error:
            damaged.append(str(error))
    return damaged


def scrub_log(log: DurableLog, stop: int) -> tuple[int, list[str]]:
    """(number of good records before `stop`, damage) of a log."""
    good = 0
    try:
        for index, payload in log.iterate(log.first_index):
            if index >= stop:
                break
            unpack(payload, Step)
            good += 1
    except (StorageError, MessageError) as error:
        return good, [str(error)]
    return good, []
