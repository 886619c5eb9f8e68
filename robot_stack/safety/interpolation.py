"""From the policy's rate to the control rate: jerk-limited trajectories between goals.

A goal (S,) is due after some time. Its trajectory starts at the present state and reaches, at that time, the state from
which the stop ends on the goal at the speed at which goals have been moving. So a stream of goals is followed without
stop and go, and when no newer goal comes the robot comes to rest on the last one without swinging around it. Axes that
cannot be there in time go as fast as they may; the others keep together. A goal that is overdue is approached in the
shortest time.

Trajectories: L. Berscheid, T. Kroeger, "Jerk-limited real-time trajectory generation with arbitrary target states",
RSS 2021 (ruckig). Nothing here protects: that is the safety filter's task, which follows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ruckig import InputParameter, Result, Ruckig, RuckigError, Synchronization, Trajectory

from robot_stack.core.protocols import Setpoint, SetpointLimits
from robot_stack.safety import kernels
from robot_stack.safety.filter import Rates, SpeedCeiling

FloatVector = NDArray[np.float64]

# Part of the limits that trajectories use; the rest is what the filter's own stop has in hand over them.
LIMITS_SHARE = 0.97

# Speed at which a goal is passed, as part of that of the stream of goals. More is smoother, but lags further behind:
# the distance that is left for the stop grows with the square of it.
_FLOW_SHARE = 0.6

# The envelope is looked up this far ahead of the robot.
_CEILING_AHEAD_S = 0.03
_TIME_TOLERANCE_S = 1e-6
_AT_GOAL = 1e-10
_AT_REST = 1e-7


class Interpolator:
    """Candidates (S,) for the safety filter, one per tick.

    Axes without velocity and acceleration limits get the goal itself. `adopt` tells it what the filter made of a
    candidate; the next one starts from there.
    """

    def __init__(self, limits: SetpointLimits, tick_s: float, ceiling: SpeedCeiling | None = None) -> None:
        kernels.compile_all()
        rates = Rates.of(limits, tick_s)
        size = len(limits.names)
        self._tick_s = tick_s
        self._ceiling = ceiling or SpeedCeiling(None, rates.change, tick_s)
        self._lower = np.asarray(limits.lower, dtype=np.float64)
        self._upper = np.asarray(limits.upper, dtype=np.float64)
        self._direct = rates.unlimited
        self._every = ~self._direct
        self._follows = not self._direct.all()
        self._all_follow = not self._direct.any()
        self._max_velocity = LIMITS_SHARE * rates.step / tick_s
        acceleration = LIMITS_SHARE * rates.change / tick_s**2
        jerk = LIMITS_SHARE * np.asarray(limits.max_jerk or (np.inf,) * size, dtype=np.float64)
        self._acceleration = np.maximum(acceleration, 1e-9)
        self._ease_s = np.where(np.isfinite(jerk), self._acceleration / jerk, 0.0)
        speeds = np.stack([-self._max_velocity, self._max_velocity])
        self._planner = _Planner(size, speeds, acceleration, jerk)
        self._together, self._alone = Trajectory(size), Trajectory(size)
        self._state, self._next = np.zeros((3, size)), np.zeros((3, size))
        self._target, self._aimed, self._speeds = np.zeros((2, size)), np.zeros((2, size)), np.zeros((2, size))
        self._late, self._in_time = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
        self._goal = np.zeros(size)
        self.start(np.zeros(size))

    def start(self, position: Setpoint) -> None:
        """Begin at rest at a position (S,), with no goal."""
        self._state[:] = 0.0
        self._state[0] = position
        self._next[:] = self._state
        self._goal[:] = position
        self._target[:] = self._state[:2]
        self._candidate = np.array(position, dtype=np.float64)
        self._remaining_s = 0.0
        self._settled = False
        self._first = True
        self._new = True

    def toward(
        self, goal: Setpoint, remaining_s: float, pace: float = 1.0, *, renewed: bool = False
    ) -> Setpoint | None:
        """The candidate for the next tick on the way to a finite `goal` (S,) that is due in `remaining_s`.

        `pace` below 1 goes along the same path more slowly. `renewed`: the goal was asked for since the last tick; it
        may be the same as before, and then goals stand still. None if there is no trajectory.
        """
        goal = np.minimum(np.maximum(goal, self._lower), self._upper)
        if not self._follows:
            self._candidate = goal
            return goal
        if renewed or remaining_s > self._remaining_s or not kernels.equal(goal, self._goal):
            self._aim(goal, remaining_s)
        elif self._remaining_s > _TIME_TOLERANCE_S >= remaining_s:
            self._target[0], self._target[1] = goal, 0.0
            self._new = True
        self._remaining_s = remaining_s
        if self._settled and not self._new:
            return self._candidate
        if (self._new or self._ceiling.exists) and not self._plan(max(remaining_s, 0.0)):
            return None
        self._new = False
        self._time_s += pace * self._tick_s
        self._sample(goal, pace)
        return self._candidate

    def _sample(self, goal: FloatVector, pace: float) -> None:
        """The state on the trajectories now. What is as good as at rest on its goal is put there, to stay."""
        state = self._next
        state[:] = (self._together if self._some_in_time else self._alone).at_time(self._time_s)
        if self._some_in_time and self._some_late:
            np.copyto(state, self._alone.at_time(self._time_s), where=self._late)
        if pace < 1.0:
            state[1] *= pace
            state[2] *= pace * pace
        ended = self._time_s >= self._ends_s or not self._all_follow
        self._settled = ended and kernels.settle(state, goal, self._direct, _AT_GOAL, _AT_REST)
        self._candidate = state[0].copy()

    def adopt(self, motion: kernels.Motion) -> None:
        """Take over what was sent: the setpoint and its differences per tick."""
        if not self._follows:
            return
        if kernels.equal(motion.setpoint, self._candidate):
            self._state[:] = self._next
            return
        kernels.adopt(motion, self._tick_s, self._state)
        self._new = True

    def _aim(self, goal: FloatVector, remaining_s: float) -> None:
        """Choose the state to reach when a new goal is due."""
        tick_s = self._tick_s
        times_s = max(remaining_s, tick_s), max(remaining_s - (self._remaining_s - tick_s), tick_s)
        share = 0.0 if self._first else _FLOW_SHARE  # one goal is no stream yet
        kernels.aim(goal, self._goal, self._state[0], times_s, share, self._acceleration, self._ease_s, self._target)
        self._first = False
        self._goal[:] = goal
        self._new = True

    def _plan(self, remaining_s: float) -> bool:
        """Trajectories to the target from here; False if there are none.

        An axis that comes late must not slow the others down: it goes to the goal alone.
        """
        planner, state, speeds, target = self._planner, self._state, self._speeds, self._aimed
        target[:] = self._target
        share = LIMITS_SHARE / self._tick_s
        kernels.speeds_ahead(state, _CEILING_AHEAD_S, self._ceiling.terms, share, self._max_velocity, target[1], speeds)
        if self._ceiling.exists:
            planner.within(speeds)
        planner.start(state)
        planner.end(target)
        self._time_s = 0.0
        self._some_late, self._some_in_time = True, False
        planned = planner.plan(self._alone, self._every)
        self._ends_s = self._alone.duration
        if remaining_s <= _TIME_TOLERANCE_S or not planned:
            return planned
        least_s = np.array(self._alone.independent_min_durations)
        due_s = remaining_s + _TIME_TOLERANCE_S
        self._some_late, self._some_in_time = kernels.part(
            least_s, due_s, self._direct, self._goal, target, self._late, self._in_time
        )
        self._ends_s = remaining_s
        if self._some_late:
            planner.end(target)
            planned = planner.plan(self._alone, self._late)
            self._ends_s = self._alone.duration
        if planned and self._some_in_time:
            planned = planner.plan(self._together, self._in_time, remaining_s)
            self._ends_s = max(self._ends_s, self._together.duration)
        return planned


class _Planner:
    """What ruckig is asked, kept between two questions: setting it costs as much as the answer."""

    def __init__(self, size: int, speeds: FloatVector, max_acceleration: FloatVector, max_jerk: FloatVector) -> None:
        self._ruckig = Ruckig(size)
        self._input = InputParameter(size)
        self._input.max_acceleration = max_acceleration.tolist()
        self._input.max_jerk = max_jerk.tolist()
        self.within(speeds)

    def within(self, speeds: FloatVector) -> None:
        """Speeds (2, S): the lowest and the highest."""
        self._input.min_velocity, self._input.max_velocity = speeds.tolist()

    def start(self, state: FloatVector) -> None:
        """From (3, S): position, velocity, acceleration."""
        wanted = self._input
        wanted.current_position, wanted.current_velocity, wanted.current_acceleration = state.tolist()

    def end(self, target: FloatVector) -> None:
        """To (2, S): position, velocity."""
        self._input.target_position, self._input.target_velocity = target.tolist()

    def plan(self, into: Trajectory, axes: NDArray[np.bool_], duration_s: float | None = None) -> bool:
        """A trajectory of some axes, together in `duration_s`, or each alone as fast as it goes; False for none."""
        wanted = self._input
        wanted.enabled = axes.tolist()
        wanted.synchronization = Synchronization.No if duration_s is None else Synchronization.Time
        wanted.minimum_duration = duration_s
        try:
            result: Result = self._ruckig.calculate(wanted, into)
        except RuckigError:
            return False
        return bool(result == Result.Working)
