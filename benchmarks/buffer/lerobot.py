"""LeRobot's replay buffer, in a process of LeRobot's own environment."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec import Struct

from benchmarks.buffer.figures import Passed
from robot_stack.core.errors import ConfigError

SCRIPT = Path(__file__).parent.parent / "lerobot_buffer.py"
KINDS = ("standard", "optimized")
MISSING = "not measured: run make lerobot-env"
NOTE = (
    "ReplayBuffer of lerobot {lerobot} with torch {torch}, {threads} threads, on the CPU, no image augmentation; "
    "memory measured at {capacity} transitions and scaled linearly; it cannot be reopened: it lives in memory only, "
    "and is rebuilt from an exported dataset"
)


class Ready(Struct, frozen=True):
    """The first line of the script."""

    lerobot: str
    torch: str
    threads: int
    bytes_standard: int
    bytes_optimized: int

    def bytes_of(self, kind: str) -> int:
        return self.bytes_standard if kind == "standard" else self.bytes_optimized


class LeRobotProcess:
    """Context manager; ends the process at its end."""

    def __init__(self, python: Path, capacity: int, image_shape: tuple[int, int, int], seed: int) -> None:
        height, width, _ = image_shape
        sizes = {"--capacity": capacity, "--height": height, "--width": width, "--seed": seed}
        # -P: without it the script's folder would lie on the path, and its files would hide modules of their names.
        self._command = [str(python), "-P", str(SCRIPT)]
        for name, value in sizes.items():
            self._command += [name, str(value)]
        self._capacity = capacity

    def __enter__(self) -> LeRobotProcess:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.ready = msgspec.json.decode(self._line(), type=Ready)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        if self._process.stdout:
            self._process.stdout.close()
        try:
            self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def note(self) -> str:
        ready = self.ready
        return NOTE.format(lerobot=ready.lerobot, torch=ready.torch, threads=ready.threads, capacity=self._capacity)

    def ask(self, kind: str, action: str, count: int) -> Passed:
        if self._process.stdin:
            self._process.stdin.write(f"{kind} {action} {count}\n")
            self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=Passed)

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise ConfigError(
                f"the LeRobot process ended by itself: {' '.join(self._command)}. Run make lerobot-env, or name the "
                "Python of an environment with LeRobot by --lerobot-python."
            )
        return line


class LeRobotBuffer:
    """One of the process's two buffers; `kind` is `standard` or `optimized`."""

    def __init__(self, process: LeRobotProcess, kind: str) -> None:
        self._process = process
        self._kind = kind

    def insert(self, count: int) -> Passed:
        return self._process.ask(self._kind, "insert", count)

    def sample(self, count: int) -> Passed:
        return self._process.ask(self._kind, "sample", count)

    def prefetch(self, count: int) -> Passed:
        return self._process.ask(self._kind, "prefetch", count)
