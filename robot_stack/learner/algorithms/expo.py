"""EXPO: a base policy that only imitates, small learned edits of its samples, and the best of both (arXiv 2507.07986).

Reinforcement never reaches the base policy, which would be slow and unstable through its solver: it imitates the
buffer. A Gaussian actor edits its samples within [-scale, scale] and ascends the critics' mean. What acts is whichever
of N samples and their N edits the critics like best, and the same choice stands in the critics' targets.

Critics judge the first `decision_steps` actions of a chunk as one decision; with 1 these are plain transitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from policies.common.features import flatten
from policies.gaussian.actor import GaussianActor
from policies.generative.policy import GenerativePolicy
from policies.steering import seeds
from policies.steering.improve import EDITS, FirstActions, ImprovedPolicy, choose_rows, take
from policies.steering.rerank import choose
from robot_stack.buffer.batches import ChunkBatch
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.protocols import Policy
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.decisions import (
    DecisionCritics,
    Decisions,
    PublishedCritics,
    draw_decisions,
    published_shapes,
)
from robot_stack.learner.algorithms.settings.expo import ExpoSettings
from robot_stack.learner.algorithms.trained_base import TrainedBase, check_published, published_base
from robot_stack.learner.algorithms.training import Units, descend, restore, saved

EDIT = "edit"


def build(settings: ExpoSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs; ConfigError if the base policy cannot be sampled like this."""
    algorithm = Expo(settings, ingredients)
    lookahead = max(settings.n_step, settings.update.decision_steps, algorithm.horizon - 1)
    return Recipe(algorithm, lookahead, HalfAndHalf(settings.demonstration_share))


class Expo:
    """The algorithm's state and its update; an `Algorithm`.

    All randomness comes from one generator, so that equal batches give equal parameters on one CPU thread.
    """

    def __init__(self, settings: ExpoSettings, ingredients: Ingredients) -> None:
        self._settings, self._config, self._sharing = settings, settings.update, ingredients.sharing
        self._units = units = Units(ingredients.action, ingredients.standardizer)
        self._generator = torch.Generator().manual_seed(ingredients.seed)
        self._base = TrainedBase(settings.base, ingredients, self._config.decision_steps)
        size = self._config.decision_steps * units.action_dim
        self._critics = DecisionCritics(settings.critics, size, units, self._generator, self._sharing)
        self._edit = GaussianActor(settings.edit, units.observation_dim + size, size, ingredients.seed)
        self._edit_optimizer = adamw([self._edit.mlp.flat], self._config.edit_lr)
        self._log_temperature = nn.Parameter(torch.tensor([math.log(self._config.initial_temperature)]))
        self._temperature_optimizer = adamw([self._log_temperature], self._config.temperature_lr)
        wanted = self._config.target_entropy
        self._target_entropy = -0.5 * size if wanted is None else wanted
        self._updates = 0

    @property
    def horizon(self) -> int:
        """Actions in a chunk of the base policy."""
        return self._base.horizon

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, batches: Batches) -> dict[str, float]:
        """One update of the critics and, when they are due, of the edits and of the base policy."""
        drawn = draw_decisions(batches, self._units, self._config.decision_steps, self._settings.discount)
        observation = self._units.observe(drawn.observation)
        metrics = self._update_critics(drawn, observation)
        self._updates += 1
        if self._config.edit_scale > 0.0 and self._updates % self._config.edit_every == 0:
            metrics |= self._update_edits(drawn, observation)
        if self._updates % self._settings.base.every == 0:
            metrics["base_loss"] = self._imitate(batches.chunks(self.horizon))
        return metrics

    def _imitate(self, batch: ChunkBatch) -> float:
        """Teach the base what was executed, up to the end of each stream."""
        executed = torch.from_numpy(~batch.is_pad).float()
        actions = self._units.act(batch.actions)
        return self._base.imitate(batch.observation, actions, self._generator, self._updates, executed)

    def _update_critics(self, drawn: Decisions, observation: Tensor) -> dict[str, float]:
        following = self._units.observe(drawn.next_observation)
        with torch.no_grad():
            candidates = self.candidates(drawn.next_observation, following)
            best = choose_rows(self._critics.mean(following, candidates), 0.0, self._generator)
            target = self._critics.targets(drawn, following, take(candidates, best[:, None])[:, 0])
        estimate = self._critics.values(observation, drawn.action[:, None])[..., 0]
        loss = (estimate - target).square().mean(dim=1).sum()
        norm = self._critics.learn(loss, self._updates)
        edited = (best >= self._config.candidates).float().mean()
        return {
            "critic_loss": loss.item(),
            "q_mean": estimate.mean().item(),
            "critic_gradient": norm,
            "edited": edited.item(),
        }

    @torch.no_grad()
    def candidates(self, seen: FloatArray, observation: Tensor) -> Tensor:
        """Decisions (B, N or 2N, K * A): samples of the base, then their edits; for observations (B, D) as recorded
        and standardised."""
        samples = self._base.decisions(seen, self._config.candidates, self._generator)
        if self._config.edit_scale == 0.0:
            return samples
        noise = torch.randn(samples.shape, generator=self._generator)
        edited, _ = edit(self._edit, self._config.edit_scale, observation, samples, noise)
        return torch.cat((samples, edited), dim=1)

    def _update_edits(self, drawn: Decisions, observation: Tensor) -> dict[str, float]:
        samples = self._base.decisions(drawn.observation, 1, self._generator)
        noise = torch.randn(samples.shape, generator=self._generator)
        edited, density = edit(self._edit, self._config.edit_scale, observation, samples, noise)
        value = self._critics.mean(observation, edited)
        temperature = self._log_temperature.detach().exp().item()
        loss = (temperature * density - value).mean()
        norm = self._descend(loss, self._edit.mlp.flat, self._edit_optimizer)
        excess = -density.detach().mean() - self._target_entropy
        self._descend((self._log_temperature * excess).sum(), self._log_temperature, self._temperature_optimizer)
        return {
            "actor_value": value.mean().item(),
            "entropy": -density.mean().item(),
            "temperature": temperature,
            "actor_gradient": norm,
        }

    def _descend(self, loss: Tensor, parameters: nn.Parameter, optimizer: torch.optim.Optimizer) -> float:
        norm = self._settings.critics.max_gradient_norm
        return descend(loss, parameters, optimizer, norm, self._updates, self._sharing)

    # ---- what the edge and checkpoints need ----

    def actor_tensors(self) -> dict[str, Array]:
        """What `chunk_policy` reads: base policy, critics with the observations' statistics, edits. Copies."""
        edits = self._edit.mlp.flat.detach().numpy().copy()
        return self._base.published() | self._critics.published() | {EDIT: edits}

    def state(self) -> dict[str, Array]:
        return saved(self._tensors(), self._updates, self._generator)

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        self._updates = restore(self._tensors(), self._generator, tensors)

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name."""
        tensors = self._base.tensors() | self._critics.tensors()
        tensors |= {EDIT: self._edit.mlp.flat, "log_temperature": self._log_temperature}
        tensors |= adamw_tensors(self._edit_optimizer, "edit_optimizer")
        return tensors | adamw_tensors(self._temperature_optimizer, "temperature_optimizer")


def edit(
    actor: GaussianActor, scale: float, observation: Tensor, decisions: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Decisions (B, N, K * A) changed by at most `scale`, inside [-1, 1], and the log densities (B, N) of the changes
    before scaling; with gradients to the actor. `noise`: standard normal, like the decisions."""
    seen = observation[:, None].expand(-1, decisions.shape[1], -1)
    change, density = actor.sample(torch.cat((seen, decisions), dim=-1).flatten(0, 1), noise.flatten(0, 1))
    edited = (decisions + scale * change.view(decisions.shape)).clamp(-1.0, 1.0)
    return edited, density.view(decisions.shape[:2])


def chunk_policy(settings: ExpoSettings, base: GenerativePolicy, version: int, tensors: Mapping[str, Array]) -> Policy:
    """What acts: the best of N samples of the published base policy and their edits; PolicyError if tensors do not fit.

    All random numbers belong to the observation, edits included. A chunk that was not edited stays as it is.
    """
    config, action_dim = settings.update, base.spec.action.shape[0]
    size, observation_dim = config.decision_steps * action_dim, base.sizes.vector_dim
    actor = GaussianActor(settings.edit, observation_dim + size, size, seed=0).requires_grad_(False)
    shapes = published_shapes(settings.critics, size, observation_dim) | {EDIT: tuple(actor.mlp.flat.shape)}
    check_published(tensors, shapes, version)
    actor.mlp.flat.copy_(torch.from_numpy(np.array(tensors[EDIT])))
    critics = PublishedCritics(settings.critics, size, tensors)
    first = FirstActions(base.spec.action, config.decision_steps)

    @torch.inference_mode()
    def improve(observation: Observation, chunks: FloatArray) -> FloatArray:
        seen = torch.from_numpy(critics.standardizer.normalize(flatten(observation.features, base.spec.observation)))
        candidates = first.of(chunks)
        if config.edit_scale > 0.0:
            noise = seeds.generator(observation, EDITS).standard_normal(candidates.shape, dtype=np.float32)
            edited, _ = edit(actor, config.edit_scale, seen[None], candidates, torch.from_numpy(noise))
            candidates = torch.cat((candidates, edited), dim=1)
        best = choose(critics.mean(seen[None], candidates)[0].numpy(), temperature=0.0, uniform=0.0)
        return chunks[best] if best < len(chunks) else first.put(chunks[best - len(chunks)], candidates[0, best])

    return ImprovedPolicy(published_base(base, settings.base, version, tensors), config.candidates, improve)
