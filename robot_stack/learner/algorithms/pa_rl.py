"""PA-RL: whatever the policy, improve its samples by the critics and teach it the result (arXiv 2412.06685).

Samples of the base policy are ranked by the critics' mean; the best few climb its gradient, inside the action's bounds;
one of them acts, by softmax or as the best, and the same choice stands in the critics' targets. The base policy learns
improved samples by its own supervised loss. The critics are kept conservative as Cal-QL's are.

Critics judge the first `decision_steps` actions of a chunk as one decision; with 1 these are plain transitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.common.features import flatten
from policies.generative.policy import GenerativePolicy
from policies.steering import seeds
from policies.steering.improve import FirstActions, ImprovedPolicy, ascend, choose_rows, keep_top, take
from policies.steering.rerank import choose
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.protocols import Policy
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.conservative import blind_actions, conservative_gap, value_floor
from robot_stack.learner.algorithms.decisions import (
    DecisionCritics,
    Decisions,
    PublishedCritics,
    draw_decisions,
    published_shapes,
)
from robot_stack.learner.algorithms.settings.pa_rl import PaRlConfig, PaRlSettings
from robot_stack.learner.algorithms.trained_base import TrainedBase, check_published, published_base
from robot_stack.learner.algorithms.training import Units, restore, saved


def build(settings: PaRlSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs; ConfigError if the base policy cannot be sampled like this.

    Before practice every batch is demonstrations alone.
    """
    algorithm = PaRl(settings, ingredients)
    lookahead = max(settings.n_step, settings.update.decision_steps)
    return Recipe(algorithm, lookahead, HalfAndHalf(settings.demonstration_share), on_empty="redistribute")


@dataclass(frozen=True, slots=True, eq=False)
class Improved:
    """The best candidates (B, K', H, A), their first actions improved (B, K', K * A), and values (B, K') of these."""

    chunks: Tensor
    decisions: Tensor
    values: Tensor


class PaRl:
    """The algorithm's state and its update; an `Algorithm`.

    All randomness comes from one generator, so that equal batches give equal parameters on one CPU thread.
    """

    def __init__(self, settings: PaRlSettings, ingredients: Ingredients) -> None:
        self._settings, self._config = settings, settings.update
        self._units = Units(ingredients.action, ingredients.standardizer)
        self._generator = torch.Generator().manual_seed(ingredients.seed)
        self._base = TrainedBase(settings.base, ingredients, self._config.decision_steps)
        self._size = self._config.decision_steps * self._units.action_dim
        self._critics = DecisionCritics(settings.critics, self._size, self._units, self._generator, ingredients.sharing)
        self._updates = 0

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, batches: Batches) -> dict[str, float]:
        """One update of the critics and, when it is due, of the base policy."""
        drawn = draw_decisions(batches, self._units, self._config.decision_steps, self._settings.discount)
        observation = self._units.observe(drawn.observation)
        distils = (self._updates + 1) % self._settings.base.every == 0
        here = None
        if distils or self._settings.conservative.weight > 0.0:
            here = self.improved(drawn.observation, observation)
        metrics = self._update_critics(drawn, observation, here)
        self._updates += 1
        if here is not None and distils:
            metrics["base_loss"] = self._distil(drawn.observation, here)
        return metrics

    @torch.no_grad()
    def improved(self, seen: FloatArray, observation: Tensor) -> Improved:
        """What the critics make of samples of the base, for observations (B, D) as recorded and standardised."""
        chunks = self._base.sample(seen, self._config.candidates, self._generator)
        decisions = chunks[:, :, : self._config.decision_steps].flatten(2)
        top, climbed, values = climb(self._config, lambda tried: self._critics.mean(observation, tried), decisions)
        return Improved(take(chunks, top), climbed, values)

    def _update_critics(self, drawn: Decisions, observation: Tensor, here: Improved | None) -> dict[str, float]:
        following = self._units.observe(drawn.next_observation)
        there = self.improved(drawn.next_observation, following)
        chosen = choose_rows(there.values, self._config.temperature, self._generator)
        target = self._critics.targets(drawn, following, take(there.decisions, chosen[:, None])[:, 0])
        estimate = self._critics.values(observation, drawn.action[:, None])[..., 0]
        loss = (estimate - target).square().mean(dim=1).sum()
        metrics = {"critic_loss": loss.item(), "q_mean": estimate.mean().item()}
        if here is not None and self._settings.conservative.weight > 0.0:
            gap = self._gap(drawn, observation, here, estimate)
            metrics["conservative_gap"] = gap.mean().item()
            loss = loss + self._settings.conservative.weight * gap.sum()
        metrics["critic_gradient"] = self._critics.learn(loss, self._updates)
        return metrics

    def _gap(self, drawn: Decisions, observation: Tensor, here: Improved, estimate: Tensor) -> Tensor:
        """Of all actions above the recorded ones; improved samples have no density, so all count alike."""
        config = self._settings.conservative
        blind, _ = blind_actions(config.action_samples, self._size, len(observation), self._generator)
        actions = torch.cat((blind, here.decisions), dim=1)
        return conservative_gap(
            estimate,
            self._critics.values(observation, actions),
            torch.zeros(actions.shape[:2]),
            value_floor(config, drawn.return_to_go, drawn.steps_to_go, self._settings.discount),
            blind.shape[1],
        )

    def _distil(self, seen: FloatArray, here: Improved) -> float:
        """Teach the base chunks that begin with improved actions."""
        chosen = choose_rows(here.values, self._config.distil_temperature, self._generator)[:, None]
        chunks = take(here.chunks, chosen)[:, 0].clone()
        first = chunks[:, : self._config.decision_steps]
        first.copy_(take(here.decisions, chosen)[:, 0].view_as(first))
        return self._base.imitate(seen, chunks, self._generator, self._updates)

    # ---- what the edge and checkpoints need ----

    def actor_tensors(self) -> dict[str, Array]:
        """What `chunk_policy` reads: base policy, and critics with the observations' statistics. Copies."""
        return self._base.published() | self._critics.published()

    def state(self) -> dict[str, Array]:
        return saved(self._tensors(), self._updates, self._generator)

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        self._updates = restore(self._tensors(), self._generator, tensors)

    def _tensors(self) -> dict[str, Tensor]:
        return self._base.tensors() | self._critics.tensors()


def climb(config: PaRlConfig, value: Callable[[Tensor], Tensor], decisions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best of the decisions (B, N, K * A), improved: which they were (B, keep), what became of them, and values."""
    with torch.no_grad():
        top = keep_top(value(decisions), config.keep)
    climbed, values = ascend(value, take(decisions, top), config.ascent_steps, config.ascent_step_size)
    return top, climbed, values


def chunk_policy(settings: PaRlSettings, base: GenerativePolicy, version: int, tensors: Mapping[str, Array]) -> Policy:
    """What acts: an improved sample of the published base policy; PolicyError if the tensors do not fit.

    All random numbers belong to the observation.
    """
    config, observation_dim = settings.update, base.sizes.vector_dim
    size = config.decision_steps * base.spec.action.shape[0]
    check_published(tensors, published_shapes(settings.critics, size, observation_dim), version)
    critics = PublishedCritics(settings.critics, size, tensors)
    first = FirstActions(base.spec.action, config.decision_steps)

    def improve(observation: Observation, chunks: FloatArray) -> FloatArray:
        seen = torch.from_numpy(critics.standardizer.normalize(flatten(observation.features, base.spec.observation)))
        top, climbed, values = climb(config, lambda tried: critics.mean(seen[None], tried), first.of(chunks))
        uniform = float(seeds.generator(observation, seeds.CHOICE).random())
        chosen = choose(values[0].numpy(), config.temperature, uniform)
        return first.put(chunks[int(top[0, chosen])], climbed[0, chosen])

    return ImprovedPolicy(published_base(base, settings.base, version, tensors), config.candidates, improve)
