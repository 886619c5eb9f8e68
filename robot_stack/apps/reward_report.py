"""How good a reward model is, against labels that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

from robot_stack.core.protocols import RewardModel
from robot_stack.evaluation.statistics import Interval, wilson_interval
from robot_stack.learner.rewards.outcomes import Labelled, Tally


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `of` cases, with the 95 % interval (Wilson) of the share."""

    count: int
    of: int
    interval: Interval

    @property
    def value(self) -> float:
        """NaN where there was no case."""
        return self.count / self.of if self.of else float("nan")


@dataclass(frozen=True, slots=True)
class RewardReport:
    """Precision: verdicts of success that are right. Recall: successes that are seen. False positive rate: what is no
    success and is taken for one; a learner suffers from it most.

    The steps of an episode are alike, so with few episodes the true intervals are wider than these.
    """

    model: str
    version: str
    tally: Tally

    @property
    def precision(self) -> Rate:
        return _rate(self.tally.true_positives, self.tally.true_positives + self.tally.false_positives)

    @property
    def recall(self) -> Rate:
        return _rate(self.tally.true_positives, self.tally.positives)

    @property
    def false_positive_rate(self) -> Rate:
        return _rate(self.tally.false_positives, self.tally.negatives)


def evaluate_rewards(model: RewardModel, labelled: Labelled) -> RewardReport:
    """The model's verdicts on labelled steps, each judged by itself."""
    verdicts = [judgement.success for judgement in model.judge(labelled.outcomes)]
    return RewardReport(model.name, model.version, Tally.of(verdicts, labelled.labels))


def _rate(count: int, of: int) -> Rate:
    return Rate(count, of, wilson_interval(count, of))
