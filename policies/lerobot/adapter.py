"""LeRobot checkpoints as policies of this stack, in a program that LeRobot's own environment runs.

An edge node in the stack's environment meets such a policy across a process border: `PolicyServer`
(robot_stack/apps/policy_server.py) serves anything with `predict_batch`, so this adapter too, where that environment
also has what the server imports. The command line of the stack loads its own policies only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.common.features import flatten, image_features, images, vector_features
from policies.common.store import check_shapes
from policies.lerobot.checkpoint import LeRobotConfig, Scale, read_config, read_scales, read_weights
from policies.lerobot.imports import network_config, policy_class
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, Array, Features, FloatArray, Observation
from robot_stack.core.specs import ACTION, IMAGES, PolicySpec

Names = Mapping[str, tuple[str, ...]]
"""For each of LeRobot's vectors the features of ours that are concatenated to it, and for each image the camera."""

_IMAGES = "observation.images"
_NOT_WEIGHTS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")


class LeRobotPolicy:
    """LeRobot's diffusion policy or ACT; a `Policy`.

    A chunk begins at the present step: `n_action_steps` actions of a diffusion policy, `chunk_size` of ACT. Random
    numbers come from (episode_seed, index) of the observation, so prediction is a pure function of it. One thread only.
    """

    def __init__(
        self,
        spec: PolicySpec,
        config: LeRobotConfig,
        network: Any,
        scales: Mapping[str, Scale | None],
        names: Names | None = None,
        version: int = 0,
    ) -> None:
        self._names: Names = names or {name: (name,) for name in config.input_features}
        _check_spec(spec, config, self._names)
        self._spec, self._config, self._scales = spec, config, scales
        self._network = network.eval().requires_grad_(False)
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self.version = version

    @classmethod
    def load(cls, folder: Path, spec: PolicySpec, names: Names | None = None, version: int = 0) -> LeRobotPolicy:
        """The checkpoint in a folder with `config.json`, `model.safetensors` and, if newer, processor files.

        A checkpoint knows neither the bounds nor the names of actions: `spec` gives those; its horizon and history have
        to be the checkpoint's. PolicyError for what does not fit or is missing, normalisation statistics above all;
        LeRobotMissingError where LeRobot is not installed.
        """
        config = read_config(folder)
        scales = read_scales(folder, config)
        kind = policy_class(config.type)
        record = network_config(folder, config.type)
        record.device = "cpu"
        if getattr(record, "pretrained_backbone_weights", None) is not None:
            record.pretrained_backbone_weights = None  # LeRobot would download what the checkpoint then overwrites
        network = kind(record)
        _fill(network, read_weights(folder), folder)
        return cls(spec, config, network, scales, names, version)

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def predict(self, observation: Observation) -> ActionChunk:
        """The chunk for the steps from `observation.index` on; PolicyError for a missing or non-finite feature."""
        batch = {name: torch.from_numpy(value[None]) for name, value in self._inputs(observation).items()}
        actions = self._sample(batch, observation)[0].numpy()
        scale = self._scales[ACTION]
        raw = actions if scale is None else scale.undo(actions)
        return ActionChunk(
            observation_id=observation.id,
            index=observation.index,
            weights_version=self.version,
            actions=np.clip(raw.astype(np.float32, copy=False), self._lower, self._upper),
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A), one after the other."""
        return np.stack([self.predict(observation).actions for observation in observations])

    @torch.no_grad()
    def _sample(self, batch: dict[str, Tensor], observation: Observation) -> Tensor:
        """Normalised actions (1, H, A). LeRobot's solver draws from torch's global generator: it is lent a seed."""
        cameras = [name for name, feature in self._config.input_features.items() if feature.type == "VISUAL"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chunk_seed(observation))
            if self._config.type == "act":
                present = {name: value[:, 0] for name, value in batch.items()}
                actions: Tensor = self._network.predict_action_chunk(present)
                return actions
            if cameras:
                batch[_IMAGES] = torch.stack([batch[name] for name in cameras], dim=2)
            # predict_action_chunk reads queues that LeRobot's own loop fills; our observations bring their history
            return self._network.diffusion.generate_actions(batch)

    def _inputs(self, observation: Observation) -> dict[str, FloatArray]:
        """Normalised features (To, ...) by LeRobot's names."""
        steps = self._config.n_obs_steps
        frames = [*observation.past, observation.features][-steps:]
        frames = [frames[0]] * (steps - len(frames)) + frames
        inputs = {}
        for name in self._config.input_features:
            value = np.stack([self._feature(name, frame) for frame in frames])
            scale = self._scales[name]
            inputs[name] = (value if scale is None else scale.apply(value)).astype(np.float32, copy=False)
        return inputs

    def _feature(self, name: str, frame: Features) -> FloatArray:
        own = {one: self._spec.observation[one] for one in self._names[name]}
        if self._config.input_features[name].type == "VISUAL":
            return images(frame, own)[0].transpose(2, 0, 1).astype(np.float32) / np.float32(255.0)
        return flatten(frame, own)


def chunk_seed(observation: Observation) -> int:
    entropy = [part & 0xFFFF_FFFF_FFFF_FFFF for part in (observation.episode_seed, observation.index)]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def _fill(network: Any, tensors: Mapping[str, Array], folder: Path) -> None:
    """LeRobot loads what it finds and logs the rest; here every tensor has to be there, finite, and nothing beside."""
    weights = {name: value for name, value in tensors.items() if not name.startswith(_NOT_WEIGHTS)}
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    wrong = sorted(name for name, value in weights.items() if not np.isfinite(value).all())
    if wrong:
        raise PolicyError(
            f"{folder}: tensor '{wrong[0]}' has NaN or infinity; the training diverged, use older weights"
        )
    check_shapes(weights, expected, str(folder))
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})


def _check_spec(spec: PolicySpec, config: LeRobotConfig, names: Names) -> None:
    """PolicyError, listing every difference, unless the spec says what the checkpoint was trained on."""
    problems = []
    if spec.horizon != config.chunk_steps:
        problems.append(f"horizon is {spec.horizon}; allowed: {config.chunk_steps}, the actions of a chunk")
    if spec.history != config.n_obs_steps:
        problems.append(f"history is {spec.history}; allowed: {config.n_obs_steps}, the checkpoint's n_obs_steps")
    action = config.output_features.get(ACTION)
    if action is None or action.shape != spec.action.shape or len(spec.action.lower) != len(spec.action.upper):
        problems.append(f"action has shape {spec.action.shape}, the checkpoint's {action and action.shape}")
    if len(spec.action.lower) != spec.action.shape[0]:
        problems.append("the action needs a lower and an upper bound per element")
    for name, feature in config.input_features.items():
        own = names.get(name, ())
        absent = [one for one in own if one not in spec.observation]
        if not own or absent:
            problems.append(f"{name}: the spec lacks {', '.join(absent) or 'a feature for it'} (name it in `names`)")
            continue
        shape = _shape(spec, own)
        if shape != feature.shape:
            problems.append(f"{name}: {' + '.join(own)} has shape {shape}, the checkpoint's is {feature.shape}")
    if problems:
        raise PolicyError(f"policy '{spec.name}' does not fit the LeRobot checkpoint:\n  - " + "\n  - ".join(problems))


def _shape(spec: PolicySpec, own: tuple[str, ...]) -> tuple[int, ...]:
    """As LeRobot says it: images (3, height, width), vectors concatenated."""
    features = {one: spec.observation[one] for one in own}
    if any(one.startswith(IMAGES) for one in own):
        height, width, channels = next(iter(image_features(features).values())).shape
        return (channels, height, width)
    return (sum(feature.shape[0] for feature in vector_features(features).values()),)
