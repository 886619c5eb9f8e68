"""Settings that all algorithms with a Gaussian actor share."""

from __future__ import annotations

from typing import ClassVar

from policies.gaussian.config import GaussianConfig
from robot_stack.learner.algorithms.settings.base import StepSettings


class GaussianSettings(StepSettings, frozen=True, kw_only=True):
    """An algorithm whose weights are a Gaussian actor's (`policies.gaussian`): it acts by itself at every step.

    Its actions need not stay near the base policy's, and its first weights may change every action.
    """

    near_base: ClassVar[bool] = False

    actor: GaussianConfig = GaussianConfig()
