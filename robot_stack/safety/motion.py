"""Everything between a goal and a setpoint in one object: interpolation, energy tank, safety filter."""

from __future__ import annotations

import numpy as np

from robot_stack.core.protocols import RobotGeometry, Setpoint, SetpointLimits
from robot_stack.safety.filter import HeldBack, SafetyFilter
from robot_stack.safety.interpolation import Interpolator
from robot_stack.safety.passivity import EnergyTank, EnergyTankConfig


class MotionFilter:
    """Turns goals into setpoints, one per tick, for a vector of S axes in the units of `limits`.

    Whatever goals come in, setpoints keep the rules of `SafetyFilter`. Pure: no clock, no I/O.

    Args:
        limits: of the robot as it is now.
        tick_s: time between two setpoints.
        geometry: for the workspace box and self-collision; None checks neither.
        tank: for contact tasks; None lets the robot do any work on its environment.
    """

    def __init__(
        self,
        limits: SetpointLimits,
        tick_s: float,
        geometry: RobotGeometry | None = None,
        tank: EnergyTankConfig | None = None,
    ) -> None:
        self._filter = SafetyFilter(limits, tick_s, geometry)
        self._interpolator = Interpolator(limits, tick_s, self._filter.ceiling)
        self.tank = EnergyTank(tank, tick_s) if tank is not None else None
        self._pace = 1.0
        self.start(self._filter.setpoint)

    @property
    def setpoint(self) -> Setpoint:
        return self._filter.setpoint

    @property
    def moving(self) -> bool:
        """The last setpoint differs from the one before it."""
        return self._filter.moving

    @property
    def held_back(self) -> HeldBack:
        """What the last setpoint was held back by."""
        cause = self._filter.held_back
        return HeldBack.ENERGY if cause is HeldBack.NOTHING and self._pace < 1.0 else cause

    def start(self, measured: Setpoint) -> None:
        """Begin at rest where the robot is, so that the first setpoint equals the measured state.

        A measured position outside the limits is taken as the nearest inside; RobotError if it is not finite. The
        tank is full to its initial level again.
        """
        self._filter.start(measured)
        self._interpolator.start(self._filter.setpoint)
        if self.tank is not None:
            self.tank.start()

    def toward(
        self, goal: Setpoint, remaining_s: float, effort: Setpoint | None = None, *, renewed: bool = False
    ) -> Setpoint:
        """The next setpoint towards `goal` (S,), which is due in `remaining_s`. `effort` (S,): what the environment
        does to the robot, N m or N; only a tank needs it. `renewed`: see `Interpolator.toward`."""
        tank = self.tank if effort is not None else None
        self._pace = tank.pace if tank is not None else 1.0
        candidate = None
        if np.isfinite(goal).all():
            candidate = self._interpolator.toward(goal, remaining_s, self._pace, renewed=renewed)
        if candidate is None:
            return self.stop(effort)
        setpoint = self._filter.toward(candidate, tank, effort)
        self._interpolator.adopt(self._filter.motion)
        if tank is not None and effort is not None:
            tank.book(effort, self._filter.motion.step)
        return setpoint

    def stop(self, effort: Setpoint | None = None) -> Setpoint:
        """The next setpoint of the fastest allowed ramp to rest."""
        self._pace = 1.0
        setpoint = self._filter.stop()
        self._interpolator.adopt(self._filter.motion)
        if self.tank is not None and effort is not None:
            self.tank.book(effort, self._filter.motion.step)
        return setpoint
