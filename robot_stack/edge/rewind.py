"""Driving a robot back along the way that it came, one small action at a time, to a place that was chosen.

The way is what was measured at every control step of the episode. The goal is led from place to place, never faster
than the action's bounds allow at the chosen speed, and every action goes through the safety filter like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_stack.core.messages import Features, FloatArray
from robot_stack.edge.handling import FloatVector, Handling

ARRIVED_M, ARRIVED_RAD = 0.002, 0.01
"""The measured place is as near as this, or the goal is there and the robot comes no nearer."""
SETTLE_PARTS = 200
_FAMILIAR = 1.0


@dataclass(frozen=True, slots=True)
class Passed:
    """A place of the way: the episode's step, where the robot was (axes,), the action before it, how familiar."""

    index: int
    place: FloatVector
    absolute: FloatArray
    familiarity: float


class Way:
    """The way of the running episode, and driving back along it. Not thread-safe."""

    def __init__(self, handling: Handling) -> None:
        self._handling = handling
        self.passed: list[Passed] = []
        self._target = -1
        self._next = -1
        self._settling = 0

    def begin(self) -> None:
        """An episode begins."""
        self.passed.clear()
        self.stop()

    def add(self, index: int, features: Features, last: FloatArray, familiarity: float) -> None:
        """The robot is at step `index`; `last`: the action that led here, or what stands still."""
        if self._handling.rewinds:
            self.passed.append(Passed(index, self._handling.measured(features), last.copy(), familiarity))

    def suggested(self, back_steps: int) -> int:
        """The step to go back to: the newest familiar one that lies `back_steps` control steps of way or more behind.

        Without any familiar one, or where familiarity is unknown, the newest one so far behind; the first one, if the
        way is shorter. -1 without a way.
        """
        if not self.passed:
            return -1
        behind, here = 0.0, self.passed[-1].place
        candidates = []
        for passed in reversed(self.passed):
            behind += self._handling.steps_of(self._handling.difference(passed.place, here))
            here = passed.place
            if behind >= back_steps:
                candidates.append(passed)
        if not candidates:
            return self.passed[0].index
        familiar = (passed for passed in candidates if 0.0 <= passed.familiarity <= _FAMILIAR)
        return next(familiar, candidates[0]).index

    def at(self, index: int) -> Passed | None:
        return next((passed for passed in self.passed if passed.index == index), None)

    def aim(self, index: int) -> str:
        """Go back to that step; why that is impossible, in words, or ''. Aiming again on the way changes nothing."""
        if not self._handling.rewinds:
            return "this robot cannot be driven back by itself: its state does not tell its goals; recover by hand"
        if index == self._target:
            return ""
        if self.at(index) is None:
            known = f"{self.passed[0].index} to {self.passed[-1].index}" if self.passed else "none yet"
            return f"step {index} is not on the recorded way; its steps are {known}"
        self._target, self._next, self._settling = index, len(self.passed) - 1, 0
        return ""

    def stop(self) -> None:
        """Whatever was aimed at is not wanted any more."""
        self._target = self._next = -1
        self._settling = 0

    def back(self, features: Features, last: FloatArray, share: float) -> FloatArray | None:
        """The next small action (A,) of the way back, `share` of a control step's bounds at most; None: arrived.

        On arrival what lies behind the place is forgotten: the way goes on from there.
        """
        while self._next > 0 and self.passed[self._next].index > self._target and self._is_near(features, share):
            self._next -= 1
        wanted = self.passed[self._next]
        move = self._handling.difference(wanted.place, self._handling.goal(features))
        at_target = wanted.index <= self._target
        if at_target and self._has_arrived(features, wanted, move):
            del self.passed[self._next + 1 :]
            self.stop()
            return None
        return self._handling.towards(move, np.where(self._handling.relative, last, wanted.absolute), share)

    def _is_near(self, features: Features, share: float) -> bool:
        """The goal can be at the next place with one small action."""
        place = self.passed[self._next].place
        move = self._handling.difference(place, self._handling.goal(features))
        return self._handling.steps_of(move) <= share

    def _has_arrived(self, features: Features, wanted: Passed, move: FloatVector) -> bool:
        """The robot is there, or its goal has been for so long that it comes no nearer."""
        off = np.abs(self._handling.difference(wanted.place, self._handling.measured(features)))
        allowed = np.array([ARRIVED_RAD if axis.turns else ARRIVED_M for axis in self._handling.axes])
        if bool((off <= allowed).all()):
            return True
        self._settling += self._handling.steps_of(move) < 0.01
        return self._settling >= SETTLE_PARTS
