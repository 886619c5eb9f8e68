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
        rates = Rates.of(limits, tick_s)
        self._tick_s = tick_s
        self._ceiling = ceiling
        self._lower = np.asarray(limits.lower, dtype=np.float64)
        self._upper = np.asarray(limits.upper, dtype=np.float64)
        self._direct = rates.unlimited
        self._follows = not self._direct.all()
        self._all_follow = not self._direct.any()
        self._max_velocity = LIMITS_SHARE * rates.step / tick_s
        self._max_acceleration = LIMITS_SHARE * rates.change / tick_s**2
        jerk = np.asarray(limits.max_jerk or (np.inf,) * len(limits.names), dtype=np.float64)
        self._max_jerk = LIMITS_SHARE * jerk
        size = len(limits.names)
        self._together = _Trajectory(size, self._max_acceleration, self._max_jerk, Synchronization.Time)
        self._alone = _Trajectory(size, self._max_acceleration, self._max_jerk, Synchronization.No)
        self.start(np.zeros(size))

    def start(self, position: Setpoint) -> None:
        """Begin at rest at a position (S,), with no goal."""
        self._state = self._next = np.stack([position, np.zeros_like(position), np.zeros_like(position)])
        self._goal = position
        self._target = position
        self._target_velocity = np.zeros_like(position)
        self._candidate = position
        self._remaining_s = 0.0
        self._settled = False
        self._first = True
        self._new = True

    def toward(self, goal: Setpoint, remaining_s: float, pace: float = 1.0) -> Setpoint | None:
        """The candidate for the next tick on the way to a finite `goal` (S,) that is due in `remaining_s`.

        `pace` below 1 goes along the same path more slowly. None if there is no trajectory.
        """
        goal = np.minimum(np.maximum(goal, self._lower), self._upper)
        if not self._follows:
            self._candidate = goal
            return goal
        newer = remaining_s > self._remaining_s or not (goal == self._goal).all()
        if newer:
            self._aim(goal, remaining_s)
        elif self._remaining_s > _TIME_TOLERANCE_S >= remaining_s:
            self._target, self._target_velocity = goal, np.zeros_like(goal)
            self._new = True
        self._remaining_s = remaining_s
        if self._settled and not self._new:
            return self._candidate
        if (self._new or self._ceiling is not None) and not self._plan(max(remaining_s, 0.0)):
            return None
        self._new = False
        self._time_s += pace * self._tick_s
        self._sample(goal, pace)
        return self._candidate

    def _sample(self, goal: FloatVector, pace: float) -> None:
        """The state on the trajectories now. What is as good as at rest on its goal is put there, to stay."""
        state = np.array(self._together.at(self._time_s))
        if self._apart:
            state = np.where(self._slow, np.array(self._alone.at(self._time_s)), state)
        if pace < 1.0:
            state[1:] *= [[pace], [pace * pace]]
        if self._time_s < self._ends_s and self._all_follow:
            self._settled = False
            self._next, self._candidate = state, state[0]
            return
        there = self._direct | ((np.abs(state[0] - goal) <= _AT_GOAL) & (np.abs(state[1]) <= _AT_REST))
        state[0] = np.where(there, goal, state[0])
        state[1:, there] = 0.0
        self._settled = bool(there.all())
        self._next = state
        self._candidate = state[0]

    def adopt(self, setpoint: Setpoint, step: FloatVector, change: FloatVector) -> None:
        """Take over what was sent: the setpoint and its differences per tick, all (S,)."""
        if not self._follows:
            return
        if setpoint is self._candidate or (setpoint == self._candidate).all():
            self._state = self._next
            return
        # a backward difference of setpoints is half a tick old
        self._state = np.stack([setpoint, (step + 0.5 * change) / self._tick_s, change / self._tick_s**2])
        self._new = True

    def _aim(self, goal: FloatVector, remaining_s: float) -> None:
        """Choose the state to reach when a new goal is due."""
        tick_s = self._tick_s
        since_s = max(remaining_s - (self._remaining_s - tick_s), tick_s)
        left_s = max(remaining_s, tick_s)
        mean = (goal - self._state[0]) / left_s
        flow = (goal - self._goal) / since_s
        speed = _FLOW_SHARE * np.minimum(np.abs(mean), np.abs(flow)) * (np.sign(mean) == np.sign(flow))
        acceleration = np.maximum(self._max_acceleration, 1e-9)
        ramp_s = speed / acceleration + np.where(np.isfinite(self._max_jerk), acceleration / self._max_jerk, 0.0)
        away = np.sign(mean) * speed * 0.5 * ramp_s  # of the stop that begins when the next goal did not come
        if self._first:  # one goal is no stream yet
            speed = np.zeros_like(speed)
        self._first = False
        self._goal = goal
        self._target_velocity = np.where(np.abs(away) < np.abs(goal - self._state[0]), np.sign(mean) * speed, 0.0)
        self._target = goal - np.where(self._target_velocity != 0.0, away, 0.0)
        self._new = True

    def _plan(self, remaining_s: float) -> bool:
        """Trajectories to the target from here; False if there are none."""
        down, up = self._max_velocity, self._max_velocity
        if self._ceiling is not None:
            ahead = self._state[0] + self._state[1] * _CEILING_AHEAD_S
            floor = 0.01 * self._max_velocity
            down, up = (
                np.maximum(np.minimum(LIMITS_SHARE * most / self._tick_s, self._max_velocity), floor)
                for most in self._ceiling.at(ahead)
            )
        target = (self._target, np.clip(self._target_velocity, -down, up))
        self._time_s = 0.0
        self._apart = False
        every = ~self._direct
        if remaining_s <= _TIME_TOLERANCE_S:
            self._slow, self._apart = every, True
            planned = self._alone.plan(self._state, target, (down, up), every, None)
            self._ends_s = self._alone.duration_s
            return planned
        if not self._together.plan(self._state, target, (down, up), every, remaining_s):
            return False
        self._ends_s = self._together.duration_s
        if self._ends_s <= remaining_s + _TIME_TOLERANCE_S:
            return True
        late = self._together.least_s() > remaining_s + _TIME_TOLERANCE_S
        # an axis that comes late must not slow the others down
        self._slow, self._apart = late, True
        goal = (np.where(late, self._goal, target[0]), np.where(late, 0.0, target[1]))
        in_time = every & ~late
        return (not in_time.any() or self._together.plan(self._state, goal, (down, up), in_time, remaining_s)) and (
            self._alone.plan(self._state, goal, (down, up), every & late, None)
        )


class _Trajectory:
    """One ruckig trajectory for some of the axes."""

    def __init__(
        self, size: int, max_acceleration: FloatVector, max_jerk: FloatVector, synchronization: Synchronization
    ) -> None:
        self._ruckig = Ruckig(size)
        self._trajectory = Trajectory(size)
        self._input = InputParameter(size)
        self._input.max_acceleration = max_acceleration.tolist()
        self._input.max_jerk = max_jerk.tolist()
        self._input.synchronization = synchronization

    def plan(
        self,
        state: FloatVector,
        target: tuple[FloatVector, FloatVector],
        speeds: tuple[FloatVector, FloatVector],
        enabled: NDArray[np.bool_],
        duration_s: float | None,
    ) -> bool:
        """From state (3, S): p, v, a to target (p, v), at speeds (down, up), in `duration_s` or as fast as it goes."""
        wanted = self._input
        wanted.current_position, wanted.current_velocity, wanted.current_acceleration = state.tolist()
        wanted.target_position, wanted.target_velocity = target[0].tolist(), target[1].tolist()
        wanted.min_velocity, wanted.max_velocity = (-speeds[0]).tolist(), speeds[1].tolist()
        wanted.enabled = enabled.tolist()
        wanted.minimum_duration = duration_s
        try:
            result: Result = self._ruckig.calculate(wanted, self._trajectory)
        except RuckigError:
            return False
        return bool(result == Result.Working)

    def least_s(self) -> FloatVector:
        """Shortest time (S,) that each axis would need."""
        return np.array(self._trajectory.independent_min_durations)

    @property
    def duration_s(self) -> float:
        return float(self._trajectory.duration)

    def at(self, time_s: float) -> tuple[list[float], list[float], list[float]]:
        """Position, velocity and acceleration, each (S,), so long after the start."""
        return self._trajectory.at_time(time_s)
