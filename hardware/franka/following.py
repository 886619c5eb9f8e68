"""Does the arm follow its targets? The standard messages carry no error flags, so a stopped arm shows only like this.

After a reflex, a user stop or a lost controller the joint states go on while targets are no longer followed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.config import FrankaRos2Config
from robot_stack.core.clock import s_to_ns

FloatVector = NDArray[np.float64]

# Impedance lags behind a moving target: so much is no fault.
_LAG_S = 0.1
# Below it a joint stands still.
_STILL_RAD_S = 0.01
# Contact above it may hold the arm; then a target that is not reached is no fault.
_FREE_FORCE_N = 5.0
_FREE_MOMENT_NM = 1.5
_TARGET_LIFETIME_S = 0.2


class FollowingWatch:
    """Faults, in words: a joint is too far from its target, or stands still before it in free air, for too long."""

    def __init__(self, robot: str, config: FrankaRos2Config) -> None:
        self._robot = robot
        self._config = config
        self._target: FloatVector | None = None
        self._target_ns = 0
        self._since_ns: int | None = None

    def target(self, joints_rad: FloatVector, now_ns: int) -> None:
        self._target, self._target_ns = joints_rad, now_ns

    def forget(self) -> None:
        self._target, self._since_ns = None, None

    def check(self, joints_rad: FloatVector, velocities_rad_s: FloatVector, wrench: FloatVector, now_ns: int) -> str:
        """'' while the arm follows, or nothing is asked of it."""
        if self._target is None or now_ns - self._target_ns > s_to_ns(_TARGET_LIFETIME_S):
            self._since_ns = None
            return ""
        error = np.abs(joints_rad - self._target)
        speed = np.abs(velocities_rad_s)
        free = np.abs(wrench[:3]).max() < _FREE_FORCE_N and np.abs(wrench[3:]).max() < _FREE_MOMENT_NM
        far = error > self._config.following_error_rad + _LAG_S * speed
        stuck = (error > self._config.standstill_error_rad) & (speed < _STILL_RAD_S) & free
        bad = far | stuck
        if not bad.any():
            self._since_ns = None
            return ""
        if self._since_ns is None:
            self._since_ns = now_ns
        if now_ns - self._since_ns < s_to_ns(self._config.following_time_s):
            return ""
        axis = int(np.argmax(np.where(bad, error, 0.0)))
        return (
            f"{self._robot}: {limits.JOINT_NAMES[axis]} does not follow: it is {error[axis]:.3f} rad from its target "
            f"(allowed {self._config.following_error_rad:g}, or {self._config.standstill_error_rad:g} at rest in free "
            f"air) and moves at {velocities_rad_s[axis]:.3f} rad/s; a reflex, the user stop or the controller? Look at "
            "the robot, recover it, then clear the fault"
        )
