"""The task's own verdict, and verdicts with errors that are put in on purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from robot_stack.core.messages import Step
from robot_stack.core.protocols import Judgement, Outcome, RewardModel
from robot_stack.learner.rewards.outcomes import episode_key, verdict


class TaskPredicate:
    """The recorded reward and success; a `RewardModel`."""

    name = "task_predicate"
    version = "1"

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        return [
            Judgement(success=step.success, probability=float(step.success), reward=step.reward, sure=True)
            for step in (outcome.step for outcome in outcomes)
        ]


class InjectedErrors:
    """Turns verdicts around, so that it can be measured what errors do to the learning; a `RewardModel`.

    Which ones depends on the seed and on the step's place in its episode alone: a step is always judged alike. The
    same seed with a higher rate has all errors of the lower rate, and more. What is left is no longer sure.
    """

    def __init__(self, model: RewardModel, false_positive_rate: float, false_negative_rate: float, seed: int) -> None:
        self._model = model
        self._false_positive_rate, self._false_negative_rate = false_positive_rate, false_negative_rate
        self._seed = seed
        self.name = f"{model.name} with errors"
        content = f"{model.version} {false_positive_rate} {false_negative_rate} {seed}"
        self.version = hashlib.sha256(content.encode()).hexdigest()

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        judged = self._model.judge(outcomes)
        return [self._disturbed(outcome.step, one) for outcome, one in zip(outcomes, judged, strict=True)]

    def _disturbed(self, step: Step, judgement: Judgement) -> Judgement:
        rate = self._false_negative_rate if judgement.success else self._false_positive_rate
        if self._chance(step) < rate:
            return verdict(not judgement.success, 1.0 - judgement.probability)
        return Judgement(success=judgement.success, probability=judgement.probability, reward=judgement.reward)

    def _chance(self, step: Step) -> float:
        """Uniform in [0, 1)."""
        place = repr((self._seed, *episode_key(step), step.index))
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=7).digest(), "big") / float(1 << 56)
