"""The residual policy as it runs on the edge: plain numpy, faster than torch for one row; pictures through PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.common.numpy_mlp import forward, layers_of
from policies.common.store import check_tensors
from policies.pixels.config import PixelsConfig
from policies.pixels.runtime import ObservationLayout, ObservationReader
from policies.residual.actor import actor_shapes
from policies.residual.config import ResidualConfig
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.specs import PolicySpec


class ResidualRuntime:
    """Adds the actor's bounded correction to a base action; a `ResidualPolicy`.

    Built from the tensors of `actor_tensors`. `spec` names the observation features, in order, and the action's
    bounds; PolicyError if the tensors do not fit it, are not finite, or lack their statistics. `vision`: of the encoder
    whose tensors are among them, where pictures are read.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        config: ResidualConfig,
        spec: PolicySpec,
        version: int,
        vision: PixelsConfig | None = None,
    ) -> None:
        layout = ObservationLayout(spec, vision)
        expected = actor_shapes(config, layout.vector_dim, spec.action.shape[0], layout.embedding_dim)
        check_tensors(tensors, expected | layout.encoder_shapes(), f"residual weights {version}")
        self.version = version
        self._reader = ObservationReader(tensors, layout)
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._centre = (self._upper + self._lower) / 2
        self._half_range = (self._upper - self._lower) / np.float32(2.0)
        self._reach = np.float32(config.action_scale) * self._half_range
        self._layers = layers_of(tensors, len(config.hidden))

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        """The action (A,) to execute, inside the bounds; where the correction is zero, the base action bit for bit."""
        correction = self._correction(self._reader.read(observation), action_base)
        corrected = np.clip(action_base + correction, self._lower, self._upper)
        return np.where(correction == 0.0, action_base, corrected)

    def correction(self, observation: FloatArray, action_base: FloatArray) -> FloatArray:
        """What is added to the base action (A,), in the action's units, for a flattened observation (D,): all that an
        actor without pictures reads."""
        return self._correction(self._reader.standardize(observation), action_base)

    def _correction(self, seen: FloatArray, action_base: FloatArray) -> FloatArray:
        value: FloatArray = np.concatenate((seen, (action_base - self._centre) / self._half_range))
        correction: FloatArray = self._reach * np.tanh(forward(self._layers, value))
        return correction
