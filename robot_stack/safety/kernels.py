"""The arithmetic of one tick, compiled: scalar loops over axes and ticks, into storage that is there already.

The same code runs interpreted with NUMBA_DISABLE_JIT=1. Nothing is fused or reordered (`fastmath` is off), so the same
inputs give the same bits, compiled or not. `compile_all` belongs into a constructor: it compiles everything, or loads
what was compiled before, so that no tick waits for the compiler. Arrays are float64, C-contiguous and writable; (S,)
is one value per axis. Loops over ticks call with numbers only: each array handed over costs as much as all the rest.

The compiled code is as trusted as the .pyc files beside it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.compiled import compiled

FloatVector = NDArray[np.float64]

# What `verify` finds
ALL_PASSED, POSITION, VELOCITY = 0, 1, 2

# Rows of a plan (2, rows, S)
PLACE, STEP = 0, 1


class Axes(NamedTuple):
    """Limits (S,): the position's range, `step`, `change` and `jerk` per tick (`Rates`), and the slack of rounding."""

    lower: FloatVector
    upper: FloatVector
    step: FloatVector
    change: FloatVector
    jerk: FloatVector
    slack: FloatVector


class Ceiling(NamedTuple):
    """The largest step (S,) at a distance from a limit: sqrt(twice * distance) - offset, where `limited`."""

    lower: FloatVector
    upper: FloatVector
    twice: FloatVector
    offset: FloatVector
    limited: NDArray[np.bool_]


class Motion(NamedTuple):
    """What was sent last (S,): the setpoint, its difference to the one before, and the difference of two of these."""

    setpoint: FloatVector
    step: FloatVector
    change: FloatVector


# ---- the stop of one axis; stopping.py tells the method -----------------------------------------------------------


@compiled
def braked_side(speed: float, ratio: float) -> float:
    """Sign of the speed that is left when the acceleration has been let go; both in units of the jerk."""
    magnitude = abs(ratio)
    ticks = np.floor(magnitude)
    return math.copysign(1.0, speed + math.copysign(ticks * (magnitude - 0.5 * (ticks + 1.0)), ratio))


@compiled
def stop_ticks(speed: float, ratio: float, most: float) -> float:
    """Ticks that the stop takes: n of B(n); in units of the jerk, mirrored so that the speed left is positive."""
    # without a hold B is a triangle; its sum is at most 1 / 4 * (2 ratio n - n^2 + (ratio - 1)^2)
    triangle = np.ceil(ratio + math.sqrt(max(2.0 * ratio * (ratio - 1.0) + 4.0 * speed + 1.0, 0.0))) - 1.0
    # that bound may ask for a tick too many: the sum itself, for one less
    down = np.rint(0.5 * (triangle + ratio - 1.0))
    back = triangle - down
    if speed + down * ratio - 0.5 * (down * (down + 1.0) + back * (back - 1.0)) > 0.0:
        triangle += 1.0
    # with a hold: `down` ticks before it and `back` after it are not at the limit
    down = max(np.ceil(ratio + most) - 1.0, 0.0)
    back = np.ceil(most)
    left = speed + down * (ratio - 0.5 * (down + 1.0)) - 0.5 * back * (back - 1.0)
    ticks = down + back
    ticks = ticks + np.ceil(left / most) if left > 0.0 else min(triangle, ticks)
    return max(ticks, np.ceil(abs(ratio)))


@compiled
def braking(tick: float, ticks: float, ratio: float, most: float) -> float:
    """B(ticks)[tick], in units of the jerk."""
    return max(ratio - tick, -most, min(tick - ticks, 0.0))


@compiled
def letting_go(tick: float, ratio: float) -> float:
    """R[tick], in units of the jerk."""
    return math.copysign(max(abs(ratio) - tick, 0.0), ratio)


@compiled
def stop_axis(steps: FloatVector, row: int, axis: int, step: float, change: float, most: float, jerk: float) -> float:
    """Write the steps of the stop of one axis from (step, change) into steps[row:, axis]; how many, the last is zero.

    Writes nothing where they do not fit (the number is larger than the room then) or where there is no stop (nan).
    """
    speed, ratio, most = step / jerk, change / jerk, most / jerk
    sign = braked_side(speed, ratio)
    speed, ratio = speed * sign, ratio * sign
    ticks = stop_ticks(speed, ratio, most)
    if not row + ticks <= len(steps):
        return ticks
    lets_go = ticks == np.ceil(abs(ratio))
    hard_sum, soft_sum = 0.0, 0.0
    for tick in range(1, int(ticks) + 1):
        hard_sum += braking(tick, ticks, ratio, most)
        soft_sum += letting_go(tick, ratio) if lets_go else braking(tick, ticks - 1.0, ratio, most)
    span = soft_sum - hard_sum
    share = (speed + soft_sum) / span if span > 0.0 else 0.0
    taken = 0.0
    for tick in range(1, int(ticks) + 1):
        soft = letting_go(tick, ratio) if lets_go else braking(tick, ticks - 1.0, ratio, most)
        taken += (braking(tick, ticks, ratio, most) - soft) * share + soft
        # the last change is zero: no dust of rounding before it
        steps[row + tick - 1, axis] = (taken + speed) * (sign * jerk) if ticks - tick > 1.0 else 0.0
    return ticks


@compiled
def write_stops(
    step: FloatVector,
    change: FloatVector,
    most: FloatVector,
    jerk: FloatVector,
    steps: FloatVector,
    row: int,
    ticks: FloatVector,
) -> float:
    """Write the stops from (step, change), both (S,), into steps[row:], with `ticks` (S,) of each, nan for none.

    `most` and `jerk` (S,) are the limits of the changes and of their differences. Returns the rows that the longest
    needs, at least one; where there is no room for it steps are not complete.
    """
    longest = 1.0
    for axis in range(len(step)):
        ticks[axis] = stop_axis(steps, row, axis, step[axis], change[axis], most[axis], jerk[axis])
        longest = max(longest, ticks[axis])  # the same if that is nan
    if row + longest <= len(steps):
        for axis in range(len(step)):
            at_rest = row + int(ticks[axis]) if ticks[axis] > 0.0 else row
            for rest in range(at_rest, row + int(longest)):
                steps[rest, axis] = 0.0
    return longest


# ---- the filter ---------------------------------------------------------------------------------------------------


@compiled
def equal(first: FloatVector, second: FloatVector) -> bool:
    same = True
    for axis in range(len(first)):
        same = same and first[axis] == second[axis]
    return same


@compiled
def cut_to_rates(candidate: FloatVector, motion: Motion, axes: Axes, fallback: FloatVector) -> bool:
    """Cut a candidate (S,) in place to velocity, acceleration and jerk; whether it was finite.

    What is not finite becomes the value of `fallback` (S,) before that.
    """
    finite = True
    for axis in range(len(candidate)):
        wanted = candidate[axis]
        if not math.isfinite(wanted):
            finite = False
            wanted = fallback[axis]
        step, change, jerk = motion.step[axis], motion.change[axis], axes.jerk[axis]
        least = max(change - jerk, -axes.change[axis], -axes.step[axis] - step)
        most = min(change + jerk, axes.change[axis], axes.step[axis] - step)
        ahead = motion.setpoint[axis] + step
        beyond = wanted - ahead
        allowed = min(max(beyond, least), most)
        candidate[axis] = wanted if abs(beyond - allowed) <= axes.slack[axis] else ahead + allowed
    return finite


@compiled
def highest_step(room: float, twice: float, offset: float) -> float:
    """The largest step at this distance from a limit."""
    return max(math.sqrt(twice * max(room, 0.0)) - offset, 0.0)


@compiled
def check_axis(
    plan: FloatVector,
    rows: int,
    axis: int,
    begin: tuple[float, float],
    within: tuple[float, float, float, float],
    limited: bool,
    envelope: tuple[float, float, float, float],
) -> tuple[bool, bool]:
    """Fill in the positions of one axis from its steps; whether all are inside the limits, and all slow enough.

    `begin`: the setpoint before the plan, and its first position. `within`: the range, the largest step and the slack.
    `envelope`: its range, and what `highest_step` takes; it counts if `limited`, on the side to which a step goes.
    """
    lower, upper, most, slack = within
    inside, slow, way = True, True, 0.0
    for row in range(rows):
        step = plan[STEP, row, axis]
        way += step
        position = way + begin[0] if row > 0 else begin[1]
        kept = min(max(position, lower), upper)
        plan[PLACE, row, axis] = kept
        inside = inside and abs(position - kept) <= slack
        slow = slow and abs(step) <= most + slack
        if limited and slow and step != 0.0:
            room = envelope[1] - kept if step > 0.0 else kept - envelope[0]
            slow = abs(step) <= highest_step(room, envelope[2], envelope[3]) + slack
    return inside, slow


@compiled
def fill_axis(old: FloatVector, first: int, rows: int, new: FloatVector, new_rows: int, axis: int) -> None:
    """Copy one axis of the plan that begins in row `first` of `old`; at its end it stays at rest."""
    for row in range(min(rows, new_rows)):
        new[PLACE, row, axis] = old[PLACE, first + row, axis]
        new[STEP, row, axis] = old[STEP, first + row, axis]
    for row in range(rows, new_rows):
        new[PLACE, row, axis] = old[PLACE, first + rows - 1, axis]
        new[STEP, row, axis] = 0.0


@compiled
def verify(
    candidate: FloatVector,
    motion: Motion,
    axes: Axes,
    ceiling: Ceiling,
    old: FloatVector,
    first: int,
    old_rows: int,
    new: FloatVector,
    scratch: FloatVector,
) -> tuple[float, int]:
    """Write the candidate (S,) and its stop into the plan `new`, where they keep the rules of their axis; on the other
    axes the present plan goes on, which is `old` from row `first` on.

    Plans are (2, room, S): positions and steps. `scratch` is (2, S). Returns the rows of the new plan, 0 if no axis
    passed, and which rule held axes back. More rows than there is room for: nothing was decided.
    """
    size = len(candidate)
    for axis in range(size):
        new[STEP, 0, axis] = candidate[axis] - motion.setpoint[axis]
        scratch[0, axis] = new[STEP, 0, axis] - motion.step[axis]
    own = 1.0 + write_stops(new[STEP, 0], scratch[0], axes.change, axes.jerk, new[STEP], 1, scratch[1])
    needed = max(own, float(old_rows))
    if needed > new.shape[1]:
        return needed, ALL_PASSED
    rows, failed, rule = int(own), 0, POSITION
    for axis in range(size):
        begin = (motion.setpoint[axis], candidate[axis])
        within = (axes.lower[axis], axes.upper[axis], axes.step[axis], axes.slack[axis])
        envelope = (ceiling.lower[axis], ceiling.upper[axis], ceiling.twice[axis], ceiling.offset[axis])
        inside, slow = check_axis(new, rows, axis, begin, within, ceiling.limited[axis], envelope)
        passed = inside and slow and not math.isnan(scratch[1, axis])
        scratch[0, axis] = 1.0 if passed else 0.0
        if not passed:
            failed += 1
            rule = VELOCITY if inside else rule
    if failed == 0:
        return float(rows), ALL_PASSED
    if failed == size:
        return 0.0, rule
    for axis in range(size):
        if scratch[0, axis] == 1.0:
            fill_axis(new, 0, rows, new, int(needed), axis)
        else:
            fill_axis(old, first, old_rows, new, int(needed), axis)
    return needed, rule


@compiled
def advance(plan: FloatVector, first: int, rows: int, motion: Motion) -> bool:
    """Send the first setpoint of a plan: bring `motion` up to date; whether the robot moves.

    A plan of one row is at its end: what is left of it rests.
    """
    moving = False
    for axis in range(len(motion.step)):
        step = plan[STEP, first, axis]
        motion.setpoint[axis] = plan[PLACE, first, axis]
        motion.change[axis] = step - motion.step[axis]
        motion.step[axis] = step
        moving = moving or step != 0.0
        if rows == 1:
            plan[STEP, first, axis] = 0.0
    return moving


# ---- rules of geometry --------------------------------------------------------------------------------------------


@compiled
def ways(plan: FloatVector, rows: int, way: FloatVector) -> None:
    """How far each axis goes (S,) on a plan that begins in row 0, there and back counted both."""
    for axis in range(len(way)):
        way[axis] = 0.0
    for row in range(rows):
        for axis in range(len(way)):
            way[axis] += abs(plan[STEP, row, axis])


@compiled
def margin(way: FloatVector, most_change: FloatVector, ticks: float, looks: int) -> float:
    """What a point strays from where it is looked at, for a lever of 1 m, in m."""
    stray, whole = 0.0, 0.0
    for axis in range(len(way)):
        stray += min(most_change[axis] * (ticks * ticks / 8.0), 0.5 * way[axis])
        whole += way[axis]
    return stray + (whole / looks) ** 2 / 8.0


@compiled
def outside_box(points_m: FloatVector, lower_m: FloatVector, upper_m: FloatVector, outside_m: FloatVector) -> None:
    """How far points (P, 3) are outside a box; negative inside, nan for nan."""
    for point in range(len(points_m)):
        for axis in range(3):
            below, above = lower_m[axis] - points_m[point, axis], points_m[point, axis] - upper_m[axis]
            outside_m[point, axis] = below if below > above else above


@compiled
def within_excess(outside_m: FloatVector, excess_m: FloatVector, margin_m: float) -> bool:
    """Whether no point (P, 3) is further outside than its excess, margin included; nan is."""
    for point in range(len(outside_m)):
        for axis in range(3):
            if not outside_m[point, axis] + margin_m <= excess_m[point, axis]:
                return False
    return True


@compiled
def take_excess(outside_m: FloatVector, excess_m: FloatVector) -> bool:
    """What points (P, 3) are outside now becomes what they may be; whether one is."""
    outside = False
    for point in range(len(outside_m)):
        for axis in range(3):
            inside = outside_m[point, axis] <= 0.0
            excess_m[point, axis] = 0.0 if inside else outside_m[point, axis]
            outside = outside or not inside
    return outside


# ---- interpolation ------------------------------------------------------------------------------------------------


@compiled
def aim(
    goal: FloatVector,
    before: FloatVector,
    position: FloatVector,
    times_s: tuple[float, float],
    share: float,
    acceleration: FloatVector,
    ease_s: FloatVector,
    target: FloatVector,
) -> None:
    """The state (2, S) to reach when a goal (S,) is due: from which the stop ends on it, at part of the goals' speed.

    `before` is the goal that was followed until now; times: that are left, and between the two goals.
    """
    left_s, since_s = times_s
    for axis in range(len(goal)):
        away = goal[axis] - position[axis]
        mean, flow = away / left_s, (goal[axis] - before[axis]) / since_s
        side = np.sign(mean)
        speed = share * min(abs(mean), abs(flow)) if side == np.sign(flow) else 0.0
        # of the stop that begins when the next goal did not come
        stop = side * speed * 0.5 * (speed / acceleration[axis] + ease_s[axis])
        velocity = side * speed if abs(stop) < abs(away) else 0.0
        target[0, axis] = goal[axis] - (stop if velocity != 0.0 else 0.0)
        target[1, axis] = velocity


@compiled
def speeds_ahead(
    state: FloatVector,
    ahead_s: float,
    ceiling: Ceiling,
    share: float,
    most: FloatVector,
    velocity: FloatVector,
    speeds: FloatVector,
) -> None:
    """Speeds (2, S), the lowest (negative) and the highest, that a trajectory may use: of the envelope where the robot
    soon is, at most `most`. The velocity (S,) at its end is cut to them.

    `share` is what is used of the ceiling, over the length of a tick in s.
    """
    for axis in range(len(most)):
        soon = state[0, axis] + state[1, axis] * ahead_s
        down = up = most[axis]
        if ceiling.limited[axis]:
            twice, offset = ceiling.twice[axis], ceiling.offset[axis]
            down = min(share * highest_step(soon - ceiling.lower[axis], twice, offset), down)
            up = min(share * highest_step(ceiling.upper[axis] - soon, twice, offset), up)
        speeds[0, axis] = -max(down, 0.01 * most[axis])
        speeds[1, axis] = max(up, 0.01 * most[axis])
        velocity[axis] = min(max(velocity[axis], speeds[0, axis]), speeds[1, axis])


@compiled
def part(
    least_s: FloatVector,
    due_s: float,
    direct: NDArray[np.bool_],
    goal: FloatVector,
    target: FloatVector,
    late: NDArray[np.bool_],
    in_time: NDArray[np.bool_],
) -> tuple[bool, bool]:
    """Tell the axes that need longer than there is from those that do not, `direct` ones apart; whether there are any.

    The target (2, S) of a late one becomes rest on the goal (S,).
    """
    some_late, some_in_time = False, False
    for axis in range(len(goal)):
        late[axis] = not direct[axis] and least_s[axis] > due_s
        in_time[axis] = not direct[axis] and not late[axis]
        some_late, some_in_time = some_late or late[axis], some_in_time or in_time[axis]
        if late[axis]:
            target[0, axis], target[1, axis] = goal[axis], 0.0
    return some_late, some_in_time


@compiled
def settle(state: FloatVector, goal: FloatVector, direct: NDArray[np.bool_], near: float, slow: float) -> bool:
    """Put axes of a state (3, S) that are as good as at rest on the goal there, `direct` ones in any case; whether
    all are."""
    settled = True
    for axis in range(len(goal)):
        if direct[axis] or (abs(state[0, axis] - goal[axis]) <= near and abs(state[1, axis]) <= slow):
            state[0, axis] = goal[axis]
            state[1, axis] = state[2, axis] = 0.0
        else:
            settled = False
    return settled


@compiled
def adopt(motion: Motion, tick_s: float, state: FloatVector) -> None:
    """The state (3, S) of position, velocity and acceleration after what was sent."""
    for axis in range(len(motion.step)):
        state[0, axis] = motion.setpoint[axis]
        # a backward difference of setpoints is half a tick old
        state[1, axis] = (motion.step[axis] + 0.5 * motion.change[axis]) / tick_s
        state[2, axis] = motion.change[axis] / tick_s**2


# ---- compiling ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def compile_all() -> None:
    """Compile every kernel for the types that the safety layer uses, once in a process, by calling it."""
    ones, flags = np.ones(1), np.zeros(1, dtype=np.bool_)
    axes = Axes(-ones, ones, ones, ones, ones, 1e-6 * ones)
    ceiling = Ceiling(-ones, ones, ones, 0.0 * ones, flags)
    motion = Motion(0.0 * ones, 0.0 * ones, 0.0 * ones)
    old, new, state, points = np.zeros((2, 4, 1)), np.zeros((2, 4, 1)), np.zeros((3, 1)), np.zeros((1, 3))
    equal(ones, ones)
    cut_to_rates(0.1 * ones, motion, axes, ones)
    write_stops(ones, ones, ones, ones, new[STEP], 0, np.zeros(1))
    verify(0.1 * ones, motion, axes, ceiling, old, 0, 1, new, np.zeros((2, 1)))
    advance(new, 0, 2, motion)
    ways(new, 2, state[0])
    margin(ones, ones, 1.0, 1)
    outside_box(points, np.zeros(3), np.zeros(3), np.zeros((1, 3)))
    within_excess(points, points, 0.0)
    take_excess(points, np.zeros((1, 3)))
    aim(ones, ones, ones, (1.0, 1.0), 1.0, ones, ones, np.zeros((2, 1)))
    speeds_ahead(state, 0.0, ceiling, 1.0, ones, np.zeros(1), np.zeros((2, 1)))
    part(ones, 0.0, flags, ones, np.zeros((2, 1)), np.zeros(1, dtype=np.bool_), np.zeros(1, dtype=np.bool_))
    settle(state, ones, flags, 0.0, 0.0)
    adopt(motion, 1.0, state)
