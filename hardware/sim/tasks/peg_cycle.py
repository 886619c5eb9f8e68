"""Insert the peg and pull it out again: `peg_insertion` as a task that can be undone, for practice without resets.

The socket stays where it is while scene and robot are kept. Its observed position is measured anew for every episode,
so the bias of the observation is too: a bias that stayed would be learned by heart.
"""

from __future__ import annotations

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from hardware.sim.rendering import mujoco
from hardware.sim.task import TOOL_SITE, ToolStart
from hardware.sim.tasks.peg_insertion import PegInsertion
from hardware.sim.world import yaw_of
from robot_stack.core.direction import Direction
from robot_stack.core.messages import Features, TaskStatus

FloatVector = NDArray[np.float64]

_WHAT = {
    Direction.FORWARD: "insert the peg into the socket",
    Direction.BACKWARD: "pull the peg out and go back to the start",
}


class PegCycle(PegInsertion):
    """See the module. Forward is `PegInsertion`, backward ends in the region that its episodes start from.

    The direction is observed as the last value of the environment's state, 1 forward and -1 backward, so that policies
    that read no words are told too.
    """

    name = "peg_cycle"
    environment_names: tuple[str, ...] = (*PegInsertion.environment_names, "direction")

    start_tolerance_m = 0.015
    start_tolerance_rad = 0.2
    outside_m = 0.02
    _direction = Direction.FORWARD

    @property
    def start_m(self) -> FloatVector:
        """Middle of the start region, base frame."""
        config = self.config
        return np.array([*config.centre_m, config.socket_height_m + config.start_height_m])

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> ToolStart:
        self._direction = Direction.FORWARD
        return super().reset(model, data, rng)

    def begin_here(self, data: mujoco.MjData, rng: np.random.Generator, direction: Direction) -> None:
        range_m = self.config.observation_bias_range_m
        self._direction = direction
        self._bias_m = rng.uniform(-range_m, range_m, 2)

    def instruction(self) -> str:
        return self._direction.words(_WHAT[self._direction])

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """Backward success: tip and heading are where an episode may start, within the tolerances. Truncated: the tip
        is out of the workspace, from where nothing leads back by itself."""
        if self._direction is Direction.FORWARD:
            status = super().status(data)
        else:
            success = self._at_start(data)
            status = TaskStatus(reward=float(success), success=success, terminated=success)
        return structs.replace(status, truncated=not status.terminated and self._is_outside(data))

    def _at_start(self, data: mujoco.MjData) -> bool:
        tool = data.site(TOOL_SITE)
        away_m = float(np.abs(tool.xpos - self.start_m).max())
        turned_rad = abs(yaw_of(tool.xmat.reshape(3, 3)))
        return bool(
            away_m <= self.config.start_range_m + self.start_tolerance_m and turned_rad <= self.start_tolerance_rad
        )

    def _is_outside(self, data: mujoco.MjData) -> bool:
        tip = data.site(TOOL_SITE).xpos
        lower, upper = np.array(self.motion.workspace_lower_m), np.array(self.motion.workspace_upper_m)
        return bool((tip < lower - self.outside_m).any() or (tip > upper + self.outside_m).any())

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        direction = 1.0 if self._direction is Direction.FORWARD else -1.0
        return np.append(super().environment_state(data), direction)

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """That of `PegInsertion`, whether the direction is forward (1,), and the middle of the start region (3,) m."""
        is_forward = np.array([self._direction is Direction.FORWARD])
        return {**super().ground_truth(data), "is_forward": is_forward, "start_m": self.start_m}
