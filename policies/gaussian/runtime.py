"""The Gaussian actor as it runs on the edge: plain numpy, faster than torch for one row; pictures through PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.common.numpy_mlp import forward, layers_of
from policies.common.store import check_tensors
from policies.gaussian.actor import GRASP, actor_shapes, log_std_range
from policies.gaussian.config import GRIPPER_CHOICES, GaussianConfig
from policies.pixels.config import PixelsConfig
from policies.pixels.runtime import ObservationLayout, ObservationReader
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.specs import PolicySpec


class GaussianRuntime:
    """Acts by itself at every step, whatever a base policy proposes; an `ExploringPolicy`.

    Built from the tensors of `actor_tensors`. `spec` names the observation features, in order, and the action's
    bounds; PolicyError if the tensors do not fit it, are not finite, or lack their statistics. `vision`: of the encoder
    whose tensors are among them, where pictures are read.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        config: GaussianConfig,
        spec: PolicySpec,
        version: int,
        vision: PixelsConfig | None = None,
    ) -> None:
        layout, action_dim = ObservationLayout(spec, vision), spec.action.shape[0]
        expected = actor_shapes(config, layout.vector_dim, action_dim, layout.embedding_dim)
        check_tensors(tensors, expected | layout.encoder_shapes(), f"Gaussian actor's weights {version}")
        self.version = version
        self._config = config
        self._reader = ObservationReader(tensors, layout)
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._centre = (self._upper + self._lower) / 2
        self._half_range = (self._upper - self._lower) / 2
        self._continuous = np.array(config.continuous(action_dim))
        self._middle, self._reach = (np.float32(value) for value in log_std_range(config))
        self._actor = layers_of(tensors, len(config.hidden))
        self._grasp = layers_of(tensors, len(config.hidden), GRASP) if config.gripper is not None else []

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        """The most likely action (A,), inside the bounds: the squashed mean and the best choice of the gripper."""
        seen = self._reader.read(observation)
        mean, _ = self._gaussian(seen)
        return self._action(mean, self._best_grip(seen))

    def explore(self, observation: Observation, action_base: FloatArray, rng: np.random.Generator) -> FloatArray:
        """A draw (A,) from the actor's distribution, inside the bounds; of the gripper as `gripper_random` says."""
        seen = self._reader.read(observation)
        mean, log_std = self._gaussian(seen)
        noise = rng.standard_normal(len(mean)).astype(np.float32)
        grip = self._best_grip(seen)
        if self._grasp and rng.random() < self._config.gripper_random:
            grip = int(rng.integers(GRIPPER_CHOICES))
        spread: FloatArray = np.exp(log_std)
        return self._action(mean + spread * noise, grip)

    def _gaussian(self, seen: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and log standard deviation (C,) before the squashing."""
        mean, raw = np.split(forward(self._actor, seen), 2)
        return mean, self._middle + self._reach * np.tanh(raw)

    def _best_grip(self, seen: FloatArray) -> int:
        """The choice of the gripper that is worth most; the middle where there is no such network."""
        return int(np.argmax(forward(self._grasp, seen))) if self._grasp else 1

    def _action(self, unsquashed: FloatArray, grip: int) -> FloatArray:
        normalized = np.full(len(self._centre), grip - 1, np.float32)
        normalized[self._continuous] = np.tanh(unsquashed)
        return np.clip(self._centre + self._half_range * normalized, self._lower, self._upper)
