"""One reward model for each direction of a task that can be undone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from robot_stack.core.direction import Direction, direction_of
from robot_stack.core.protocols import Judgement, Outcome, RewardModel


class DirectedReward:
    """Asks the model of the direction that the step's instruction names; a `RewardModel`."""

    name = "directed"

    def __init__(self, models: Mapping[Direction, RewardModel]) -> None:
        self._models = {direction: models[direction] for direction in Direction}
        versions = "".join(model.version for model in self._models.values())
        self.version = hashlib.sha256(versions.encode()).hexdigest()

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        directions = [direction_of(outcome.step.instruction) for outcome in outcomes]
        found = {
            direction: iter(model.judge([one for one, of in zip(outcomes, directions, strict=True) if of is direction]))
            for direction, model in self._models.items()
        }
        return [next(found[direction]) for direction in directions]
