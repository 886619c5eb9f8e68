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
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatVector = NDArray[np.float64]


class StopProfile:
    """Stops of axes whose change (S,) per tick is at most `change`, and the difference of two changes at most `jerk`;
    both finite and positive, `jerk` at most 2 * `change`."""

    def __init__(self, change: FloatVector, jerk: FloatVector) -> None:
        self._jerk = jerk
        self._most = change / jerk
        self._back = np.ceil(self._most)
        self._back_sum = 0.5 * self._back * (self._back - 1.0)

    def steps(self, step: FloatVector, change: FloatVector) -> FloatVector:
        """The steps (n, S) of the stop from (step, change); the last row, and every row of an axis at rest, is zero."""
        # in units of the jerk, and mirrored so that the speed to take away is positive
        speed, ratio = step / self._jerk, change / self._jerk
        sign = _braked_side(speed, ratio)
        speed *= sign
        ratio *= sign
        length, shortest = self._length(speed, ratio)
        rows = np.arange(1.0, max(float(length.max()), 1.0) + 1.0)[:, np.newaxis]
        falling = np.maximum(ratio - rows, -self._most)
        to_go = length - rows
        hard = np.maximum(falling, np.minimum(-to_go, 0.0))
        soft = np.maximum(falling, np.minimum(1.0 - to_go, 0.0))
        if (length == shortest).any():
            let_go = np.copysign(np.maximum(np.abs(ratio) - rows, 0.0), ratio)
            soft = np.where(length == shortest, let_go, soft)
        soft_sum = soft.sum(axis=0)
        span = soft_sum - hard.sum(axis=0)
        share = (speed + soft_sum) / np.where(span > 0.0, span, np.inf)
        hard -= soft
        hard *= share
        hard += soft
        steps = hard.cumsum(axis=0)
        steps += speed
        steps *= to_go > 1.0  # the last change is zero: no dust of rounding before it
        steps *= sign * self._jerk
        return steps

    def _length(self, speed: FloatVector, ratio: FloatVector) -> tuple[FloatVector, FloatVector]:
        """Ticks (S,) that the stop takes, and that letting go of the acceleration takes at least; whole numbers."""
        # without a hold B is a triangle; its sum is at most 1 / 4 * (2 ratio n - n^2 + (ratio - 1)^2)
        triangle = np.ceil(ratio + np.sqrt(np.maximum(2.0 * ratio * (ratio - 1.0) + 4.0 * speed + 1.0, 0.0))) - 1.0
        # that bound may ask for a tick too many: the sum itself, for one less
        down = np.rint(0.5 * (triangle + ratio - 1.0))
        back = triangle - down
        triangle += speed + down * ratio - 0.5 * (down * (down + 1.0) + back * (back - 1.0)) > 0.0
        # with a hold: `down` ticks before it and `back` after it are not at the limit
        down = np.maximum(np.ceil(ratio + self._most) - 1.0, 0.0)
        left = speed + down * (ratio - 0.5 * (down + 1.0)) - self._back_sum
        ticks = down + self._back
        held = ticks + np.ceil(left / self._most)
        ticks = np.where(left > 0.0, held, np.minimum(triangle, ticks))
        shortest = np.ceil(np.abs(ratio))
        return np.maximum(ticks, shortest), shortest


def _braked_side(speed: FloatVector, ratio: FloatVector) -> FloatVector:
    """Sign (S,) of the speed that is left when the acceleration has been let go; all in units of the jerk."""
    magnitude = np.abs(ratio)
    ticks = np.floor(magnitude)
    return np.copysign(1.0, speed + np.copysign(ticks * (magnitude - 0.5 * (ticks + 1.0)), ratio))
