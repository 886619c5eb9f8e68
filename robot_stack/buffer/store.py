"""The learner's store of recorded steps: every step once, durable before it is answered for, in files of its own later.

    <directory>/log/segment-*.log       what came in last, in the order it came (see `log.py`)
    <directory>/episodes/*.zarr.zip     complete stretches, sealed: one immutable file each (see `episode_file.py`)
    <directory>/catalog                 derived from the files; may be deleted at any time (see `catalog.py`)
    <directory>/ledger                  what retention dropped, and the pins; not derived (see `retention.py`)

A step goes to the log, and `append` returns when it is durable there. Complete stretches are then written to files;
once such a file has been verified and is on the disk, it is taken up by the catalog, and only after that may log
segments go all of whose steps lie in files. So a step is in the log, in a file, or for a while in both, and a process
killed at any instant finds it again by looking at both.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.buffer.catalog import Catalog, LoadReport
from robot_stack.buffer.episode_file import (
    MAX_EPISODE_BYTES,
    EpisodeInfo,
    sweep_aside,
)
from robot_stack.buffer.log import Durability, DurableLog, lock_directory, sync_directory
from robot_stack.buffer.reading import OpenFiles, StepReader
from robot_stack.buffer.retention import Ledger, Retention
from robot_stack.buffer.scrubbing import VerifyReport, scrub_files, scrub_log
from robot_stack.buffer.sealing import BackgroundWork, Owner, Stretch, StretchTracker, split_for_files, write_sealed
from robot_stack.buffer.segment import list_segments
from robot_stack.buffer.steps import KnownSteps, SessionKey, StepIdentity
from robot_stack.core.codec import unpack
from robot_stack.core.errors import ConfigError, CorruptDataError, MessageError, StorageError
from robot_stack.core.messages import Step

logger = logging.getLogger(__name__)


class StoreSettings(Struct, frozen=True):
    """How a store behaves.

    `segment_bytes`: size at which the log begins another file. `seal`: whether a background thread seals complete
    stretches as they come; `seal()` can be called either way. `background`: whether there is such a thread at all.
    `keep_bytes`, `keep_age_s`: retention of sealed files (0: no limit); age is that of the file by the wall clock.
    `stale_s`: a stretch without a new step for so long counts as complete (0: never). `idle_s`: when nothing came for
    so long and everything is sealed, the log's last segment goes too (0: never). `max_file_bytes`: a stretch larger
    than this gives several files; it bounds the memory that sealing needs. `retry_s`: wait after an error of sealing.
    `open_files`: sealed files kept open for reading images; 0: half of what the process may have open.
    """

    segment_bytes: int = 64 * 1024 * 1024
    seal: bool = True
    background: bool = True
    keep_bytes: int = 0
    keep_age_s: float = 0.0
    stale_s: float = 600.0
    idle_s: float = 30.0
    max_file_bytes: int = 256 * 1024 * 1024
    retry_s: float = 10.0
    open_files: int = 0


DEFAULT_SETTINGS = StoreSettings()


class StepStore:
    """A store of packed `Step` records without repetitions: the only writer of its directory.

    (run, robot, session, seq) is a step's identity; its log index is its place in the order of arrival.
    One thread appends; everything else may be called from other threads meanwhile.

    `seal_errors`: failed attempts to seal in the background (logged; the steps stay in the log). `unsealable`:
    stretches set aside because they do not fit into a file or their records are damaged. `missing_files`: sealed files
    that were gone when the store was opened though nothing of ours deleted them.
    """

    def __init__(
        self, directory: Path, durability: Durability = "power", settings: StoreSettings = DEFAULT_SETTINGS
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.unsealable = 0
        self.missing_files = 0
        self._max_file_bytes = min(settings.max_file_bytes, MAX_EPISODE_BYTES)
        self._log = DurableLog(directory / "log", segment_bytes=settings.segment_bytes, durability=durability)
        self._catalog = Catalog(directory)
        self._ledger = Ledger(directory)
        self._open_files = OpenFiles(settings.open_files or _default_open_files())
        self._log_lock = threading.Lock()  # who writes to the log
        self._seal_lock = threading.Lock()  # who seals, drops or pins
        self._state = threading.Lock()  # what is known; held for moments only, taken last
        self._retention = Retention(
            self._catalog,
            self._ledger,
            self._state,
            self._open_files.forget,
            keep_bytes=settings.keep_bytes,
            keep_age_s=settings.keep_age_s,
        )
        self._reader = StepReader(self._log, self._catalog, self._state, self._open_files)
        self._known = KnownSteps()
        self._tracker = StretchTracker(self._max_file_bytes)
        self._next_index = 0
        self._appended_s = time.monotonic()
        self._lock_fd = -1
        self._background: BackgroundWork | None = None

    # ---- life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Find out what is stored, finish what a killed process left half done, and get ready to append.

        StorageError if another process has the store or the disk refuses; CorruptDataError for damage that no torn
        write explains. Sealed files that the catalog knows are not read; `verify` does that.
        """
        if self._lock_fd >= 0:
            raise StorageError(f"the store in {self.directory} is already open")
        try:
            self._prepare_directory()
            self._ledger.open()
            for name in self._ledger.unfinished:
                (self._catalog.episodes / name).unlink(missing_ok=True)
            report = self._catalog.open()
            self._take_up_files(report)
            self._open_log()
            self._retention.compact()
            with self._seal_lock:
                self._drop_sealed_segments()
        except OSError as error:
            self.close()
            raise StorageError(f"the store in {self.directory} cannot be opened: {error}") from error
        except BaseException:
            self.close()
            raise
        if self.settings.seal and self.settings.background:
            self._background = BackgroundWork(self._work, period_s=1.0, retry_s=self.settings.retry_s)
            self._background.start()

    def close(self) -> None:
        """Wait for a stretch that is being sealed, then release the directory."""
        if self._background is not None:
            self._background.stop()
            self._background = None
        self._log.close()
        self._catalog.close()
        self._ledger.close()
        self._open_files.clear()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = -1

    def __enter__(self) -> StepStore:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- writing --------------------------------------------------------------------------------------------

    def append(self, records: Sequence[bytes]) -> tuple[int, int]:
        """Store packed steps and return (accepted, duplicates) once all of them are durable.

        MessageError if one of them is malformed, StorageError if the disk refuses: then none of the batch is stored.
        """
        fresh = self._known.select_new(records)
        if fresh:
            with self._log_lock:
                indices = self._log.append_many([record for record, _ in fresh])
                self._log.sync()
            now_s = time.monotonic()
            with self._state:
                for index, (record, step) in zip(indices, fresh, strict=True):
                    ended = step.terminated or step.truncated
                    self._known.add(SessionKey(step.run, step.robot, step.session), step.seq)
                    owner = Owner(step.run, step.robot, step.session, step.episode)
                    self._tracker.add(index, owner, ended=ended, size_bytes=len(record), now_s=now_s)
                self._next_index, self._appended_s = indices.stop, now_s
                is_ready = self._tracker.next() is not None
            if is_ready and self._background is not None:
                self._background.wake()
        return len(fresh), len(records) - len(fresh)

    # ---- what is there --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of steps ever accepted, those that retention dropped included."""
        return len(self._known)

    @property
    def next_index(self) -> int:
        """Log index that the next accepted step will get."""
        return self._next_index

    @property
    def first_index(self) -> int:
        """Log index of the oldest step that is still stored; `next_index` if there is none."""
        with self._state:
            first = self._catalog.locations.first()
            unsealed = self._tracker.first_unsealed()
        return min((index for index in (first, unsealed) if index is not None), default=self._next_index)

    @property
    def cut_bytes(self) -> int:
        """Bytes of unfinished writes cut off the log when the store was opened."""
        return self._log.cut_bytes

    @property
    def seal_errors(self) -> int:
        return 0 if self._background is None else self._background.errors

    @property
    def waiting_stretches(self) -> int:
        """Complete stretches that are not sealed yet."""
        with self._state:
            return self._tracker.complete()

    def sessions(self) -> dict[SessionKey, int]:
        """Number of steps ever accepted of each session."""
        with self._state:
            return self._known.counts()

    def episodes(self) -> list[EpisodeInfo]:
        """The sealed files, in the order of their first steps."""
        with self._state:
            return [file.info for file in self._catalog.files()]

    # ---- reading --------------------------------------------------------------------------------------------

    def iterate(self, start: int) -> Iterator[tuple[int, Step]]:
        """(index, step) from `start` up to what is durable when this is called, in the order of arrival; arrays are
        read-only. Skips what retention dropped. CorruptDataError at a damaged step."""
        if not 0 <= start <= self._next_index:
            raise StorageError(
                f"the store in {self.directory} holds steps 0 to {self._next_index - 1}; it cannot be read from {start}"
            )
        return self._reader.iterate(start, self._next_index)

    def read_images(
        self, feature: str, indices: NDArray[np.int64], final: NDArray[np.bool_], out: NDArray[np.uint8]
    ) -> None:
        """Frames of steps, decoded: `out[i]` becomes image `feature` of step `indices[i]`, of its final observation
        where `final[i]`.

        Args:
            indices: (n,) int64 log indices, in any order, also repeated.
            final: (n,) bool.
            out: (n, H, W, 3) uint8, C-contiguous.

        StorageError: a step is not stored (any more), has no such image, or one of another size; CorruptDataError.
        """
        if indices.shape != final.shape or indices.ndim != 1 or out.shape[:1] != indices.shape:
            raise StorageError(
                f"indices {list(indices.shape)}, final {list(final.shape)} and out {list(out.shape)} must have the "
                "same first dimension"
            )
        if indices.size and not 0 <= indices.min() <= indices.max() < self._next_index:
            raise StorageError(
                f"steps {indices.min()} to {indices.max()} were asked for; the store in {self.directory} has 0 to "
                f"{self._next_index - 1}"
            )
        self._reader.read_images(feature, indices, final, out)

    # ---- sealing and retention ------------------------------------------------------------------------------

    def seal(self, limit: int = 1) -> int:
        """Seal up to `limit` complete stretches now and return how many; then let go of what is no longer needed.

        StorageError if the disk refuses: the log is as it was, and the stretch is tried again next time. ConfigError,
        MessageError, CorruptDataError: a stretch does not fit into a file or its records are damaged; it stays in the
        log and is not tried again before the next start.
        """
        done = 0
        with self._seal_lock:
            while done < limit:
                with self._state:
                    stretch = self._tracker.next()
                if stretch is None:
                    break
                self._seal_stretch(stretch)
                done += 1
            if done:
                self._drop_sealed_segments()
                self._retention.apply(self._log.first_index)
        return done

    def retain(self) -> int:
        """Drop the sealed files that `keep_bytes` and `keep_age_s` no longer allow; how many."""
        with self._seal_lock:
            return self._retention.apply(self._log.first_index)

    def release(self) -> bool:
        """If everything is sealed, drop what the log still holds; whether that was so."""
        with self._seal_lock, self._log_lock:
            with self._state:
                if self._tracker.first_unsealed() is not None:
                    return False
            self._log.roll()
            self._drop_sealed_segments()
            return True

    def pin(self, first_index: int) -> None:
        """Keep the sealed episode whose first step has this log index whatever retention says; survives restarts."""
        with self._seal_lock:
            if self._catalog.file_at(first_index) is None:
                raise StorageError(
                    f"the store in {self.directory} has no sealed episode that begins at step {first_index}; list them "
                    "to see which there are"
                )
            self._ledger.pin(first_index)

    def unpin(self, first_index: int) -> None:
        with self._seal_lock:
            if first_index not in self._ledger.pinned:
                raise StorageError(f"no episode that begins at step {first_index} is pinned in {self.directory}")
            self._ledger.unpin(first_index)

    def pinned(self) -> set[int]:
        """First indices of the pinned episodes."""
        with self._seal_lock:
            return set(self._ledger.pinned)

    def verify(self) -> VerifyReport:
        """Read everything that is stored and compare it with its checksums. Retention waits meanwhile."""
        with self._seal_lock:
            with self._state:
                files, accepted, stop = self._catalog.files(), len(self._known), self._next_index
            damaged = scrub_files(self._catalog.episodes, files)
            log_steps, log_damage = scrub_log(self._log, stop)
            return VerifyReport(
                files=len(files),
                sealed_steps=sum(file.info.steps for file in files),
                log_steps=log_steps,
                unaccounted_steps=stop - accepted,
                damaged=damaged + log_damage,
            )

    # ---- inside: opening ------------------------------------------------------------------------------------

    def _prepare_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock_fd = lock_directory(self.directory)
        log = self.directory / "log"
        log.mkdir(exist_ok=True)
        self._catalog.episodes.mkdir(exist_ok=True)
        for _, path in list_segments(self.directory):  # a step log without sealing lay in the directory itself
            path.rename(log / path.name)
        swept = sweep_aside(self._catalog.episodes)
        if swept:
            logger.info("%d unfinished episode files of a killed process were deleted", swept)
        for folder in (log, self.directory, self.directory.parent):
            sync_directory(folder)

    def _take_up_files(self, report: LoadReport) -> None:
        forgotten = self._ledger.dropped | self._ledger.missing
        missing = [file for file in report.missing if file.name not in forgotten]
        if missing:
            self._ledger.note_missing(missing)
        self.missing_files = len(self._ledger.missing - {file.name for file in self._catalog.files()})
        if self.missing_files:
            logger.error("%d sealed files are gone from %s", self.missing_files, self._catalog.episodes)
        if report.stale:
            self._catalog.rewrite()
        self._known, self._tracker = KnownSteps(), StretchTracker(self._max_file_bytes)
        for key, seqs in self._ledger.known.sessions.items():
            for start, stop in seqs.ranges():
                self._known.add_range(key, start, stop)
        for file in self._catalog.files():
            for start, stop in file.seqs():
                self._known.add_range(file.session, start, stop)

    def _open_log(self) -> None:
        beyond = max(self._ledger.next_index, self._catalog.locations.stop)
        self._appended_s = time.monotonic()
        self._log.open(self._take_up_record, first_index=beyond)
        if self._log.next_index < beyond:
            self._catch_up(beyond)
        self._next_index = self._log.next_index

    def _take_up_record(self, index: int, payload: bytes) -> None:
        file = self._catalog.file_with(index)
        if file is not None:
            info = file.info
            self._tracker.pass_by(Owner(info.run, info.robot, info.session, info.episode))
            return
        step: StepIdentity = unpack(payload, StepIdentity)
        self._known.add(step.key, step.seq)
        owner = Owner(step.run, step.robot, step.session, step.episode)
        ended = step.terminated or step.truncated
        self._tracker.add(index, owner, ended=ended, size_bytes=len(payload), now_s=self._appended_s)

    def _catch_up(self, beyond: int) -> None:
        """The log lost its end with the power (durability `process`), and files hold steps beyond it. Their indices
        must not be given again: seal what the log has left and begin it anew behind them."""
        logger.warning("the log in %s lost records that are sealed already; it goes on at %d", self.directory, beyond)
        self._tracker.complete_idle(float("inf"))
        while (stretch := self._tracker.next()) is not None:
            self._seal_stretch(stretch)
        self._log.restart_at(beyond)

    # ---- inside: sealing ------------------------------------------------------------------------------------

    def _work(self) -> bool:
        """One piece of the background thread's work; whether there is more."""
        settings, now_s = self.settings, time.monotonic()
        if settings.stale_s > 0:
            with self._state:
                self._tracker.complete_idle(now_s - settings.stale_s)
        if self.seal(1):
            return True
        self.retain()
        if 0 < settings.idle_s < now_s - self._appended_s and self._log.first_index < self._next_index:
            self.release()
        return False

    def _seal_stretch(self, stretch: Stretch) -> None:
        indices = stretch.indices[:]
        payloads = self._log.read_each(indices)
        steps: Iterator[tuple[int, Step]] = (
            (index, unpack(payload, Step)) for index, payload in zip(indices, payloads, strict=True)
        )
        try:
            for part in split_for_files(steps, self._max_file_bytes):
                file = write_sealed(self._catalog.episodes, part)
                with self._state:
                    self._catalog.add(file)
                    self._tracker.drop_sealed(stretch, len(part))
        except (ConfigError, MessageError, CorruptDataError):
            with self._state:
                self._tracker.set_aside(stretch)
            self.unsealable += 1
            raise
        except StorageError:
            with self._state:
                self._tracker.postpone(stretch)
            raise

    def _drop_sealed_segments(self) -> None:
        with self._state:
            first_unsealed = self._tracker.first_unsealed()
        self._log.drop_before(self._next_index if first_unsealed is None else first_unsealed)


def _default_open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 512 if soft == resource.RLIM_INFINITY else max(16, soft // 2)
