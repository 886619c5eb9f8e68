"""On-policy residual reinforcement learning on a frozen base policy (ResiP, arXiv 2407.16677; PPO, arXiv 1707.06347).

The executed action is base + residual + Gaussian noise of a fixed standard deviation, in normalised units ([-1, 1] =
the action's bounds), cut off at the bounds. The probability of what was cut off is that of the whole tail beyond the
bound (Y. Fujita and S. Maeda, arXiv 1802.07564), so the likelihood of recorded actions is exact. It is that of the
action asked for: what the safety filter makes of it is part of the world.

The steps of version 0 were chosen with noise of another kind. They train the critic alone, and version 1 acts as the
base policy does, with Gaussian noise. After that every version learns from its own steps and from no others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from policies.common.ensemble_mlp import EnsembleMlp
from policies.common.normalization import Standardizer
from policies.common.store import check_shapes
from policies.residual.actor import ResidualActor, actor_tensors
from policies.residual.config import ResidualConfig
from robot_stack.buffer.replay import ReplayStep
from robot_stack.core.messages import Array, Source, Step
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.base import Batches, HalfAndHalf, Ingredients, Recipe
from robot_stack.learner.algorithms.rollout import Floats, RewardScale, Rollout, Trajectory, advantages
from robot_stack.learner.algorithms.settings.resip import ResipConfig, ResipSettings
from robot_stack.learner.algorithms.training import Units, descend
from robot_stack.learner.curation import Kept

_ROLLOUT = "rollout."
_HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


def build(settings: ResipSettings, ingredients: Ingredients) -> Recipe:
    """From settings to what the learner's loop runs."""
    numbers = PpoNumbers(
        sigma=settings.exploration.sigma,
        discount=settings.discount,
        minibatch=settings.batch_size,
        warmup_steps=settings.exploration.warmup_steps,
    )
    algorithm = Resip(
        settings.update, settings.residual, numbers, ingredients.action, ingredients.standardizer, ingredients.seed
    )
    return Recipe(algorithm, settings.n_step, HalfAndHalf(settings.demonstration_share), _NoStep())


class _NoStep:
    """Nothing is kept for later: steps are learned from once, by the version that chose them; a `Curator`."""

    selective = False

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        return ()


@dataclass(frozen=True, slots=True)
class PpoNumbers:
    """What stands elsewhere in the settings.

    Attributes:
        sigma: standard deviation of the noise on the edge, normalised units.
        discount: of later rewards.
        minibatch: steps of one, about.
        warmup_steps: of version 0 before the first update.
    """

    sigma: float
    discount: float
    minibatch: int
    warmup_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """N steps. `action`, `low`, `high` (N, A): what was asked for, and whether it was cut off at a bound."""

    observation: Tensor
    action_base: Tensor
    action: Tensor
    low: Tensor
    high: Tensor
    advantage: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def at(self, rows: Tensor) -> _Samples:
        parts = (self.observation, self.action_base, self.action, self.low, self.high, self.advantage, self.target)
        return _Samples(*(part[rows] for part in parts))


class Resip:
    """The algorithm's state and its update; an `Algorithm` that is `OnPolicy`.

    All randomness comes from one generator seeded by `seed`, so that equal steps give equal parameters on one CPU.
    """

    def __init__(
        self,
        config: ResipConfig,
        residual: ResidualConfig,
        numbers: PpoNumbers,
        action: Feature,
        observation: Standardizer,
        seed: int,
    ) -> None:
        self._config, self._numbers = config, numbers
        self._units = units = Units(action, observation)
        observation_dim, action_dim = units.observation_dim, units.action_dim
        self._lower, self._upper = action.lower_array(), action.upper_array()
        self._generator = torch.Generator().manual_seed(seed)
        self._actor = ResidualActor(residual, observation_dim, action_dim, seed)
        self._critic = EnsembleMlp(
            1, observation_dim + action_dim, config.critic_hidden, 1, last_scale=0.01, generator=self._generator
        )
        self._actor_optimizer = adamw([self._actor.mlp.flat], config.actor_lr)
        self._critic_optimizer = adamw([self._critic.flat], config.critic_lr)
        self._rollout = Rollout(observation_dim, action_dim)
        self._scale = RewardScale(numbers.discount, config.reward_clip)
        self._due = False
        self._updates = 0
        self._stale = self._left_out = 0

    # ---- steps ----

    @property
    def updates(self) -> int:
        return self._updates

    @property
    def due(self) -> bool:
        return self._due

    def observe(self, step: Step, replayed: ReplayStep) -> None:
        """Take a step of the policy's own with the newest weights; others are counted."""
        if step.weights_version != self._updates:
            self._stale += 1
        elif step.source is not Source.POLICY or not self._rollout.add(step, replayed):
            self._left_out += 1
        enough = max(1, self._numbers.warmup_steps) if self._updates == 0 else self._config.rollout_steps
        if (step.terminated or step.truncated) and len(self._rollout) >= enough:
            self._due = True

    # ---- learning ----

    def update(self, batches: Batches) -> dict[str, float]:
        """Learn from all steps that were taken, and forget them; nothing is drawn from `batches`."""
        trajectories = self._rollout.trajectories()
        metrics = {"stale_steps": float(self._stale), "left_out_steps": float(self._left_out)}
        if trajectories:
            samples = self._samples(trajectories)
            metrics |= {"rollout_steps": float(len(samples))} | self._learn(samples)
        self._rollout.clear()
        self._due = False
        self._updates += 1
        return metrics

    def _samples(self, trajectories: list[Trajectory]) -> _Samples:
        self._scale.see([one.reward for one in trajectories])
        values = self._values(trajectories)
        found = [
            advantages(
                self._scale(one.reward),
                value,
                terminated=one.terminated,
                discount=self._numbers.discount,
                trace=self._config.trace,
            )
            for one, value in zip(trajectories, values, strict=True)
        ]
        advantage = np.concatenate(found)
        target = advantage + np.concatenate([value[:-1] for value in values])
        asked = np.concatenate([one.action for one in trajectories])
        return _Samples(
            observation=self._units.observe(np.concatenate([one.observation[:-1] for one in trajectories])),
            action_base=self._units.act(np.concatenate([one.action_base[:-1] for one in trajectories])),
            action=self._units.act(asked),
            low=torch.from_numpy(asked <= self._lower),
            high=torch.from_numpy(asked >= self._upper),
            advantage=torch.from_numpy(((advantage - advantage.mean()) / (advantage.std() + 1e-8)).astype(np.float32)),
            target=torch.from_numpy(target.astype(np.float32)),
        )

    @torch.no_grad()
    def _values(self, trajectories: list[Trajectory]) -> list[Floats]:
        observation = self._units.observe(np.concatenate([one.observation for one in trajectories]))
        base = self._units.act(np.concatenate([one.action_base for one in trajectories]))
        value = self._value(observation, base).numpy().astype(np.float64)
        return np.split(value, np.cumsum([len(one) + 1 for one in trajectories])[:-1])

    def _learn(self, samples: _Samples) -> dict[str, float]:
        behaviour = copy.deepcopy(self._actor).requires_grad_(False)
        metrics: dict[str, float] = {}
        improving = self._updates > 0  # version 0 acted with noise of another kind
        parts = max(1, round(len(samples) / self._numbers.minibatch))
        for _ in range(self._config.epochs):
            order = torch.randperm(len(samples), generator=self._generator)
            for rows in order.tensor_split(parts):
                part = samples.at(rows)
                metrics |= self._learn_value(part)
                if improving:
                    first = "first_ratio_error" not in metrics
                    improving, found = self._improve(part, behaviour)
                    metrics |= found if first else {key: found[key] for key in found if key != "first_ratio_error"}
        return metrics

    def _learn_value(self, part: _Samples) -> dict[str, float]:
        loss = 0.5 * (self._value(part.observation, part.action_base) - part.target).square().mean()
        self._descend(loss, self._critic.flat, self._critic_optimizer)
        return {"value_loss": loss.item()}

    def _improve(self, part: _Samples, behaviour: ResidualActor) -> tuple[bool, dict[str, float]]:
        """One step of the actor, unless it is too far away already; whether it may go on, and metrics.

        The old probability is computed anew for every minibatch: in the first one the ratio then is 1 exactly.
        """
        with torch.no_grad():
            before = self.log_probability(part, behaviour)
        log_ratio = self.log_probability(part, self._actor) - before
        ratio = log_ratio.exp()
        kl = (ratio - 1.0 - log_ratio).mean().item()
        clip = self._config.clip
        gain = torch.minimum(ratio * part.advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * part.advantage)
        metrics = {
            "kl": kl,
            "clipped_share": ((ratio - 1.0).abs() > clip).float().mean().item(),
            "first_ratio_error": (ratio - 1.0).abs().max().item(),
        }
        if kl > self._config.target_kl:
            return False, metrics
        self._descend(-gain.mean(), self._actor.mlp.flat, self._actor_optimizer)
        return True, metrics

    def log_probability(self, part: _Samples, actor: ResidualActor) -> Tensor:
        """Of the actions asked for, (N,), under an actor's mean and the edge's noise."""
        raw = part.action_base + actor(part.observation, part.action_base)
        # The edge cuts the mean off at the bounds. The gradient passes, or a mean beyond them could not come back.
        mean = raw + (raw.clamp(-1.0, 1.0) - raw).detach()
        sigma = self._numbers.sigma
        inside = -0.5 * ((part.action - mean) / sigma).square() - math.log(sigma) - _HALF_LOG_TAU
        below = torch.special.log_ndtr((-1.0 - mean) / sigma)
        above = torch.special.log_ndtr((mean - 1.0) / sigma)
        return torch.where(part.low, below, torch.where(part.high, above, inside)).sum(dim=-1)

    def _value(self, observation: Tensor, action_base: Tensor) -> Tensor:
        return self._critic(torch.cat((observation, action_base), dim=-1))[0, :, 0]

    def _descend(self, loss: Tensor, parameters: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        descend(loss, parameters, optimizer, self._config.max_gradient_norm, self._updates)

    # ---- weights and state ----

    def actor_tensors(self) -> dict[str, Array]:
        return actor_tensors(self._actor, self._units.standardizer)

    def state(self) -> dict[str, Array]:
        state: dict[str, Array] = {
            name: tensor.detach().numpy().copy() for name, tensor in self._state_tensors().items()
        }
        state["counters"] = np.array([self._updates, self._due, self._stale, self._left_out], np.int64)
        state["reward_scale"] = self._scale.state()
        state["generator"] = self._generator.get_state().numpy().copy()
        return state | {_ROLLOUT + name: value for name, value in self._rollout.state().items()}

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        fixed = {name: value for name, value in tensors.items() if not name.startswith(_ROLLOUT)}
        own = self._state_tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        shapes |= {"counters": (4,), "reward_scale": (3,), "generator": tuple(self._generator.get_state().shape)}
        check_shapes(fixed, shapes, "learner state")
        self._rollout.load_state(
            {name.removeprefix(_ROLLOUT): value for name, value in tensors.items() if name.startswith(_ROLLOUT)}
        )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(np.array(fixed[name])))
        self._updates, due, self._stale, self._left_out = (int(value) for value in fixed["counters"])
        self._due = bool(due)
        self._scale.load_state(fixed["reward_scale"])
        self._generator.set_state(torch.from_numpy(np.array(fixed["generator"])))

    def _state_tensors(self) -> dict[str, Tensor]:
        """Every tensor of a fixed shape that learning depends on, by name."""
        networks = {"actor": self._actor, "critic": self._critic}
        tensors = {
            f"{network}.{name}": value
            for network, module in networks.items()
            for name, value in module.state_dict().items()
        }
        tensors |= adamw_tensors(self._actor_optimizer, "actor_optimizer")
        return tensors | adamw_tensors(self._critic_optimizer, "critic_optimizer")
