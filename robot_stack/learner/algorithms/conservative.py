"""Conservative values (CQL, arXiv 2006.04779) that stay on the scale of real returns (Cal-QL, arXiv 2303.05479)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robot_stack.core.messages import FloatArray
from robot_stack.learner.algorithms.settings.critics import ConservativeConfig


def conservative_gap(recorded: Tensor, values: Tensor, density: Tensor, floor: Tensor, blind: int) -> Tensor:
    """How far the values of all actions lie above those of the recorded ones, by critic (E,).

    The soft maximum of `values` (E, B, n), importance-weighted by the log `density` (B, n) of the actions, minus
    `recorded` (E, B). Values beyond the first `blind` actions, which are the policy's, count at least `floor` (B,),
    where -inf is CQL.
    """
    policy = torch.maximum(values[..., blind:], floor[:, None])
    compared = torch.cat((values[..., :blind], policy), dim=-1) - density
    return (torch.logsumexp(compared, dim=-1) - recorded).mean(dim=1)


def value_floor(
    config: ConservativeConfig, return_to_go: FloatArray, steps_to_go: NDArray[np.int32], discount: float
) -> Tensor:
    """What the values of the policy's actions count at least (B,); -inf where nothing is known, and for CQL."""
    if not config.calibrated:
        return torch.full((len(return_to_go),), -math.inf)
    if config.failed_reward is None:
        return torch.from_numpy(return_to_go)
    return torch.from_numpy(filled_returns(return_to_go, steps_to_go, config.failed_reward, discount))


def filled_returns(
    return_to_go: FloatArray, steps_to_go: NDArray[np.int32], failed_reward: float, discount: float
) -> FloatArray:
    """Returns (B,) in which episodes with nothing but `failed_reward` until their end go on so for ever."""
    steps = steps_to_go.astype(np.float64)
    all_failed = failed_reward * (1.0 - discount**steps) / (1.0 - discount)
    failed = (steps > 0) & (np.abs(return_to_go - all_failed) <= 1e-6 * np.abs(all_failed))
    filled: FloatArray = np.where(failed, failed_reward / (1.0 - discount), return_to_go).astype(np.float32)
    return filled


def blind_actions(count: int, size: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Actions (B, count, size) uniform over [-1, 1], and their log densities (B, count)."""
    actions = torch.rand((rows, count, size), generator=generator) * 2.0 - 1.0
    return actions, torch.full((rows, count), -size * math.log(2.0))
