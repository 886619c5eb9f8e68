"""Driving a robot back along the way that it came, one small action at a time, to a place that was chosen.

The way is what was measured at every control step of the episode. The goal is led from place to place, never faster
than the action's bounds allow at the chosen speed, and every action goes through the safety filter like any other. What
was gone back over is no longer part of the way: a rewind that is stopped goes on from where it stopped.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from robot_stack.core.handling import FloatVector, Handling
from robot_stack.core.messages import Features, FloatArray

ARRIVED_M, ARRIVED_RAD = 0.002, 0.01
"""The measured place is as near as this, or it comes no nearer."""
RESTS_M, RESTS_RAD = 0.0005, 0.0025
"""A robot that moves no more than this in a control step rests."""
SETTLE_S = 3.0
"""So long a robot whose goal is at the place may take to come nearer."""
HAND_S = 1.0
"""So long the arm waits while a hand opens or closes."""
_FAMILIAR = 1.0
_CORRECTED_SHARE = 0.5
_MAX_CORRECTED_STEPS = 2.0
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Passed:
    """A place of the way: the episode's step, where the robot was (axes,), the action before it, how familiar it is,
    and how many control steps of way (at full speed) lead there."""

    index: int
    place: FloatVector
    absolute: FloatArray
    familiarity: float
    walked: float


class Way:
    """The way of the running episode, and driving back along it. Not thread-safe.

    Attributes:
        passed: the places, oldest first.
        target: the step that is being driven back to; None: none.
    """

    def __init__(self, handling: Handling, control_period_s: float) -> None:
        self._handling = handling
        self._hand_steps = round(HAND_S / control_period_s)
        self._settle_steps = round(SETTLE_S / control_period_s)
        self.passed: list[Passed] = []
        self.target: int | None = None
        self._here = False
        self._waiting = self._settling = 0
        self._correction = self._before = np.zeros(len(handling.axes))

    def begin(self) -> None:
        """An episode begins."""
        self.passed.clear()
        self._here = False
        self._waiting = 0
        self.stop()

    def add(self, index: int, features: Features, last: FloatArray, familiarity: float) -> None:
        """The robot is at step `index`; `last`: the action that led here, or what stands still."""
        if not self._handling.rewinds:
            return
        place, walked = self._handling.measured(features), 0.0
        if self.passed:
            before = self.passed[-1]
            walked = before.walked + self._handling.steps_of(self._handling.difference(place, before.place))
        self.passed.append(Passed(index, place, last.copy(), familiarity, walked))
        self._here = True

    def suggested(self, back_steps: float) -> Passed | None:
        """The place to go back to: the newest familiar one that lies `back_steps` control steps of way or more behind.

        Without any familiar one, or where familiarity is unknown, the newest one so far behind; the first one, if the
        way is shorter. None without a way behind.
        """
        behind = self.passed[:-1] if self._here else self.passed
        if not behind:
            return None
        enough = bisect_right(behind, self.passed[-1].walked - back_steps + _ROUNDING, key=attrgetter("walked"))
        if enough == 0:
            return behind[0]
        familiar = (passed for passed in reversed(behind[:enough]) if 0.0 <= passed.familiarity <= _FAMILIAR)
        return next(familiar, behind[enough - 1])

    def refusal(self, index: int) -> str:
        """Why the robot cannot go back to that step, in words, or ''."""
        if not self._handling.rewinds:
            return "this robot cannot be driven back by itself: its state does not tell its goals; recover by hand"
        if self._here and self.passed and index == self.passed[-1].index:
            return f"the robot is at step {index} already; name an earlier one"
        place = bisect_left(self.passed, index, key=attrgetter("index"))
        if place == len(self.passed) or self.passed[place].index != index:
            known = f"{self.passed[0].index} to {self.passed[-1].index}" if self.passed else "none yet"
            return f"step {index} is not on the recorded way; its steps are {known}"
        return ""

    def aim(self, index: int) -> None:
        """Go back to that step of the way. Aiming again on the way changes nothing."""
        if index != self.target:
            self.stop()
            self.target = index

    def stop(self) -> None:
        """Whatever was aimed at is not wanted any more."""
        self.target = None
        self._settling = 0
        self._correction = np.zeros(len(self._handling.axes))

    def back(self, features: Features, last: FloatArray, share: float) -> FloatArray | None:
        """The next action (A,) of the way back, `share` of a control step's bounds at most; None: arrived, or nothing
        was aimed at. Called once per control step."""
        if self.target is None:
            return None
        if self._waiting > 0:
            self._waiting -= 1
            return self._handling.still(last)
        self._here = False
        while self.passed[-1].index > self.target and self._is_near(features, share):
            self.passed.pop()
        wanted = self.passed[-1]
        if self._handling.hand_moves(wanted.absolute, last):
            self._waiting = self._hand_steps
            return self._handling.still(wanted.absolute)
        if wanted.index == self.target and self._has_arrived(features, wanted):
            self._here = True
            self.stop()
            return None
        move = self._handling.difference(wanted.place + self._correction, self._handling.goal(features))
        return self._handling.towards(move, np.where(self._handling.relative, last, wanted.absolute), share)

    def _is_near(self, features: Features, steps: float) -> bool:
        """The goal can be at the last place of the way within so many control steps."""
        to_go = self._handling.difference(self.passed[-1].place, self._handling.goal(features))
        return self._handling.steps_of(to_go) <= steps

    def _has_arrived(self, features: Features, wanted: Passed) -> bool:
        """The robot rests there, or comes no nearer. What a robot at rest is off (weight, friction), its goal is led on
        by."""
        here = self._handling.measured(features)
        off, moved = self._handling.difference(wanted.place, here), self._handling.difference(here, self._before)
        self._before = here
        rests = self._handling.within(moved, RESTS_M, RESTS_RAD)
        if rests and self._handling.within(off, ARRIVED_M, ARRIVED_RAD):
            return True
        near = self._is_near(features, _MAX_CORRECTED_STEPS)
        self._settling += near
        if rests and near:
            most = self._handling.reach * _MAX_CORRECTED_STEPS
            self._correction = np.clip(self._correction + _CORRECTED_SHARE * off, -most, most)
        return self._settling >= self._settle_steps
