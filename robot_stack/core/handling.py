"""How a robot is driven by hand through its action space, whatever robot it is.

Action elements are relative (`dx_m`, `lift_delta_m`: added to the last goal) or absolute. Standing still is zero in the
relative ones and the last value in the absolute ones. Of the absolute ones a person moves hands only (`gripper`): a
pose or a joint angle that is named outright would be a jump. Where the state tells both the measured place and how far
the goal is ahead of it (`tool_x_m` and `goal_minus_tool_x_m`), the goal can be led along a recorded way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.specs import RobotSpec

FloatVector = NDArray[np.float64]

_CARTESIAN = re.compile(r"(?P<side>[a-z]+_)?d(?P<axis>[xyz]_m|(?:roll|pitch|yaw)_rad)")
_DELTA = re.compile(r"(?P<joint>[a-z0-9_]+)_delta_(?P<unit>m|rad)")
_HAND = re.compile(r"([a-z0-9_]+_)?gripper")
_FRAMES = ("tool", "palm", "gripper")
_HAND_MOVED_SHARE = 0.1

Place = tuple[str, int]
"""A feature and the element of it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A relative element of the action, and where the state tells its measured value and its goal's lead.

    `turns`: it is an angle. `wraps`: a full turn leads back to the same place (a heading; a joint counts on).
    """

    index: int
    name: str
    measured: Place
    lead: Place
    turns: bool
    wraps: bool


class Handling:
    """The action space of one robot.

    Attributes:
        relative: (A,) bool. drivable: names of the elements that a person can move.
        axes: relative elements that can be led along a way; `rewinds` if that is all of them, and nothing but hands is
            absolute.
        reach: (len(axes),) what one control step may move, in either direction.
    """

    def __init__(self, spec: RobotSpec) -> None:
        self._names = spec.action.names
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        places = {
            name: (key, index) for key, feature in spec.observation.items() for index, name in enumerate(feature.names)
        }
        self.relative = np.array([_is_relative(name) for name in self._names], dtype=np.bool_)
        hand = np.array([_HAND.fullmatch(name) is not None for name in self._names], dtype=np.bool_)
        self.drivable = tuple(name for name, can in zip(self._names, self.relative | hand, strict=True) if can)
        found = (_axis(index, name, places) for index, name in enumerate(self._names))
        self.axes: tuple[Axis, ...] = tuple(axis for axis in found if axis is not None)
        self.rewinds = len(self.axes) == int(self.relative.sum()) > 0 and len(self.drivable) == len(self._names)
        self._indices = [axis.index for axis in self.axes]
        self._turns = np.array([axis.turns for axis in self.axes], np.bool_)
        self._wraps = np.array([axis.wraps for axis in self.axes], np.bool_)
        self.reach: FloatVector = np.minimum(-self._lower[self._indices], self._upper[self._indices]).astype(np.float64)

    def still(self, last: FloatArray) -> FloatArray:
        """The action (A,) that changes nothing after `last`."""
        return np.where(self.relative, np.float32(0.0), last).astype(np.float32)

    def unknown(self, moves: Mapping[str, float]) -> str:
        """What is wrong with a person's moves, in words, or ''."""
        for name, value in moves.items():
            if name in self._names and name not in self.drivable:
                return (
                    f"'{name}' is absolute, and driving it by hand would be a jump; choose an action space of changes"
                )
            if name not in self._names:
                return f"there is no action element '{name}'; there are: {', '.join(self._names)}"
            if not -1.0 <= value <= 1.0:
                return f"'{name}' is {value}; allowed: -1 to 1"
        return ""

    def moved(self, last: FloatArray, moves: Mapping[str, float], share: float) -> FloatArray:
        """The action (A,) of a person's moves (-1 to 1 by name) for `share` of a control step, after `last`."""
        action = self.still(last)
        for index, name in enumerate(self._names):
            if name not in moves:
                continue
            value = moves[name]
            if self.relative[index]:
                action[index] = share * value * (self._upper[index] if value >= 0.0 else -self._lower[index])
            else:
                middle, half = (self._upper[index] + self._lower[index]) / 2, (self._upper - self._lower)[index] / 2
                action[index] = middle + value * half
        return np.clip(action, self._lower, self._upper)

    def part_of(self, action: FloatArray, share: float) -> FloatArray:
        """`share` of what an action (A,) does."""
        return np.where(self.relative, np.float32(share) * action, action).astype(np.float32)

    def summed(self, parts: Sequence[FloatArray]) -> FloatArray:
        """What the actions of one control step did together (A,), in its order."""
        stacked = np.stack(parts)
        together = np.where(self.relative, stacked.sum(axis=0), stacked[-1]).astype(np.float32)
        return np.clip(together, self._lower, self._upper)  # parts of bounds add up to them but for rounding

    def hand_moves(self, wanted: FloatArray, last: FloatArray) -> bool:
        """Whether a hand has to open or close on the way from one action (A,) to the other."""
        change = np.abs(wanted - last) / (self._upper - self._lower)
        return bool((change[~self.relative] > _HAND_MOVED_SHARE).any())

    def measured(self, features: Features) -> FloatVector:
        """Where the robot is: (len(axes),)."""
        return np.array([features[axis.measured[0]][axis.measured[1]] for axis in self.axes], np.float64)

    def goal(self, features: Features) -> FloatVector:
        """Where it was told to be: (len(axes),)."""
        lead = np.array([features[axis.lead[0]][axis.lead[1]] for axis in self.axes], np.float64)
        return self.measured(features) + lead

    def towards(self, move: FloatVector, last: FloatArray, share: float) -> FloatArray:
        """The action (A,) that moves the goal along `move` (len(axes),), `share` of a control step's bounds at most;
        all axes keep together."""
        action = self.still(last)
        action[self._indices] = move * min(1.0, share / max(self.steps_of(move), 1e-9))
        return np.clip(action, self._lower, self._upper)

    def steps_of(self, move: FloatVector) -> float:
        """How many control steps at full speed a move (len(axes),) takes."""
        return float(np.max(np.abs(move) / self.reach, initial=0.0))

    def difference(self, to: FloatVector, start: FloatVector) -> FloatVector:
        """to - start (len(axes),), headings the short way round."""
        move = to - start
        return np.where(self._wraps, (move + np.pi) % (2 * np.pi) - np.pi, move)

    def within(self, off: FloatVector, distance_m: float, angle_rad: float) -> bool:
        """Whether a difference (len(axes),) is no larger than that on any axis."""
        return bool((np.abs(off) <= np.where(self._turns, angle_rad, distance_m)).all())


def _is_relative(name: str) -> bool:
    return bool(_CARTESIAN.fullmatch(name) or _DELTA.fullmatch(name))


def _axis(index: int, name: str, places: Mapping[str, Place]) -> Axis | None:
    for measured in _measured_names(name):
        lead = places.get(f"goal_minus_{measured}")
        if lead is not None and measured in places:
            turns = name.endswith("_rad")
            wraps = turns and _CARTESIAN.fullmatch(name) is not None
            return Axis(index, name, places[measured], lead, turns, wraps)
    return None


def _measured_names(name: str) -> list[str]:
    cartesian, delta = _CARTESIAN.fullmatch(name), _DELTA.fullmatch(name)
    if cartesian:
        return [f"{cartesian['side'] or ''}{frame}_{cartesian['axis']}" for frame in _FRAMES]
    return [f"{delta['joint']}_{delta['unit']}"] if delta else []
