"""One policy over any generative network, solver, cache schedule and back-end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace

from policies.acceleration.schedule import CacheSchedule
from policies.common.denoiser import Denoiser
from policies.common.features import flatten, images, vector_features, vector_length
from policies.common.sizes import Sizes
from policies.common.store import check_shapes, load_policy, save_policy
from policies.generative.backend import Arrays, Backend, EagerBackend
from policies.generative.build import build_net, fingerprint, sizes_of
from policies.generative.config import GenerativeConfig, SolverConfig
from policies.generative.sampler import ChunkSampler
from policies.vla.config import VlaConfig
from policies.vla.words import token_ids
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import ActionChunk, Array, Features, FloatArray, Observation
from robot_stack.core.specs import PolicySpec

KIND = "generative"

MakeBackend = Callable[[ChunkSampler, Arrays], Backend]
"""From a sampler and an example of its condition (one row) to a back-end."""


class GenerativePolicy:
    """Predicts chunks of H actions; a `Policy`.

    All noise comes from (episode_seed, index) of the observation, so prediction is a pure function of it. `version` is
    written into every chunk.
    An observation outside the demonstrated range is taken as the nearest one inside.
    """

    def __init__(
        self,
        spec: PolicySpec,
        config: GenerativeConfig,
        net: Denoiser,
        version: int = 0,
        make_backend: MakeBackend | None = None,
    ) -> None:
        _check_config(spec, config)
        self._spec, self._config = spec, config
        self._net = net.eval().requires_grad_(False)
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._make_backend = make_backend
        self.sampler = ChunkSampler(self._net, config.process, config.solver, config.schedule)
        if config.schedule is not None:
            config.schedule.check(self.fingerprint, self._net.block_names, len(self.sampler.calls))
        self.backend = make_backend(self.sampler, self._example()) if make_backend else EagerBackend(self.sampler)
        self.version = version

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def config(self) -> GenerativeConfig:
        return self._config

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self._spec, self._config)

    @property
    def fingerprint(self) -> str:
        """What a cache schedule for this network and solver has to carry."""
        return fingerprint(self._config.net, self.sizes, self._config.process, self._config.solver)

    @property
    def block_share(self) -> float:
        """Share of the block calls of a chunk that are computed; the others take what was kept."""
        schedule = self._config.schedule
        return 1.0 if schedule is None else schedule.block_calls / (len(schedule.blocks) * schedule.calls)

    @property
    def example_instruction(self) -> str:
        """Words that this policy knows; '' if it reads none."""
        return " ".join(self._config.vocabulary[1:2])

    def predict(self, observation: Observation) -> ActionChunk:
        """The chunk for the steps from `observation.index` on; PolicyError for a missing or non-finite feature."""
        return ActionChunk(
            observation_id=observation.id,
            index=observation.index,
            weights_version=self.version,
            actions=self.predict_batch([observation])[0],
        )

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A) in the action's units, inside its bounds."""
        noise, step_noise = self.noise(observations)
        return self.to_actions(self.backend.sample(noise, step_noise, self.condition(observations)))

    def condition(self, observations: Sequence[Observation]) -> Arrays:
        """What the network reads of these observations: the arrays of `Denoiser`'s condition, N rows."""
        windows = [_window(observation, self._spec.history) for observation in observations]
        vectors = np.stack([[flatten(frame, self._spec.observation) for frame in window] for window in windows])
        parts: list[Array] = [
            self._config.observation.normalize(vectors).clip(-1.0, 1.0).astype(np.float32, copy=False)
        ]
        pictures = [[images(frame, self._spec.observation) for frame in window] for window in windows]
        parts += [
            np.stack([[frame[camera] for frame in window] for window in pictures])
            for camera in range(len(self.sizes.images))
        ]
        net, words = self._config.net, self._config.vocabulary
        if isinstance(net, VlaConfig):
            parts.append(np.stack([token_ids(net, one.instruction, words) for one in observations]))
        return tuple(parts)

    def noise(self, observations: Sequence[Observation]) -> tuple[FloatArray, FloatArray | None]:
        """Noise (N, H, A) to start from and, for a stochastic solver, fresh noise (T, N, H, A)."""
        shape = (self._spec.horizon, self._spec.action.shape[0])
        calls = len(self.sampler.calls) if self.sampler.is_stochastic else 0
        drawn = np.stack([_draw((one.episode_seed, one.index), (calls + 1, *shape)) for one in observations], axis=1)
        return drawn[0], drawn[1:] if calls else None

    def to_actions(self, sample: FloatArray) -> FloatArray:
        """Normalised samples (..., A) in the action's units, inside its bounds."""
        actions: FloatArray = np.clip(self._config.action.denormalize(sample), self._lower, self._upper)
        return actions

    def to_samples(self, actions: FloatArray) -> FloatArray:
        """Actions (..., A) in normalised units."""
        return self._config.action.normalize(actions)

    def with_solver(self, solver: SolverConfig, schedule: CacheSchedule | None = None) -> GenerativePolicy:
        """The same weights, sampled in another way."""
        config = replace(self._config, solver=solver, schedule=schedule)
        return GenerativePolicy(self._spec, config, self._net, self.version, self._make_backend)

    def with_backend(self, make_backend: MakeBackend | None) -> GenerativePolicy:
        """The same policy on another back-end."""
        return GenerativePolicy(self._spec, self._config, self._net, self.version, make_backend)

    def save(self, directory: Path) -> None:
        """Write the policy folder; StorageError if it exists."""
        weights = {name: tensor.cpu().numpy() for name, tensor in self._net.state_dict().items()}
        save_policy(directory, kind=KIND, spec=self._spec, config=self._config, weights=weights)

    @classmethod
    def load(cls, directory: Path, version: int = 0, make_backend: MakeBackend | None = None) -> GenerativePolicy:
        """The policy of a folder, verified; PolicyError says what is wrong."""
        manifest, weights = load_policy(directory, KIND, GenerativeConfig)
        net = build_net(manifest.config.net, sizes_of(manifest.spec, manifest.config))
        load_weights(net, weights, str(directory))
        return cls(manifest.spec, manifest.config, net, version, make_backend)

    def _example(self) -> Arrays:
        features: Features = {
            name: np.zeros(feature.shape, feature.dtype) for name, feature in self._spec.observation.items()
        }
        words = self.example_instruction
        return self.condition([Observation(id=0, stamp_ns=0, features=features, age_ns={}, instruction=words)])


def load_weights(net: Denoiser, weights: dict[str, Array], origin: str) -> None:
    """Put checked weights into the network; PolicyError if names or shapes differ."""
    check_shapes(weights, {name: tuple(value.shape) for name, value in net.state_dict().items()}, origin)
    net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})


def _window(observation: Observation, history: int) -> list[Features]:
    """The newest `history` frames, oldest first; before an episode's beginning its first frame stands."""
    if len(observation.past) < min(observation.index, history - 1):
        raise PolicyError(
            f"the observation of step {observation.index} brings {len(observation.past)} earlier ones, the policy "
            f"reads {history - 1}; tell whoever observes what the policy reads"
        )
    frames = [*observation.past, observation.features][-history:]
    return [frames[0]] * (history - len(frames)) + frames


def _draw(seed: tuple[int, int], shape: tuple[int, ...]) -> FloatArray:
    # SeedSequence takes no negative numbers; a real robot's episode has seed -1.
    entropy = [part & 0xFFFF_FFFF_FFFF_FFFF for part in seed]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    return generator.standard_normal(shape, dtype=np.float32)


def _check_config(spec: PolicySpec, config: GenerativeConfig) -> None:
    if len(spec.action.lower) != spec.action.shape[0] or len(spec.action.upper) != spec.action.shape[0]:
        raise PolicyError(f"policy '{spec.name}': the action feature needs a lower and an upper bound per element")
    expected = {"observation": vector_length(vector_features(spec.observation)), "action": spec.action.shape[0]}
    found = {"observation": len(config.observation.centre), "action": len(config.action.centre)}
    if expected != found:
        raise PolicyError(f"policy '{spec.name}': normalisation statistics for {found}, spec says {expected}")
