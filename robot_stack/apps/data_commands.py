"""`robot-stack data list|verify|rebuild|pin|unpin`: looking after a store of recorded steps.

`list_store` and `verify_store` change nothing and work beside a running learner. The others need the store for
themselves: stop the learner first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from robot_stack.buffer.catalog import SealedFile, read_catalog
from robot_stack.buffer.log_reader import LogReader
from robot_stack.buffer.retention import read_pins
from robot_stack.buffer.scrubbing import scrub_files
from robot_stack.buffer.segment import list_segments
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.errors import ConfigError, CorruptDataError, StorageError

_ALONE = StoreSettings(seal=False)


def run_data(directory: Path, action: str, first_step: int) -> int:
    """One action on the store in `directory`; the exit code. `first_step` names the episode of pin and unpin."""
    if action == "list":
        return list_store(directory)
    if action == "verify":
        return verify_store(directory)
    if action == "rebuild":
        return rebuild_catalog(directory)
    if first_step < 0:
        raise ConfigError(f"`robot-stack data {action}` needs --first-step N: see `robot-stack data list`")
    return pin(directory, first_step) if action == "pin" else unpin(directory, first_step)


def list_store(directory: Path) -> int:
    """Print a table of the sealed episodes and the totals."""
    _check_is_store(directory)
    files, pinned = read_catalog(directory), read_pins(directory)
    if files:
        sys.stdout.write(
            f"{'first step':>12} {'steps':>7} {'MB':>8} {'ended':5} {'pinned':6} {'episode':>7}  robot session\n"
        )
    for file in files:
        sys.stdout.write(_line(file, file.info.first_index in pinned))
    steps, size = sum(file.info.steps for file in files), sum(file.info.size_bytes for file in files)
    log_bytes = sum(path.stat().st_size for _, path in list_segments(directory / "log") if path.exists())
    sys.stdout.write(
        f"{len(files)} sealed episodes, {steps} steps, {size / 1e6:.1f} MB; log {log_bytes / 1e6:.1f} MB; "
        f"{len(pinned)} pinned\n"
    )
    return 0


def verify_store(directory: Path) -> int:
    """Read everything and compare it with its checksums; print what is damaged. 0, or the code of CorruptDataError."""
    _check_is_store(directory)
    damaged: list[str] = []
    files = read_catalog(directory)
    for file in files:
        found = scrub_files(directory / "episodes", (file,))
        if found and (directory / "episodes" / file.name).exists():  # else retention of a running learner dropped it
            damaged += found
    reader = LogReader(directory / "log")
    records = 0
    try:
        while batch := reader.poll():
            records += len(batch)
    except StorageError as error:
        damaged.append(str(error))
    for sentence in damaged:
        sys.stdout.write(f"DAMAGED: {sentence}\n")
    sys.stdout.write(f"{len(files)} sealed episodes and {records} records of the log read, {len(damaged)} damaged\n")
    return CorruptDataError.exit_code if damaged else 0


def rebuild_catalog(directory: Path) -> int:
    """Make the catalog anew from the sealed files."""
    _check_is_store(directory)
    with StepStore(directory, settings=_ALONE):  # notes what the old one knows of files that are gone
        pass
    (directory / "catalog").unlink(missing_ok=True)
    with StepStore(directory, settings=_ALONE) as store:
        sys.stdout.write(f"the catalog was made anew: {len(store.episodes())} sealed episodes\n")
    return 0


def pin(directory: Path, first_index: int) -> int:
    """Keep the episode that begins at this step whatever retention says."""
    _check_is_store(directory)
    with StepStore(directory, settings=_ALONE) as store:
        store.pin(first_index)
    sys.stdout.write(f"pinned the episode that begins at step {first_index}: retention never drops it\n")
    return 0


def unpin(directory: Path, first_index: int) -> int:
    """Let retention drop the episode again."""
    _check_is_store(directory)
    with StepStore(directory, settings=_ALONE) as store:
        store.unpin(first_index)
    sys.stdout.write(f"unpinned the episode that begins at step {first_index}\n")
    return 0


def _line(file: SealedFile, is_pinned: bool) -> str:
    info = file.info
    return (
        f"{info.first_index:12d} {info.steps:7d} {info.size_bytes / 1e6:8.2f} {'yes' if info.ended else 'no':5} "
        f"{'yes' if is_pinned else 'no':6} {info.episode:7d}  {info.robot} {info.session}\n"
    )


def _check_is_store(directory: Path) -> None:
    if not (directory / "log").is_dir():
        raise StorageError(f"{directory} holds no store of steps: it has no folder 'log'. Check the run's name.")
