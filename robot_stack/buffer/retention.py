"""Which sealed episodes may go, and what has to be remembered of those that went.

Retention drops whole sealed files, oldest first; never a pinned one, never a step that is not sealed, never a file
whose steps still lie in the log too. A dropped step still counts: sent again, it is a duplicate. So the file
`<directory>/ledger` keeps the seqs of what was dropped, and the pins. It is not derived from anything: do not delete
it. It grows by one small record for each drop and is compacted to one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.buffer.catalog import Catalog, SealedFile
from robot_stack.buffer.log import sync_directory
from robot_stack.buffer.record_file import RecordFile, read_records
from robot_stack.buffer.steps import KnownSteps, SessionKey
from robot_stack.core.errors import CorruptDataError, StorageError

COMPACT_ABOVE = 256


class SessionSeqs(Struct, frozen=True):
    """Half-open ranges of seqs of one session."""

    run: str
    robot: str
    session: str
    ranges: list[tuple[int, int]]


class Dropped(Struct, frozen=True, tag="dropped"):
    """These files are about to be deleted. `next_index`: no log index below it is ever given again."""

    files: list[str]
    sessions: list[SessionSeqs]
    next_index: int


class Missing(Struct, frozen=True, tag="missing"):
    """These files were found gone although nothing of ours deleted them. Should one come back, it is taken up."""

    files: list[str]
    sessions: list[SessionSeqs]
    next_index: int


class Pin(Struct, frozen=True, tag="pin"):
    first_index: int


class Unpin(Struct, frozen=True, tag="unpin"):
    first_index: int


class Summary(Struct, frozen=True, tag="summary"):
    """All that came before, merged. `missing`: names, as in `Missing`."""

    sessions: list[SessionSeqs]
    missing: list[str]
    pinned: list[int]
    next_index: int


Entry = Dropped | Missing | Pin | Unpin | Summary


class Ledger:
    """The durable record of drops and pins. Not for several threads at once.

    `dropped`: names of the files that went since the last compaction. `unfinished`: those of the last drop; one that
    still exists was not deleted because the process was killed.
    """

    def __init__(self, directory: Path) -> None:
        self._records = RecordFile(directory / "ledger", sync=True)
        self.known = KnownSteps()
        self.pinned: set[int] = set()
        self.missing: set[str] = set()
        self.dropped: set[str] = set()
        self.unfinished: list[str] = []
        self.next_index = 0

    def open(self) -> None:
        """CorruptDataError if it is damaged: without it, steps that were dropped could come in a second time."""
        self.known, self.pinned, self.missing, self.dropped = KnownSteps(), set(), set(), set()
        self.unfinished, self.next_index = [], 0
        for entry in map(_decode, self._records.open()):
            self._take(entry)

    def close(self) -> None:
        self._records.close()

    @property
    def wants_compaction(self) -> bool:
        return len(self._records) > COMPACT_ABOVE

    def compact(self) -> None:
        """Replace all records by their sum. Only once no file of `unfinished` exists and no catalog names it."""
        sessions = [
            SessionSeqs(key.run, key.robot, key.session, seqs.ranges()) for key, seqs in self.known.sessions.items()
        ]
        summary = Summary(sessions, sorted(self.missing), sorted(self.pinned), self.next_index)
        self._records.rewrite([msgspec.msgpack.encode(summary)])
        self.unfinished = []
        self.dropped.clear()

    def drop(self, files: Sequence[SealedFile]) -> None:
        """Durable when it returns: the caller may delete the files."""
        self._write(Dropped([file.name for file in files], _seqs(files), _stop(files)))

    def note_missing(self, files: Sequence[SealedFile]) -> None:
        self._write(Missing([file.name for file in files], _seqs(files), _stop(files)))

    def pin(self, first_index: int) -> None:
        if first_index not in self.pinned:
            self._write(Pin(first_index))

    def unpin(self, first_index: int) -> None:
        if first_index in self.pinned:
            self._write(Unpin(first_index))

    def _write(self, entry: Entry) -> None:
        self._records.append(msgspec.msgpack.encode(entry))
        self._take(entry)

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Pin):
            self.pinned.add(entry.first_index)
            return
        if isinstance(entry, Unpin):
            self.pinned.discard(entry.first_index)
            return
        if isinstance(entry, Dropped):
            self.unfinished = entry.files
            self.dropped.update(entry.files)
        elif isinstance(entry, Missing):
            self.missing.update(entry.files)
        else:
            self.missing.update(entry.missing)
            self.pinned.update(entry.pinned)
        for seqs in entry.sessions:
            for start, stop in seqs.ranges:
                self.known.add_range(SessionKey(seqs.run, seqs.robot, seqs.session), start, stop)
        self.next_index = max(self.next_index, entry.next_index)


class Retention:
    """Drops the files that the limits no longer allow.

    The caller sees to it that nobody seals or pins meanwhile. `state` guards the catalog; `forget` is told the name of
    each file that goes. `keep_bytes`, `keep_age_s`: the limits; 0: none.
    """

    def __init__(
        self,
        catalog: Catalog,
        ledger: Ledger,
        state: threading.Lock,
        forget: Callable[[str], None],
        *,
        keep_bytes: int,
        keep_age_s: float,
    ) -> None:
        self._keep_bytes = keep_bytes
        self._keep_age_s = keep_age_s
        self._catalog = catalog
        self._ledger = ledger
        self._state = state
        self._forget = forget

    def apply(self, before: int) -> int:
        """Drop files all of whose steps have a log index below `before`; how many. StorageError if the disk refuses:
        what was not written to the ledger is not deleted."""
        if self._keep_age_s <= 0 and not 0 < self._keep_bytes < self._catalog.size_bytes:
            return 0
        files = choose_dropped(
            self._catalog.files(),
            self._ledger.pinned,
            keep_bytes=self._keep_bytes,
            oldest_sealed_at_s=time.time() - self._keep_age_s if self._keep_age_s > 0 else float("-inf"),
            before=before,
        )
        if files:
            self._ledger.drop(files)
            self._delete(files)
            self.compact()
        return len(files)

    def compact(self) -> None:
        """Compact the ledger if it has grown long; first the catalog lets go of the names that it would forget."""
        if self._ledger.wants_compaction and self._catalog.rewrite():
            self._ledger.compact()

    def _delete(self, files: Sequence[SealedFile]) -> None:
        with self._state:
            for file in files:
                self._catalog.remove(file)
        try:
            for file in files:
                self._forget(file.name)
                (self._catalog.episodes / file.name).unlink(missing_ok=True)
            sync_directory(self._catalog.episodes)
        except OSError as error:
            raise StorageError(f"dropped files in {self._catalog.episodes} could not be deleted: {error}") from error


def read_pins(directory: Path) -> set[int]:
    """The pins of a store that another process may have open; changes nothing."""
    pinned: set[int] = set()
    for entry in map(_decode, read_records(directory / "ledger")):
        if isinstance(entry, Pin):
            pinned.add(entry.first_index)
        elif isinstance(entry, Unpin):
            pinned.discard(entry.first_index)
        elif isinstance(entry, Summary):
            pinned.update(entry.pinned)
    return pinned


def choose_dropped(
    files: Iterable[SealedFile], pinned: set[int], *, keep_bytes: int, oldest_sealed_at_s: float, before: int
) -> list[SealedFile]:
    """The files to drop, oldest first.

    Args:
        files: all sealed ones, in the order of their first steps.
        keep_bytes: drop until those left have at most this size together; 0: no limit.
        oldest_sealed_at_s: drop what was sealed before this time of the wall clock.
        before: drop only files all of whose steps have a smaller log index.
    """
    everything = list(files)
    total = sum(file.info.size_bytes for file in everything)
    chosen: list[SealedFile] = []
    for file in everything:
        too_much = 0 < keep_bytes < total
        if not too_much and file.sealed_at_s >= oldest_sealed_at_s:
            continue
        if file.info.first_index in pinned or file.info.last_index >= before:
            continue
        chosen.append(file)
        total -= file.info.size_bytes
    return chosen


def _decode(record: bytes) -> Entry:
    try:
        entry: Entry = msgspec.msgpack.decode(record, type=Entry)
    except msgspec.MsgspecError as error:
        raise CorruptDataError(
            f"the ledger of dropped steps cannot be understood: {error}. Use the release that wrote it, or restore "
            "the file 'ledger' of the store from a copy."
        ) from error
    return entry


def _seqs(files: Sequence[SealedFile]) -> list[SessionSeqs]:
    return [SessionSeqs(*file.session, file.seqs()) for file in files]


def _stop(files: Sequence[SealedFile]) -> int:
    return 1 + max(file.info.last_index for file in files)
