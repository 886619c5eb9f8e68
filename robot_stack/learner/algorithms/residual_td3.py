"""Off-policy residual reinforcement learning on a frozen base policy (ResFiT, arXiv 2509.19301; TD3, arXiv 1802.09477).

The executed action is base + residual in normalised units ([-1, 1] = the action's bounds). Critics see only the sum.
An ensemble of critics with LayerNorm learns n-step targets from the minimum over two randomly chosen target critics;
the actor ascends the mean of all critics. Polyak averages of actor and critics give the targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from policies.common.ensemble_mlp import EnsembleMlp
from policies.common.normalization import Standardizer
from policies.common.store import check_shapes
from policies.residual.actor import ResidualActor, actor_tensors
from policies.residual.config import ResidualConfig
from robot_stack.buffer.batches import TransitionBatch
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Config, ResidualTd3Settings


def build(settings: ResidualTd3Settings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs."""
    algorithm = ResidualTd3(
        settings.update, settings.residual, ingredients.action, ingredients.standardizer, ingredients.seed
    )
    return Recipe(algorithm, settings.n_step, HalfAndHalf(settings.demonstration_share))


class ResidualTd3:
    """The algorithm's state and its update; an `Algorithm`.

    All randomness comes from one generator seeded by `seed`, so that equal batches give equal parameters on one CPU.
    """

    def __init__(
        self,
        config: ResidualTd3Config,
        residual: ResidualConfig,
        action: Feature,
        observation: Standardizer,
        seed: int,
    ) -> None:
        observation_dim, action_dim = len(observation.mean), action.shape[0]
        self._config = config
        self._standardizer = observation
        lower, upper = torch.from_numpy(action.lower_array()), torch.from_numpy(action.upper_array())
        self._centre, self._half_range = (upper + lower) / 2, (upper - lower) / 2
        self._generator = torch.Generator().manual_seed(seed)
        self._actor = ResidualActor(residual, observation_dim, action_dim, seed)
        self._critic = self._new_critic(observation_dim + action_dim)
        self._actor_target = ResidualActor(residual, observation_dim, action_dim, seed).requires_grad_(False)
        self._critic_target = self._new_critic(observation_dim + action_dim).requires_grad_(False)
        self._critic_target.load_state_dict(self._critic.state_dict())
        self._critic_optimizer = adamw([self._critic.flat], config.critic_lr)
        self._actor_optimizer = adamw([self._actor.mlp.flat], config.actor_lr)
        self._updates = 0

    def _new_critic(self, inputs: int) -> EnsembleMlp:
        config = self._config
        return EnsembleMlp(config.critics, inputs, config.critic_hidden, 1, last_scale=0.01, generator=self._generator)

    @property
    def updates(self) -> int:
        return self._updates

    def update(self, batches: Batches) -> dict[str, float]:
        return self.learn(batches.transitions())

    def learn(self, batch: TransitionBatch) -> dict[str, float]:
        """One critic update and, when it is due, one actor update."""
        observation = self._observe(batch.observation)
        metrics = self._update_critic(batch, observation)
        self._updates += 1
        past_warmup = self._updates > self._config.critic_only_updates
        if past_warmup and self._updates % self._config.actor_every == 0:
            metrics |= self._update_actor(observation, self._act(batch.action_base))
        return metrics

    def _update_critic(self, batch: TransitionBatch, observation: Tensor) -> dict[str, float]:
        with torch.no_grad():
            target = self._target(batch)
        estimate = self._critic(torch.cat((observation, self._act(batch.action)), dim=-1))[..., 0]
        loss = (estimate - target).square().mean(dim=1).sum()
        norm = self._descend(loss, self._critic.flat, self._critic_optimizer)
        _average(self._critic_target.flat, self._critic.flat, self._config.polyak)
        return {"critic_loss": loss.item(), "q_mean": estimate.mean().item(), "critic_gradient": norm}

    def _target(self, batch: TransitionBatch) -> Tensor:
        config = self._config
        next_observation, next_base = self._observe(batch.next_observation), self._act(batch.next_action_base)
        noise = torch.empty_like(next_base).normal_(0.0, config.target_noise, generator=self._generator)
        noise.clamp_(-config.target_noise_clip, config.target_noise_clip)
        action = (next_base + self._actor_target(next_observation, next_base) + noise).clamp_(-1.0, 1.0)
        values = self._critic_target(torch.cat((next_observation, action), dim=-1))[..., 0]
        pair = torch.randperm(config.critics, generator=self._generator)[:2]
        lowest = values[pair].amin(dim=0)
        target: Tensor = torch.from_numpy(batch.return_n) + torch.from_numpy(batch.bootstrap) * lowest
        return target

    def _update_actor(self, observation: Tensor, action_base: Tensor) -> dict[str, float]:
        residual = self._actor(observation, action_base)
        action = (action_base + residual).clamp(-1.0, 1.0)
        value = self._critic(torch.cat((observation, action), dim=-1)).mean()
        norm = self._descend(-value, self._actor.mlp.flat, self._actor_optimizer)
        _average(self._actor_target.mlp.flat, self._actor.mlp.flat, self._config.polyak)
        return {"actor_value": value.item(), "residual": residual.abs().mean().item(), "actor_gradient": norm}

    def _descend(self, loss: Tensor, parameters: nn.Parameter, optimizer: torch.optim.Optimizer) -> float:
        (gradient,) = torch.autograd.grad(loss, parameters)
        norm = gradient.norm().item()
        if not math.isfinite(norm):
            raise PolicyError(f"the gradient at update {self._updates} is not finite; look at the last batch's rewards")
        if norm > self._config.max_gradient_norm:
            gradient.mul_(self._config.max_gradient_norm / norm)
        parameters.grad = gradient
        optimizer.step()
        return norm

    def _observe(self, observation: Array) -> Tensor:
        return torch.from_numpy(self._standardizer.normalize(observation))

    def _act(self, action: Array) -> Tensor:
        return ((torch.from_numpy(action) - self._centre) / self._half_range).clamp_(-1.0, 1.0)

    def actor_tensors(self) -> dict[str, Array]:
        return actor_tensors(self._actor, self._standardizer)

    def state(self) -> dict[str, Array]:
        state: dict[str, Array] = {
            name: tensor.detach().numpy().copy() for name, tensor in self._state_tensors().items()
        }
        state["updates"] = np.array([self._updates], np.int64)
        state["generator"] = self._generator.get_state().numpy().copy()
        return state

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        own = self._state_tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        shapes |= {"updates": (1,), "generator": tuple(self._generator.get_state().shape)}
        check_shapes(tensors, shapes, "learner state")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(np.array(tensors[name])))
        self._updates = int(tensors["updates"][0])
        self._generator.set_state(torch.from_numpy(np.array(tensors["generator"])))

    def _state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name."""
        tensors: dict[str, Tensor] = {}
        networks = {
            "actor": self._actor,
            "critic": self._critic,
            "actor_target": self._actor_target,
            "critic_target": self._critic_target,
        }
        for network, module in networks.items():
            tensors |= {f"{network}.{name}": value for name, value in module.state_dict().items()}
        tensors |= adamw_tensors(self._actor_optimizer, "actor_optimizer")
        return tensors | adamw_tensors(self._critic_optimizer, "critic_optimizer")


@torch.no_grad()
def _average(target: Tensor, source: Tensor, share: float) -> None:
    """target <- target + share * (source - target)."""
    target.lerp_(source, share)
