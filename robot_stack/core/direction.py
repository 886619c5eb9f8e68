"""Which way a task goes that can be done and undone: practice without resets does both in turn."""

from __future__ import annotations

import enum


class Direction(enum.Enum):
    """FORWARD: the task itself. BACKWARD: its undoing, back to where the task begins."""

    FORWARD = "forward"
    BACKWARD = "backward"

    @property
    def other(self) -> Direction:
        return Direction.BACKWARD if self is Direction.FORWARD else Direction.FORWARD

    def words(self, what: str) -> str:
        """The instruction of an episode in this direction, as it is recorded: the direction, then what to do."""
        return f"{self.value}: {what}"


def direction_of(instruction: str) -> Direction:
    """The direction that an instruction names; without one it is FORWARD, as of a task that goes one way only."""
    return Direction.BACKWARD if instruction.partition(":")[0] == Direction.BACKWARD.value else Direction.FORWARD
