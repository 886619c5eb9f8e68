"""One immutable file per sealed stretch of steps of one (run, robot, session, episode).

The file is a zarr v3 hierarchy in a ZIP archive (see `zarr_zip.py`), so any zarr reader opens it. The attributes of
its root say whose steps these are and name the enum values behind the codes. Arrays, T = number of steps:

    log_index seq segment index stamp_ns weights_version   int64 (T,)      `log_index`: where the step stood in the log
    reward                                                 float64 (T,)
    success terminated truncated late                      bool (T,)
    verdict refusal source                                 uint8 (T,)      codes; refusal 0: none
    action_base action_asked action_sent                   float32 (T, A)
    <feature>                                              as recorded, with the time axis in front
    <image feature>, recorded as JPEG                      uint8 (bytes,)  all files joined; file t lies at
    <image feature>.offsets                                int64 (T + 1,)    offsets[t] to offsets[t + 1]
    final/<feature>  final/action_base                     of the last step, as recorded, without a time axis

The instruction, which all steps of a file share, is one of the attributes.
A feature has its own name, percent-encoded where zarr or one of the names above would clash. What is read back equals
what was written bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from robot_stack.buffer.episode_content import EpisodeContent, EpisodeInfo
from robot_stack.buffer.episode_layout import (
    ACTIONS,
    MAX_EPISODE_BYTES,
    MAX_EPISODE_STEPS,
    OFFSETS,
    SCALARS,
    array_name,
    check_stretch,
    describe,
    is_encoded,
    joined_layout,
    row_layout,
    same_layout,
    step_bytes,
)
from robot_stack.buffer.log import Durability
from robot_stack.buffer.zarr_zip import ArrayLayout, ZarrZipWriter
from robot_stack.core.errors import ConfigError, StorageError
from robot_stack.core.messages import Array, Step

__all__ = [
    "MAX_EPISODE_BYTES",
    "MAX_EPISODE_STEPS",
    "EpisodeFile",
    "EpisodeInfo",
    "episode_name",
    "same_layout",
    "step_bytes",
    "sweep_aside",
    "write_episode_file",
]

_ASIDE = ".aside-"


# ---- writing ----------------------------------------------------------------------------------------------------


def episode_name(first_index: int, robot: str, session: str, episode: int) -> str:
    """File name of an episode file; characters that do not belong in a file name are replaced by `_`."""
    robot, session = (re.sub(r"[^A-Za-z0-9_.-]", "_", text) for text in (robot[:64], session[:8]))
    return f"{first_index:012d}-{robot}-{session}-{episode:06d}.zarr.zip"


def write_episode_file(
    directory: Path, steps: Sequence[tuple[int, Step]], *, ended: bool, durability: Durability
) -> Path:
    """Write (log index, step) in log order as one file and return its path; `directory` is made if missing.

    The file is there whole or not at all: it is written aside, verified by reading it back, and renamed; with
    durability `power` it is on the disk when this returns, with `process` the kernel has it.

    ConfigError: nothing to write, log indices that do not rise, or steps that do not fit into one file (see
    `same_layout`, MAX_EPISODE_STEPS, MAX_EPISODE_BYTES): split the stretch there. StorageError: the disk refuses, or
    a file of that name is there already. On any error nothing is left behind.
    """
    check_stretch(steps)
    index, first = steps[0]
    path = directory / episode_name(index, first.robot, first.session, first.episode)
    aside = path.with_name(_ASIDE + path.name)
    if path.exists():
        raise StorageError(f"{path} is there already, and a sealed file never changes. Move it aside if it is wrong.")
    try:
        if not directory.exists():
            directory.mkdir(parents=True, exist_ok=True)
            if durability == "power":
                _sync_directory(directory.parent)
        with aside.open("wb") as file:
            _write_stretch(file, steps, ended)
            file.flush()
            if durability == "power":
                os.fsync(file.fileno())
        with EpisodeFile(aside) as written:
            written.verify()
        aside.rename(path)
        if durability == "power":
            _sync_directory(directory)
    except BaseException as error:
        for leftover in (aside, path):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(
                f"{path} cannot be written: {error}. Nothing was lost: its steps stay in the log. Free space on that "
                "disk or check it; sealing works again as soon as it takes data."
            ) from error
        raise
    return path


def sweep_aside(directory: Path) -> int:
    """Delete what killed writers left half-written in `directory`; how many files. Only while nobody writes there."""
    found = list(directory.glob(_ASIDE + "*"))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def _write_stretch(file: BinaryIO, steps: Sequence[tuple[int, Step]], ended: bool) -> None:
    writer, last = ZarrZipWriter(file), steps[-1][1]
    writer.add_group("", describe(steps, ended))
    for name, scalar in SCALARS.items():
        try:
            column = np.array([scalar.value(index, step) for index, step in steps], scalar.dtype)
        except OverflowError as error:
            raise ConfigError(f"'{name}' of a step does not fit into {scalar.dtype}: {error}") from error
        writer.add_array(name, row_layout(name, scalar.dtype, column.shape), [column])
    for name in ACTIONS:
        _write_feature(writer, name, name, [getattr(step, name) for _, step in steps])
    for feature in steps[0][1].observation:
        _write_feature(writer, feature, array_name(feature), [step.observation[feature] for _, step in steps])
    if last.final_observation is not None or last.final_action_base is not None:
        writer.add_group("final")
    for feature, values in (last.final_observation or {}).items():
        _write_single(writer, f"final/{array_name(feature)}", values)
    if last.final_action_base is not None:
        _write_single(writer, "final/action_base", last.final_action_base)
    writer.finish()


def _write_feature(writer: ZarrZipWriter, feature: str, name: str, rows: list[Array]) -> None:
    """One array of all steps' rows; for JPEG files, which differ in length, one of their bytes and one of offsets."""
    if not is_encoded(feature, rows[0]):
        writer.add_array(name, row_layout(feature, rows[0].dtype.name, (len(rows), *rows[0].shape)), rows)
        return
    offsets = np.cumsum([0, *(row.size for row in rows)], dtype=np.int64)
    writer.add_array(name, joined_layout(int(offsets[-1])), rows)
    writer.add_array(name + OFFSETS, row_layout(OFFSETS, "int64", offsets.shape), [offsets])


def _write_single(writer: ZarrZipWriter, path: str, values: Array) -> None:
    rows = values.shape[0] if values.ndim else 1
    writer.add_array(path, ArrayLayout.of(values.dtype.name, values.shape, rows), [values])


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- reading ----------------------------------------------------------------------------------------------------


class EpisodeFile:
    """Reader: `open`/`close` (idempotent) or `with EpisodeFile(path) as file`. Several threads may read at once.

    The constructor reads nothing; `open` maps the file and checks its structure and its metadata. Every chunk is
    compared with its checksum once, before its first use. An open file takes one file descriptor.

    CorruptDataError for any damage, naming file, array and chunk. StorageError: another version wrote it, it cannot
    be opened, or a request does not fit it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: EpisodeContent | None = None

    # ---- life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        if self._content is None:
            self._content = EpisodeContent(self.path)

    def close(self) -> None:
        """Reads under way in other threads end well; the mapping goes with the last of them."""
        self._content = None

    def __enter__(self) -> EpisodeFile:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- reading --------------------------------------------------------------------------------------------

    @property
    def info(self) -> EpisodeInfo:
        return self._opened.info

    def columns(self) -> tuple[str, ...]:
        """Names of all arrays, those of the final observation with `final/` in front."""
        return tuple(self._opened.container.arrays)

    def column(self, name: str) -> Array:
        """A read-only copy of a whole array; dtypes and shapes as the module says."""
        return self._opened.array(name).read()

    def image_shape(self, feature: str) -> tuple[int, int, int]:
        """(H, W, 3) of an image feature; of JPEG files, that of the first."""
        return self._opened.image_shape(feature)

    def read_images(self, feature: str, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """`out[i]` (n, H, W, 3) = the image of step `positions[i]`: 0 to T - 1, or T for the final observation."""
        self._opened.read_images(feature, positions.tolist(), out)

    def steps(self) -> Iterator[tuple[int, Step]]:
        """(log index, step) in log order, equal to what was written bit for bit; arrays are read-only."""
        return self._opened.steps()

    def verify(self) -> None:
        """Compare every byte with its checksums, and what must agree within the file; CorruptDataError."""
        self._opened.verify()

    @property
    def _opened(self) -> EpisodeContent:
        content = self._content
        if content is None:
            raise StorageError(f"{self.path} is not open")
        return content
