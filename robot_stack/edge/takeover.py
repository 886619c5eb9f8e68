"""Taking over, as a state machine: what a person may ask for when, and why not.

    AUTONOMOUS -> PAUSED -> RECOVERING -> CORRECTING -> (the intervention is over; with RaC the episode too)

PAUSED lies between any two: the robot stands still, nothing is recorded. A dead man's switch that is let go leads
there. The data rules (`robot_stack.edge.operator`) are enforced on the way: with RaC (arXiv 2509.07953) no correction
without a recovery before it, in every rule no recovery after a correction. A demonstration begins PAUSED and has no
policy.
"""

from __future__ import annotations

from robot_stack.core.seat import DRIVING, Intent, Phase
from robot_stack.edge.operator import Rule

_DRIVING = {
    Intent.REWIND: Phase.RECOVERING,
    Intent.RECOVER: Phase.RECOVERING,
    Intent.CORRECT: Phase.CORRECTING,
}


class TakeOver:
    """One episode's state. Not thread-safe; whoever drives it holds a lock.

    `over`: FINISH or RESUME was taken after something was driven, so the intervention has to end with its next step.
    `acting`: the phase of the control step that runs now.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.phase = self.acting = Phase.BETWEEN
        self.recovered = False
        self.corrected = False
        self.over = False

    @property
    def driven(self) -> bool:
        """Whether the person has moved the robot in this intervention."""
        return self.recovered or self.corrected

    @property
    def standing(self) -> bool:
        """The robot stands still for a person, and no step begins."""
        return self.phase is Phase.PAUSED and not self.over

    def begin(self) -> None:
        """An episode begins: the policy acts, or a person who demonstrates may begin."""
        self.phase = self.acting = Phase.PAUSED if self._rule == "demonstration" else Phase.AUTONOMOUS
        self.recovered = self.corrected = self.over = False

    def end(self) -> None:
        """The episode is over, or could not go on."""
        self.phase = self.acting = Phase.BETWEEN
        self.recovered = self.corrected = self.over = False

    def ask(self, intent: Intent) -> str:
        """Follow a person's wish; why that is refused, in words, or ''. A refused wish changes nothing."""
        refusal = self.refusal(intent)
        if not refusal:
            self._follow(intent)
        return refusal

    def refusal(self, intent: Intent) -> str:
        """What `ask` would say."""
        if self.phase is Phase.BETWEEN:
            return "no episode is running; take over when the next one has begun"
        if intent is Intent.HOLD:
            return ""
        if self.over:
            return "the intervention is ending; hold, to go on with it"
        return self._driving_refusal(intent) if intent in DRIVING else self._ending_refusal(intent)

    def let_go(self) -> None:
        """The dead man's switch: nothing valid is held any more."""
        if self.phase in (Phase.RECOVERING, Phase.CORRECTING):
            self.phase = Phase.PAUSED

    def step_begins(self) -> None:
        """A control step of the present phase begins. From here on it counts as driven: what is asked for while it
        runs is judged with it."""
        self.acting = self.phase
        self.recovered |= self.phase is Phase.RECOVERING
        self.corrected |= self.phase is Phase.CORRECTING

    def handed_back(self) -> None:
        """The intervention has ended and the policy goes on in the same episode."""
        self.begin()

    def _driving_refusal(self, intent: Intent) -> str:
        if intent is not Intent.CORRECT and (self.corrected or self.phase is Phase.CORRECTING):
            return "no recovery after a correction: finish this intervention first"
        if intent is Intent.CORRECT and self._rule == "rac" and not self.recovered:
            return "recover first: rewind, or drive back by hand; a correction begins in a state that the policy knows"
        return ""

    def _ending_refusal(self, intent: Intent) -> str:
        if intent is Intent.RESUME and self._rule == "demonstration":
            return "a demonstration has no policy that could go on: drive, then finish"
        if intent is Intent.RESUME and self._rule == "rac" and self.driven:
            return "the episode ends with its intervention: finish it; the policy takes the next episode"
        if intent is Intent.FINISH and not self.driven:
            return "there is nothing to finish: nobody has driven yet"
        return ""

    def _follow(self, intent: Intent) -> None:
        if intent in _DRIVING:
            self.phase = _DRIVING[intent]
        elif intent is Intent.HOLD:
            self.phase, self.over = Phase.PAUSED, False
        elif self.driven:
            self.over = True
        else:
            self.phase = Phase.AUTONOMOUS
