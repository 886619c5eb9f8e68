"""An energy tank: how much energy the robot may put into what it touches.

The tank holds a budget. Energy that the commanded motion puts into the contact, -effort . motion (effort: of the
environment on the robot), drains it; energy that the environment puts into the robot, where the joint impedance
dissipates it, refills it at a limited power. A motion whose step and stop would take the tank under its floor is not
begun: it is slowed along its own path first, and stopped if that is not enough.

What holds, tick by tick, with w[k] = max(0, -effort[k] . motion[k]):

    w[1] + ... + w[n]  <=  initial - floor + refilled           refilled <= refill_w * time

as long as an axis' effort changes by no more than `stiffness` times its motion while the robot comes to rest. What the
commanded setpoint does to a contact goes through the robot's own joint impedance, so its stiffness is such a bound.

Energy tanks as a passivity filter of any controller: F. Ferraguti, C. Secchi, C. Fantuzzi, "A tank-based approach to
impedance control with variable stiffness", ICRA 2013; and of learned policies: R. Zanella, G. Palli, S. Stramigioli,
F. Califano, "Learning passive policies with virtual energy tanks in robotics", IET Control Theory & Applications 2024.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import Setpoint

# Slowing begins when the tank holds less than so many times what the next step and its stop need.
_SLOW_FROM = 4.0
# Never quite to nothing, so that a motion that needs no energy is noticed.
_SLOWEST = 0.05


class EnergyTankConfig(Struct, frozen=True, kw_only=True):
    """Energies in J, power in W. The robot starts every episode with `initial_j` - `floor_j` to spend.

    `stiffness`: by how much the effort of an axis may change per motion of its setpoint, N m/rad or N/m. The larger,
    the slower the robot moves where it touches nothing yet: its stop has to be paid for too.
    """

    capacity_j: float = 5.0
    initial_j: float = 2.0
    floor_j: float = 0.2
    refill_w: float = 1.0
    stiffness: float = 500.0


class EnergyTank:
    """The budget of one robot that sends one setpoint every `tick_s`."""

    def __init__(self, config: EnergyTankConfig, tick_s: float) -> None:
        if not 0.0 <= config.floor_j <= config.initial_j <= config.capacity_j < np.inf:
            raise ConfigError(
                f"energy tank: floor {config.floor_j:.6g} J, initial {config.initial_j:.6g} J and capacity "
                f"{config.capacity_j:.6g} J must be in this order and not negative"
            )
        if not (0.0 <= config.refill_w < np.inf and 0.0 <= config.stiffness < np.inf):
            raise ConfigError(
                f"energy tank: refill_w = {config.refill_w:.6g} and stiffness = {config.stiffness:.6g} must be finite "
                "and not negative"
            )
        self._config = config
        self._refill_j = config.refill_w * tick_s
        self.start()

    def start(self) -> None:
        """Back to the initial level."""
        self.level_j = self._config.initial_j
        self._needed_j = 0.0

    @property
    def left_j(self) -> float:
        """What may still be spent."""
        return max(self.level_j - self._config.floor_j, 0.0)

    @property
    def pace(self) -> float:
        """Part of its speed at which a motion may go on, up to 1, from what the last one needed."""
        if self._needed_j == 0.0:
            return 1.0
        return min(1.0, max(self.left_j / (_SLOW_FROM * self._needed_j), _SLOWEST))

    def affords(self, effort: Setpoint, steps: Setpoint) -> bool:
        """Whether the steps (n, S) of a motion and its stop may be begun under an effort (S,)."""
        way = np.abs(steps).sum(axis=0)
        needed_j = float(np.maximum(-(steps @ effort), 0.0).sum() + 0.5 * self._config.stiffness * (way @ way))
        if not np.isfinite(needed_j):
            return False
        self._needed_j = needed_j
        return needed_j <= self.left_j

    def book(self, effort: Setpoint, step: Setpoint) -> None:
        """Account for a step (S,) that was sent while an effort (S,) was measured."""
        drawn_j = -float(step @ effort)
        if np.isfinite(drawn_j):
            self.level_j = min(self.level_j + min(-drawn_j, self._refill_j), self._config.capacity_j)
