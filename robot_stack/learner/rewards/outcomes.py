"""Recorded steps as reward models see them, what is counted of their errors, and how episodes are held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.common.features import flatten, image_features, vector_features
from policies.common.features import images as checked_images
from robot_stack.buffer.images import decode_image
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, Features, FloatArray, Step
from robot_stack.core.protocols import Judgement, Outcome
from robot_stack.core.specs import IMAGES, Feature

SUCCESS_REWARD = 1.0
OTHER_REWARD = 0.0

EpisodeKey = tuple[str, str, str, int]


def episode_key(step: Step) -> EpisodeKey:
    """Names an episode among those of all runs."""
    return step.run, step.robot, step.session, step.episode


def verdict(success: bool, probability: float, *, sure: bool = False) -> Judgement:
    """A judgement with the sparse reward that goes with it."""
    reward = SUCCESS_REWARD if success else OTHER_REWARD
    return Judgement(success=success, probability=probability, reward=reward, sure=sure)


def outcomes_of(steps: Sequence[Step]) -> list[Outcome]:
    """Each of the steps, in the order of recording, with what was seen after it."""
    following = {(*episode_key(step), step.index): step.observation for step in steps}
    return [
        Outcome(
            step=step,
            after=step.final_observation
            if step.terminated or step.truncated
            else following.get((*episode_key(step), step.index + 1)),
        )
        for step in steps
    ]


def decoded(features: Features) -> Features:
    """The features with pictures in pixels, however they were recorded."""
    return {name: decode_image(value) if name.startswith(IMAGES) else value for name, value in features.items()}


class Seen(Struct, frozen=True, kw_only=True):
    """A batch of observations: flattened vectors (N, D) float32, and the pictures (N, height, width, 3) uint8 of each
    camera."""

    vectors: FloatArray
    images: tuple[NDArray[np.uint8], ...]


def gather(batch: Sequence[Features], observation: Mapping[str, Feature]) -> Seen:
    """The features that the spec lists; PolicyError for what is missing, of another shape or not finite."""
    pixels = [decoded(features) for features in batch]
    has_vectors = bool(vector_features(observation))
    vectors = [flatten(features, observation) if has_vectors else np.zeros(0, np.float32) for features in pixels]
    cameras: list[list[Array]] = [checked_images(features, observation) for features in pixels]
    count = len(image_features(observation))
    stacked = tuple(np.stack([of_all[i] for of_all in cameras]) for i in range(count))
    return Seen(vectors=np.stack(vectors), images=stacked)


class Tally(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Verdicts against labels, counted."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @classmethod
    def of(cls, verdicts: Sequence[bool], labels: Sequence[bool]) -> Tally:
        pairs = [(bool(said), bool(label)) for said, label in zip(verdicts, labels, strict=True)]
        return cls(
            true_positives=pairs.count((True, True)),
            false_positives=pairs.count((True, False)),
            true_negatives=pairs.count((False, False)),
            false_negatives=pairs.count((False, True)),
        )

    @property
    def positives(self) -> int:
        """Labelled as success."""
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> int:
        return self.true_negatives + self.false_positives

    @property
    def false_positive_rate(self) -> float:
        """Share of what is no success that was taken for one; NaN where there is nothing such."""
        return self.false_positives / self.negatives if self.negatives else float("nan")

    @property
    def false_negative_rate(self) -> float:
        return self.false_negatives / self.positives if self.positives else float("nan")


class Labelled(Struct, frozen=True, kw_only=True):
    """Outcomes with labels, all of which have an observation."""

    outcomes: tuple[Outcome, ...]
    labels: tuple[bool, ...]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], labels: Sequence[bool]) -> Labelled:
        """Those after which something was seen."""
        kept = [pair for pair in zip(outcomes, labels, strict=True) if pair[0].after is not None]
        return cls(outcomes=tuple(one for one, _ in kept), labels=tuple(bool(label) for _, label in kept))

    def where(self, chosen: Sequence[bool]) -> Labelled:
        """Those that are chosen, one truth value for each."""
        rows = [i for i, wanted in enumerate(chosen) if wanted]
        return Labelled.of([self.outcomes[i] for i in rows], [self.labels[i] for i in rows])

    def seen(self, observation: Mapping[str, Feature]) -> Seen:
        return gather([one.after for one in self.outcomes if one.after is not None], observation)


def hold_out(labelled: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """The data in two parts, by whole episodes: the rest, and a `share` that nothing is fitted to.

    Steps of one episode look alike, so a step whose neighbour was trained on would tell nothing. Episodes with a
    success and those without are divided apart. PolicyError unless both parts have both labels.
    """
    keys = [episode_key(one.step) for one in labelled.outcomes]
    won = {key for key, label in zip(keys, labelled.labels, strict=True) if label}
    rng, held = np.random.default_rng(seed), set[EpisodeKey]()
    for group in (sorted(won), sorted(set(keys) - won)):
        if len(group) > 1:
            count = min(max(1, round(share * len(group))), len(group) - 1)
            held |= {group[i] for i in rng.permutation(len(group))[:count]}
    parts = []
    for wanted in (False, True):
        part = labelled.where([(key in held) == wanted for key in keys])
        if len(set(part.labels)) < 2:
            raise PolicyError(
                f"{len(won)} labelled episodes have a success, {len(set(keys)) - len(won)} have none: too few to hold "
                "some out; at least two episodes with a success are needed, and steps that are none"
            )
        parts.append(part)
    return parts[0], parts[1]


def threshold_above(scores: NDArray[np.floating[Any]], largest_rate: float) -> float:
    """The lowest threshold that no more than this share of the scores (N,), N >= 1, is above."""
    ordered = np.sort(scores)[::-1]
    return float(ordered[min(math.floor(largest_rate * len(ordered)), len(ordered) - 1)])
