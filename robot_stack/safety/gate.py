"""The command gate: default deny. A command passes only if every rule holds; the first broken rule names the refusal.

Pure: it looks at the command and at the facts handed in, and decides. Rules in order: lifecycle, lease, sequence,
deadline, shape, finite values, bounds. Values slightly out of bounds are clipped (and reported as clipped); values
further out than one whole range are refused, because a policy that asks for them is broken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_stack.core.messages import Command, FloatArray, Lifecycle, Refusal, Verdict
from robot_stack.core.specs import Feature

GROSS_EXCESS_RANGES = 1.0


@dataclass(frozen=True, slots=True)
class GateFacts:
    """What the robot server knows at the moment a command arrives."""

    now_ns: int
    lifecycle: Lifecycle
    lease_session: str | None
    last_seq: int
    stopping: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """`action` is the command's action after clipping, or zeros of the right shape if refused."""

    verdict: Verdict
    refusal: Refusal | None
    message: str
    action: FloatArray


class CommandGate:
    """The rules for one robot's action feature."""

    def __init__(self, robot: str, action: Feature) -> None:
        self._robot = robot
        self._shape = action.shape
        self._names = action.names
        self._lower = action.lower_array()
        self._upper = action.upper_array()
        self._range = np.maximum(self._upper - self._lower, np.float32(1e-9))

    def check(self, command: Command, facts: GateFacts) -> Decision:
        refused = self._check_right(command, facts) or self._check_time(command, facts) or self._check_values(command)
        if refused is not None:
            return refused
        clipped = np.clip(command.action, self._lower, self._upper).astype(np.float32)
        if np.array_equal(clipped, command.action):
            return Decision(Verdict.ACCEPTED, None, "", clipped)
        worst = int(np.argmax(np.abs(command.action - clipped)))
        return Decision(Verdict.CLIPPED, None, self._bounds_text(command.action, worst), clipped)

    def _check_right(self, command: Command, facts: GateFacts) -> Decision | None:
        if facts.lifecycle is not Lifecycle.ACTIVE:
            return self.refuse(
                Refusal.NOT_ACTIVE, f"{self._robot} is {facts.lifecycle.value}, commands are taken in 'active' only"
            )
        if facts.lease_session != command.session:
            holder = "nobody" if facts.lease_session is None else f"session {facts.lease_session}"
            return self.refuse(Refusal.NO_LEASE, f"the control lease of {self._robot} is held by {holder}")
        if facts.stopping:
            return self.refuse(Refusal.STOPPING, f"{self._robot} is ramping to a stop; wait until it rests")
        return None

    def _check_time(self, command: Command, facts: GateFacts) -> Decision | None:
        if command.seq <= facts.last_seq:
            return self.refuse(
                Refusal.REPEATED, f"command {command.seq} is not newer than {facts.last_seq}, already seen"
            )
        if facts.now_ns > command.deadline_ns:
            late_ms = (facts.now_ns - command.deadline_ns) / 1e6
            return self.refuse(Refusal.STALE, f"command {command.seq} arrived {late_ms:.1f} ms after its deadline")
        return None

    def _check_values(self, command: Command) -> Decision | None:
        action = command.action
        if action.shape != self._shape or action.dtype != np.float32:
            return self.refuse(
                Refusal.WRONG_SHAPE,
                f"action is {action.dtype}{list(action.shape)}, {self._robot} takes float32{list(self._shape)}",
            )
        if not np.isfinite(action).all():
            bad = [self._names[i] for i in np.flatnonzero(~np.isfinite(action))]
            return self.refuse(Refusal.NOT_FINITE, f"not finite: {', '.join(bad)}")
        wide = action.astype(np.float64)  # float32 would overflow
        excess = np.maximum(wide - self._upper, self._lower - wide) / self._range
        worst = int(np.argmax(excess))
        if excess[worst] > GROSS_EXCESS_RANGES:
            return self.refuse(Refusal.OUT_OF_BOUNDS, self._bounds_text(action, worst))
        return None

    def _bounds_text(self, action: FloatArray, axis: int) -> str:
        return f"{self._names[axis]} = {action[axis]:.6g} is outside [{self._lower[axis]:.6g}, {self._upper[axis]:.6g}]"

    def refuse(self, refusal: Refusal, message: str) -> Decision:
        """A refusal in the form of a decision."""
        return Decision(Verdict.REFUSED, refusal, message, np.zeros(self._shape, dtype=np.float32))
