"""The Gaussian actor as a trainable network, and as the named tensors in which it travels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.common.ensemble_mlp import EnsembleMlp, layer_shapes
from policies.common.normalization import Standardizer, statistics_shapes, statistics_tensors
from policies.gaussian.config import GRIPPER_CHOICES, GaussianConfig
from robot_stack.core.messages import Array

GRASP = "grasp."

_LAST_SCALE = 0.01
_KEEP_FIRST = 0.01
_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class GaussianActor(nn.Module):
    """tanh(Gaussian) over the continuous elements of the action, in normalised units ([-1, 1] = the action's bounds).

    Input (B, D) standardised observations, with embeddings of pictures among them, float32; outputs (B, C) for C
    continuous elements. The untrained mean is about 0 and the standard deviation about 1, so that actions spread over
    the whole range. Soft actor-critic, arXiv 1812.05905.
    """

    def __init__(self, config: GaussianConfig, observation_dim: int, action_dim: int, seed: int) -> None:
        super().__init__()
        self.outputs = len(config.continuous(action_dim))
        self._middle, self._reach = log_std_range(config)
        generator = torch.Generator().manual_seed(seed)
        self.mlp = EnsembleMlp(
            1, observation_dim, config.hidden, 2 * self.outputs, last_scale=_LAST_SCALE, generator=generator
        )
        begin = math.atanh(min(0.99, max(-0.99, -self._middle / self._reach)))  # where the logarithm is 0
        with torch.no_grad():
            self.mlp.tensors()[f"bias.{len(config.hidden)}"][..., self.outputs :] = begin

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (B, C) before the squashing."""
        mean, raw = self.mlp(observation)[0].split(self.outputs, dim=-1)
        return mean, self._middle + self._reach * torch.tanh(raw)

    def sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (..., B, C) in (-1, 1) and their log densities (..., B), both with gradients to the parameters.

        `noise`: (..., B, C) standard normal numbers.
        """
        mean, log_std = self(observation)
        unsquashed = torch.addcmul(mean, log_std.exp(), noise)
        return torch.tanh(unsquashed), _log_density(noise, log_std, unsquashed)

    def log_prob(self, observation: Tensor, action: Tensor) -> Tensor:
        """Log density (..., B) of actions (..., B, C); those at the bounds count as a little inside of them."""
        mean, log_std = self(observation)
        unsquashed = torch.atanh(action.clamp(-1.0 + 1e-6, 1.0 - 1e-6))
        return _log_density((unsquashed - mean) * torch.exp(-log_std), log_std, unsquashed)


def _log_density(standard: Tensor, log_std: Tensor, unsquashed: Tensor) -> Tensor:
    """Of tanh(u): the normal density over d tanh(u) / du = 1 - tanh(u)^2, in a form that holds for any u."""
    squashing = 2.0 * (math.log(2.0) - unsquashed - functional.softplus(-2.0 * unsquashed))
    return (-0.5 * standard.square() - log_std - squashing - _LOG_ROOT_TWO_PI).sum(dim=-1)


def log_std_range(config: GaussianConfig) -> tuple[float, float]:
    """Middle and half width: the logarithm of the standard deviation is middle + half width * tanh(output)."""
    return (config.max_log_std + config.min_log_std) / 2, (config.max_log_std - config.min_log_std) / 2


def grasp_network(config: GaussianConfig, observation_dim: int, generator: torch.Generator) -> EnsembleMlp:
    """Values (1, B, 3) of the gripper's choices: lower bound, middle, upper bound. Untrained, the middle is best."""
    network = EnsembleMlp(1, observation_dim, config.hidden, GRIPPER_CHOICES, last_scale=0.0, generator=generator)
    with torch.no_grad():
        network.tensors()[f"bias.{len(config.hidden)}"][..., 1] = _KEEP_FIRST
    return network


def actor_tensors(actor: GaussianActor, observation: Standardizer, grasp: EnsembleMlp | None) -> dict[str, Array]:
    """Weights `weight.<layer>` (1, in, out), `bias.<layer>` (1, 1, out), the same with `grasp.` before them where
    there is such a network, and observation statistics (D,). Copies."""
    grasping = {} if grasp is None else grasp.arrays(GRASP)
    return actor.mlp.arrays() | grasping | statistics_tensors(observation)


def actor_shapes(
    config: GaussianConfig, observation_dim: int, action_dim: int, embedding: int = 0
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of `actor_tensors`. `embedding`: numbers that the actor reads of pictures."""
    inputs = observation_dim + embedding
    shapes = layer_shapes(1, inputs, config.hidden, 2 * len(config.continuous(action_dim)))
    if config.gripper is not None:
        grasp = layer_shapes(1, inputs, config.hidden, GRIPPER_CHOICES)
        shapes |= {GRASP + name: shape for name, shape in grasp.items()}
    return shapes | statistics_shapes(observation_dim)
