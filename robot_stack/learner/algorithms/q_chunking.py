"""Q-chunking: values of whole chunks of actions, and the best of a base policy's samples (arXiv 2507.07969).

The action is a chunk of h actions, executed without another look. So its value may be learned from the h rewards that
followed at once, without the bias of n-step returns, and news travels h steps with every sweep through the buffer:

    target = sum over i < h of discount^i * reward[t + i] + discount^h * Q'(state[t + h], best chunk there)

The base policy only imitates the buffer. The best of N of its chunks, by the mean of the critics, is what acts and what
stands in the targets, where the mean of the target critics values it: nothing leaves what was demonstrated or done.

Which stretches of the buffer count: those of h steps within one episode, and shorter ones where the episode terminated.
There the actions that were never executed change nothing, so they are drawn at random and the value learns just that.
Stretches that are shorter for another reason (a time-out, a take-over, a lost step) have weight 0: what the rest of
their chunk would have done is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies.common.features import flatten
from policies.generative.policy import GenerativePolicy
from policies.steering.improve import FirstActions
from policies.steering.rerank import Reranked
from robot_stack.buffer.batches import SequenceBatch
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.decisions import DecisionCritics, PublishedCritics, published_shapes
from robot_stack.learner.algorithms.settings.q_chunking import QChunkingSettings
from robot_stack.learner.algorithms.trained_base import TrainedBase, check_published, published_base
from robot_stack.learner.algorithms.training import Units, restore, saved


def build(settings: QChunkingSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs; ConfigError if the base policy's chunks cannot be valued."""
    algorithm = QChunking(settings, ingredients)
    lookahead = max(settings.n_step, settings.update.decision_steps, algorithm.horizon - 1)
    return Recipe(algorithm, lookahead, HalfAndHalf(settings.demonstration_share))


@dataclass(frozen=True, slots=True, eq=False)
class ChunkReturns:
    """What B stretches of h steps say about the values of their chunks; all (B,) float32.

    `return_h`: discounted rewards. `bootstrap`: what the state after them counts: discount^h, or 0 after a termination.
    `weight`: 1, or 0 for a stretch that says nothing.
    """

    return_h: FloatArray
    bootstrap: FloatArray
    weight: FloatArray


def chunk_returns(batch: SequenceBatch, discount: float) -> ChunkReturns:
    """Returns of sequences of h steps."""
    steps = batch.valid.shape[1]
    over, whole = batch.terminated.any(axis=1), batch.valid.all(axis=1)
    return ChunkReturns(
        return_h=(batch.reward * discount ** np.arange(steps) * batch.valid).sum(axis=1).astype(np.float32),
        bootstrap=np.where(over, 0.0, discount**steps).astype(np.float32),
        weight=np.where(over | whole, 1.0, 0.0).astype(np.float32),
    )


class QChunking:
    """The algorithm's state and its update; an `Algorithm`.

    All randomness comes from one generator, so that equal batches give equal parameters on one CPU thread.
    """

    def __init__(self, settings: QChunkingSettings, ingredients: Ingredients) -> None:
        self._settings, self._config = settings, settings.update
        self._units = units = Units(ingredients.action, ingredients.standardizer)
        self._generator = torch.Generator().manual_seed(ingredients.seed)
        self._base = TrainedBase(settings.base, ingredients, self._config.decision_steps)
        chunk_size = self._config.decision_steps * units.action_dim
        self._critics = DecisionCritics(settings.critics, chunk_size, units, self._generator, ingredients.sharing)
        self._updates = 0

    @property
    def horizon(self) -> int:
        """Actions in a chunk of the base policy."""
        return self._base.horizon

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, batches: Batches) -> dict[str, float]:
        """One update of the critics and, when it is due, one of the base policy."""
        metrics = self.learn(batches.sequences(self._config.decision_steps))
        if self._updates % self._settings.base.every == 0:
            chunks = batches.chunks(self.horizon)
            executed = torch.from_numpy(~chunks.is_pad).float()
            actions = self._units.act(chunks.actions)
            metrics["base_loss"] = self._base.imitate(
                chunks.observation, actions, self._generator, self._updates, executed
            )
        return metrics

    def learn(self, batch: SequenceBatch) -> dict[str, float]:
        """One update of the critics from sequences of h steps."""
        target, weight = self._targets(batch)
        chunk = self._executed(batch)
        estimate = self.values(self._units.observe(batch.observation[:, 0]), chunk[:, None])[..., 0]
        loss = (weight * (estimate - target).square()).mean(dim=1).sum()
        norm = self._critics.learn(loss, self._updates)
        self._updates += 1
        return {
            "critic_loss": loss.item(),
            "q_mean": estimate.mean().item(),
            "critic_gradient": norm,
            "used_share": weight.mean().item(),
        }

    def values(self, observation: Tensor, chunks: Tensor) -> Tensor:
        """What every critic says, (E, B, N), of standardised observations (B, D), each with chunks (B, N, h * A)."""
        return self._critics.values(observation, chunks)

    @torch.no_grad()
    def _targets(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Target values and weights, (B,)."""
        returns = chunk_returns(batch, self._settings.discount)
        following = self._units.observe(batch.next_observation)
        chunks = self._base.decisions(batch.next_observation, self._config.candidates, self._generator)
        chosen = chunks[torch.arange(len(chunks)), self._critics.mean(following, chunks).argmax(dim=1)]
        value = self._critics.target_mean(following, chosen)
        target: Tensor = torch.from_numpy(returns.return_h) + torch.from_numpy(returns.bootstrap) * value
        return target, torch.from_numpy(returns.weight)

    def _executed(self, batch: SequenceBatch) -> Tensor:
        """Chunks (B, h * A) that were executed; any actions in the place of those that were not."""
        actions = self._units.act(batch.action)
        any_actions = torch.rand(actions.shape, generator=self._generator) * 2.0 - 1.0
        return torch.where(torch.from_numpy(batch.valid)[..., None], actions, any_actions).flatten(1)

    # ---- what the edge and checkpoints need ----

    def actor_tensors(self) -> dict[str, Array]:
        """What `chunk_policy` reads: base policy, critics and the observations' statistics. Copies."""
        return self._base.published() | self._critics.published()

    def state(self) -> dict[str, Array]:
        return saved(self._tensors(), self._updates, self._generator)

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        self._updates = restore(self._tensors(), self._generator, tensors)

    def _tensors(self) -> dict[str, Tensor]:
        return self._base.tensors() | self._critics.tensors()


class ChunkValue:
    """The mean of published critics over the first h actions of chunks; a `ChunkScore`."""

    def __init__(
        self, critics: PublishedCritics, steps: int, action: Feature, observation: Mapping[str, Feature]
    ) -> None:
        self._critics, self._observation = critics, observation
        self._first = FirstActions(action, steps)

    @torch.inference_mode()
    def score(self, observation: Observation, chunks: FloatArray) -> FloatArray:
        seen = self._critics.standardizer.normalize(flatten(observation.features, self._observation))
        values: FloatArray = self._critics.mean(torch.from_numpy(seen)[None], self._first.of(chunks))[0].numpy()
        return values


def chunk_policy(
    settings: QChunkingSettings, base: GenerativePolicy, version: int, tensors: Mapping[str, Array]
) -> Policy:
    """What acts: the best of N chunks of the published base policy; PolicyError if the tensors do not fit.

    Its horizon is the base's, of which the critics look at the first `decision_steps`. All noise belongs to the
    observation; with N = 1 it is the base policy with the published weights, bit for bit. It runs on PyTorch.
    """
    config, action_dim = settings.update, base.spec.action.shape[0]
    if config.decision_steps > base.spec.horizon:
        raise ConfigError(
            f"algorithm.update.decision_steps is {config.decision_steps}; allowed for policy '{base.spec.name}': 1 to "
            f"its horizon, {base.spec.horizon}"
        )
    size = config.decision_steps * action_dim
    check_published(tensors, published_shapes(settings.critics, size, base.sizes.vector_dim), version)
    critics = PublishedCritics(settings.critics, size, tensors)
    value = ChunkValue(critics, config.decision_steps, base.spec.action, base.spec.observation)
    acting = published_base(base, settings.base, version, tensors)
    return Reranked(acting, value, temperature=0.0, count=config.candidates)
