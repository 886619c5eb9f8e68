"""Who proposes the action of *now*: the chunk scheduler, and the interface it shares with scripted experts."""

from __future__ import annotations

from typing import Protocol

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, FloatArray, Observation, RobotState, Source
from robot_stack.core.protocols import Policy


class Proposer(Protocol):
    """Proposes the base action of each control step."""

    @property
    def source(self) -> Source: ...

    def begin(self, seed: int) -> None:
        """A new episode begins."""

    def at_boundary(self, index: int) -> bool:
        """True if step `index` starts a new chunk: the only moments at which weights may change."""

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        """The base action (A,) for this control step."""


class ChunkScheduler:
    """Runs a chunked policy: executes the first `execute_steps` of every chunk, then plans again.

    The action executed at step t is always the one that was predicted for step t.
    """

    def __init__(self, policy: Policy, execute_steps: int) -> None:
        if not 1 <= execute_steps <= policy.spec.horizon:
            raise PolicyError(
                f"execute_steps = {execute_steps} is outside [1, {policy.spec.horizon}], the horizon of policy "
                f"'{policy.spec.name}'"
            )
        self._policy = policy
        self._execute_steps = execute_steps
        self._chunk: ActionChunk | None = None

    @property
    def source(self) -> Source:
        return Source.POLICY

    def begin(self, seed: int) -> None:
        self._chunk = None

    def at_boundary(self, index: int) -> bool:
        return self._chunk is None or index >= self._chunk.index + self._execute_steps

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        if self._chunk is None or self.at_boundary(observation.index):
            self._chunk = self._policy.predict(observation)
        return self._chunk.actions[observation.index - self._chunk.index]
