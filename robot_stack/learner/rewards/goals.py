"""Success as nearness to pictures of the goal, in an encoder's space or in pixels.

The distance to the nearest goal is held against a threshold that is fitted to labelled steps: the largest under which
no more than a given share of what is no success would count. Its errors are measured on other episodes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.common.features import image_features
from policies.common.store import check_shapes, load_policy, save_policy
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.protocols import Judgement, Outcome
from robot_stack.core.specs import Feature, PolicySpec, vector
from robot_stack.learner.rewards.classifier import RewardClassifier
from robot_stack.learner.rewards.outcomes import (
    Labelled,
    Tally,
    episode_key,
    gather,
    hold_out,
    threshold_above,
    verdict,
)

KIND = "reward_goals"
_GRID = 16  # pixels a side of the pictures that are compared
_GOALS = "goals"

Embed = Callable[[Sequence[Features]], FloatArray]


class GoalConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside the goals (G, E).

    Attributes:
        threshold: a state nearer to a goal than this is a success.
        classifier_version: of the classifier whose encoder measures; '' where pixels do.
        goals: how many there are.
        largest_false_positive_rate: what the threshold was fitted to.
        held_out: of the verdicts on episodes that it was not fitted to.
    """

    threshold: float
    classifier_version: str
    goals: int
    largest_false_positive_rate: float
    held_out: Tally


class GoalImages:
    """See the module's text; a `RewardModel`. The probability is 1 at a goal, 1/2 at the threshold."""

    name = "goal_image"

    def __init__(self, spec: PolicySpec, config: GoalConfig, goals: FloatArray, embed: Embed) -> None:
        self.spec, self.config = spec, config
        self._goals, self._embed = goals, embed
        digest = hashlib.sha256(msgspec.json.encode((spec, config)))
        digest.update(goals.tobytes())
        self.version = digest.hexdigest()

    def judge(self, outcomes: Sequence[Outcome]) -> list[Judgement]:
        seen = [outcome.after for outcome in outcomes if outcome.after is not None]
        found = iter(self.distances(seen).tolist() if seen else [])
        given = [math.inf if outcome.after is None else next(found) for outcome in outcomes]
        threshold = self.config.threshold
        return [verdict(one < threshold, 0.0 if math.isinf(one) else threshold / (threshold + one)) for one in given]

    def distances(self, batch: Sequence[Features]) -> NDArray[np.float64]:
        """To the nearest goal, (N,)."""
        return _nearest(self._embed(batch), self._goals)

    def save(self, folder: Path) -> None:
        """Write it to a new folder, whole or not at all; StorageError if that exists."""
        save_policy(folder, kind=KIND, spec=self.spec, config=self.config, weights={_GOALS: self._goals})

    @classmethod
    def load(cls, folder: Path, classifier: RewardClassifier | None = None) -> GoalImages:
        """Saved goals, and the classifier that measures, if one did; PolicyError says what is wrong."""
        manifest, tensors = load_policy(folder, KIND, GoalConfig)
        version = "" if classifier is None else classifier.version
        if version != manifest.config.classifier_version:
            raise PolicyError(
                f"{folder}: distances to these goals are measured by classifier "
                f"'{manifest.config.classifier_version[:12]}', '{version[:12]}' was given ('': pixels); set "
                "reward.classifier to the folder of the right one"
            )
        embed = _embedding(manifest.spec.observation, classifier)
        width = tensors[_GOALS].shape[-1] if _GOALS in tensors else 0
        check_shapes(tensors, {_GOALS: (manifest.config.goals, width)}, str(folder))
        return cls(manifest.spec, manifest.config, tensors[_GOALS], embed)


def fit_goals(
    goals: Sequence[Outcome],
    labelled: Labelled,
    observation: Mapping[str, Feature],
    *,
    name: str,
    task: str,
    classifier: RewardClassifier | None = None,
    largest_false_positive_rate: float = 0.01,
    held_out_share: float = 0.5,
    seed: int = 0,
) -> GoalImages:
    """Fit the threshold on one part of the episodes and count the errors on the other.

    Episodes that a goal is from are in neither part: all of an episode looks like its own end. `observation`: the
    cameras to compare; with a classifier, the features that it reads, and the episodes should not be those that it was
    trained on. PolicyError without goals, with too few labels, or where some of what is no success is as near to a
    goal as can be.
    """
    pictured = [goal.after for goal in goals if goal.after is not None]
    if not pictured:
        raise PolicyError("there are no pictures of the goal; give at least one")
    if not 0.0 <= largest_false_positive_rate < 1.0:
        raise PolicyError(f"largest_false_positive_rate is {largest_false_positive_rate}; allowed: 0 up to 1")
    read = observation if classifier is None else classifier.spec.observation
    embed = _embedding(read, classifier)
    wanted = embed(pictured)
    shown = {episode_key(goal.step) for goal in goals}
    others_only = labelled.where([episode_key(one.step) not in shown for one in labelled.outcomes])
    part, held_out = hold_out(others_only, held_out_share, seed)
    others = [one.after for one, label in zip(part.outcomes, part.labels, strict=True) if not label and one.after]
    threshold = -threshold_above(-_nearest(embed(others), wanted), largest_false_positive_rate)
    if threshold <= 0.0:
        raise PolicyError("some of what is labelled as no success looks exactly like the goal; look at the labels")
    found = _nearest(embed([one.after for one in held_out.outcomes if one.after is not None]), wanted)
    config = GoalConfig(
        threshold=threshold,
        classifier_version="" if classifier is None else classifier.version,
        goals=len(wanted),
        largest_false_positive_rate=largest_false_positive_rate,
        held_out=Tally.of((found < threshold).tolist(), held_out.labels),
    )
    spec = PolicySpec(name=name, task=task, horizon=1, action=vector(()), observation=dict(read))
    return GoalImages(spec, config, wanted, embed)


def _nearest(found: FloatArray, goals: FloatArray) -> NDArray[np.float64]:
    """Root mean square difference to the nearest goal, (N,)."""
    squares = [np.square(found - goal).mean(axis=1, dtype=np.float64) for goal in goals]
    nearest: NDArray[np.float64] = np.sqrt(np.min(squares, axis=0))
    return nearest


def _embedding(observation: Mapping[str, Feature], classifier: RewardClassifier | None) -> Embed:
    if classifier is not None:
        return classifier.embed
    cameras = image_features(observation)
    if not cameras:
        raise PolicyError("distances in pixels need a camera among the features; name one, or give a classifier")
    return lambda batch: _thumbnails(batch, cameras)


def _thumbnails(batch: Sequence[Features], cameras: Mapping[str, Feature]) -> FloatArray:
    """All pictures of each observation, made small and flat: (N, E), values 0 to 1."""
    images = gather(batch, cameras).images
    parts = [_averaged(_averaged(pixels.astype(np.float32) / 255.0, 1), 2).reshape(len(batch), -1) for pixels in images]
    small: FloatArray = np.concatenate(parts, axis=1)
    return small


def _averaged(values: FloatArray, axis: int) -> FloatArray:
    """Means over `_GRID` equal stretches of an axis, or fewer if it is shorter."""
    size = values.shape[axis]
    cells = min(_GRID, size)
    starts = np.arange(cells) * size // cells
    lengths = np.diff(np.append(starts, size)).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = cells
    sums = np.add.reduceat(values, starts, axis=axis)
    return (sums / lengths.reshape(shape)).astype(np.float32)
