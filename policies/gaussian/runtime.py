"""The Gaussian actor as it runs on the edge: plain numpy, faster than torch for one row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.common.features import flatten, vector_length
from policies.common.normalization import Standardizer
from policies.common.store import check_shapes
from policies.gaussian.actor import GRASP, OBSERVATION_MEAN, OBSERVATION_STD, actor_shapes, log_std_range
from policies.gaussian.config import GRIPPER_CHOICES, GaussianConfig
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.specs import PolicySpec

_LAYER_NORM_EPSILON = np.float32(1e-5)

Layers = list[tuple[FloatArray, FloatArray]]
"""Weight (in, out) and bias (out,) of every layer."""


class GaussianRuntime:
    """Acts by itself at every step, whatever a base policy proposes; an `ExploringPolicy`.

    Built from the tensors of `actor_tensors`. `spec` names the observation features, in order, and the action's
    bounds; PolicyError if the tensors do not fit it, are not finite, or lack their statistics.
    """

    def __init__(self, tensors: Mapping[str, Array], config: GaussianConfig, spec: PolicySpec, version: int) -> None:
        observation_dim, action_dim = vector_length(spec.observation), spec.action.shape[0]
        _check_tensors(
            tensors, actor_shapes(config, observation_dim, action_dim), f"Gaussian actor's weights {version}"
        )
        self.version = version
        self._config = config
        self._observation_spec = spec.observation
        self._standardizer = Standardizer(
            mean=tuple(tensors[OBSERVATION_MEAN].tolist()), std=tuple(tensors[OBSERVATION_STD].tolist())
        )
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._centre = (self._upper + self._lower) / 2
        self._half_range = (self._upper - self._lower) / 2
        self._continuous = np.array(config.continuous(action_dim))
        self._middle, self._reach = (np.float32(value) for value in log_std_range(config))
        self._actor = _layers(tensors, "", len(config.hidden))
        self._grasp = _layers(tensors, GRASP, len(config.hidden)) if config.gripper is not None else []

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        """The most likely action (A,), inside the bounds: the squashed mean and the best choice of the gripper."""
        seen = self._seen(observation)
        mean, _ = self._gaussian(seen)
        return self._action(mean, self._best_grip(seen))

    def explore(self, observation: Observation, action_base: FloatArray, rng: np.random.Generator) -> FloatArray:
        """A draw (A,) from the actor's distribution, inside the bounds; of the gripper as `gripper_random` says."""
        seen = self._seen(observation)
        mean, log_std = self._gaussian(seen)
        noise = rng.standard_normal(len(mean)).astype(np.float32)
        grip = self._best_grip(seen)
        if self._grasp and rng.random() < self._config.gripper_random:
            grip = int(rng.integers(GRIPPER_CHOICES))
        spread: FloatArray = np.exp(log_std)
        return self._action(mean + spread * noise, grip)

    def _seen(self, observation: Observation) -> FloatArray:
        return self._standardizer.normalize(flatten(observation.features, self._observation_spec))

    def _gaussian(self, seen: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and log standard deviation (C,) before the squashing."""
        mean, raw = np.split(_forward(self._actor, seen), 2)
        return mean, self._middle + self._reach * np.tanh(raw)

    def _best_grip(self, seen: FloatArray) -> int:
        """The choice of the gripper that is worth most; the middle where there is no such network."""
        return int(np.argmax(_forward(self._grasp, seen))) if self._grasp else 1

    def _action(self, unsquashed: FloatArray, grip: int) -> FloatArray:
        normalized = np.full(len(self._centre), grip - 1, np.float32)
        normalized[self._continuous] = np.tanh(unsquashed)
        return np.clip(self._centre + self._half_range * normalized, self._lower, self._upper)


def _layers(tensors: Mapping[str, Array], prefix: str, hidden: int) -> Layers:
    return [
        (
            np.array(tensors[f"{prefix}weight.{index}"][0], np.float32),
            np.array(tensors[f"{prefix}bias.{index}"][0, 0], np.float32),
        )
        for index in range(hidden + 1)
    ]


def _forward(layers: Layers, value: FloatArray) -> FloatArray:
    """One row through an MLP, as `EnsembleMlp` computes it: LayerNorm without gain or shift, then ReLU."""
    for weight, bias in layers[:-1]:
        value = value @ weight + bias
        value -= value.mean()
        value /= np.sqrt(np.dot(value, value) / np.float32(len(value)) + _LAYER_NORM_EPSILON)
        np.maximum(value, np.float32(0.0), out=value)
    weight, bias = layers[-1]
    output: FloatArray = value @ weight + bias
    return output


def _check_tensors(tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    check_shapes(tensors, shapes, origin)
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise PolicyError(
                f"{origin}: tensor '{name}' has NaN or infinity; the training diverged, use older weights"
            )
