"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from robot_stack.core.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, fsync, rename, fsync the folder: after a crash the file is the old one or the whole new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error}") from error
