"""What imitation learns from the episodes that a policy and a person share: one label for every step.

An episode is held until it has ended, because only then is it known whether it succeeded, and who took part. Then every
step gets one label: what it is learned as, or why it is left out. So the labels of an episode add up to its length,
and the counts of labels to the steps recorded.

Steps that are learned from are joined to stretches of one actor: a recovery and the correction after it are one
stretch, because one person's movement goes through both; the policy's steps before them are another. A stretch that
ends in mid-episode ends with the observation that came next, so none of its steps is lost.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from robot_stack.buffer.replay import ReplayStep, Stratum
from robot_stack.core.messages import HUMAN_SOURCES, Source, Step, Verdict
from robot_stack.learner.algorithms.settings.imitation import RuleName
from robot_stack.learner.curation import Kept, Place


class Label(enum.Enum):
    """What becomes of a step: the first five are learned from, the others are left out.

    UNWANTED: the rule has no use for it. AFTER_INTERVENTION: recorded in an episode that should have ended.
    UNLABELLED: nobody said what would have been right. REFUSED: the action moved nothing.
    """

    DEMONSTRATION = "demonstration"
    AUTONOMOUS = "autonomous"
    RECOVERY = "recovery"
    CORRECTION = "correction"
    PRE_INTERVENTION = "pre_intervention"
    UNWANTED = "unwanted"
    AFTER_INTERVENTION = "after_intervention"
    UNLABELLED = "unlabelled"
    REFUSED = "refused"


_KEPT_AS = {
    Label.DEMONSTRATION: (Place.DEMONSTRATIONS, Stratum.DEMONSTRATION),
    Label.AUTONOMOUS: (Place.ONLINE, Stratum.ONLINE),
    Label.RECOVERY: (Place.ONLINE, Stratum.RECOVERY),
    Label.CORRECTION: (Place.ONLINE, Stratum.CORRECTION),
    Label.PRE_INTERVENTION: (Place.ONLINE, Stratum.PRE_INTERVENTION),
}
_OF_A_PERSON = {Source.HUMAN_RECOVERY: Label.RECOVERY, Source.HUMAN_CORRECTION: Label.CORRECTION}
_OF_ANYBODY = _OF_A_PERSON | {Source.POLICY: Label.AUTONOMOUS, Source.EXPERT: Label.UNWANTED}
_TEACHERS = frozenset({Source.EXPERT, Source.HUMAN_CORRECTION})


@dataclass(slots=True)
class Counts:
    """What was recorded so far, in episodes that have ended.

    Attributes:
        steps: by label.
        segments: stretches of consecutive steps of one label that are learned from, by label.
        interventions: times that a person took over.
        without_recovery: of these, those that did not begin with a recovery (RaC's first rule).
        unfinished: episodes that stopped without an end: the edge was killed.
        rounds: versions of the weights that acted.
    """

    episodes: int = 0
    steps: Counter[Label] = field(default_factory=Counter)
    segments: Counter[Label] = field(default_factory=Counter)
    interventions: int = 0
    without_recovery: int = 0
    unfinished: int = 0
    rounds: int = 0

    def metrics(self) -> dict[str, float]:
        """All of them by name, for the learner's report."""
        found = {f"steps_{label.value}": float(self.steps[label]) for label in Label}
        found |= {f"segments_{label.value}": float(self.segments[label]) for label in _KEPT_AS}
        names = ("episodes", "interventions", "without_recovery", "unfinished", "rounds")
        return found | {name: float(getattr(self, name)) for name in names}


Rule = Callable[[Sequence[Step]], list[Label]]
"""From the steps of an episode, the last of which tells how it ended, to a label for each."""


class EpisodeCurator:
    """Applies a rule to every episode once it has ended; a `Curator`.

    An episode has ended with its terminated or truncated step, or when the same robot begins another one: then it is
    unfinished, did not succeed, and its last step, which has no next observation, is left for its successor's sake.
    """

    selective = True

    def __init__(self, rule: Rule) -> None:
        self.counts = Counts()
        self._rule = rule
        self._held: dict[tuple[str, str], list[tuple[Step, ReplayStep]]] = {}
        self._newest_version = -1

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        robot = (step.run, step.robot)
        held = self._held.setdefault(robot, [])
        kept: list[Kept] = []
        if held and _episode(held[0][0]) != _episode(step):
            kept += self._conclude(held)
            held.clear()
        held.append((step, replayed))
        if step.terminated or step.truncated:
            kept += self._conclude(held)
            del self._held[robot]
        return kept

    def _conclude(self, held: Sequence[tuple[Step, ReplayStep]]) -> list[Kept]:
        steps = [step for step, _ in held]
        labels = [
            Label.REFUSED if step.verdict is Verdict.REFUSED else label
            for step, label in zip(steps, self._rule(steps), strict=True)
        ]
        self._count(steps, labels)
        kept = []
        for number, (first, last) in enumerate(_stretches(steps, labels)):
            kept += list(_joined(held[first : last + 2], last - first + 1, labels[first : last + 1], number))
        return kept

    def _count(self, steps: Sequence[Step], labels: Sequence[Label]) -> None:
        counts, end = self.counts, steps[-1]
        counts.episodes += 1
        counts.unfinished += not (end.terminated or end.truncated)
        counts.steps.update(labels)
        for before, label in zip([None, *labels], labels, strict=False):
            counts.segments[label] += label in _KEPT_AS and label is not before
        driven = [step.source in HUMAN_SOURCES for step in steps]
        for step, was_driven, is_driven in zip(steps, [False, *driven], driven, strict=False):
            counts.interventions += is_driven and not was_driven
            counts.without_recovery += is_driven and not was_driven and step.source is not Source.HUMAN_RECOVERY
        newest = max(step.weights_version for step in steps)
        counts.rounds += newest > self._newest_version
        self._newest_version = max(self._newest_version, newest)


def rule_of(name: RuleName, pre_intervention_steps: int = 15) -> Rule:
    """The rule of a method of `robot_stack.learner.algorithms.settings.imitation`."""
    if name == "sirius":
        return lambda steps: sirius(steps, pre_intervention_steps)
    return {"bc": bc, "dagger": dagger, "hg_dagger": hg_dagger, "iwr": iwr, "rac": rac}[name]


def bc(steps: Sequence[Step]) -> list[Label]:
    """Behaviour cloning: full demonstrations, nothing of episodes that a policy had a part in."""
    return _demonstrated(steps) or [Label.UNWANTED for _ in steps]


def dagger(steps: Sequence[Step]) -> list[Label]:
    """DAgger (Ross et al., 2011): every step that somebody labelled, whoever drove.

    The label of a step of an expert is `action_base`, what the expert proposed; what was executed may be the policy's,
    or noisy. A person's label is what they did.
    """
    return [
        Label.CORRECTION if step.source is Source.EXPERT else _OF_A_PERSON.get(step.source, Label.UNLABELLED)
        for step in steps
    ]


def hg_dagger(steps: Sequence[Step]) -> list[Label]:
    """HG-DAgger (Kelly et al., 2019): full demonstrations, and whatever a person drove; they may hand back and take
    over again."""
    return _demonstrated(steps) or [_OF_A_PERSON.get(step.source, Label.UNWANTED) for step in steps]


def iwr(steps: Sequence[Step]) -> list[Label]:
    """Intervention weighted regression (Mandlekar et al., 2020): everything; its weight lies in the shares."""
    return _demonstrated(steps) or [_OF_ANYBODY[step.source] for step in steps]


def sirius(steps: Sequence[Step], pre_intervention_steps: int) -> list[Label]:
    """Sirius (Liu et al., RSS 2023): everything; the policy's last steps before an intervention led into trouble."""
    labels = iwr(steps)
    for i, step in enumerate(steps):
        if step.source in HUMAN_SOURCES:
            for before in range(max(0, i - pre_intervention_steps), i):
                if labels[before] is Label.AUTONOMOUS:
                    labels[before] = Label.PRE_INTERVENTION
    return labels


def rac(steps: Sequence[Step]) -> list[Label]:
    """RaC (arXiv 2509.07953): full demonstrations, recoveries and corrections; the policy's own steps only of episodes
    that succeeded with no intervention.

    An episode ends with its intervention (the second rule). What was recorded after it all the same is left out.
    """
    demonstrated = _demonstrated(steps)
    if demonstrated:
        return demonstrated
    human = [step.source in HUMAN_SOURCES for step in steps]
    if not any(human):
        alone = steps[0].index == 0 and steps[-1].success  # nobody knows what was before a later beginning
        return [Label.AUTONOMOUS if alone and step.source is Source.POLICY else Label.UNWANTED for step in steps]
    first = human.index(True)
    end = human.index(False, first) if False in human[first:] else len(steps)
    person = [_OF_A_PERSON[step.source] for step in steps[first:end]]
    return [Label.UNWANTED] * first + person + [Label.AFTER_INTERVENTION] * (len(steps) - end)


def _demonstrated(steps: Sequence[Step]) -> list[Label]:
    """Labels of an episode that teachers drove from its beginning to its successful end; empty if it is none."""
    whole = steps[0].index == 0 and steps[-1].success and all(step.source in _TEACHERS for step in steps)
    return [Label.DEMONSTRATION for _ in steps] if whole else []


def _episode(step: Step) -> tuple[str, int]:
    return step.session, step.episode


def _stretches(steps: Sequence[Step], labels: Sequence[Label]) -> Iterator[tuple[int, int]]:
    """First and last of consecutive kept steps of one actor in one replay."""
    first = -1
    for i, label in enumerate(labels):
        if label not in _KEPT_AS:
            first = -1
            continue
        first = i if first < 0 else first
        if i + 1 == len(steps) or not _goes_on(steps[i], steps[i + 1], label, labels[i + 1]):
            yield first, i
            first = -1


def _goes_on(step: Step, following: Step, label: Label, next_label: Label) -> bool:
    return (
        next_label in _KEPT_AS
        and following.index == step.index + 1
        and (following.source in HUMAN_SOURCES) == (step.source in HUMAN_SOURCES)
        and _KEPT_AS[next_label][0] is _KEPT_AS[label][0]
    )


def _joined(
    held: Sequence[tuple[Step, ReplayStep]], length: int, labels: Sequence[Label], number: int
) -> Iterator[Kept]:
    """A stretch of `length` steps as one stream; `held` has the step after it too, if there is one."""
    if not _has_end(held, length):
        length -= 1  # the last step has no next observation; the one before it ends the stretch
    for i, ((step, replayed), label) in enumerate(zip(held[:length], labels, strict=False)):
        place, stratum = _KEPT_AS[label]
        kept = replace(
            replayed,
            stream=(step.run, step.robot, step.session, step.episode, "stretch", number),
            stratum=stratum,
            action=step.action_base if step.source is Source.EXPERT else replayed.action,
        )
        if i == length - 1 and not (step.terminated or step.truncated):
            following = held[i + 1][1]
            kept = replace(
                kept,
                truncated=True,
                final_observation=following.observation,
                final_action_base=following.action_base,
            )
        elif step.truncated and kept.final_action_base is None:
            # Nobody proposed anything where a person ended the episode, and imitation does not read it.
            kept = replace(kept, final_action_base=np.zeros_like(kept.action_base))
        yield Kept(place, kept)


def _has_end(held: Sequence[tuple[Step, ReplayStep]], length: int) -> bool:
    last = held[length - 1][0]
    if last.terminated or last.truncated:
        return True
    return length < len(held) and held[length][0].index == last.index + 1
