"""The seam for a person beside the policy: who may take over, and the rules that keep what they do good data.

RaC (arXiv 2509.07953): an intervention is a recovery, back to a state that the policy knows, and then a correction
(rule 1), and the episode ends right after it (rule 2), so that nothing is recorded of later states that neither policy
nor person alone would have reached. HG-DAgger (arXiv 1810.02890): the person corrects and hands back.

Whatever stands behind an `Operator` (a browser, a SpaceMouse, a script), `Interventions` enforces the rule for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol, runtime_checkable

from robot_stack.core.errors import CommandRefusedError
from robot_stack.core.messages import HUMAN_SOURCES, FloatArray, Observation, RobotState, Source, Verdict

if TYPE_CHECKING:
    from robot_stack.edge.control_loop import EpisodeId
    from robot_stack.edge.remote_robot import Stepped

Rule = Literal["rac", "hg_dagger", "demonstration"]


class Parts(Protocol):
    """A person's action in small pieces, sampled while the control step runs: they need not wait for the next one."""

    def part(self, share: float) -> FloatArray | None:
        """What to do for the next `share` of the control step (A,). None, once: what the person did has run out while
        the robot moved; it is to be stopped at once, and stands still from then on."""

    def summed(self, parts: list[FloatArray]) -> FloatArray:
        """What the parts of one control step did together (A,): the action that is recorded."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """A person's action (A,) in the place of the policy's, float32, in the action's own units.

    `source`: HUMAN_RECOVERY on the way back to a known state, HUMAN_CORRECTION from there on. `parts`: the same in
    pieces, for robots that take more than one command in a control period; None: the action as it is.
    """

    action: FloatArray
    source: Source
    parts: Parts | None = None


class Operator(Protocol):
    """Somebody who watches a robot and may take over. Called in the control loop's thread: no method may block.

    An intervention is the steps in a row at which `intervene` gives an action; only `lets_go` ends it. A device samples
    its clutch once per step, in `lets_go`, and while that says no, `intervene` gives an action (standing still is
    one). What an operator raises ends the episode, and the robot stops as commands cease.
    """

    def begin(self, episode: EpisodeId) -> None:
        """A new episode begins; nobody has taken over yet."""

    def stands_still(
        self, observation: Observation, state: RobotState, propose: Callable[[], FloatArray]
    ) -> FloatArray | None:
        """An action (A,) that changes nothing, for as long as a person wants the robot to stand; None: go on.

        Asked before every step, and again after each such action, which is neither recorded nor counted. `propose`:
        what the policy would do.
        """

    def intervene(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
        """What to do instead of `proposed` (A,), the action that would be sent; None lets the policy act."""

    def lets_go(self, observation: Observation, state: RobotState) -> bool:
        """Whether the intervention is over. Asked after each of the operator's own steps, with what came of it."""


@runtime_checkable
class Wakes(Protocol):
    """An `Operator` whose person can be waited for while the robot stands still."""

    def woken(self, timeout_s: float) -> bool:
        """Wait, for so long at most, until the person wants something else than standing still; whether they do."""


class Nobody:
    """No operator: the policy acts alone."""

    def begin(self, episode: EpisodeId) -> None:
        """There is nobody to tell."""

    def stands_still(
        self, observation: Observation, state: RobotState, propose: Callable[[], FloatArray]
    ) -> FloatArray | None:
        return None

    def intervene(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
        return None

    def lets_go(self, observation: Observation, state: RobotState) -> bool:
        return False


@dataclass(slots=True)
class InterventionCounts:
    """Since the beginning. Steps are executed control steps, those that the safety filter refused included.

    Attributes:
        interventions: stretches of a person's steps.
        recoveries, corrections: stretches of steps with that source.
        uncorrected: interventions that were over before their correction began (the episode's end, or a person who
            let go too early).
        refused_steps: of a person, that the robot's safety filter refused.
        violations: of the rule; each of them ended its episode.
    """

    episodes: int = 0
    interventions: int = 0
    recoveries: int = 0
    corrections: int = 0
    uncorrected: int = 0
    policy_steps: int = 0
    recovery_steps: int = 0
    correction_steps: int = 0
    refused_steps: int = 0
    violations: int = 0

    @property
    def person_steps(self) -> int:
        return self.recovery_steps + self.correction_steps


class Interventions:
    """Asks an operator at every step, enforces the rule, and counts.

    `rac`: an intervention begins with a recovery, and the episode ends with it. `hg_dagger`: it may begin with a
    correction, and the policy goes on after it, with a new plan. `demonstration`: it may begin with a correction, and
    the episode ends with it. In all, no recovery follows a correction within one intervention: a person who has to go
    back again lets go first.
    """

    def __init__(self, operator: Operator, rule: Rule = "rac") -> None:
        self._operator = operator
        self._rule = rule
        self._last: Source | None = None
        self._asked: Source | None = None
        self.counts = InterventionCounts()

    @property
    def end_the_episode(self) -> bool:
        """Whether an episode ends with its first intervention."""
        return self._rule != "hg_dagger"

    @property
    def under_way(self) -> bool:
        """Whether a person has acted and not let go yet: the next step is theirs."""
        return self._last is not None

    @property
    def woken(self) -> Callable[[float], bool] | None:
        """See `Wakes.woken`; None where nobody can be waited for."""
        return self._operator.woken if isinstance(self._operator, Wakes) else None

    def begin(self, episode: EpisodeId) -> None:
        """A new episode begins. An intervention that was under way ended with the old one."""
        self._over()
        self.counts.episodes += 1
        self._operator.begin(episode)

    def stands_still(
        self, observation: Observation, state: RobotState, propose: Callable[[], FloatArray]
    ) -> FloatArray | None:
        """See `Operator.stands_still`."""
        return self._operator.stands_still(observation, state, propose)

    def ask(self, observation: Observation, state: RobotState, proposed: FloatArray) -> Intervention | None:
        """What a person does at this step instead of `proposed` (A,); None if the policy acts.

        CommandRefusedError if that breaks the rule, or the action has another shape: nothing must be sent then, least
        of all the policy's action while a person believes that the robot is theirs.
        """
        given = self._operator.intervene(observation, state, proposed)
        if given is None:
            if self._last is not None:
                self._refuse("gives no action in the middle of an intervention; only `lets_go` ends one")
        elif given.source not in HUMAN_SOURCES:
            self._refuse(f"calls its action '{given.source.value}'; allowed: human_recovery, human_correction")
        elif given.action.shape != proposed.shape:
            self._refuse(f"gives an action of shape {given.action.shape} instead of {proposed.shape}")
        elif given.source is Source.HUMAN_CORRECTION and self._last is None and self._rule == "rac":
            self._refuse(
                "corrects without a recovery before it; rewind first, or let people correct at once with the rule "
                "hg_dagger"
            )
        elif given.source is Source.HUMAN_RECOVERY and self._last is Source.HUMAN_CORRECTION:
            self._refuse("recovers after a correction; let go first, the next intervention may begin with a recovery")
        self._asked = None if given is None else given.source
        return given

    def lets_go(self, stepped: Stepped, following: Observation) -> bool:
        """Whether an intervention ends with the step that was just executed. Called after every step, a policy's too.

        `following`: the observation after it.
        """
        source = self._asked
        if source is None:
            self.counts.policy_steps += 1
            return False
        self._count(source, stepped.result.verdict)
        self._last = source
        if not self._operator.lets_go(following, stepped.state):
            return False
        self._over()
        return True

    def _count(self, source: Source, verdict: Verdict) -> None:
        counts, recovers = self.counts, source is Source.HUMAN_RECOVERY
        counts.interventions += self._last is None
        counts.recoveries += recovers and self._last is not source
        counts.corrections += not recovers and self._last is not source
        counts.recovery_steps += recovers
        counts.correction_steps += not recovers
        counts.refused_steps += verdict is Verdict.REFUSED

    def _over(self) -> None:
        self.counts.uncorrected += self._last is Source.HUMAN_RECOVERY
        self._last = self._asked = None

    def _refuse(self, words: str) -> NoReturn:
        self.counts.violations += 1
        raise CommandRefusedError("operator", f"the operator {words} (rule: {self._rule})")
