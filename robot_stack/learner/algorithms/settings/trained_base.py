"""Settings of base policies that go on learning, which several algorithms share."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.errors import ConfigError


class BaseTraining(Struct, frozen=True, kw_only=True):
    """How the base policy is sampled and trained on.

    Attributes:
        lr, weight_decay: of AdamW.
        every: updates of the critics for one of the base.
        solver_steps: calls of the solver for a candidate, in the learner and at the edge; 0: as the base has it.
        max_gradient_norm: gradients are scaled down to it.
    """

    lr: float = 5e-5
    weight_decay: float = 0.01
    every: int = 4
    solver_steps: int = 0
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1 or self.solver_steps < 0:
            raise ConfigError("algorithm.base.every must be 1 or more, solver_steps 0 or more")
        if min(self.lr, self.max_gradient_norm) <= 0 or self.weight_decay < 0:
            raise ConfigError("algorithm.base: lr and max_gradient_norm must be above 0, weight_decay 0 or more")
