"""Taking over, as a state machine: what a person may ask for when, and why not.

    AUTONOMOUS -> PAUSED -> RECOVERING -> CORRECTING -> (the intervention is over; with RaC the episode too)

PAUSED lies between any two: the robot stands still, nothing is recorded. A dead man's switch that is let go leads
there. The data rules (`robot_stack.edge.operator`) are enforced on the way: with RaC (arXiv 2509.07953) no correction
without a recovery before it, in both rules no recovery after a correction.
"""

from __future__ import annotations

from robot_stack.core.seat import Intent, Phase
from robot_stack.edge.operator import Rule

_DRIVING = {
    Intent.REWIND: Phase.RECOVERING,
    Intent.RECOVER: Phase.RECOVERING,
    Intent.CORRECT: Phase.CORRECTING,
}


class TakeOver:
    """One episode's state. Not thread-safe; whoever drives it holds a lock.

    `over`: FINISH or RESUME was taken after something was driven, so the intervention has to end with its next step.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.phase = Phase.BETWEEN
        self.recovered = False
        self.corrected = False
        self.over = False

    @property
    def driven(self) -> bool:
        """Whether the person has moved the robot in this intervention."""
        return self.recovered or self.corrected

    def begin(self) -> None:
        """An episode begins: the policy acts."""
        self.phase = Phase.AUTONOMOUS
        self.recovered = self.corrected = self.over = False

    def end(self) -> None:
        """The episode is over, or could not go on."""
        self.phase = Phase.BETWEEN
        self.over = False

    def ask(self, intent: Intent) -> str:
        """Follow a person's wish; why that is refused, in words, or ''. A refused wish changes nothing."""
        if self.phase is Phase.BETWEEN:
            return "no episode is running; take over when the next one has begun"
        if self.over:
            return "the intervention is ending"
        refusal = self._refusal(intent)
        if not refusal:
            self._follow(intent)
        return refusal

    def let_go(self) -> None:
        """The dead man's switch: nothing valid is held any more."""
        if self.phase in (Phase.RECOVERING, Phase.CORRECTING):
            self.phase = Phase.PAUSED

    def drove(self, phase: Phase) -> None:
        """A step of that phase was executed."""
        self.recovered |= phase is Phase.RECOVERING
        self.corrected |= phase is Phase.CORRECTING

    def handed_back(self) -> None:
        """The intervention has ended and the policy goes on in the same episode."""
        self.begin()

    def _refusal(self, intent: Intent) -> str:
        if intent in (Intent.REWIND, Intent.RECOVER) and (self.corrected or self.phase is Phase.CORRECTING):
            return "no recovery after a correction: finish this intervention first"
        if intent is Intent.CORRECT and self._rule == "rac" and not self.recovered:
            return "recover first: rewind, or drive back by hand; a correction begins in a state that the policy knows"
        if intent is Intent.RESUME and self._rule == "rac" and self.driven:
            return "the episode ends with its intervention: finish it; the policy takes the next episode"
        if intent is Intent.FINISH and not self.driven:
            return "there is nothing to finish: nobody has driven yet; resume, or recover"
        return ""

    def _follow(self, intent: Intent) -> None:
        if intent in _DRIVING:
            self.phase = _DRIVING[intent]
        elif intent is Intent.HOLD:
            self.phase = Phase.PAUSED
        elif self.driven:
            self.over = True
        else:
            self.phase = Phase.AUTONOMOUS
