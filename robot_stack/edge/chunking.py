"""Which action of which chunk belongs to a control step. Actions for steps that are over are dropped and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from msgspec import Struct

from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import ActionChunk, FloatArray


class ChunkingConfig(Struct, frozen=True, kw_only=True):
    """How chunks are asked for and joined while inference runs beside the control loop.

    Attributes:
        mode: `switch` takes a new chunk as soon as it is there; `ensemble` averages all predictions for a step
            (Zhao et al., ACT, 2023); `rtc` switches too, but tells the policy what is already planned, so that the new
            chunk goes on from there (Black et al., Real-Time Chunking, 2025).
        execute_steps: a new chunk is asked for after so many steps, or earlier if the delay needs it. 1 for `ensemble`
            as published.
        ensemble_decay: the i-th oldest prediction has the weight exp(-decay * i); 0 is the plain mean.
        latency_window, latency_quantile, latency_initial_steps: of the estimate of the delay (`LatencyEstimate`).
        when_empty: what the robot does at a step for which there is no action yet. `stop`: the episode ends with an
            error, and the robot server stops the robot. `zero`: for relative actions; axes whose bounds are symmetric
            get 0, others (a gripper's opening) their last value. `last`: for absolute actions; the last one again.
    """

    mode: Literal["switch", "ensemble", "rtc"] = "rtc"
    execute_steps: int = 8
    ensemble_decay: float = 0.01
    latency_window: int = 10
    latency_quantile: float = 1.0
    latency_initial_steps: int = 0
    when_empty: Literal["stop", "zero", "last"] = "stop"

    def __post_init__(self) -> None:
        if self.execute_steps < 1:
            raise ConfigError(f"chunking.execute_steps is {self.execute_steps}; allowed: 1 or more")
        if not np.isfinite(self.ensemble_decay):
            raise ConfigError(f"chunking.ensemble_decay is {self.ensemble_decay}; allowed: finite numbers")


@dataclass(slots=True)
class ChunkCounts:
    """What became of chunks and steps since the scheduler was made.

    Attributes:
        chunks: that were there in time for at least one of their steps.
        late_actions: that were there only after their step; they never ran. With a delay of d steps each chunk has d.
        late_chunks: that took longer than they had been planned for.
        lost_chunks: that were there only after their last step.
        empty_steps: steps for which there was no action, so the robot held.
    """

    chunks: int = 0
    late_actions: int = 0
    late_chunks: int = 0
    lost_chunks: int = 0
    empty_steps: int = 0


class ActionPlan(Protocol):
    """The actions that are planned, by control step."""

    @property
    def end(self) -> int:
        """The first step without an action."""

    def take(self, chunk: ActionChunk, index: int) -> None:
        """A chunk that is there at step `index`: its actions from that step on count, at least one."""

    def action(self, index: int) -> FloatArray | None:
        """The action (A,) for step `index`; None if there is none. Steps are asked for in order."""

    def rest(self, index: int) -> FloatArray:
        """What is planned from step `index` on: (K, A)."""

    def clear(self) -> None:
        """A new episode begins: nothing is planned."""


class NewestChunk:
    """The newest chunk alone; an `ActionPlan`."""

    def __init__(self, action_dim: int) -> None:
        self._none = np.zeros((0, action_dim), np.float32)
        self._actions, self._begin = self._none, 0

    @property
    def end(self) -> int:
        return self._begin + len(self._actions)

    def take(self, chunk: ActionChunk, index: int) -> None:
        self._actions, self._begin = chunk.actions, chunk.index

    def action(self, index: int) -> FloatArray | None:
        return self._actions[index - self._begin] if self._begin <= index < self.end else None

    def rest(self, index: int) -> FloatArray:
        return self._actions[index - self._begin :] if self._begin <= index < self.end else self._none

    def clear(self) -> None:
        self._actions, self._begin = self._none, 0
