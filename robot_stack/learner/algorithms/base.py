"""What the learner's loop asks of an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from robot_stack.buffer.batches import TransitionBatch
from robot_stack.core.messages import Array


class Algorithm(Protocol):
    """Learns from batches; everything it needs to continue bit for bit is in its state."""

    @property
    def updates(self) -> int:
        """Updates done so far."""

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One gradient step on one batch; metrics by name."""

    def actor_tensors(self) -> dict[str, Array]:
        """What the edge needs to act: weights and normalisation statistics. Copies."""

    def state(self) -> dict[str, Array]:
        """Parameters, targets, optimisers, random generator and counters. Copies."""

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        """Continue from `state`; PolicyError if it belongs to another configuration."""
