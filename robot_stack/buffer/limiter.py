"""How much training the collected steps have earned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from robot_stack.core.errors import ConfigError

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class UpdateBudget:
    """Ties the number of updates to the number of collected steps (updates-to-data ratio).

        earned = floor(updates_per_step * max(0, steps - start_after_steps))
        owed   = max(0, earned - done)

    The first `start_after_steps` steps only fill the buffer and earn nothing. From there on training draws, for every
    step that is collected,

        samples per insert = updates_per_step * batch_size

    samples (reverb's name for this rate): with 4 updates per step and batches of 256, 1024. Of a mix, a part with
    share s gives s * 1024 of them. Collection never waits for training; training waits when nothing is owed. `owed`
    depends on its arguments alone, so a resumed run goes on where it was.
    """

    updates_per_step: float
    start_after_steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.updates_per_step) and self.updates_per_step > 0) or self.start_after_steps < 0:
            raise ConfigError(
                f"updates_per_step is {self.updates_per_step} and start_after_steps is {self.start_after_steps}; "
                "allowed are a finite number above 0 and a whole number from 0 on"
            )

    def owed(self, steps: int, done: int) -> int:
        """Updates to do now, with `steps` collected and `done` updates made since the run began."""
        # 0.29 * 100 is 28.999999999999996: without the allowance one update would come a step late.
        earned = math.floor(self.updates_per_step * max(0, steps - self.start_after_steps) + _ROUNDING)
        return max(0, earned - done)
