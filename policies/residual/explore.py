"""Exploration noise, added on the edge while a residual policy is being trained."""

from __future__ import annotations

import numpy as np

from policies.residual.config import ExplorationConfig
from robot_stack.core.messages import FloatArray
from robot_stack.core.specs import Feature


def explore(
    action: FloatArray,
    action_base: FloatArray,
    rng: np.random.Generator,
    *,
    config: ExplorationConfig,
    env_steps: int,
    bounds: Feature,
) -> FloatArray:
    """The action (A,) to execute for learning, inside `bounds`.

    During the first `warmup_steps` of the run's environment steps the residual is not used: the base action plus
    uniform noise. Afterwards the corrected action plus Gaussian noise.
    """
    lower, upper = bounds.lower_array(), bounds.upper_array()
    half_range = (upper - lower) / 2
    if env_steps < config.warmup_steps:
        noise = rng.uniform(-config.warmup_noise, config.warmup_noise, len(half_range))
        start = action_base
    else:
        noise = rng.normal(0.0, config.sigma, len(half_range))
        start = action
    noisy: FloatArray = np.clip(start + half_range * noise.astype(np.float32), lower, upper)
    return noisy
