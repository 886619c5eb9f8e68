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
from robot_stack.safety import kernels
from robot_stack.safety.passivity import EnergyTank

FloatVector = NDArray[np.float64]

RATE_TOLERANCE = 1e-6

# Rows of a plan that there is room for from the beginning, and the most that it may grow to.
_ROOM = 256
_MOST_ROWS = 100_000

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
    """The velocity envelope per tick, made consistent with what the robot may brake; None: there is no envelope.

    Braking along the envelope needs at most its deceleration; where that exceeds the limit of the acceleration, the
    smaller one is taken, so a speed that is allowed here can always be brought down in time.
    """

    def __init__(self, envelope: VelocityEnvelope | None, max_acceleration: FloatVector, tick_s: float) -> None:
        nothing = (0.0,) * len(max_acceleration)
        lower, upper, offset, deceleration = (
            (envelope.lower, envelope.upper, envelope.offset, envelope.deceleration)
            if envelope is not None
            else (nothing, nothing, nothing, (np.inf,) * len(max_acceleration))
        )
        limited = ~np.isinf(deceleration)
        braking = np.where(limited, np.minimum(deceleration, max_acceleration), 0.0)
        self.terms = kernels.Ceiling(
            lower=np.array(lower, dtype=np.float64),
            upper=np.array(upper, dtype=np.float64),
            twice=2.0 * tick_s**2 * braking,
            offset=np.array(offset, dtype=np.float64) * tick_s,
            limited=limited,
        )

    @property
    def exists(self) -> bool:
        return bool(self.terms.limited.any())


class _Plan:
    """Setpoints from the next tick to rest, and their steps: `rows` of them from row `first` of `storage` (2, room, S).

    The storage is made once and written anew; it grows only for a stop that is longer than any before.
    """

    __slots__ = ("first", "rows", "storage")

    def __init__(self, room: int, size: int) -> None:
        self.storage = np.zeros((2, room, size))
        self.first = 0
        self.rows = 1

    @property
    def positions(self) -> FloatVector:
        """(rows, S)"""
        return self.storage[kernels.PLACE, self.first : self.first + self.rows]

    @property
    def steps(self) -> FloatVector:
        """(rows, S)"""
        return self.storage[kernels.STEP, self.first : self.first + self.rows]

    def begin(self, rows: int) -> None:
        self.first, self.rows = 0, rows

    def hold(self, position: FloatVector) -> None:
        """Rest at a position (S,)."""
        self.begin(1)
        self.storage[kernels.PLACE, 0] = position
        self.storage[kernels.STEP, 0] = 0.0

    def drop_first(self) -> None:
        """What is left of it after one tick; at its end it stays at rest."""
        if self.rows > 1:
            self.first, self.rows = self.first + 1, self.rows - 1

    def make_room(self, room: int) -> None:
        grown = np.zeros((2, room, self.storage.shape[2]))
        grown[:, : self.storage.shape[1]] = self.storage
        self.storage = grown


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
        kernels.compile_all()
        self._names = limits.names
        size = len(limits.names)
        self.rates = Rates.of(limits, tick_s)
        self._axes = kernels.Axes(
            lower=np.array(limits.lower, dtype=np.float64),
            upper=np.array(limits.upper, dtype=np.float64),
            step=self.rates.step,
            change=self.rates.change,
            jerk=self.rates.jerk,
            slack=RATE_TOLERANCE * self.rates.jerk,
        )
        acceleration = np.asarray(limits.max_acceleration, dtype=np.float64)
        self.ceiling = SpeedCeiling(limits.envelope, acceleration, tick_s)
        self._guard = _GeometryRule(geometry, self.rates.change, lever_m) if geometry is not None else None
        self._free = bool(self.rates.unlimited.all()) and geometry is None
        self._motion = kernels.Motion(np.zeros(size), np.zeros(size), np.zeros(size))
        self._candidate = np.zeros(size)
        self._scratch = np.zeros((2, size))
        self._plan, self._other = _Plan(_ROOM, size), _Plan(_ROOM, size)
        self.start(np.zeros(size))

    @property
    def setpoint(self) -> Setpoint:
        """The last setpoint sent (S,)."""
        return self._motion.setpoint.copy()

    @property
    def motion(self) -> kernels.Motion:
        """The last setpoint sent with its first and second difference, (S,) each; the next tick writes over them."""
        return self._motion

    @property
    def step(self) -> FloatVector:
        """The last difference of setpoints (S,)."""
        return self._motion.step.copy()

    @property
    def change(self) -> FloatVector:
        """The last difference of steps (S,)."""
        return self._motion.change.copy()

    @property
    def moving(self) -> bool:
        return self._moving

    def start(self, measured: Setpoint) -> None:
        """Begin at rest where the robot is, so that the first setpoint equals the measured state.

        A measured position outside the limits is taken as the nearest inside. RobotError if one is not finite.
        """
        if not np.isfinite(measured).all():
            bad = [name for name, value in zip(self._names, measured, strict=True) if not np.isfinite(value)]
            raise RobotError(f"measured position is not finite: {', '.join(bad)}; check the robot's sensors")
        self._motion.setpoint[:] = np.clip(measured, self._axes.lower, self._axes.upper)
        self._motion.step[:] = self._motion.change[:] = 0.0
        self._plan.hold(self._motion.setpoint)
        self._moving = False
        self.held_back = HeldBack.NOTHING
        if self._guard is not None:
            self._guard.start(self.setpoint)

    def stop(self) -> Setpoint:
        """The next setpoint of the verified stop."""
        self.held_back = HeldBack.NOTHING
        return self._send_next()

    def toward(self, candidate: Setpoint, tank: EnergyTank | None = None, effort: Setpoint | None = None) -> Setpoint:
        """The candidate (S,) for the next tick as far as it is safe, else the verified stop; `held_back` says why.

        With a tank and the effort (S,) of the environment on the robot, what it may put into its contact is limited.
        """
        self.held_back = HeldBack.NOTHING
        wanted = self._candidate
        wanted[:] = candidate
        if not self._moving and kernels.equal(wanted, self._motion.setpoint):
            return self._send_next()
        fallback = self._plan.storage[kernels.PLACE, self._plan.first]
        if not kernels.cut_to_rates(wanted, self._motion, self._axes, fallback):
            self.held_back = HeldBack.NOT_FINITE
        if self._free:
            self._plan.hold(np.clip(wanted, self._axes.lower, self._axes.upper))
            self._plan.storage[kernels.STEP, 0] = self._plan.storage[kernels.PLACE, 0] - self._motion.setpoint
        elif self._verify() and self._allowed(self._other, tank, effort):
            self._plan, self._other = self._other, self._plan
        return self._send_next()

    def _send_next(self) -> Setpoint:
        plan = self._plan
        self._moving = kernels.advance(plan.storage, plan.first, plan.rows, self._motion)
        plan.drop_first()
        return self._motion.setpoint.copy()

    def _verify(self) -> bool:
        """Put the candidate and its stop, where they keep the rules of their axis, and the present plan on the other
        axes into the other plan; False if there is no axis on which they do."""
        plan, other = self._plan, self._other
        needed, rule = self._fill(plan, other)
        if needed > other.storage.shape[1]:
            if needed > _MOST_ROWS:
                self.held_back = HeldBack.VELOCITY
                return False
            for grows in (plan, other):
                grows.make_room(2 * int(needed))
            needed, rule = self._fill(plan, other)
        other.begin(int(needed))
        if rule != kernels.ALL_PASSED:
            self.held_back = HeldBack.POSITION if rule == kernels.POSITION else HeldBack.VELOCITY
        return needed > 0.0

    def _fill(self, plan: _Plan, other: _Plan) -> tuple[float, int]:
        return kernels.verify(
            self._candidate,
            self._motion,
            self._axes,
            self.ceiling.terms,
            plan.storage,
            plan.first,
            plan.rows,
            other.storage,
            self._scratch,
        )

    def _allowed(self, plan: _Plan, tank: EnergyTank | None, effort: Setpoint | None) -> bool:
        """Whether a plan keeps the rules for all axes together."""
        if tank is not None and effort is not None and not tank.affords(effort, plan.steps):
            self.held_back = HeldBack.ENERGY
            return False
        if self._guard is not None and not self._guard.allows(plan):
            self.held_back = self._guard.broken
            return False
        return True


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
        self._rest = np.zeros_like(most_change)
        self._way = np.zeros_like(most_change)
        self.broken = HeldBack.NOTHING

    def start(self, position: FloatVector) -> None:
        geometry = self._geometry
        self._box = np.array(geometry.box_lower_m, dtype=np.float64), np.array(geometry.box_upper_m, dtype=np.float64)
        shape = np.shape(geometry.look(position).points_m)
        self._points_m, self._excess_m = np.zeros(shape), np.zeros(shape)
        self._outside_m, self._middle_m = np.zeros(shape), np.zeros(shape)
        self._accept(position, self._look(position, self._outside_m))

    def _look(self, position: FloatVector, outside_m: FloatVector) -> float:
        """Look at a pose (S,): how far its points are outside the box goes to (P, 3); the self-distance."""
        clearance = self._geometry.look(position)
        self._points_m[:] = clearance.points_m
        kernels.outside_box(self._points_m, *self._box, outside_m)
        return clearance.self_distance_m

    def _accept(self, rest: FloatVector, self_distance_m: float) -> None:
        """Take a pose of rest as the last verified one; its points were looked at last."""
        self._rest[:] = rest
        self._least_m = min(self._geometry.min_self_distance_m, self_distance_m)
        apart = self._least_m >= self._geometry.min_self_distance_m
        self._violated = kernels.take_excess(self._outside_m, self._excess_m) or not apart

    def allows(self, plan: _Plan) -> bool:
        """Whether a plan may be taken; if so its end is the new pose of rest."""
        rows = plan.rows
        rest = plan.positions[-1].copy()
        if kernels.equal(rest, self._rest):
            return True
        kernels.ways(plan.storage, rows, self._way)
        distance_m = self._look(rest, self._outside_m)
        if not self._free(self._outside_m, distance_m, self._margin_m(self._way, rows, 1)):
            if rows <= _LONG_TICKS or self._violated:
                return False
            # with a look at the middle of a long stop less margin is needed
            margin_m = self._margin_m(self._way, 0.5 * rows, 2)
            if not self._free(self._outside_m, distance_m, margin_m):
                return False
            middle_m = self._look(plan.positions[rows // 2 - 1].copy(), self._middle_m)
            if not self._free(self._middle_m, middle_m, margin_m):
                return False
        self._accept(rest, distance_m)
        return True

    def _margin_m(self, way: FloatVector, ticks: float, looks: int) -> float:
        return 0.0 if self._violated else self._lever_m * kernels.margin(way, self._most_change, ticks, looks)

    def _free(self, outside_m: FloatVector, self_distance_m: float, margin_m: float) -> bool:
        if not kernels.within_excess(outside_m, self._excess_m, margin_m):
            self.broken = HeldBack.WORKSPACE
            return False
        self.broken = HeldBack.SELF_COLLISION
        return self_distance_m - margin_m >= self._least_m
