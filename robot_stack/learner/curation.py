"""Which recorded steps an algorithm learns from, and as what: the rules of the data, applied as steps arrive.

A curator is part of the learner's fold: what it does depends on the sequence of steps alone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from robot_stack.buffer.replay import ReplayStep
from robot_stack.core.messages import HUMAN_SOURCES, Step, Verdict


class Place(enum.Enum):
    """The replays of a learner."""

    DEMONSTRATIONS = "demonstrations"
    ONLINE = "online"


@dataclass(frozen=True, slots=True)
class Kept:
    """A step that is learned from, and where."""

    place: Place
    step: ReplayStep


class Curator(Protocol):
    """Decides about recorded steps. `replayed` is the step in the form that algorithms read; a curator may keep it,
    keep another form of it (a different stratum), hold it until its episode has ended, or leave it out.

    What is left out makes a gap that no transition spans. `selective`: it may keep few of many steps, so what is kept
    now may lie anywhere in the log.
    """

    @property
    def selective(self) -> bool: ...

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        """The steps, in order, that are learned from now that this one has arrived."""


class EveryStep:
    """Every step that reached the driver; a `Curator`. A refused action moved nothing."""

    selective = False

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        if step.verdict is not Verdict.REFUSED:
            yield Kept(Place.ONLINE, replayed)


class InterventionsTwice:
    """Every step that reached the driver, and a person's steps among the demonstrations too; a `Curator`.

    HIL-SERL (arXiv 2410.21845): corrections are as good as demonstrations, and are sampled as such.
    """

    selective = True

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        if step.verdict is Verdict.REFUSED:
            return
        yield Kept(Place.ONLINE, replayed)
        if step.source in HUMAN_SOURCES:
            yield Kept(Place.DEMONSTRATIONS, replayed)
