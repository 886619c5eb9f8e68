"""What every stream of setpoints is checked for, from outside: by finite differences of what was sent."""

from __future__ import annotations

import numpy as np

from robot_stack.core.protocols import Setpoint, SetpointLimits

RATE_TOLERANCE = 1e-5


def assert_within_limits(path: list[Setpoint], limits: SetpointLimits, tick_s: float) -> None:
    """`path` begins with the setpoint at which the robot rested."""
    positions = np.array(path)
    assert np.isfinite(positions).all()
    assert (positions >= np.array(limits.lower)).all()
    assert (positions <= np.array(limits.upper)).all()
    rates = positions
    for name, most in (
        ("velocity", limits.max_velocity),
        ("acceleration", limits.max_acceleration),
        ("jerk", limits.max_jerk or (np.inf,) * len(limits.names)),
    ):
        rates = np.diff(rates, axis=0, prepend=positions[:1] if name == "velocity" else 0.0 * rates[:1]) / tick_s
        worst = np.abs(rates).max(axis=0) / np.array(most)
        assert (worst <= 1.0 + RATE_TOLERANCE).all(), f"{name}: {worst} of its limit"
