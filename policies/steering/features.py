"""What the networks that judge chunks read: an observation and a chunk as one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from policies.common.blocks import EVERY_BLOCK, Blocks
from policies.generative.digest import weights_sha256
from policies.steering.candidates import SampledPolicy, share
from policies.steering.config import FeatureKind
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray, Observation


class ChunkFeatures(Protocol):
    """Turns observations and chunks into vectors. `belongs_to`: digest of the weights they depend on, or empty."""

    kind: FeatureKind
    belongs_to: str

    def __call__(self, observations: Sequence[Observation], chunks: FloatArray) -> FloatArray:
        """(N, F) for chunks (N, H, A) and N observations, or one that all chunks share."""


class VectorFeatures:
    """The numbers of the observations (images and words are left out) and of the chunk, all normalised."""

    kind: FeatureKind = "vector"
    belongs_to = ""

    def __init__(self, policy: SampledPolicy) -> None:
        self._policy = policy

    def __call__(self, observations: Sequence[Observation], chunks: FloatArray) -> FloatArray:
        vectors = self._policy.condition(observations)[0].reshape(len(observations), -1)
        seen = np.broadcast_to(vectors, (len(chunks), vectors.shape[1])) if len(observations) == 1 else vectors
        samples = self._policy.to_samples(chunks).reshape(len(chunks), -1)
        features: FloatArray = np.concatenate((seen, samples), axis=1).astype(np.float32, copy=False)
        return features


class HiddenFeatures:
    """What the last block of the policy's own network adds when it is shown the chunk at its least noisy call.

    It depends on everything that the policy sees, images and words included, and costs one call of the network for all
    chunks together. TACO keeps the hidden state of the last call while sampling; asking anew gives chunks of any
    origin, demonstrations too, the same feature.
    """

    kind: FeatureKind = "hidden"

    def __init__(self, policy: SampledPolicy) -> None:
        self._policy = policy
        self.belongs_to = weights_sha256(policy.sampler.denoiser)[:16]

    @torch.inference_mode()
    def __call__(self, observations: Sequence[Observation], chunks: FloatArray) -> FloatArray:
        sampler = self._policy.sampler
        condition = tuple(torch.from_numpy(part) for part in self._policy.condition(observations))
        context, clock = sampler.prepare(condition)
        if len(observations) == 1:
            context = share(context, len(chunks))
        last = LastBlock(len(sampler.denoiser.block_names) - 1)
        samples = torch.from_numpy(self._policy.to_samples(chunks).astype(np.float32, copy=False))
        sampler.denoiser.step(samples, tuple(part[-1:] for part in clock), context, last)
        return last.output.flatten(1).numpy()


class LastBlock:
    """Computes every block and keeps the output (B, H, width) of one; a `Blocks`."""

    def __init__(self, number: int, blocks: Blocks = EVERY_BLOCK) -> None:
        self._number, self._blocks = number, blocks
        self.output: Tensor

    def run(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        output = self._blocks.run(block, compute)
        if block == self._number:
            self.output = output
        return output


def make_features(kind: FeatureKind, policy: SampledPolicy) -> ChunkFeatures:
    """The features of that kind."""
    return VectorFeatures(policy) if kind == "vector" else HiddenFeatures(policy)


def check_belongs(features: ChunkFeatures, belongs_to: str, origin: str) -> None:
    """PolicyError unless a judge was trained on the features of these very weights."""
    if features.belongs_to != belongs_to:
        raise PolicyError(
            f"{origin} reads the hidden state of a policy with weights {belongs_to or 'none'}, this policy has "
            f"{features.belongs_to or 'none'}; train it anew for this policy"
        )
