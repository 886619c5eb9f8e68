"""Off-policy residual reinforcement learning on a frozen base policy (ResFiT, arXiv 2509.19301; TD3, arXiv 1802.09477).

The executed action is base + residual in normalised units ([-1, 1] = the action's bounds). Critics see only the sum.
An ensemble of critics with LayerNorm learns n-step targets from the minimum over two randomly chosen target critics;
the actor ascends the mean of all critics. Polyak averages of actor and critics give the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from policies.common.normalization import Standardizer
from policies.residual.actor import ResidualActor, actor_tensors
from policies.residual.config import ResidualConfig
from robot_stack.buffer.batches import TransitionBatch
from robot_stack.core.messages import Array
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.critics import Critics
from robot_stack.learner.algorithms.senses import Senses, Vision, with_pictures
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Config, ResidualTd3Settings
from robot_stack.learner.algorithms.training import Sharing, Units, average, descend, restore, saved
from robot_stack.learner.curation import EveryStep

_MINIMUM_OVER = 2


def build(settings: ResidualTd3Settings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs."""
    vision = Vision.of(settings, ingredients)
    algorithm = ResidualTd3(
        settings.update,
        settings.residual,
        ingredients.action,
        ingredients.standardizer,
        ingredients.seed,
        ingredients.sharing,
        vision,
    )
    mix = HalfAndHalf(settings.demonstration_share)
    return Recipe(algorithm, settings.n_step, mix, curator=with_pictures(EveryStep(), vision))


class ResidualTd3:
    """The algorithm's state and its update; an `Algorithm`.

    `vision`: pictures that actor and critics read beside the vectors (`Senses`). All randomness comes from one
    generator seeded by `seed`, so that equal batches give equal parameters on one CPU.
    """

    def __init__(
        self,
        config: ResidualTd3Config,
        residual: ResidualConfig,
        action: Feature,
        observation: Standardizer,
        seed: int,
        sharing: Sharing | None = None,
        vision: Vision | None = None,
    ) -> None:
        self._config, self._sharing = config, sharing
        self._units = units = Units(action, observation)
        self._generator = torch.Generator().manual_seed(seed)
        self._senses = senses = Senses(units, vision, seed, self._generator)
        self._actor = ResidualActor(residual, senses.dim, units.action_dim, seed)
        inputs = senses.dim + units.action_dim
        self._critics = Critics(config.critics, _MINIMUM_OVER, inputs, config.critic_hidden, self._generator)
        self._actor_target = ResidualActor(residual, senses.dim, units.action_dim, seed)
        self._actor_target.requires_grad_(False)
        self._critic_parameters = [self._critics.online.flat, *senses.parameters]
        self._critic_optimizer = adamw(self._critic_parameters, config.critic_lr)
        self._actor_optimizer = adamw([self._actor.mlp.flat], config.actor_lr)
        self._updates = 0

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, batches: Batches) -> dict[str, float]:
        return self.learn(self._senses.draw(batches))

    def learn(self, batch: TransitionBatch) -> dict[str, float]:
        """One critic update and, when it is due, one actor update."""
        observation = self._senses.present(batch)
        metrics = self._update_critic(batch, observation)
        self._updates += 1
        past_warmup = self._updates > self._config.critic_only_updates
        if past_warmup and self._updates % self._config.actor_every == 0:
            metrics |= self._update_actor(observation.detach(), self._units.act(batch.action_base))
        return metrics

    def _update_critic(self, batch: TransitionBatch, observation: Tensor) -> dict[str, float]:
        inputs = torch.cat((observation, self._units.act(batch.action)), dim=-1)
        loss, estimate = self._critics.loss(inputs, self._target(batch))
        norm = self._descend(loss, self._critic_parameters, self._critic_optimizer)
        self._critics.follow(self._config.polyak)
        return {"critic_loss": loss.item(), "q_mean": estimate.mean().item(), "critic_gradient": norm}

    @torch.no_grad()
    def _target(self, batch: TransitionBatch) -> Tensor:
        config, units = self._config, self._units
        next_observation, next_base = self._senses.following(batch), units.act(batch.next_action_base)
        noise = torch.empty_like(next_base).normal_(0.0, config.target_noise, generator=self._generator)
        noise.clamp_(-config.target_noise_clip, config.target_noise_clip)
        action = (next_base + self._actor_target(next_observation, next_base) + noise).clamp_(-1.0, 1.0)
        lowest = self._critics.lowest(torch.cat((next_observation, action), dim=-1))
        target: Tensor = torch.from_numpy(batch.return_n) + torch.from_numpy(batch.bootstrap) * lowest
        return target

    def _update_actor(self, observation: Tensor, action_base: Tensor) -> dict[str, float]:
        residual = self._actor(observation, action_base)
        action = (action_base + residual).clamp(-1.0, 1.0)
        value = self._critics.values(torch.cat((observation, action), dim=-1)).mean()
        norm = self._descend(-value, self._actor.mlp.flat, self._actor_optimizer)
        average(self._actor_target.mlp.flat, self._actor.mlp.flat, self._config.polyak)
        return {"actor_value": value.item(), "residual": residual.abs().mean().item(), "actor_gradient": norm}

    def _descend(
        self, loss: Tensor, parameters: nn.Parameter | Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> float:
        return descend(loss, parameters, optimizer, self._config.max_gradient_norm, self._updates, self._sharing)

    def actor_tensors(self) -> dict[str, Array]:
        return actor_tensors(self._actor, self._units.standardizer) | self._senses.published()

    def state(self) -> dict[str, Array]:
        return saved(self._state_tensors(), self._updates, self._generator)

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        self._updates = restore(self._state_tensors(), self._generator, tensors)

    def _state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name."""
        tensors = self._senses.state_tensors()
        networks = {
            "actor": self._actor,
            "critic": self._critics.online,
            "actor_target": self._actor_target,
            "critic_target": self._critics.target,
        }
        for network, module in networks.items():
            tensors |= {f"{network}.{name}": value for name, value in module.state_dict().items()}
        tensors |= adamw_tensors(self._actor_optimizer, "actor_optimizer")
        return tensors | adamw_tensors(self._critic_optimizer, "critic_optimizer")
