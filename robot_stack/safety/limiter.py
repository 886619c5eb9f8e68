"""The setpoint filter: whatever goal comes in, what goes out never leaves position, velocity or acceleration limits.

Pure: state is the last setpoint and its velocity; no clock, no I/O. It interpolates linearly to the goal over the
time that is left for it, and every tick is clamped so that the limits hold and the robot could still stop inside
its position limits on the next tick.
"""

from __future__ import annotations

import numpy as np

from robot_stack.core.protocols import Setpoint, SetpointLimits


class SetpointLimiter:
    """Turns goals into setpoints, one per tick, for a vector of S independent axes in the units of `limits`."""

    def __init__(self, limits: SetpointLimits, tick_s: float) -> None:
        self._tick_s = tick_s
        self._lower = np.asarray(limits.lower, dtype=np.float64)
        self._upper = np.asarray(limits.upper, dtype=np.float64)
        self._max_velocity = np.asarray(limits.max_velocity, dtype=np.float64)
        self._max_acceleration = np.asarray(limits.max_acceleration, dtype=np.float64)
        self._finite = np.isfinite(self._max_acceleration)
        self._acceleration = np.where(self._finite, self._max_acceleration, 1.0)
        self._setpoint = np.clip(np.zeros_like(self._lower), self._lower, self._upper)
        self._velocity = np.zeros_like(self._lower)

    @property
    def setpoint(self) -> Setpoint:
        return self._setpoint.copy()

    @property
    def moving(self) -> bool:
        return bool(np.any(self._velocity != 0.0))

    def start(self, measured: Setpoint) -> None:
        """Begin at rest where the robot is, so that the first command equals the measured state.

        A measured position slightly outside the limits is taken as the nearest position inside.
        """
        self._setpoint = np.clip(measured, self._lower, self._upper)
        self._velocity = np.zeros_like(self._setpoint)

    def toward(self, goal: Setpoint, remaining_s: float) -> Setpoint:
        """The next setpoint on a straight line that reaches `goal` in `remaining_s`, within all limits."""
        goal = np.clip(goal, self._lower, self._upper)
        error = goal - self._setpoint
        velocity = error / max(remaining_s, self._tick_s)
        if remaining_s <= self._tick_s:
            # The goal's time is over and no newer goal came: come to rest on it instead of swinging around it.
            brake = self._stoppable_velocity(np.abs(error))
            velocity = np.clip(velocity, -brake, brake)
        return self._move(velocity)

    def stop(self) -> Setpoint:
        """The next setpoint of the fastest allowed ramp to rest."""
        return self._move(np.zeros_like(self._velocity))

    def _move(self, velocity: Setpoint) -> Setpoint:
        dt = self._tick_s
        velocity = np.clip(velocity, -self._max_velocity, self._max_velocity)
        change = np.where(self._finite, self._acceleration * dt, np.inf)
        velocity = np.clip(velocity, self._velocity - change, self._velocity + change)
        velocity = np.minimum(velocity, self._stoppable_velocity(self._upper - self._setpoint))
        velocity = np.maximum(velocity, -self._stoppable_velocity(self._setpoint - self._lower))
        setpoint = np.clip(self._setpoint + velocity * dt, self._lower, self._upper)
        self._velocity = velocity
        self._setpoint = setpoint
        return setpoint.copy()

    def _stoppable_velocity(self, room: Setpoint) -> Setpoint:
        """Largest v with v*dt + v^2/(2a) <= room: after one more tick at v it can still brake inside the room."""
        dt, acceleration = self._tick_s, self._acceleration
        room = np.maximum(room, 0.0)
        braking = acceleration * (np.sqrt(dt * dt + 2.0 * room / acceleration) - dt)
        return np.where(self._finite, braking, room / dt)
