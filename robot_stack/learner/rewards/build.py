"""From the settings to the reward model, and to a curator that uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from robot_stack.core.direction import Direction
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Step
from robot_stack.core.protocols import RewardModel
from robot_stack.core.specs import Feature
from robot_stack.learner.curation import Curator
from robot_stack.learner.rewards.directed import DirectedReward
from robot_stack.learner.rewards.labels import HumanLabels
from robot_stack.learner.rewards.predicate import InjectedErrors, TaskPredicate
from robot_stack.learner.rewards.relabel import RewardedCurator
from robot_stack.learner.rewards.settings import (
    ClassifierSettings,
    GoalImageSettings,
    HumanLabelSettings,
    MedalSettings,
    RewardSettings,
    TaskPredicateSettings,
    VlmSettings,
)


def build_reward_model(settings: RewardSettings) -> RewardModel:
    """The model with its errors put in, under what people said; ConfigError or PolicyError says what is missing."""
    if isinstance(settings, HumanLabelSettings) and not settings.labels:
        raise ConfigError("reward=human_label needs reward.labels, the file with people's labels")
    model = _model(settings)
    if settings.has_errors:
        model = InjectedErrors(model, settings.false_positive_rate, settings.false_negative_rate, settings.error_seed)
    return HumanLabels(Path(settings.labels), otherwise=model) if settings.labels else model


def rewarded(
    curator: Curator,
    settings: RewardSettings,
    demonstrations: Sequence[Sequence[Step]] = (),
    observation: Mapping[str, Feature] = MappingProxyType({}),
) -> Curator:
    """The curator with the rewards of these settings; itself where the recorded ones stand as they are.

    `demonstrations`, and the observed features: what MEDAL compares with.
    """
    if isinstance(settings, MedalSettings):
        from robot_stack.learner.rewards.medal import MedalCurator, PlaceReader  # loads torch

        return MedalCurator(curator, settings, PlaceReader(observation, settings.places), demonstrations)
    if isinstance(settings, TaskPredicateSettings) and not settings.labels and not settings.has_errors:
        return curator
    return RewardedCurator(curator, build_reward_model(settings), settings.consecutive)


def _model(settings: RewardSettings) -> RewardModel:
    if isinstance(settings, ClassifierSettings):
        from robot_stack.learner.rewards.classifier import RewardClassifier  # loads torch

        forward = RewardClassifier.load(_folder(settings.folder))
        if not settings.backward:
            return forward
        backward = RewardClassifier.load(Path(settings.backward))
        return DirectedReward({Direction.FORWARD: forward, Direction.BACKWARD: backward})
    if isinstance(settings, GoalImageSettings):
        from robot_stack.learner.rewards.classifier import RewardClassifier
        from robot_stack.learner.rewards.goals import GoalImages

        measure = RewardClassifier.load(Path(settings.classifier)) if settings.classifier else None
        return GoalImages.load(_folder(settings.folder), measure)
    if isinstance(settings, VlmSettings):
        from robot_stack.learner.rewards.vlm import VlmReward

        return VlmReward(settings)
    return TaskPredicate()


def _folder(name: str) -> Path:
    if not name:
        raise ConfigError("reward.folder is empty; give the folder of a saved reward model")
    return Path(name)
