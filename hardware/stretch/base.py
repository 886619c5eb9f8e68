"""The mobile base as two virtual joints: distance driven along the heading, and heading turned.

A differential drive cannot be told a pose, so the base's axes of a setpoint are followed by velocity.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import RobotError

FloatVector = NDArray[np.float64]

MAX_ERROR = np.array([0.15, 0.5])
"""m, rad: a base that is further from its setpoint is stuck, or somebody else drives it."""

_JUMP_M = 0.005
_JUMP_RAD = 0.02
_SLACK = 1.5


class BaseAxes:
    """The virtual joints from odometry: what was driven and turned since the first sample, m and rad.

    A chord between two samples counts along their mean heading. Odometry that moved on by more than its own speeds
    explain (5 mm, 0.02 rad, half as much again) was restarted: nothing was driven, so the axes stay as they are and a
    setpoint from before keeps its meaning.
    """

    def __init__(self) -> None:
        self.axes = np.zeros(2)
        self.pose = np.zeros(3)
        self.velocity = np.zeros(2)
        self._time_s: float | None = None

    def update(self, pose: FloatVector, velocity: FloatVector, time_s: float) -> None:
        """`pose`: (3,), x, y, heading. `velocity`: (2,), forward and turn. `time_s`: of the odometry's own clock."""
        moved = pose - self.pose
        turned_rad = math.remainder(moved[2], 2 * math.pi)
        if self._time_s is not None:
            reach = _SLACK * np.maximum(np.abs(velocity), np.abs(self.velocity)) * max(time_s - self._time_s, 0.0)
            jumped = math.hypot(moved[0], moved[1]) > reach[0] + _JUMP_M or abs(turned_rad) > reach[1] + _JUMP_RAD
            heading_rad = self.pose[2] + turned_rad / 2
            driven_m = moved[0] * math.cos(heading_rad) + moved[1] * math.sin(heading_rad)
            if not jumped:
                self.axes = self.axes + np.array([driven_m, turned_rad])
        self.pose, self.velocity, self._time_s = pose, velocity, time_s


class BaseFollower:
    """Velocity (m/s, rad/s) that makes the base follow its axes of the setpoint.

    velocity = change of the setpoint per period + gain * (setpoint - measured), clamped to the largest velocity.
    """

    def __init__(self, gain_hz: float, period_s: float, max_velocity: FloatVector) -> None:
        self._gain_hz = gain_hz
        self._period_s = period_s
        self._max_velocity = max_velocity
        self._last: FloatVector | None = None

    def forget(self) -> None:
        """The next setpoint is the first: it has no rate of change."""
        self._last = None

    def velocity(self, setpoint: FloatVector, measured: FloatVector) -> tuple[float, float]:
        """`setpoint`, `measured`: (2,), the base's axes."""
        change = np.zeros(2) if self._last is None else setpoint - self._last
        self._last = setpoint.copy()
        wanted = change / self._period_s + self._gain_hz * (setpoint - measured)
        forward, turn = np.clip(wanted, -self._max_velocity, self._max_velocity).tolist()
        return forward, turn


def check_base_follows(robot: str, setpoint: FloatVector, measured: FloatVector) -> None:
    """RobotError if the base's axes (2,) are further from their setpoint than `MAX_ERROR`."""
    error = np.abs(setpoint - measured)
    if (error > MAX_ERROR).any():
        raise RobotError(
            f"{robot}: the base is {error[0]:.2f} m and {error[1]:.2f} rad from its setpoint (allowed: "
            f"{MAX_ERROR[0]} m, {MAX_ERROR[1]} rad); is it blocked, or does somebody else drive it?"
        )
