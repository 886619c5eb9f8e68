"""What the updates of all off-policy algorithms do: units, a step down the gradient, moving averages, state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from policies.common.normalization import Standardizer
from policies.common.store import check_shapes
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.specs import Feature


class Units:
    """From recorded observations and actions to what networks read: standardised, and [-1, 1] = the action's bounds."""

    def __init__(self, action: Feature, observation: Standardizer) -> None:
        self.standardizer = observation
        self.observation_dim, self.action_dim = len(observation.mean), action.shape[0]
        lower, upper = torch.from_numpy(action.lower_array()), torch.from_numpy(action.upper_array())
        self._centre, self._half_range = (upper + lower) / 2, (upper - lower) / 2

    def observe(self, observation: Array) -> Tensor:
        """(B, D) float32."""
        return torch.from_numpy(self.standardizer.normalize(observation))

    def act(self, action: Array) -> Tensor:
        """(B, A) float32, inside [-1, 1]."""
        return ((torch.from_numpy(action) - self._centre) / self._half_range).clamp_(-1.0, 1.0)


class Sharing(Protocol):
    """The ranks that make every update together (`robot_stack.learner.cluster`); each has drawn its part of the batch.

    Whatever an update takes from its batch has to pass through `mean` before a parameter depends on it.
    """

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the ranks' tensors of this shape, float32: the same bits on every rank. May be `tensor`
        itself, changed. All ranks call it equally often and in the same order."""


def descend(
    loss: Tensor,
    parameters: nn.Parameter | Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    updates: int,
    sharing: Sharing | None = None,
) -> float:
    """One step of the optimiser, the gradient of all parameters together scaled down to `max_norm`; its norm before.

    PolicyError, and nothing has changed, if the gradient is not finite. `updates`: how many there were before.
    `sharing`: the gradient is the mean over these ranks.
    """
    trained = [parameters] if isinstance(parameters, nn.Parameter) else list(parameters)
    gradients = [one for one in shared(torch.autograd.grad(loss, trained), sharing) if one is not None]
    norm = math.hypot(*(gradient.norm().item() for gradient in gradients))
    if not math.isfinite(norm):
        raise PolicyError(f"the gradient at update {updates} is not finite; look at the last batch's rewards")
    for parameter, gradient in zip(trained, gradients, strict=True):
        if norm > max_norm:
            gradient.mul_(max_norm / norm)
        parameter.grad = gradient
    optimizer.step()
    return norm


def shared(gradients: Sequence[Tensor | None], sharing: Sharing | None) -> Sequence[Tensor | None]:
    """The ranks' mean of gradients, all in one message; None where a parameter was not used, on every rank alike."""
    if sharing is None:
        return gradients
    used = [gradient for gradient in gradients if gradient is not None]
    whole = sharing.mean(torch.cat([one.flatten() for one in used]))
    means = iter(torch.split(whole, [one.numel() for one in used]))
    return [None if one is None else next(means).view_as(one) for one in gradients]


@torch.no_grad()
def average(target: Tensor, source: Tensor, share: float) -> None:
    """target <- target + share * (source - target)."""
    target.lerp_(source, share)


def saved(tensors: Mapping[str, Tensor], updates: int, generator: torch.Generator) -> dict[str, Array]:
    """Tensors, the count of updates and the generator of an algorithm as its state. Copies."""
    state: dict[str, Array] = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    state["updates"] = np.array([updates], np.int64)
    state["generator"] = generator.get_state().numpy().copy()
    return state


@torch.no_grad()
def restore(tensors: Mapping[str, Tensor], generator: torch.Generator, state: Mapping[str, Array]) -> int:
    """Fill tensors and generator from `saved`; the count of updates. PolicyError if it is of other networks."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes |= {"updates": (1,), "generator": tuple(generator.get_state().shape)}
    check_shapes(state, shapes, "learner state")
    for name, tensor in tensors.items():
        tensor.copy_(torch.from_numpy(np.array(state[name])))
    generator.set_state(torch.from_numpy(np.array(state["generator"])))
    return int(state["updates"][0])
