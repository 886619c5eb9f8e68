"""Decisions for one or several steps at once, and the critics that judge them (EXPO, PA-RL, Q-chunking)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.common.ensemble_mlp import EnsembleMlp, layer_shapes
from policies.common.normalization import standardizer_of, statistics_shapes, statistics_tensors
from robot_stack.buffer.batches import SequenceBatch
from robot_stack.core.messages import Array, FloatArray
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.base import Batches
from robot_stack.learner.algorithms.critics import Critics
from robot_stack.learner.algorithms.settings.critics import CriticsConfig
from robot_stack.learner.algorithms.training import Sharing, Units, descend

CRITICS = "critics"


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """B decisions, each for K actions at once.

    Attributes:
        observation, next_observation: (B, D) flattened, float32, as recorded.
        action: (B, K * A) executed, normalised to the bounds.
        return_n, bootstrap: (B,) as of `TransitionBatch`, over the K steps (K = 1: over n steps).
        return_to_go, steps_to_go: (B,) as of `TransitionBatch`.
    """

    observation: FloatArray
    next_observation: FloatArray
    action: Tensor
    return_n: Tensor
    bootstrap: Tensor
    return_to_go: FloatArray
    steps_to_go: NDArray[np.int32]


def draw_decisions(batches: Batches, units: Units, steps: int, discount: float) -> Decisions:
    """A fresh batch. Where an episode ends within the K = `steps` actions, the last one stands for those missing."""
    batch = batches.transitions()
    action, following = batch.action, batch.next_observation
    return_n, bootstrap = batch.return_n, batch.bootstrap
    if steps > 1:
        stretch = batches.sampler.sequences(batch.draw, steps)
        action, following = stretch.action.reshape(len(batch), steps, -1), stretch.next_observation
        return_n, bootstrap = _over_the_stretch(stretch, discount)
    return Decisions(
        observation=batch.observation,
        next_observation=following,
        action=units.act(action).flatten(1),
        return_n=torch.from_numpy(return_n),
        bootstrap=torch.from_numpy(bootstrap),
        return_to_go=batch.return_to_go,
        steps_to_go=batch.steps_to_go,
    )


def _over_the_stretch(stretch: SequenceBatch, discount: float) -> tuple[FloatArray, FloatArray]:
    """Discounted rewards of the steps that there are, and what the state after them counts."""
    powers = discount ** np.arange(stretch.valid.shape[1])
    goes_on = ~stretch.terminated.any(axis=1)
    return_n = (stretch.reward * powers).sum(axis=1).astype(np.float32)
    return return_n, (discount ** stretch.valid.sum(axis=1) * goes_on).astype(np.float32)


class DecisionCritics:
    """Critics of standardised observations (B, D) and decisions (B, N, K * A), with their targets and optimiser."""

    def __init__(
        self,
        config: CriticsConfig,
        decision_size: int,
        units: Units,
        generator: torch.Generator,
        sharing: Sharing | None = None,
    ) -> None:
        self._config, self._units, self._sharing = config, units, sharing
        self._critics = new_critics(config, units.observation_dim + decision_size, generator)
        self._optimizer = adamw([self._critics.online.flat], config.lr)

    def values(self, observation: Tensor, decisions: Tensor) -> Tensor:
        """What every critic says, (E, B, N)."""
        said = self._critics.values(paired(observation, decisions))
        return said.view(-1, *decisions.shape[:2])

    def mean(self, observation: Tensor, decisions: Tensor) -> Tensor:
        """What candidates are compared by, in learning as on the edge: (B, N)."""
        return self.values(observation, decisions).mean(dim=0)

    def targets(self, drawn: Decisions, following: Tensor, chosen: Tensor) -> Tensor:
        """Target values (B,) if `chosen` (B, K * A) is done at the standardised observation that follows (B, D)."""
        return drawn.return_n + drawn.bootstrap * self._critics.lowest(torch.cat((following, chosen), dim=-1))

    def target_mean(self, following: Tensor, chosen: Tensor) -> Tensor:
        """The mean (B,) of the targets of all critics, for `chosen` (B, K * A) at standardised observations (B, D)."""
        return self._critics.target(torch.cat((following, chosen), dim=-1))[..., 0].mean(dim=0)

    def learn(self, loss: Tensor, updates: int) -> float:
        """One step down the loss, after which the targets follow; the gradient's norm."""
        flat, max_norm = self._critics.online.flat, self._config.max_gradient_norm
        norm = descend(loss, flat, self._optimizer, max_norm, updates, self._sharing)
        self._critics.follow(self._config.polyak)
        return norm

    def published(self) -> dict[str, Array]:
        """What `PublishedCritics` reads. Copies."""
        critics = {CRITICS: self._critics.online.flat.detach().numpy().copy()}
        return critics | statistics_tensors(self._units.standardizer)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on; not copies."""
        tensors = {"critics": self._critics.online.flat, "critics_target": self._critics.target.flat}
        return tensors | adamw_tensors(self._optimizer, "critics_optimizer")


class PublishedCritics:
    """The critics of published tensors, as they compare candidates on the edge."""

    def __init__(self, config: CriticsConfig, decision_size: int, tensors: Mapping[str, Array]) -> None:
        self.standardizer = standardizer_of(tensors)
        inputs = len(self.standardizer.mean) + decision_size
        self._mlp = EnsembleMlp(
            config.critics, inputs, config.hidden, 1, last_scale=0.0, generator=torch.Generator()
        ).requires_grad_(False)
        self._mlp.flat.copy_(torch.from_numpy(np.array(tensors[CRITICS])))

    def mean(self, observation: Tensor, decisions: Tensor) -> Tensor:
        """As `DecisionCritics.mean`."""
        said: Tensor = self._mlp(paired(observation, decisions))
        return said[..., 0].mean(dim=0).view(decisions.shape[:2])


def published_shapes(config: CriticsConfig, decision_size: int, observation_dim: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of `DecisionCritics.published`."""
    layers = layer_shapes(config.critics, observation_dim + decision_size, config.hidden, 1)
    critics = {CRITICS: (sum(math.prod(shape) for shape in layers.values()),)}
    return critics | statistics_shapes(observation_dim)


def new_critics(config: CriticsConfig, inputs: int, generator: torch.Generator) -> Critics:
    return Critics(config.critics, min(2, config.critics), inputs, config.hidden, generator)


def paired(observation: Tensor, actions: Tensor) -> Tensor:
    """Rows (B * N, D + A) of observations (B, D), each with its actions (B, N, A)."""
    seen = observation[:, None].expand(-1, actions.shape[1], -1)
    return torch.cat((seen, actions), dim=-1).flatten(0, 1)
