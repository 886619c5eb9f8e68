"""Soft actor-critic (T. Haarnoja et al., arXiv 1812.05905) and RLPD (P. Ball et al., arXiv 2302.02948).

A Gaussian actor acts by itself, not as a correction of the base policy, in normalised units ([-1, 1] = the action's
bounds). Critics learn n-step targets from the minimum over a random subset of the target ensemble; the actor ascends
the mean of all critics and its own entropy, whose weight, the temperature, moves that entropy to its target. Polyak
averages of the critics give the targets. More than one update per step: `updates_per_step` of the settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from policies.common.normalization import Standardizer
from policies.gaussian.actor import GaussianActor, actor_tensors
from policies.gaussian.config import GaussianConfig
from robot_stack.buffer.batches import TransitionBatch
from robot_stack.core.messages import Array
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.critics import Critics, Histogram
from robot_stack.learner.algorithms.grasp import GraspCritic
from robot_stack.learner.algorithms.senses import Senses, Vision, with_pictures
from robot_stack.learner.algorithms.settings.sac import GraspConfig, SacConfig, SacSettings
from robot_stack.learner.algorithms.training import Sharing, Units, descend, restore, saved
from robot_stack.learner.curation import EveryStep


def build(settings: SacSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs."""
    vision = Vision.of(settings, ingredients)
    algorithm = Sac(
        settings.update,
        settings.actor,
        ingredients.action,
        ingredients.standardizer,
        ingredients.seed,
        grasp=settings.grasp,
        sharing=ingredients.sharing,
        vision=vision,
    )
    mix = HalfAndHalf(settings.demonstration_share)
    return Recipe(algorithm, settings.n_step, mix, curator=with_pictures(EveryStep(), vision))


class Sac:
    """The algorithm's state and its update; an `Algorithm`.

    With `actor.gripper` that element of the action is chosen by a critic of its own; actor and critics then know the
    others alone. `vision`: pictures that all networks read beside the vectors (`Senses`). All randomness comes from one
    generator seeded by `seed`, so that equal batches give equal parameters on one CPU.
    """

    def __init__(
        self,
        config: SacConfig,
        actor: GaussianConfig,
        action: Feature,
        observation: Standardizer,
        seed: int,
        grasp: GraspConfig | None = None,
        sharing: Sharing | None = None,
        vision: Vision | None = None,
    ) -> None:
        self._config, self._sharing = config, sharing
        self._units = units = Units(action, observation)
        self._generator = torch.Generator().manual_seed(seed)
        self._continuous = torch.tensor(actor.continuous(units.action_dim))
        self._senses = senses = Senses(units, vision, seed, self._generator)
        self._actor = GaussianActor(actor, senses.dim, units.action_dim, seed)
        histogram = Histogram(config.value_min, config.value_max, config.bins) if config.bins else None
        inputs = senses.dim + len(self._continuous)
        self._critics = Critics(config.critics, config.subset, inputs, config.critic_hidden, self._generator, histogram)
        self._gripper, self._grasp = actor.gripper, None
        if actor.gripper is not None:
            self._grasp = GraspCritic(grasp or GraspConfig(), actor, senses.dim, self._generator, sharing)
        self._log_temperature = nn.Parameter(torch.tensor([math.log(config.initial_temperature)]))
        self._target_entropy = config.target_entropy * len(self._continuous)
        self._critic_parameters = [self._critics.online.flat, *senses.parameters]
        self._critic_optimizer = adamw(self._critic_parameters, config.critic_lr)
        self._actor_optimizer = adamw([self._actor.mlp.flat], config.actor_lr)
        self._temperature_optimizer = adamw([self._log_temperature], config.temperature_lr)
        self._updates = 0

    @property
    def updates(self) -> int:
        return self._updates

    @property
    def temperature(self) -> float:
        """Weight of the entropy."""
        return math.exp(self._log_temperature.item())

    def update(self, batches: Batches) -> dict[str, float]:
        return self.learn(self._senses.draw(batches))

    def learn(self, batch: TransitionBatch) -> dict[str, float]:
        """One critic update and, when it is due, one update of the actor and the temperature."""
        observation, action = self._senses.present(batch), self._units.act(batch.action)
        metrics = self._update_critics(batch, observation, action)
        self._updates += 1
        past_warmup = self._updates > self._config.critic_only_updates
        if past_warmup and self._updates % self._config.actor_every == 0:
            metrics |= self._update_actor(observation.detach())
        return metrics

    def _update_critics(self, batch: TransitionBatch, observation: Tensor, action: Tensor) -> dict[str, float]:
        config = self._config
        next_observation = self._senses.following(batch)
        inputs = torch.cat((observation, action.index_select(1, self._continuous)), dim=1)
        loss, estimate = self._critics.loss(inputs, self._target(batch, next_observation))
        trained, norm = self._critic_parameters, config.max_gradient_norm
        gradient = descend(loss, trained, self._critic_optimizer, norm, self._updates, self._sharing)
        metrics = {"critic_loss": loss.item(), "q_mean": estimate.mean().item(), "critic_gradient": gradient}
        self._critics.follow(config.polyak)
        if self._grasp is not None:
            metrics |= self._grasp.learn(
                observation.detach(),
                action[:, self._gripper],
                torch.from_numpy(batch.return_n),
                torch.from_numpy(batch.bootstrap),
                next_observation,
                polyak=config.polyak,
                max_norm=norm,
                updates=self._updates,
            )
        return metrics

    def target(self, batch: TransitionBatch) -> Tensor:
        """What the critics' values (B,) of a batch should be: it draws the next actions and the critics' subset."""
        return self._target(batch, self._senses.following(batch))

    @torch.no_grad()
    def _target(self, batch: TransitionBatch, next_observation: Tensor) -> Tensor:
        action, log_prob = self._actor.sample(next_observation, self._noise(len(batch)))
        value = self._critics.lowest(torch.cat((next_observation, action), dim=1))
        if self._config.backup_entropy:
            value -= self.temperature * log_prob
        return torch.addcmul(torch.from_numpy(batch.return_n), torch.from_numpy(batch.bootstrap), value)

    def _update_actor(self, observation: Tensor) -> dict[str, float]:
        config, temperature = self._config, self.temperature
        action, log_prob = self._actor.sample(observation, self._noise(len(observation)))
        value = self._critics.values(torch.cat((observation, action), dim=1)).mean()
        entropy = -log_prob.mean()
        loss = -value - temperature * entropy
        flat, sharing = self._actor.mlp.flat, self._sharing
        norm = descend(loss, flat, self._actor_optimizer, config.max_gradient_norm, self._updates, sharing)
        found = (entropy if sharing is None else sharing.mean(entropy.detach())).item()
        self._log_temperature.grad = torch.full_like(
            self._log_temperature, temperature * (found - self._target_entropy)
        )
        self._temperature_optimizer.step()
        return {"actor_value": value.item(), "entropy": found, "temperature": temperature, "actor_gradient": norm}

    def _noise(self, rows: int) -> Tensor:
        return torch.randn(rows, len(self._continuous), generator=self._generator)

    def actor_tensors(self) -> dict[str, Array]:
        grasp = None if self._grasp is None else self._grasp.network
        return actor_tensors(self._actor, self._units.standardizer, grasp) | self._senses.published()

    def state(self) -> dict[str, Array]:
        return saved(self._state_tensors(), self._updates, self._generator)

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        self._updates = restore(self._state_tensors(), self._generator, tensors)

    def _state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name."""
        tensors: dict[str, Tensor] = {"log_temperature": self._log_temperature} | self._senses.state_tensors()
        networks = {"actor": self._actor, "critic": self._critics.online, "critic_target": self._critics.target}
        for network, module in networks.items():
            tensors |= {f"{network}.{name}": value for name, value in module.state_dict().items()}
        if self._grasp is not None:
            tensors |= self._grasp.state_tensors()
        tensors |= adamw_tensors(self._actor_optimizer, "actor_optimizer")
        tensors |= adamw_tensors(self._temperature_optimizer, "temperature_optimizer")
        return tensors | adamw_tensors(self._critic_optimizer, "critic_optimizer")
