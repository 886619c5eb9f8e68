"""The jerk-limited stop, in closed form, exact for what is sent: one setpoint per tick.

All quantities are differences per tick, so that they are the finite differences that a device sees:
    step    p[k] - p[k-1]           velocity * tick
    change  step[k] - step[k-1]     acceleration * tick^2
    jerk    change[k] - change[k-1] jerk * tick^3

The stop is the velocity-control profile: bring the acceleration to the braking side at full jerk, hold it at its
limit, bring it back to zero. For n ticks and a positive residual speed the hardest such profile is

    B(n)[i] = max(change - i J, -A, -(n - i) J)                        i = 1 .. n

and the softest, which only lets go of the acceleration, R[i] = sign(change) max(|change| - i J, 0). All keep the
limits, all end with zero acceleration, and limits on the changes and their differences are convex: so does every mix.
With the smallest n for which B(n) takes away all of the speed, the mix of B(n) and B(n - 1) (or R, where n - 1 ticks
are too few to let go) that takes away exactly all of it is the stop.

The formulas are in kernels.py (`stop_axis` and what it calls), in units of the jerk, mirrored so that the speed to take
away is positive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_stack.safety import kernels

FloatVector = NDArray[np.float64]


class StopProfile:
    """Stops of axes whose change (S,) per tick is at most `change`, and the difference of two changes at most `jerk`;
    both finite and positive, `jerk` at most 2 * `change`."""

    def __init__(self, change: FloatVector, jerk: FloatVector) -> None:
        self._change = np.array(change, dtype=np.float64)
        self._jerk = np.array(jerk, dtype=np.float64)

    def steps(self, step: FloatVector, change: FloatVector) -> FloatVector:
        """The steps (n, S) of the stop from (step, change); the last row, and every row of an axis at rest, is zero."""
        step, change = np.array(step, dtype=np.float64), np.array(change, dtype=np.float64)
        ticks = np.zeros_like(step)
        steps = np.zeros((1, len(step)))
        needed = int(kernels.write_stops(step, change, self._change, self._jerk, steps, 0, ticks))
        if needed > len(steps):
            steps = np.zeros((needed, len(step)))
            kernels.write_stops(step, change, self._change, self._jerk, steps, 0, ticks)
        return steps
