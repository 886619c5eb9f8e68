"""Exploration noise, added on the edge while a policy is being trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policies.residual.config import ExplorationConfig
from robot_stack.core.messages import FloatArray
from robot_stack.core.specs import Feature


def warm_up_action(
    action_base: FloatArray, rng: np.random.Generator, config: ExplorationConfig, bounds: Feature
) -> FloatArray:
    """The action (A,) to execute, inside `bounds`, before there are weights that learned anything."""
    lower, upper = bounds.lower_array(), bounds.upper_array()
    if config.warmup == "uniform":
        return rng.uniform(lower, upper).astype(np.float32)
    noise = rng.uniform(-config.warmup_noise, config.warmup_noise, len(lower))
    return _noisy(action_base, noise, bounds)


def add_noise(action: FloatArray, rng: np.random.Generator, config: ExplorationConfig, bounds: Feature) -> FloatArray:
    """The action (A,) with Gaussian noise, inside `bounds`."""
    return _noisy(action, rng.normal(0.0, config.sigma, len(action)), bounds)


def _noisy(action: FloatArray, noise: NDArray[np.float64], bounds: Feature) -> FloatArray:
    lower, upper = bounds.lower_array(), bounds.upper_array()
    noisy: FloatArray = np.clip(action + (upper - lower) / 2 * noise.astype(np.float32), lower, upper)
    return noisy
