"""Files that are whole or absent: written aside, flushed to the disk, then renamed into place."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

ASIDE_PREFIX = ".aside-"


def write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Create `directory` with these files, atomically: after a crash at any instant it is complete or not there.

    The parent is created. Raises FileExistsError if `directory` is there already. An interrupted call leaves a
    `.aside-*` folder beside it, which `sweep_aside` removes.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.parent / f"{ASIDE_PREFIX}{directory.name}-{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        for name, content in files.items():
            with (aside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync_directory(aside)
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync_directory(directory.parent)


def remove_directory(directory: Path) -> None:
    """Remove `directory`, atomically: after a crash at any instant it is complete or not there.

    An interrupted call leaves a `.aside-*` folder beside it, which `sweep_aside` removes.
    """
    aside = directory.parent / f"{ASIDE_PREFIX}{directory.name}-{uuid.uuid4().hex}"
    directory.rename(aside)
    _sync_directory(directory.parent)
    shutil.rmtree(aside)


def sweep_aside(parent: Path) -> int:
    """Remove what interrupted calls of the functions above left in `parent`; how many there were."""
    orphans = list(parent.glob(f"{ASIDE_PREFIX}*"))
    for orphan in orphans:
        shutil.rmtree(orphan)
    return len(orphans)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
