"""The residual actor as a trainable network, and as the named tensors in which it travels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.common.ensemble_mlp import EnsembleMlp, layer_shapes
from policies.common.normalization import Standardizer, statistics_shapes, statistics_tensors
from policies.residual.config import ResidualConfig
from robot_stack.core.messages import Array


class ResidualActor(nn.Module):
    """Correction in [-action_scale, action_scale]^A from [standardised observation, normalised base action].

    Inputs (B, D), embeddings of pictures included, and (B, A), output (B, A), all float32. Its last layer starts at
    zero: the untrained correction is exactly zero. ResFiT, arXiv 2509.19301.
    """

    def __init__(self, config: ResidualConfig, observation_dim: int, action_dim: int, seed: int) -> None:
        super().__init__()
        self.action_scale = config.action_scale
        self.mlp = EnsembleMlp(
            1,
            observation_dim + action_dim,
            config.hidden,
            action_dim,
            last_scale=0.0,
            generator=torch.Generator().manual_seed(seed),
        )

    def forward(self, observation: Tensor, action_base: Tensor) -> Tensor:
        output: Tensor = self.mlp(torch.cat((observation, action_base), dim=-1))
        return self.action_scale * torch.tanh(output[0])


def actor_tensors(actor: ResidualActor, observation: Standardizer) -> dict[str, Array]:
    """Weights `weight.<layer>` (1, in, out), `bias.<layer>` (1, 1, out) and observation statistics (D,). Copies."""
    return actor.mlp.arrays() | statistics_tensors(observation)


def actor_shapes(
    config: ResidualConfig, observation_dim: int, action_dim: int, embedding: int = 0
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of `actor_tensors`. `embedding`: numbers that the actor reads of pictures."""
    layers = layer_shapes(1, observation_dim + embedding + action_dim, config.hidden, action_dim)
    return layers | statistics_shapes(observation_dim)
