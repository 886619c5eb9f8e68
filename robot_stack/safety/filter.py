"""The last line before the driver: a filter of fail-safe trajectories.

Pure: state in, setpoint out; no clock, no I/O, the same inputs give the same bits. At every tick it holds a *plan*: the
setpoints of a stop that was verified one tick ago. A candidate setpoint is taken only if it, followed by a stop of its
own, keeps every rule; then that stop is the new plan. Otherwise the plan's next setpoint is sent. So a safe way to rest
is always in hand, whatever comes in (K. P. Wabersich, M. N. Zeilinger, "Predictive safety filter", Automatica 2021;
M. Althoff et al., fail-safe trajectories, T-RO 2019).

Rules for each axis alone (one axis may follow its plan while the others move on):
    finite      a candidate that is not a number is no candidate
    rates       velocity, acceleration and jerk, as finite differences of what is sent: a candidate is cut to them
    position    of the candidate and of its whole stop
    velocity    within the rates' limit and the position-dependent envelope, along the whole stop
Rules for all axes together (all follow their plans):
    workspace       guarded points stay in the box
    self collision  distances between parts stay above the minimum
    energy          what the motion puts into a contact stays within the tank (passivity.py), where there is one
    The first two are checked at the pose of rest and, where a long stop ends near a limit, in its middle. A robot that
    starts outside may only move so that nothing gets worse.

Tolerances: positions hold exactly; rates to 1e-5 of each limit, and to the rounding of positions.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import RobotError
from robot_stack.core.protocols import RobotGeometry, Setpoint, SetpointLimits, VelocityEnvelope
from robot_stack.safety.passivity import EnergyTank
from robot_stack.safety.stopping import StopProfile

FloatVector = NDArray[np.float64]

RATE_TOLERANCE = 1e-6

# A stop that takes longer may be looked at in its middle, too.
_LONG_TICKS = 10


class HeldBack(enum.Enum):
    """Which rule the filter is enforcing right now."""

    NOTHING = ""
    NOT_FINITE = "not_finite"
    POSITION = "position"
    VELOCITY = "velocity"
    WORKSPACE = "workspace"
    SELF_COLLISION = "self_collision"
    ENERGY = "energy"


@dataclass(frozen=True, slots=True)
class Rates:
    """Limits per tick (S,), all finite: `step` of the setpoint, `change` of the step, `jerk` of the change.

    Where a robot has no limit, the value is what its position range allows anyway.
    """

    step: FloatVector
    change: FloatVector
    jerk: FloatVector
    unlimited: NDArray[np.bool_]

    @classmethod
    def of(cls, limits: SetpointLimits, tick_s: float) -> Rates:
        span = np.asarray(limits.upper, dtype=np.float64) - np.asarray(limits.lower, dtype=np.float64)
        range_ = np.where(np.isfinite(span), np.maximum(span, 1e-9), 1e9)
        velocity, acceleration = np.asarray(limits.max_velocity), np.asarray(limits.max_acceleration)
        step = np.minimum(velocity * tick_s, range_)
        change = np.minimum(acceleration * tick_s**2, 2.0 * step)
        jerk = np.asarray(limits.max_jerk or (np.inf,) * len(limits.names))
        return cls(
            step, change, np.minimum(jerk * tick_s**3, 2.0 * change), np.isinf(velocity) & np.isinf(acceleration)
        )


class SpeedCeiling:
    """The velocity envelope per tick, made consistent with what the robot may brake.

    Braking along the envelope needs at most its deceleration; where that exceeds the limit of the acceleration, the
    smaller one is taken, so a speed that is allowed here can always be brought down in time.
    """

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


class SafetyFilter:
    """Setpoints (S,) in the units of `limits`, one per tick, of a robot that starts at rest.

    Args:
        limits: position limits may be infinite, and so may the rates.
        tick_s: time between two setpoints.
        geometry: the box and self-collision, or None for neither.
        lever_m: no point of the robot moves by more than this for 1 rad (or m) of one axis.
    """

    def __init__(
        self, limits: SetpointLimits, tick_s: float, geometry: RobotGeometry | None = None, lever_m: float = 1.0
    ) -> None:
        self._names = limits.names
        self._lower = np.asarray(limits.lower, dtype=np.float64)
        self._upper = np.asarray(limits.upper, dtype=np.float64)
        self.rates = Rates.of(limits, tick_s)
        self._stop = StopProfile(self.rates.change, self.rates.jerk)
        self._slack = RATE_TOLERANCE * self.rates.jerk
        self._most_step = self.rates.step + self._slack
        acceleration = np.asarray(limits.max_acceleration, dtype=np.float64)
        self.ceiling = SpeedCeiling(limits.envelope, acceleration, tick_s) if limits.envelope else None
        self._guard = _GeometryRule(geometry, self.rates.change, lever_m) if geometry is not None else None
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
    def change(self) -> FloatVector:
        """The last difference of steps (S,)."""
        return self._change

    @property
    def moving(self) -> bool:
        return bool(self._step.any())

    def start(self, measured: Setpoint) -> None:
        """Begin at rest where the robot is, so that the first setpoint equals the measured state.

        A measured position outside the limits is taken as the nearest inside. RobotError if one is not finite.
        """
        if not np.isfinite(measured).all():
            bad = [name for name, value in zip(self._names, measured, strict=True) if not np.isfinite(value)]
            raise RobotError(f"measured position is not finite: {', '.join(bad)}; check the robot's sensors")
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


class _GeometryRule:
    """The box and the self-distance at poses of a plan, against what the last verified pose of rest had.

    Between two poses that are looked at, m ticks apart, an axis strays from the straight line by at most change m^2 / 8
    and by no more than half its way; and a point of an arm that turns by s bows out by lever s^2 / 8. Both are kept
    free as a margin, which vanishes as the robot comes to rest. Of a robot that is outside, the pose of rest alone is
    looked at: it must not be further outside than the last one.
    """

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
