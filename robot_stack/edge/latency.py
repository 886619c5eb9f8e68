"""How long inference takes, in control steps, from what it took of late."""

from __future__ import annotations

import math
from collections import deque

from robot_stack.core.errors import ConfigError


class LatencyEstimate:
    """The delay that a chunk asked for now has to reckon with: a quantile of the last `window` delays.

    The largest one (quantile 1) is real-time chunking's choice: a delay that was guessed too short costs a jump, one
    that was guessed too long only freezes an action more.
    """

    def __init__(self, window: int = 10, quantile: float = 1.0, initial_steps: int = 0) -> None:
        if window < 1 or not 0.0 < quantile <= 1.0 or initial_steps < 0:
            raise ConfigError(
                f"latency of window {window}, quantile {quantile}, initially {initial_steps} steps; allowed: window 1 "
                "or more, quantile above 0 and up to 1, initially 0 or more steps"
            )
        self._delays: deque[int] = deque(maxlen=window)
        self._quantile = quantile
        self._initial = initial_steps

    def add(self, steps: int) -> None:
        """A chunk took so many control steps from its observation to its arrival."""
        self._delays.append(steps)

    @property
    def steps(self) -> int:
        """The estimate in control steps: one of the measured delays, or the initial one before the first."""
        if not self._delays:
            return self._initial
        ordered = sorted(self._delays)
        return ordered[math.ceil(self._quantile * len(ordered)) - 1]
