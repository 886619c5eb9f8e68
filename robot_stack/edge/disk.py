"""Room for the steps of an episode: asked for before the robot moves, not found missing in the middle."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.segment import RECORD_HEADER_BYTES
from robot_stack.core.errors import StorageError
from robot_stack.core.specs import IMAGES, RobotSpec
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.spool import Spool

MARGIN = 1.25
STEP_OVERHEAD_BYTES = 2048
JPEG_GUESS = 0.25


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Of the disk that holds a folder; `free_bytes` is what this user may still write."""

    free_bytes: int
    total_bytes: int

    @property
    def free_share(self) -> float:
        return self.free_bytes / max(1, self.total_bytes)


def disk_space(directory: Path) -> DiskSpace:
    """StorageError if the disk does not say."""
    try:
        usage = shutil.disk_usage(directory)
    except OSError as error:
        raise StorageError(f"the disk that holds {directory} does not answer: {error}. Check that disk") from error
    return DiskSpace(usage.free, usage.total)


def probe_disk(directory: Path, size_bytes: int) -> None:
    """Reserve so many bytes there, sync and free them again: finds quotas and dead disks that free space hides.

    StorageError if the disk refuses.
    """
    path = directory / "probe"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(fd, 0, max(1, size_bytes))
            os.fsync(fd)
        finally:
            os.close(fd)
            path.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise StorageError(f"{size_bytes} bytes cannot be written to {directory}: {error}. Check that disk") from error


def guess_step_bytes(spec: RobotSpec, codec: ImageCodec) -> int:
    """About how many bytes a recorded step of this robot takes."""
    size = float(STEP_OVERHEAD_BYTES)
    for name, feature in spec.observation.items():
        share = JPEG_GUESS if codec is ImageCodec.JPEG and name.startswith(IMAGES) else 1.0
        size += share * math.prod(feature.shape) * np.dtype(feature.dtype).itemsize
    return round(size)


class Admission:
    """Decides whether an episode may begin, by the bytes that the steps of this robot really take.

    Before anything was measured, `first_guess_bytes` stands for the size of a step (see `guess_step_bytes`). Call
    `refusal` between episodes, after the outbox has been flushed.
    """

    def __init__(self, spool: Spool, outbox: Outbox, max_episode_steps: int, first_guess_bytes: int) -> None:
        self._spool = spool
        self._outbox = outbox
        self._max_steps = max_episode_steps
        self._first_guess_bytes = first_guess_bytes
        self._dropped = 0

    @property
    def episode_bytes(self) -> int:
        """Room that the longest episode needs."""
        largest = self._outbox.largest_record_bytes or self._first_guess_bytes
        return int(MARGIN * (self._max_steps + 1) * (largest + RECORD_HEADER_BYTES))

    def refusal(self) -> str:
        """Why no episode may begin now, in words; '' if one may. After a loss the spool is mended if it can be."""
        need = self.episode_bytes
        try:
            return self._no_room(need) or self._after_a_loss(need)
        except StorageError as error:
            return str(error)

    def _no_room(self, need: int) -> str:
        capacity, used = self._spool.capacity_bytes, self._spool.bytes_used
        if need > capacity:
            return (
                f"the spool can never hold an episode of {self._max_steps} steps: that takes {need} bytes, its "
                f"capacity is {capacity}. Raise edge.spool_capacity_bytes, or choose edge.image_codec=jpeg."
            )
        if used + need > capacity:
            return (
                f"the spool in {self._spool.directory} has no room for an episode: it takes {need} bytes, {used} of "
                f"{capacity} wait for the learner. Start the learner or mend the link to it."
            )
        free = disk_space(self._spool.directory).free_bytes
        if need > free:
            return (
                f"the disk that holds {self._spool.directory} has no room for an episode: it takes {need} bytes, "
                f"{free} are free. Free space on that disk."
            )
        return ""

    def _after_a_loss(self, need: int) -> str:
        if self._outbox.dropped > self._dropped:
            self._spool.mend()
            probe_disk(self._spool.directory, need)
            self._dropped = self._outbox.dropped
        return ""
