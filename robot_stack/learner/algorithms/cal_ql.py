"""Cal-QL: conservative Q-learning whose values stay on the scale of real returns (arXiv 2303.05479).

Beside the temporal difference, the critics' values of all actions are pushed down and those of the recorded actions up
(CQL, arXiv 2006.04779). Cal-QL floors the values that are pushed down at the recorded Monte-Carlo return: what learns
offline is then not worse than the data by its own account, and going online does not begin with unlearning.

The same update serves both stages: offline on demonstrations alone, then on a mix with practice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from policies.gaussian.actor import GaussianActor, actor_tensors
from robot_stack.buffer.batches import TransitionBatch
from robot_stack.buffer.replay import Stratum
from robot_stack.core.messages import Array
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.conservative import blind_actions, conservative_gap, value_floor
from robot_stack.learner.algorithms.decisions import new_critics, paired
from robot_stack.learner.algorithms.settings.cal_ql import CalQlSettings
from robot_stack.learner.algorithms.training import Units, descend, restore, saved

_SHOWN = (Stratum.DEMONSTRATION, Stratum.RECOVERY, Stratum.CORRECTION)  # by a person, or an expert in their place


def build(settings: CalQlSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs. Before practice every batch is demonstrations alone."""
    algorithm = CalQl(settings, ingredients)
    return Recipe(algorithm, settings.n_step, HalfAndHalf(settings.demonstration_share), on_empty="redistribute")


class CalQl:
    """The algorithm's state and its update; an `Algorithm`.

    All randomness comes from one generator, so that equal batches give equal parameters on one CPU thread.
    """

    def __init__(self, settings: CalQlSettings, ingredients: Ingredients) -> None:
        self._settings, self._config, self._sharing = settings, settings.update, ingredients.sharing
        self._units = units = Units(ingredients.action, ingredients.standardizer)
        self._generator = torch.Generator().manual_seed(ingredients.seed)
        self._critics = new_critics(settings.critics, units.observation_dim + units.action_dim, self._generator)
        self._critics_optimizer = adamw([self._critics.online.flat], settings.critics.lr)
        self._actor = GaussianActor(settings.actor, units.observation_dim, units.action_dim, ingredients.seed)
        self._actor_optimizer = adamw([self._actor.mlp.flat], self._config.actor_lr)
        self._log_temperature = nn.Parameter(torch.tensor([math.log(self._config.initial_temperature)]))
        self._temperature_optimizer = adamw([self._log_temperature], self._config.temperature_lr)
        wanted = self._config.target_entropy
        self._target_entropy = -float(units.action_dim) if wanted is None else wanted
        self._updates = 0

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, batches: Batches) -> dict[str, float]:
        return self.learn(batches.transitions())

    def learn(self, batch: TransitionBatch) -> dict[str, float]:
        """One update of the critics, the actor and the temperature."""
        observation, recorded = self._units.observe(batch.observation), self._units.act(batch.action)
        metrics = self._update_critics(batch, observation, recorded)
        self._updates += 1
        return metrics | self._update_actor(batch, observation, recorded)

    # ---- critics ----

    def _update_critics(self, batch: TransitionBatch, observation: Tensor, recorded: Tensor) -> dict[str, float]:
        config, following = self._settings.conservative, self._units.observe(batch.next_observation)
        here, here_density = self._sample(observation)
        there, there_density = self._sample(following)
        best = self._critics.lowest(paired(following, there)).view(there.shape[:2]).amax(dim=1)
        target = torch.from_numpy(batch.return_n) + torch.from_numpy(batch.bootstrap) * best
        estimate = self._critics.values(torch.cat((observation, recorded), dim=-1))
        difference = (estimate - target).square().mean(dim=1).sum()
        blind, blind_density = blind_actions(here.shape[1], self._units.action_dim, len(here), self._generator)
        actions = torch.cat((blind, there, here), dim=1)
        gap = conservative_gap(
            estimate,
            self._critics.values(paired(observation, actions)).view(-1, *actions.shape[:2]),
            torch.cat((blind_density, there_density, here_density), dim=1),
            value_floor(config, batch.return_to_go, batch.steps_to_go, self._settings.discount),
            blind.shape[1],
        )
        loss = difference + config.weight * gap.sum()
        norm = self._descend(loss, self._critics.online.flat, self._critics_optimizer)
        self._critics.follow(self._settings.critics.polyak)
        return {
            "critic_loss": difference.item(),
            "conservative_gap": gap.mean().item(),
            "q_mean": estimate.mean().item(),
            "critic_gradient": norm,
        }

    @torch.no_grad()
    def _sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, n, A) of the actor and their log densities (B, n)."""
        shape = (self._settings.conservative.action_samples, len(observation), self._units.action_dim)
        actions, density = self._actor.sample(observation, torch.randn(shape, generator=self._generator))
        return actions.transpose(0, 1), density.transpose(0, 1)

    # ---- actor ----

    def _update_actor(self, batch: TransitionBatch, observation: Tensor, recorded: Tensor) -> dict[str, float]:
        noise = torch.randn((len(observation), self._units.action_dim), generator=self._generator)
        actions, density = self._actor.sample(observation, noise)
        value = self._critics.values(torch.cat((observation, actions), dim=-1)).amin(dim=0)
        temperature = self._log_temperature.detach().exp().item()
        loss = (temperature * density - value).mean()
        if self._config.imitation_weight > 0.0:
            scale = self._config.imitation_weight * value.detach().abs().mean()
            loss = loss + scale * self._imitation_error(batch, observation, recorded)
        norm = self._descend(loss, self._actor.mlp.flat, self._actor_optimizer)
        excess = -density.detach().mean() - self._target_entropy
        self._descend((self._log_temperature * excess).sum(), self._log_temperature, self._temperature_optimizer)
        return {
            "actor_value": value.mean().item(),
            "entropy": -density.mean().item(),
            "temperature": temperature,
            "actor_gradient": norm,
        }

    def _imitation_error(self, batch: TransitionBatch, observation: Tensor, recorded: Tensor) -> Tensor:
        """Mean squared error of the actor's mean against what was demonstrated or done by a person."""
        shown = torch.from_numpy(np.isin(batch.stratum, _SHOWN).astype(np.float32))
        mean, _ = self._actor(observation)
        errors = (torch.tanh(mean) - recorded).square().sum(dim=1)
        return (errors * shown).sum() / shown.sum().clamp_min(1.0)

    def _descend(self, loss: Tensor, parameters: nn.Parameter, optimizer: torch.optim.Optimizer) -> float:
        norm = self._settings.critics.max_gradient_norm
        return descend(loss, parameters, optimizer, norm, self._updates, self._sharing)

    # ---- what the edge and checkpoints need ----

    def actor_tensors(self) -> dict[str, Array]:
        return actor_tensors(self._actor, self._units.standardizer, None)

    def state(self) -> dict[str, Array]:
        return saved(self._tensors(), self._updates, self._generator)

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        self._updates = restore(self._tensors(), self._generator, tensors)

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name."""
        tensors: dict[str, Tensor] = {
            "actor": self._actor.mlp.flat,
            "critics": self._critics.online.flat,
            "critics_target": self._critics.target.flat,
            "log_temperature": self._log_temperature,
        }
        tensors |= adamw_tensors(self._actor_optimizer, "actor_optimizer")
        tensors |= adamw_tensors(self._critics_optimizer, "critics_optimizer")
        return tensors | adamw_tensors(self._temperature_optimizer, "temperature_optimizer")
