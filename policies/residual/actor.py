"""The residual actor as a trainable network, and as the named tensors in which it travels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from policies.common.ensemble_mlp import EnsembleMlp, layer_shapes
from policies.common.normalization import Standardizer
from policies.residual.config import ResidualConfig
from robot_stack.core.messages import Array

OBSERVATION_MEAN = "observation_mean"
OBSERVATION_STD = "observation_std"


class ResidualActor(nn.Module):
    """Correction in [-action_scale, action_scale]^A from [standardised observation, normalised base action].

    Inputs (B, D) and (B, A), output (B, A), all float32. Its last layer starts at zero: the untrained correction is
    exactly zero. ResFiT, arXiv 2509.19301.
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
    tensors: dict[str, Array] = {
        name: value.detach().cpu().numpy().copy() for name, value in actor.mlp.tensors().items()
    }
    tensors[OBSERVATION_MEAN] = np.asarray(observation.mean, np.float32)
    tensors[OBSERVATION_STD] = np.asarray(observation.std, np.float32)
    return tensors


def actor_shapes(config: ResidualConfig, observation_dim: int, action_dim: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of `actor_tensors`."""
    layers = layer_shapes(1, observation_dim + action_dim, config.hidden, action_dim)
    statistics = {OBSERVATION_MEAN: (observation_dim,), OBSERVATION_STD: (observation_dim,)}
    return layers | statistics
