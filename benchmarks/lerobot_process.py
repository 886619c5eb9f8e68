"""LeRobot's policy in its own interpreter, asked over a pipe: `benchmarks/lerobot_policy.py` runs at the other end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.lerobot_policy import Passed, Predict, Progress, Ready, Saved, Seen, Setup, Time, Train
from policies.generative.config import SolverConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import FloatArray, Observation

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "lerobot_policy.py"
MISSING = "not measured: run make lerobot-env"

TRAINED: msgspec.json.Decoder[Progress | Saved] = msgspec.json.Decoder(Progress | Saved)


class LeRobotProcess:
    """A context manager that ends the process at its end."""

    def __init__(self, python: Path, setup: Setup) -> None:
        self._command = [str(python), "-P", str(SCRIPT)]
        self._setup = setup

    def __enter__(self) -> LeRobotProcess:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        try:
            self._ask(self._setup)
            self.ready = msgspec.json.decode(self._line(), type=Ready)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(BrokenPipeError):  # of a process that is gone
                    stream.close()
        try:
            self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def timed(self, solver: SolverConfig, count: int) -> list[Passed]:
        """`count` chunks, one after the other, of a warm policy."""
        self._ask(Time(solver=solver, count=count))
        return msgspec.json.decode(self._line(), type=list[Passed])

    def train(self, request: Train, progress: Callable[[Progress], None]) -> None:
        """To the end; what is done already is not done again."""
        self._ask(request)
        while not isinstance(answer := TRAINED.decode(self._line()), Saved):
            progress(answer)

    def chunks(self, solver: SolverConfig, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A) of the checkpoint for that solver, in the action's units; of policies without history."""
        names = list(self._setup.spec.observation)
        seen = [
            Seen(one.episode_seed, one.index, {name: one.features[name].tolist() for name in names})
            for one in observations
        ]
        self._ask(Predict(solver=solver, observations=seen))
        return np.asarray(msgspec.json.decode(self._line(), type=list[list[list[float]]]), np.float32)

    def _ask(self, request: Struct) -> None:
        if self._process.stdin:
            try:
                self._process.stdin.write(msgspec.json.encode(request) + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError as error:
                raise self._ended() from error

    def _line(self) -> bytes:
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise self._ended()
        return line

    def _ended(self) -> ConfigError:
        return ConfigError(
            f"the LeRobot process ended by itself ({' '.join(self._command)}); its last lines above say why. Is its "
            "environment whole? make lerobot-env makes it"
        )
