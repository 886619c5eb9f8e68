"""The supervisor: starts processes, restarts those that die, and ends all of them together.

Every child is a process group leader with its own log file, and is ended by the kernel if the supervisor dies.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from robot_stack.core.errors import RobotStackError

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
RESTART_PAUSE_S = 0.5
END_PATIENCE_S = 10.0
MAX_QUICK_DEATHS = 5
QUICK_DEATH_S = 3.0

_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def robot_stack_command(*arguments: str) -> list[str]:
    """The command line of another robot-stack process in this same environment."""
    return [sys.executable, "-m", "robot_stack.apps.cli", *arguments]


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    log: Path
    shown: bool = False
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    restarts: int = 0
    quick_deaths: int = 0
    finished: bool = False
    last_exit: int = field(default=0)


class Supervisor:
    """Use as a context manager; call `watch` until the work is done."""

    def __init__(self, log_directory: Path, announce: Callable[[str], None]) -> None:
        self._log_directory = log_directory
        self._announce = announce
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Supervisor:
        self._log_directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_all()

    def start(self, name: str, command: Sequence[str], *, shown: bool = False) -> None:
        """`shown`: what it writes to its standard output is for the person at this terminal, not for its log."""
        child = _Child(name, command, self._log_directory / f"{name}.log", shown)
        self._children[name] = child
        self._launch(child)

    def pid(self, name: str) -> int:
        """Process id of the running child; RobotStackError if it does not run."""
        process = self._children[name].process
        if process is None or process.poll() is not None:
            raise RobotStackError(f"{name} is not running")
        return process.pid

    def restarts(self) -> dict[str, int]:
        return {name: child.restarts for name, child in self._children.items()}

    def watch(self) -> None:
        """Restart what died. RobotStackError if something keeps dying at once: a restart will not help."""
        for child in self._children.values():
            if child.process is None or child.finished or child.process.poll() is None:
                continue
            child.last_exit = child.process.returncode
            if child.last_exit == 0:
                child.finished = True
                continue
            self._restart(child)

    def finished(self, name: str) -> bool:
        """True once the child has ended by itself with success."""
        return self._children[name].finished

    def end_all(self) -> None:
        """Ask all children to end, in reverse order of their start; kill what does not."""
        running = [
            child for child in reversed(self._children.values()) if child.process and child.process.poll() is None
        ]
        for child in running:
            if child.process:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_PATIENCE_S
        for child in running:
            if child.process is None:
                continue
            try:
                child.process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("%s did not end within %.0f s: killed", child.name, END_PATIENCE_S)
                child.process.kill()
                child.process.wait()

    def _restart(self, child: _Child) -> None:
        quick = time.monotonic() - child.started_s < QUICK_DEATH_S
        child.quick_deaths = child.quick_deaths + 1 if quick else 0
        if child.quick_deaths >= MAX_QUICK_DEATHS or 0 < child.last_exit < 64:
            raise RobotStackError(
                f"{child.name} ended with code {child.last_exit}; the end of {child.log} says:\n{_tail(child.log)}"
            )
        child.restarts += 1
        how = f"signal {-child.last_exit}" if child.last_exit < 0 else f"code {child.last_exit}"
        self._announce(f"{child.name} died ({how}); starting it again")
        time.sleep(RESTART_PAUSE_S)
        self._launch(child)

    def _launch(self, child: _Child) -> None:
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=None if child.shown else log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call; no other thread runs here
            )
        child.started_s = time.monotonic()


def _tail(path: Path, lines: int = 5) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
