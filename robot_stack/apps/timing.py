"""How long control steps really took, kept for the report."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.clock import Pacer
from robot_stack.core.files import write_atomically
from robot_stack.edge.control_loop import LoopStep

KEEP_STEPS = 20_000
SAVE_EVERY_EPISODES = 20


class LoopRecord(Struct, frozen=True, kw_only=True):
    """Seconds from one control step to the next within episodes (the newest KEEP_STEPS), overruns, late steps."""

    step_s: list[float]
    overruns: int
    late_steps: int


class TimingObserver:
    """Watches the control loop; costs microseconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._step_s: list[float] = []
        self._last_s = 0.0
        self._overruns = 0
        self._late = 0
        self._episodes = 0

    def on_step(self, step: LoopStep) -> None:
        now_s = time.monotonic()
        if step.observation.index > 0:
            self._step_s.append(now_s - self._last_s)
        self._last_s = now_s
        self._late += step.stepped.late

    def episode_done(self, pacer: Pacer | None) -> None:
        self._overruns += pacer.overruns if pacer else 0
        self._episodes += 1
        if self._episodes % SAVE_EVERY_EPISODES == 0:
            self.save()

    def save(self) -> None:
        self._step_s = self._step_s[-KEEP_STEPS:]
        record = LoopRecord(step_s=self._step_s, overruns=self._overruns, late_steps=self._late)
        write_atomically(self._path, msgspec.json.encode(record))


def read_timing(path: Path) -> LoopRecord:
    if not path.exists():
        return LoopRecord(step_s=[], overruns=0, late_steps=0)
    return msgspec.json.decode(path.read_bytes(), type=LoopRecord)
