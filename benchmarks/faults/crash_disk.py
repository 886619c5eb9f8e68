"""What a loss of power can leave of a folder: a model of the disk under a store that runs for real.

Every `os.fsync` in the folder is watched. A file's content is durable as it was at its last fsync, a folder's names as
they were at the folder's last fsync. Of everything since, a loss of power leaves any part: 512-byte sectors of a file
in any subset (those missing read as zeros), its new length or the old one, new names or not, removed names or not. Two
things are promised by every journaling file system and here too: a rename happens whole or not at all, and no file
shows data of another. `kill -9` cannot show any of this: it leaves the page cache intact.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SECTOR_BYTES = 512

Content = Callable[[bytes, bytes], bytes]
"""(durable content, newest content) -> what the disk holds after the loss of power"""


@dataclass(slots=True)
class CrashDisk:
    """The durable state of `folder`. `shadow`, on the same file system, keeps the inodes that were seen."""

    folder: Path
    shadow: Path
    _contents: dict[int, bytes] = field(default_factory=dict)
    _names: dict[Path, dict[str, int]] = field(default_factory=dict)

    @contextmanager
    def watching(self, before_fsync: Callable[[], None]) -> Iterator[None]:
        """Watch this process; `before_fsync` is called when data is about to become durable."""
        real = os.fsync, os.fdatasync

        def watched(fd: int) -> None:
            path = Path(f"/proc/self/fd/{fd}").readlink()
            if path == self.folder or self.folder in path.parents:
                before_fsync()
                self._remember(fd, path)
            real[0](fd)

        os.fsync = os.fdatasync = watched  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync, os.fdatasync = real

    def _remember(self, fd: int, path: Path) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            self._names[path] = _listing(path)
            return
        self._contents[status.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()
        with suppress(FileExistsError, FileNotFoundError):
            os.link(path, self.shadow / str(status.st_ino))

    def leave(self, target: Path, rng: np.random.Generator, content: Content, names: float) -> None:
        """Build in `target` one folder that a loss of power at this instant could leave.

        Args:
            content: what becomes of each file.
            names: probability that a change of names since the folder's last fsync is there.
        """
        self._leave(self.folder, target, rng, content, names)

    def _leave(self, folder: Path, target: Path, rng: np.random.Generator, content: Content, names: float) -> None:
        target.mkdir()
        newest, durable = _listing(folder), self._names.get(folder, {})
        for name, inode in _survivors(durable, newest, rng, names).items():
            path = folder / name
            if path.is_dir():
                self._leave(path, target / name, rng, content, names)
                continue
            synced = self._contents.get(inode, b"")
            now = path.read_bytes() if newest.get(name) == inode else self._moved(inode, newest, folder, synced)
            (target / name).write_bytes(content(synced, now))

    def _moved(self, inode: int, newest: dict[str, int], folder: Path, synced: bytes) -> bytes:
        """The newest content of a file that has another name by now, or none."""
        for name, other in newest.items():
            if other == inode:
                return (folder / name).read_bytes()
        return synced


def _listing(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def _survivors(
    durable: dict[str, int], newest: dict[str, int], rng: np.random.Generator, share: float
) -> dict[str, int]:
    """The names that are left: those of both listings, and of the changes each with probability `share`."""
    left: dict[str, int] = {}
    old_name = {inode: name for name, inode in durable.items()}
    for name, inode in sorted(newest.items()):
        if durable.get(name) == inode or rng.random() < share:
            left[name] = inode
            continue
        if inode in old_name:  # its renaming did not happen
            left[old_name[inode]] = inode
        if name in durable:  # nor was what stood there replaced
            left[name] = durable[name]
    remaining = set(newest.values())
    for name, inode in sorted(durable.items()):
        if name not in newest and inode not in remaining and rng.random() >= share:
            left[name] = inode
    return left


# ---- what becomes of a file ---------------------------------------------------------------------------------------


def nothing(durable: bytes, newest: bytes) -> bytes:
    """Nothing that was not synced."""
    return durable


def everything(durable: bytes, newest: bytes) -> bytes:
    return newest


def cut_at(offset: int) -> Content:
    """What was appended since the last fsync, up to `offset` bytes of it."""

    def content(durable: bytes, newest: bytes) -> bytes:
        return newest[: len(durable) + offset] if newest.startswith(durable) else durable

    return content


def sectors(rng: np.random.Generator, share: float) -> Content:
    """Any subset of the sectors that changed; the length is the old or the new one."""

    def content(durable: bytes, newest: bytes) -> bytes:
        size = len(newest) if rng.random() < 0.7 else len(durable)
        mixed = bytearray(durable.ljust(size, b"\0")[:size])
        for start in range(0, size, SECTOR_BYTES):
            if rng.random() < share:
                piece = newest[start : start + SECTOR_BYTES]
                mixed[start : start + len(piece)] = piece
        return bytes(mixed[:size])

    return content
