"""Diffusion policy over low-dimensional observations (Chi et al., Diffusion Policy, RSS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policies.common.features import flatten, vector_length
from policies.common.store import check_shapes, load_policy, save_policy
from policies.diffusion.config import DiffusionPolicyConfig
from policies.diffusion.net import DiffusionNet
from policies.diffusion.schedule import ddim_steps
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, Array, FloatArray, Observation
from robot_stack.core.specs import PolicySpec

KIND = "diffusion"


class DiffusionPolicy:
    """Predicts chunks of H actions; a `Policy`.

    The initial noise comes from (episode_seed, index) of the observation, so prediction is a pure function of it.
    `version` is written into every chunk.
    """

    def __init__(self, spec: PolicySpec, config: DiffusionPolicyConfig, net: DiffusionNet, version: int = 0) -> None:
        _check_config(spec, config)
        self._spec = spec
        self._config = config
        self._net = net.eval().requires_grad_(False)
        self._steps = ddim_steps(config.net)
        self._lower = spec.action.lower_array()
        self._upper = spec.action.upper_array()
        self.version = version

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def predict(self, observation: Observation) -> ActionChunk:
        """The chunk for the steps from `observation.index` on; PolicyError for a missing or non-finite feature."""
        vector = flatten(observation.features, self._spec.observation)
        actions = self.predict_batch(vector[None], [(observation.episode_seed, observation.index)])[0]
        return ActionChunk(
            observation_id=observation.id, index=observation.index, weights_version=self.version, actions=actions
        )

    @torch.inference_mode()
    def predict_batch(self, observations: FloatArray, seeds: Sequence[tuple[int, int]]) -> FloatArray:
        """Chunks (N, H, A) for flattened observations (N, D) and their (episode_seed, index).

        An observation outside the demonstrated range is taken as the nearest one inside.
        """
        normalized = torch.from_numpy(self._config.observation.normalize(observations).clip(-1.0, 1.0))
        shape = (self._spec.horizon, self._spec.action.shape[0])
        noise = np.stack([_noise(seed, shape) for seed in seeds])
        sample = self._denoise(torch.from_numpy(noise), normalized)
        actions = self._config.action.denormalize(sample.numpy())
        clipped: FloatArray = np.clip(actions, self._lower, self._upper)
        return clipped

    def _denoise(self, sample: Tensor, observation: Tensor) -> Tensor:
        predicts_noise = self._config.net.prediction == "epsilon"
        for step in self._steps:
            time = torch.full((len(sample),), step.time)
            output = self._net(sample, time, observation)
            clean = (sample - step.sigma * output) / step.alpha if predicts_noise else output
            noise = output if predicts_noise else (sample - step.alpha * output) / step.sigma
            sample = step.alpha_next * clean.clamp(-1.0, 1.0) + step.sigma_next * noise
        return sample

    def save(self, directory: Path) -> None:
        """Write the policy folder; StorageError if it exists."""
        weights = {name: tensor.numpy() for name, tensor in self._net.state_dict().items()}
        save_policy(directory, kind=KIND, spec=self._spec, config=self._config, weights=weights)

    @classmethod
    def load(cls, directory: Path, version: int = 0) -> DiffusionPolicy:
        """The policy of a folder, verified; PolicyError says what is wrong."""
        manifest, weights = load_policy(directory, KIND, DiffusionPolicyConfig)
        net = build_net(manifest.spec, manifest.config)
        load_weights(net, weights, str(directory))
        return cls(manifest.spec, manifest.config, net, version)


def build_net(spec: PolicySpec, config: DiffusionPolicyConfig) -> DiffusionNet:
    """An untrained network of the right size; initialised from torch's global generator."""
    return DiffusionNet(config.net, vector_length(spec.observation), spec.action.shape[0])


def load_weights(net: DiffusionNet, weights: dict[str, Array], origin: str) -> None:
    """Put checked weights into the network; PolicyError if names or shapes differ."""
    check_shapes(weights, {name: tuple(value.shape) for name, value in net.state_dict().items()}, origin)
    net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})


def _noise(seed: tuple[int, int], shape: tuple[int, int]) -> FloatArray:
    # SeedSequence takes no negative numbers; a real robot's episode has seed -1.
    entropy = [part & 0xFFFF_FFFF_FFFF_FFFF for part in seed]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    return generator.standard_normal(shape, dtype=np.float32)


def _check_config(spec: PolicySpec, config: DiffusionPolicyConfig) -> None:
    if spec.horizon != config.net.horizon:
        raise PolicyError(
            f"policy '{spec.name}': horizon is {spec.horizon} in its spec, {config.net.horizon} in its net"
        )
    if len(spec.action.lower) != spec.action.shape[0] or len(spec.action.upper) != spec.action.shape[0]:
        raise PolicyError(f"policy '{spec.name}': the action feature needs a lower and an upper bound per element")
    expected = {"observation": vector_length(spec.observation), "action": spec.action.shape[0]}
    found = {"observation": len(config.observation.centre), "action": len(config.action.centre)}
    if expected != found:
        raise PolicyError(f"policy '{spec.name}': normalisation statistics for {found}, spec says {expected}")
