"""Who did what, when, and what came of it: JSON lines, one file, mode 0600."""

from __future__ import annotations

import logging
import os
import threading
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import StorageError
from robot_stack.transport.wire import Throttle

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024 * 1024


class Entry(Struct, frozen=True, kw_only=True):
    """`time`: wall time, ISO 8601, UTC. `address`: of the browser. `outcome`: `done`, or why not."""

    time: str
    user: str
    role: str
    address: str
    robot: str
    what: str
    outcome: str


class Audit:
    """Appends to `path`; the file before goes to `<path>.1` when it is full. Thread-safe.

    What cannot be written is logged, once a second at most: nobody's stop waits for a disk that is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._throttle = Throttle(1.0)

    def open(self) -> None:
        """StorageError if nothing can be written there."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._append(b"")
        except OSError as error:
            raise StorageError(f"the audit log {self._path} cannot be written: {error.strerror}") from error

    def note(self, user: str, role: str, address: str, robot: str, what: str, outcome: str) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        entry = Entry(time=now, user=user, role=role, address=address, robot=robot, what=what, outcome=outcome)
        try:
            with self._lock:
                self._append(msgspec.json.encode(entry) + b"\n")
        except OSError as error:
            if self._throttle.allows("audit"):
                logger.error("the audit log %s cannot be written: %s; lost: %s", self._path, error.strerror, entry)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
            full = os.fstat(descriptor).st_size > MAX_BYTES
        finally:
            os.close(descriptor)
        if full:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
