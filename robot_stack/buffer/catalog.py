"""What is known of the sealed episode files without opening them: which steps lie where.

The truth is in the files. `<directory>/catalog` is derived from them so that a start need not open thousands of
files: one record for each file, appended when it is sealed. It may be deleted at any time. At the start it is compared
with the folder (names and sizes); files that it does not know are opened and added, and where it is damaged or knows
files that are gone it is written anew.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.buffer.episode_file import MAX_EPISODE_STEPS, EpisodeFile, EpisodeInfo
from robot_stack.buffer.locations import NOT_SEALED, Indices, Locations, from_ranges, to_ranges
from robot_stack.buffer.record_file import RecordFile, read_records
from robot_stack.buffer.steps import SessionKey
from robot_stack.core.errors import CorruptDataError, MessageError, StorageError

SUFFIX = ".zarr.zip"
logger = logging.getLogger(__name__)


class SealedFile(Struct, frozen=True):
    """One sealed file. `sealed_at_s`: wall clock (only for retention by age). `index_ranges`, `seq_ranges`: the log
    indices and the seqs in it as half-open ranges, little-endian int64 (n, 2)."""

    name: str
    info: EpisodeInfo
    sealed_at_s: float
    index_ranges: bytes
    seq_ranges: bytes

    @property
    def session(self) -> SessionKey:
        return SessionKey(self.info.run, self.info.robot, self.info.session)

    def indices(self) -> Indices:
        """Log index of each of its steps, in order."""
        return from_ranges(_ranges(self.index_ranges))

    def seqs(self) -> list[tuple[int, int]]:
        """Half-open ranges of the seqs in it."""
        return [(start, stop) for start, stop in _ranges(self.seq_ranges).tolist()]


def describe_file(path: Path) -> SealedFile:
    """What the catalog says about a sealed file; CorruptDataError if the file is damaged."""
    with EpisodeFile(path) as file:
        info = file.info
        indices, seqs = file.column("log_index"), file.column("seq")
        if indices.size != info.steps or indices[0] != info.first_index or indices[-1] != info.last_index:
            raise CorruptDataError(f"{path} says it holds {info.steps} steps from {info.first_index}, and does not")
        ranges = to_ranges(np.asarray(indices, np.int64)), to_ranges(np.unique(np.asarray(seqs, np.int64)))
    try:
        sealed_at_s = path.stat().st_mtime
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    return SealedFile(path.name, info, sealed_at_s, *(part.astype("<i8").tobytes() for part in ranges))


@dataclass(frozen=True, slots=True)
class LoadReport:
    """`missing`: files that the catalog knows and that are gone. `rebuilt`: files that had to be opened, because the
    catalog did not know them. `stale`: what is on the disk is not what is in memory."""

    missing: list[SealedFile] = field(default_factory=list)
    rebuilt: int = 0
    stale: bool = False


class Catalog:
    """The sealed files, in memory and on the disk. Not for several threads at once.

    `disk_errors` counts records that could not be written; nothing is lost then, only the next start takes longer.
    """

    def __init__(self, directory: Path) -> None:
        self.episodes = directory / "episodes"
        self.disk_errors = 0
        self.size_bytes = 0
        self.locations = Locations()
        self._records = RecordFile(directory / "catalog", sync=False)
        self._files: list[SealedFile | None] = []
        self._numbers: dict[int, int] = {}

    # ---- life -----------------------------------------------------------------------------------------------

    def open(self) -> LoadReport:
        """Read what is sealed; the caller calls `rewrite` if the report says `stale`.

        CorruptDataError if a file that the catalog does not know is damaged, or if two files hold the same step;
        StorageError if the folder cannot be read.
        """
        self._files, self._numbers, self.locations, self.size_bytes = [], {}, Locations(), 0
        recorded, is_good = self._read_recorded()
        found = list_sealed(self.episodes)
        known = {file.name: file for file in recorded if found.get(file.name) == file.info.size_bytes}
        new = [describe_file(self.episodes / name) for name in found if name not in known]
        missing = {file.name: file for file in recorded if file.name not in found}
        for file in sorted([*known.values(), *new], key=lambda file: file.info.first_index):
            self._remember(file)
        stale = not is_good or bool(new) or len(recorded) != len(known)
        return LoadReport(list(missing.values()), len(new), stale)

    def close(self) -> None:
        self._records.close()

    def rewrite(self) -> bool:
        """Write the file anew. An error of the disk is counted and shown (False); it costs time at the next start."""
        try:
            self._records.rewrite([msgspec.msgpack.encode(file) for file in self._files if file is not None])
        except (OSError, StorageError) as error:
            self._show(error)
            return False
        return True

    # ---- sealed files ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, file: SealedFile) -> None:
        """Take up a file that is whole and in place."""
        self._remember(file)
        try:
            self._records.append(msgspec.msgpack.encode(file))
        except StorageError as error:
            self._show(error)

    def remove(self, file: SealedFile) -> None:
        """Forget a file; the record on the disk goes with the next `rewrite`."""
        number = self._numbers.pop(file.info.first_index)
        self._files[number] = None
        self.locations.remove(file.indices())
        self.size_bytes -= file.info.size_bytes

    def files(self) -> list[SealedFile]:
        """In the order of their first steps."""
        files = [file for file in self._files if file is not None]
        return sorted(files, key=lambda file: file.info.first_index)

    def file(self, number: int) -> SealedFile | None:
        """The file with this number in `locations`; None once it is gone."""
        return self._files[number]

    def file_at(self, first_index: int) -> SealedFile | None:
        """The file whose first step has this log index."""
        number = self._numbers.get(first_index)
        return None if number is None else self._files[number]

    def file_with(self, index: int) -> SealedFile | None:
        """The file that holds the step of this log index."""
        number = self.locations.file_of(index)
        return None if number == NOT_SEALED else self._files[number]

    # ---- inside ---------------------------------------------------------------------------------------------

    def _remember(self, file: SealedFile) -> None:
        number = len(self._files)
        if not self.locations.add(file.indices(), number):
            raise CorruptDataError(
                f"{self.episodes / file.name} holds steps that another file in that folder holds too: one of them is a "
                f"copy. Steps {file.info.first_index} to {file.info.last_index} of robot '{file.info.robot}' are "
                "concerned. Move the copy out of the folder."
            )
        self._files.append(file)
        self._numbers[file.info.first_index] = number
        self.size_bytes += file.info.size_bytes

    def _read_recorded(self) -> tuple[list[SealedFile], bool]:
        try:
            records = self._records.open()
            return [_decode(record) for record in records], True
        except StorageError as error:
            logger.warning("the catalog is made anew from the sealed files: %s", error)
            return [], False

    def _show(self, error: Exception) -> None:
        self.disk_errors += 1
        logger.warning("the catalog could not be written, the next start will take longer: %s", error)


def list_sealed(episodes: Path) -> dict[str, int]:
    """Size in bytes of each sealed file in the folder, by name. StorageError if it cannot be read."""
    try:
        with os.scandir(episodes) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if _is_sealed(entry.name)}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"{episodes} cannot be read: {error}") from error


def _is_sealed(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")  # a file that is being written has a dot in front


def read_catalog(directory: Path) -> list[SealedFile]:
    """The sealed files of a store that another process may have open; changes nothing.

    Files that the catalog does not know yet are opened. In the order of their first steps.
    """
    try:
        recorded = [_decode(record) for record in read_records(directory / "catalog")]
    except (StorageError, OSError):
        recorded = []
    found = list_sealed(directory / "episodes")
    known = {file.name: file for file in recorded if found.get(file.name) == file.info.size_bytes}
    files = [known.get(name) or describe_file(directory / "episodes" / name) for name in found]
    return sorted(files, key=lambda file: file.info.first_index)


def _decode(record: bytes) -> SealedFile:
    try:
        file = msgspec.msgpack.decode(record, type=SealedFile)
        ranges = _ranges(file.index_ranges)
        steps = int((ranges[:, 1] - ranges[:, 0]).sum())
        if not 0 < steps == file.info.steps <= MAX_EPISODE_STEPS or (np.diff(ranges.reshape(-1)) <= 0).any():
            raise MessageError(f"'{file.name}' has other indices than steps")
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, MessageError) as error:
        raise CorruptDataError(f"a record of the catalog cannot be understood: {error}") from error
    return file


def _ranges(data: bytes) -> NDArray[np.int64]:
    return np.frombuffer(data, "<i8").reshape(-1, 2).astype(np.int64, copy=False)
