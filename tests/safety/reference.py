"""The filter once more, in plain numpy: slow, whole arrays at a time, an array for every step of the arithmetic.

It is what the compiled one is compared with: what both send has to be the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.protocols import RobotGeometry, Setpoint, SetpointLimits, VelocityEnvelope
from robot_stack.safety.filter import RATE_TOLERANCE, HeldBack, Rates
from robot_stack.safety.passivity import EnergyTank

FloatVector = NDArray[np.float64]

_LONG_TICKS = 10


class ReferenceStop:
    """The stop of stopping.py, all axes and ticks at once."""

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


class ReferenceCeiling:
    """The velocity envelope per tick."""

    def __init__(self, envelope: VelocityEnvelope, max_acceleration: FloatVector, tick_s: float) -> None:
        self._lower = np.asarray(envelope.lower, dtype=np.float64)
        self._upper = np.asarray(envelope.upper, dtype=np.float64)
        deceleration = np.asarray(envelope.deceleration, dtype=np.float64)
        self._none = np.isinf(deceleration)
        self._twice = 2.0 * tick_s**2 * np.where(self._none, 0.0, np.minimum(deceleration, max_acceleration))
        self._offset = np.asarray(envelope.offset, dtype=np.float64) * tick_s

    def at(self, positions: FloatVector) -> tuple[FloatVector, FloatVector]:
        """Largest steps (..., S) towards the lower and towards the upper limits, both positive, at (..., S)."""
        return self._side(positions - self._lower), self._side(self._upper - positions)

    def _side(self, room: FloatVector) -> FloatVector:
        with np.errstate(invalid="ignore"):
            highest = np.maximum(np.sqrt(self._twice * np.maximum(room, 0.0)) - self._offset, 0.0)
        highest[..., self._none] = np.inf
        return highest


@dataclass(frozen=True, slots=True)
class _Plan:
    """Setpoints (n, S) from the next tick to rest, and their steps (n, S)."""

    positions: FloatVector
    steps: FloatVector

    @property
    def rest(self) -> FloatVector:
        return self.positions[-1]

    def later(self) -> _Plan:
        """What is left of it after one tick; at its end it stays at rest."""
        if len(self.positions) == 1:
            return _Plan(self.positions, np.zeros_like(self.steps))
        return _Plan(self.positions[1:], self.steps[1:])

    def lasting(self, rows: int) -> _Plan:
        missing = rows - len(self.positions)
        if missing <= 0:
            return self
        rest = np.broadcast_to(self.rest, (missing, len(self.rest)))
        return _Plan(np.concatenate([self.positions, rest]), np.concatenate([self.steps, np.zeros_like(rest)]))


class ReferenceFilter:
    """`SafetyFilter`, one plan of new arrays per tick."""

    def __init__(
        self, limits: SetpointLimits, tick_s: float, geometry: RobotGeometry | None = None, lever_m: float = 1.0
    ) -> None:
        self._lower = np.asarray(limits.lower, dtype=np.float64)
        self._upper = np.asarray(limits.upper, dtype=np.float64)
        self.rates = Rates.of(limits, tick_s)
        self._stop = ReferenceStop(self.rates.change, self.rates.jerk)
        self._slack = RATE_TOLERANCE * self.rates.jerk
        self._most_step = self.rates.step + self._slack
        acceleration = np.asarray(limits.max_acceleration, dtype=np.float64)
        self.ceiling = ReferenceCeiling(limits.envelope, acceleration, tick_s) if limits.envelope else None
        self._guard = ReferenceRule(geometry, self.rates.change, lever_m) if geometry is not None else None
        self._free = bool(self.rates.unlimited.all()) and geometry is None
        self.held_back = HeldBack.NOTHING
        self.start(np.zeros_like(self._lower))

    @property
    def setpoint(self) -> Setpoint:
        """The last setpoint sent (S,)."""
        return self._setpoint.copy()

    @property
    def step(self) -> FloatVector:
        """The last difference of setpoints (S,)."""
        return self._step

    @property
    def moving(self) -> bool:
        return bool(self._step.any())

    def start(self, measured: Setpoint) -> None:
        self._rest_at(np.clip(measured, self._lower, self._upper))
        if self._guard is not None:
            self._guard.start(self._setpoint)

    def stop(self) -> Setpoint:
        """The next setpoint of the verified stop."""
        self.held_back = HeldBack.NOTHING
        return self._send(self._plan)

    def toward(self, candidate: Setpoint, tank: EnergyTank | None = None, effort: Setpoint | None = None) -> Setpoint:
        """The candidate (S,) for the next tick as far as it is safe, else the verified stop; `held_back` says why.

        With a tank and the effort (S,) of the environment on the robot, what it may put into its contact is limited.
        """
        self.held_back = HeldBack.NOTHING
        if not self.moving and (candidate == self._setpoint).all():
            return self._send(self._plan)
        candidate = self._within_rates(candidate)
        if self._free:
            position = np.clip(candidate, self._lower, self._upper)[np.newaxis]
            return self._send(_Plan(position, position - self._setpoint))
        plan = self._verified(candidate)
        if plan is self._plan:
            return self._send(plan)
        if tank is not None and effort is not None and not tank.affords(effort, plan.steps):
            self.held_back = HeldBack.ENERGY
            return self._send(self._plan)
        if self._guard is not None and not self._guard.allows(plan):
            self.held_back = self._guard.broken
            return self._send(self._plan)
        return self._send(plan)

    def _rest_at(self, position: FloatVector) -> None:
        self._setpoint = position.astype(np.float64)
        self._step = np.zeros_like(self._setpoint)
        self._change = np.zeros_like(self._setpoint)
        self._plan = _Plan(self._setpoint[np.newaxis], self._step[np.newaxis])
        self.held_back = HeldBack.NOTHING

    def _send(self, plan: _Plan) -> Setpoint:
        self._setpoint = plan.positions[0]
        self._change = plan.steps[0] - self._step
        self._step = plan.steps[0]
        self._plan = plan.later()
        return self._setpoint.copy()

    def _within_rates(self, candidate: Setpoint) -> FloatVector:
        """The candidate cut to velocity, acceleration and jerk; the plan's setpoint where it is not a number."""
        rates, step, change = self.rates, self._step, self._change
        finite = np.isfinite(candidate)
        if not finite.all():
            self.held_back = HeldBack.NOT_FINITE
            candidate = np.where(finite, candidate, self._plan.positions[0])
        least = np.maximum(np.maximum(change - rates.jerk, -rates.change), -rates.step - step)
        most = np.minimum(np.minimum(change + rates.jerk, rates.change), rates.step - step)
        ahead = self._setpoint + step
        wanted = candidate - ahead
        allowed = np.minimum(np.maximum(wanted, least), most)
        kept = np.abs(wanted - allowed) <= self._slack
        return np.where(kept, candidate, ahead + allowed)

    def _verified(self, candidate: FloatVector) -> _Plan:
        """The candidate and its stop, where they keep the rules of their axis; the present plan on the other axes."""
        step = candidate - self._setpoint
        steps = np.concatenate([step[np.newaxis], self._stop.steps(step, step - self._step)])
        positions = steps.cumsum(axis=0)
        positions += self._setpoint
        positions[0] = candidate
        kept = np.minimum(np.maximum(positions, self._lower), self._upper)
        inside = (np.abs(positions - kept) <= self._slack).all(axis=0)
        positions = kept
        slow = (np.abs(steps) <= self._most_step).all(axis=0)
        if self.ceiling is not None:
            down, up = self.ceiling.at(positions)
            slow &= ((steps <= up + self._slack) & (steps >= -down - self._slack)).all(axis=0)
        passed = inside & slow
        if passed.all():
            return _Plan(positions, steps)
        self.held_back = HeldBack.POSITION if inside[~passed].sum() == 0 else HeldBack.VELOCITY
        if not passed.any():
            return self._plan
        rows = max(len(positions), len(self._plan.positions))
        new, old = _Plan(positions, steps).lasting(rows), self._plan.lasting(rows)
        return _Plan(np.where(passed, new.positions, old.positions), np.where(passed, new.steps, old.steps))


class ReferenceRule:
    """The box and the self-distance at poses of a plan."""

    def __init__(self, geometry: RobotGeometry, most_change: FloatVector, lever_m: float) -> None:
        self._geometry = geometry
        self._most_change = most_change
        self._lever_m = lever_m
        self.broken = HeldBack.NOTHING

    def start(self, position: FloatVector) -> None:
        clearance = self._geometry.look(position)
        self._rest = position
        self._accept(self._outside(clearance.points_m), clearance.self_distance_m)

    def _accept(self, outside_m: FloatVector, self_distance_m: float) -> None:
        self._excess_m = np.maximum(outside_m, 0.0)
        self._least_m = min(self._geometry.min_self_distance_m, self_distance_m)
        apart = self._least_m >= self._geometry.min_self_distance_m
        self._violated = not apart or bool(self._excess_m.any())

    def _outside(self, points_m: FloatVector) -> FloatVector:
        """How far points are outside the box (P, 3); negative inside."""
        return np.maximum(self._geometry.box_lower_m - points_m, points_m - self._geometry.box_upper_m)

    def allows(self, plan: _Plan) -> bool:
        """Whether a plan may be taken; if so its end is the new pose of rest."""
        rest = plan.positions[-1]
        if (rest == self._rest).all():
            return True
        rows = len(plan.positions)
        way = np.abs(plan.steps).sum(axis=0)
        clearance = self._geometry.look(rest)
        outside_m, distance_m = self._outside(clearance.points_m), clearance.self_distance_m
        if not self._free(outside_m, distance_m, self._margin_m(way, rows, 1)):
            if rows <= _LONG_TICKS or self._violated:
                return False
            # with a look at the middle of a long stop less margin is needed
            margin_m = self._margin_m(way, 0.5 * rows, 2)
            if not self._free(outside_m, distance_m, margin_m):
                return False
            middle = self._geometry.look(plan.positions[rows // 2 - 1])
            if not self._free(self._outside(middle.points_m), middle.self_distance_m, margin_m):
                return False
        self._rest = rest
        self._accept(outside_m, distance_m)
        return True

    def _margin_m(self, way: FloatVector, ticks: float, looks: int) -> float:
        stray = np.minimum(self._most_change * (ticks * ticks / 8.0), 0.5 * way).sum()
        return 0.0 if self._violated else self._lever_m * float(stray + (way.sum() / looks) ** 2 / 8.0)

    def _free(self, outside_m: FloatVector, self_distance_m: float, margin_m: float) -> bool:
        if not (outside_m + margin_m <= self._excess_m).all():
            self.broken = HeldBack.WORKSPACE
            return False
        self.broken = HeldBack.SELF_COLLISION
        return self_distance_m - margin_m >= self._least_m


def reference_aim(
    goal: FloatVector,
    before: FloatVector,
    position: FloatVector,
    times_s: tuple[float, float],
    share: float,
    acceleration: FloatVector,
    ease_s: FloatVector,
) -> FloatVector:
    """The target (2, S): position and velocity."""
    mean, flow = (goal - position) / times_s[0], (goal - before) / times_s[1]
    speed = share * np.minimum(np.abs(mean), np.abs(flow)) * (np.sign(mean) == np.sign(flow))
    away = np.sign(mean) * speed * 0.5 * (speed / acceleration + ease_s)
    velocity = np.where(np.abs(away) < np.abs(goal - position), np.sign(mean) * speed, 0.0)
    return np.stack([goal - np.where(velocity != 0.0, away, 0.0), velocity])


def reference_speeds(
    state: FloatVector, ahead_s: float, ceiling: ReferenceCeiling | None, share: float, most: FloatVector
) -> FloatVector:
    """The lowest and the highest speed (2, S)."""
    down, up = most, most
    if ceiling is not None:
        down, up = (
            np.maximum(np.minimum(share * highest, most), 0.01 * most)
            for highest in ceiling.at(state[0] + state[1] * ahead_s)
        )
    return np.stack([-down, up])
