"""The run's base policy as a source of candidates that goes on learning by imitation (EXPO, PA-RL)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from policies.common.denoiser import Denoiser
from policies.common.store import check_finite, check_shapes
from policies.generative.config import FlowPath, GenerativeConfig
from policies.generative.objectives import training_loss
from policies.generative.policy import GenerativePolicy, load_weights
from policies.generative.sampler import ChunkSampler
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, FloatArray
from robot_stack.learner.algorithms.adamw import adamw_of_module, adamw_tensors
from robot_stack.learner.algorithms.base import Ingredients
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining
from robot_stack.learner.algorithms.training import shared

BASE = "base."


class TrainedBase:
    """A copy of the base policy's network: it is sampled from, and learns chunks; the run's own stays as it is.

    Chunks here are in normalised units, [-1, 1] = the action's bounds. ConfigError unless the base reads one
    observation of the same vectors as the algorithm, and nothing else.
    """

    def __init__(self, config: BaseTraining, ingredients: Ingredients, decision_steps: int) -> None:
        base = checked_base(ingredients)
        if decision_steps > base.spec.horizon:
            raise ConfigError(
                f"algorithm.update.decision_steps is {decision_steps}; allowed for this base policy: 1 to its horizon, "
                f"{base.spec.horizon}"
            )
        self._config, self._decision_steps, self._sharing = config, decision_steps, ingredients.sharing
        self.horizon = base.spec.horizon
        self._policy_config = sampled_as(base.config, config)
        lower, upper = (
            torch.from_numpy(bound) for bound in (base.spec.action.lower_array(), base.spec.action.upper_array())
        )
        self._middle, self._reach = (upper + lower) / 2, (upper - lower) / 2
        self.net = _copy_of(base).requires_grad_(True)
        self._sampler = ChunkSampler(
            self.net, self._policy_config.process, self._policy_config.solver, self._policy_config.schedule
        )
        self.optimizer = adamw_of_module(self.net, config.lr, config.weight_decay, (0.9, 0.999))
        self._parameters = [value for value in self.net.parameters() if value.requires_grad]
        action = self._policy_config.action
        self._centre = torch.tensor(action.centre, dtype=torch.float32)
        self._half_range = torch.tensor(action.half_range, dtype=torch.float32)

    @torch.no_grad()
    def sample(self, observation: FloatArray, count: int, generator: torch.Generator) -> Tensor:
        """Chunks (B, count, H, A) for flattened observations (B, D)."""
        sampler, rows = self._sampler, len(observation) * count
        shape = (rows, self.horizon, len(self._centre))
        noisy = previous = torch.randn(shape, generator=generator)
        fresh = torch.randn((len(sampler.calls), *shape), generator=generator) if sampler.is_stochastic else None
        context, clock = sampler.prepare(self._condition(observation))
        context = tuple(part.repeat_interleave(count, dim=0) for part in context)
        blocks = sampler.blocks()
        for index in range(len(sampler.calls)):
            clean = sampler.estimate(index, noisy, clock, context, blocks)
            noisy, previous = sampler.advance(index, noisy, clean, previous, fresh), clean
        actions = noisy * self._half_range + self._centre
        chunks = ((actions - self._middle) / self._reach).clamp(-1.0, 1.0)
        return chunks.view(len(observation), count, *shape[1:])

    def decisions(self, observation: FloatArray, count: int, generator: torch.Generator) -> Tensor:
        """The first actions of chunks as one: (B, count, K * A) for flattened observations (B, D)."""
        return self.sample(observation, count, generator)[:, :, : self._decision_steps].flatten(2)

    def imitate(
        self,
        observation: FloatArray,
        chunks: Tensor,
        generator: torch.Generator,
        updates: int,
        weight: Tensor | None = None,
    ) -> float:
        """One step towards chunks (B, H, A) as what to do at flattened observations (B, D); the loss before it.

        `weight` (B, H): how much each action counts; None: all alike.
        """
        wanted = (chunks * self._reach + self._middle - self._centre) / self._half_range
        process, condition = self._policy_config.process, self._condition(observation)
        loss = training_loss(self.net, process, wanted, condition, generator, weight=weight)
        gradients = shared(torch.autograd.grad(loss, self._parameters, allow_unused=True), self._sharing)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_gradient_norm)
        if not torch.isfinite(norm):
            raise PolicyError(f"the base policy's gradient at update {updates} is not finite; look at the last batch")
        self.optimizer.step()
        return loss.item()

    def _condition(self, observation: FloatArray) -> tuple[Tensor, ...]:
        vectors = self._policy_config.observation.normalize(observation).clip(-1.0, 1.0).astype(np.float32, copy=False)
        return (torch.from_numpy(vectors)[:, None],)

    def published(self) -> dict[str, Array]:
        """The network's weights by name. Copies."""
        return {BASE + name: value.detach().numpy().copy() for name, value in self.net.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on; not copies."""
        tensors = {BASE + name: value for name, value in self.net.state_dict().items()}
        return tensors | adamw_tensors(self.optimizer, "base_optimizer")


def checked_base(ingredients: Ingredients) -> GenerativePolicy:
    """The base policy, if its candidates can be judged and improved; ConfigError says what is in the way."""
    base = ingredients.base
    if base is None:
        raise ConfigError("this algorithm improves samples of a base policy and the run has none: train one first")
    spec, process = base.spec, base.config.process
    problems = []
    if spec.history != 1:
        problems.append(f"it reads {spec.history} observations: train it with policy.history=1")
    if list(spec.observation.items()) != list(ingredients.observation.items()):
        problems.append(
            f"it reads {', '.join(spec.observation)}, this algorithm {', '.join(ingredients.observation)}: train it on "
            "the vectors that the task names, without pictures"
        )
    if spec.action != ingredients.action:
        problems.append("its action is not the robot's")
    if base.config.vocabulary:
        problems.append("it reads instructions: take policy=diffusion or policy=flow")
    if isinstance(process, FlowPath) and process.objective == "consistency":
        problems.append("it is a consistency model, which learns from a teacher alone: take the flow that taught it")
    if problems:
        raise ConfigError(f"the base policy '{spec.name}' cannot be trained on here: {'; '.join(problems)}")
    return base


def sampled_as(config: GenerativeConfig, training: BaseTraining) -> GenerativeConfig:
    """The base's configuration with the solver steps of these settings; 0 leaves it as it is.

    With other steps a cache schedule falls away: it belongs to the solver that it was made for.
    """
    if training.solver_steps in (0, config.solver.steps):
        return config
    kind = "ddim" if config.solver.kind == "ddpm" else config.solver.kind
    return replace(config, solver=replace(config.solver, kind=kind, steps=training.solver_steps), schedule=None)


def published_base(
    base: GenerativePolicy, training: BaseTraining, version: int, tensors: Mapping[str, Array]
) -> GenerativePolicy:
    """The base policy with published weights; PolicyError if they do not fit."""
    net = _copy_of(base)
    weights = {name.removeprefix(BASE): value for name, value in tensors.items() if name.startswith(BASE)}
    load_weights(net, weights, f"weights {version} of the base policy")
    return GenerativePolicy(base.spec, sampled_as(base.config, training), net, version)


def check_published(tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], version: int) -> None:
    """PolicyError unless the tensors beside the base's are those of `shapes`, and all are finite."""
    origin = f"weights {version}"
    check_shapes({name: value for name, value in tensors.items() if not name.startswith(BASE)}, shapes, origin)
    check_finite(tensors, origin)


def _copy_of(base: GenerativePolicy) -> Denoiser:
    return copy.deepcopy(base.sampler.denoiser).cpu().eval()
