"""The residual policy as it runs on the edge: plain numpy, faster than torch for one row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.common.features import flatten, vector_length
from policies.common.normalization import Standardizer
from policies.common.store import check_shapes
from policies.residual.actor import OBSERVATION_MEAN, OBSERVATION_STD, actor_shapes
from policies.residual.config import ResidualConfig
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.specs import PolicySpec

_LAYER_NORM_EPSILON = np.float32(1e-5)


class ResidualRuntime:
    """Adds the actor's bounded correction to a base action; a `ResidualPolicy`.

    Built from the tensors of `actor_tensors`. `spec` names the observation features, in order, and the action's
    bounds; PolicyError if the tensors do not fit it, are not finite, or lack their statistics.
    """

    def __init__(self, tensors: Mapping[str, Array], config: ResidualConfig, spec: PolicySpec, version: int) -> None:
        observation_dim, action_dim = vector_length(spec.observation), spec.action.shape[0]
        _check_tensors(tensors, actor_shapes(config, observation_dim, action_dim), f"residual weights {version}")
        self.version = version
        self._observation_spec = spec.observation
        self._standardizer = Standardizer(
            mean=tuple(tensors[OBSERVATION_MEAN].tolist()), std=tuple(tensors[OBSERVATION_STD].tolist())
        )
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._centre = (self._upper + self._lower) / 2
        self._half_range = (self._upper - self._lower) / 2
        self._reach = np.float32(config.action_scale) * self._half_range
        self._layers = [
            (np.array(tensors[f"weight.{index}"][0], np.float32), np.array(tensors[f"bias.{index}"][0, 0], np.float32))
            for index in range(len(config.hidden) + 1)
        ]

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        """The action (A,) to execute, inside the bounds; where the correction is zero, the base action bit for bit."""
        correction = self.correction(flatten(observation.features, self._observation_spec), action_base)
        corrected = np.clip(action_base + correction, self._lower, self._upper)
        return np.where(correction == 0.0, action_base, corrected)

    def correction(self, observation: FloatArray, action_base: FloatArray) -> FloatArray:
        """What is added to the base action (A,), in the action's units, for a flattened observation (D,)."""
        value: FloatArray = np.concatenate(
            (self._standardizer.normalize(observation), (action_base - self._centre) / self._half_range)
        )
        for weight, bias in self._layers[:-1]:
            value = _normalized_relu(value @ weight + bias)
        weight, bias = self._layers[-1]
        correction: FloatArray = self._reach * np.tanh(value @ weight + bias)
        return correction


def _normalized_relu(value: FloatArray) -> FloatArray:
    """LayerNorm without gain or shift, then ReLU: as `EnsembleMlp` computes it."""
    value = value - value.mean()
    value /= np.sqrt(np.dot(value, value) / np.float32(len(value)) + _LAYER_NORM_EPSILON)
    return np.maximum(value, np.float32(0.0))


def _check_tensors(tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    check_shapes(tensors, shapes, origin)
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise PolicyError(
                f"{origin}: tensor '{name}' has NaN or infinity; the training diverged, use older weights"
            )
