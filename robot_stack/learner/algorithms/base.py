"""What the learner's loop asks of an algorithm, and what it gives to it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal, Protocol, runtime_checkable

from policies.common.normalization import Standardizer
from policies.generative.policy import GenerativePolicy
from robot_stack.buffer.batches import ChunkBatch, Draw, SequenceBatch, TransitionBatch
from robot_stack.buffer.replay import Replay, ReplayStep
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.core.messages import Array, Step
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import Feature
from robot_stack.learner.algorithms.settings.base import AlgorithmSettings, ChunkPolicySettings
from robot_stack.learner.algorithms.training import Sharing
from robot_stack.learner.curation import Curator, EveryStep


class Batches:
    """Fresh batches from the mix: every call draws anew.

    `images`: features of pictures that come with every batch. `n_step` and `discount` are the settings'; `size` is
    the settings' `batch_size` unless it is given.
    """

    def __init__(self, sampler: Sampler, size: int, n_step: int, discount: float, images: Sequence[str] = ()) -> None:
        self.sampler = sampler
        self._ranks = 1
        self._size, self._n_step, self._discount, self._images = size, n_step, discount, tuple(images)

    def share(self, ranks: int) -> None:
        """From now on every batch is the part of one rank of so many: a size is divided by them, and rounded up."""
        self._ranks = ranks

    def _draw(self, size: int | None) -> Draw:
        return self.sampler.draw(-(-(size or self._size) // self._ranks))

    def transitions(self, size: int | None = None, images: Sequence[str] | None = None) -> TransitionBatch:
        """n-step transitions; `images` in the place of those that come with every batch."""
        draw = self._draw(size)
        pictures = self._images if images is None else images
        return self.sampler.transitions(draw, self._n_step, self._discount, pictures)

    def chunks(self, horizon: int, size: int | None = None) -> ChunkBatch:
        """Observations, each with the `horizon` actions executed from there on."""
        return self.sampler.chunks(self._draw(size), horizon, self._images)

    def sequences(self, length: int, size: int | None = None) -> SequenceBatch:
        """Stretches of `length` steps."""
        return self.sampler.sequences(self._draw(size), length, self._images)


class Algorithm(Protocol):
    """Learns from batches; everything it needs to continue bit for bit is in its state."""

    @property
    def updates(self) -> int:
        """Updates done so far."""

    def update(self, batches: Batches) -> dict[str, float]:
        """One update, from as many batches as it needs; metrics by name."""

    def actor_tensors(self) -> dict[str, Array]:
        """What the edge needs to act: weights and normalisation statistics. Copies."""

    def state(self) -> dict[str, Array]:
        """Parameters, targets, optimisers, random generator and counters. Copies."""

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        """Continue from `state`; PolicyError if it belongs to another configuration."""


@runtime_checkable
class OnPolicy(Protocol):
    """An algorithm that learns from the steps of its newest published weights alone, and says itself when.

    An update is made as soon as it is due, and the weights are published at an episode's end if there was one; until
    then no step is of use. So its n-th update becomes version n, and version 0 is the warm-up. The steps that it has
    taken and not yet learned from are part of its state.
    """

    def observe(self, step: Step, replayed: ReplayStep) -> None:
        """A step that reached the driver, in the order of recording, as recorded and in the form of replays."""

    @property
    def due(self) -> bool:
        """An update is owed now; it is made before the next step is taken."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What an algorithm is made from.

    Attributes:
        action: the robot's action, with bounds.
        observation: features that the algorithm reads: vectors, in the order in which they are flattened (D), and,
            where the settings ask for them, cameras' pictures.
        standardizer: statistics of the demonstrations' flattened observations.
        base: the run's base policy, frozen unless the algorithm trains it; None where there is none.
        seed: of all its randomness.
        sharing: the ranks that make every update together; None for a learner alone.
    """

    action: Feature
    observation: Mapping[str, Feature]
    standardizer: Standardizer
    base: GenerativePolicy | None
    seed: int
    sharing: Sharing | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """An algorithm, and what it learns from.

    Attributes:
        lookahead: the most steps after a drawn one that a batch needs: n_step, or the length of chunks.
        mix: the parts of every batch and their shares.
        curator: which recorded steps count, and as what.
        on_empty: what happens while a part of the mix has nothing (`Sampler`).
    """

    algorithm: Algorithm
    lookahead: int
    mix: Mix
    curator: Curator = field(default_factory=EveryStep)
    on_empty: Literal["error", "redistribute"] = "error"


class Mix(Protocol):
    """From the two replays to the parts of every batch."""

    def __call__(self, demonstrations: Replay, online: Replay) -> Sequence[Part]: ...


@dataclass(frozen=True, slots=True)
class HalfAndHalf:
    """`share` of every batch from the demonstrations, the rest from practice; a `Mix` (RLPD, arXiv 2302.02948)."""

    share: float

    def __call__(self, demonstrations: Replay, online: Replay) -> Sequence[Part]:
        return [Part(demonstrations, None, self.share), Part(online, None, 1.0 - self.share)]


class Builder(Protocol):
    """The function `build` of an algorithm's file."""

    def __call__(self, settings: AlgorithmSettings, ingredients: Ingredients) -> Recipe: ...


class ChunkBuilder(Protocol):
    """The function `chunk_policy` of an algorithm's file, where its weights predict chunks."""

    def __call__(
        self, settings: AlgorithmSettings, base: GenerativePolicy, version: int, tensors: Mapping[str, Array]
    ) -> Policy: ...


def build_recipe(settings: AlgorithmSettings, ingredients: Ingredients) -> Recipe:
    """The algorithm of these settings, from the file that they name."""
    build: Builder = _module_of(settings).build
    return build(settings, ingredients)


def build_chunk_policy(
    settings: ChunkPolicySettings, base: GenerativePolicy, version: int, tensors: Mapping[str, Array]
) -> Policy:
    """What acts with published weights of these settings; PolicyError if they do not fit."""
    chunk_policy: ChunkBuilder = _module_of(settings).chunk_policy
    return chunk_policy(settings, base, version, tensors)


def _module_of(settings: AlgorithmSettings) -> ModuleType:
    return importlib.import_module(f"robot_stack.learner.algorithms.{settings.module}")
