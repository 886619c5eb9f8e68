"""The learner's replays, and where the pictures of steps lie for which their memory has no room."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from policies.common.features import image_features, vector_features, vector_length
from robot_stack.buffer.batches import Images, Mask, Rows
from robot_stack.buffer.frames import ImageSource
from robot_stack.buffer.images import decode_image, image_shape
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Step
from robot_stack.core.specs import Feature, PolicySpec
from robot_stack.learner.algorithms.settings import AlgorithmSettings, StepSettings
from robot_stack.learner.curation import Place

_FIRST_DEMONSTRATION = 1 << 40
_DEMONSTRATIONS_MEMORY = 4


class RunPictures:
    """The pictures of a run's demonstrations, decoded when they are asked for; those of practice from `log`.

    An `ImageSource`. The demonstrations stay in memory once, as they were stored; step number k of them has the index
    that `demonstrated` gives it. PolicyError if one lacks a camera of `cameras`, or has it in another size.
    """

    def __init__(self, episodes: Sequence[Sequence[Step]], log: ImageSource, cameras: Mapping[str, Feature]) -> None:
        self._steps = [step for episode in episodes for step in episode]
        self._log = log
        for step in self._steps:
            for name, feature in cameras.items():
                stored = step.observation.get(name)
                if stored is None or image_shape(stored) != feature.shape:
                    found = "none" if stored is None else f"one of shape {list(image_shape(stored))}"
                    raise PolicyError(
                        f"algorithm.images asks for {name} of shape {list(feature.shape)}, and a demonstration "
                        f"(session {step.session}, episode {step.episode}) has {found}; collect them with that camera"
                    )

    def read_images(self, feature: str, indices: Rows, final: Mask, out: Images) -> None:
        from_log = indices < _FIRST_DEMONSTRATION
        for position in np.flatnonzero(~from_log).tolist():
            step = self._steps[int(indices[position]) - _FIRST_DEMONSTRATION]
            features = step.final_observation if final[position] else step.observation
            if features is None or feature not in features:
                raise PolicyError(f"a demonstration of session {step.session} ends without a picture {feature}")
            decode_image(features[feature], out[position])
        if from_log.all():
            self._log.read_images(feature, indices, final, out)
        elif from_log.any():
            recorded = np.empty((int(from_log.sum()), *out.shape[1:]), np.uint8)
            self._log.read_images(feature, indices[from_log], final[from_log], recorded)
            out[from_log] = recorded


def demonstrated(step: ReplayStep, number: int) -> ReplayStep:
    """The step with the index at which `RunPictures` finds the pictures of step `number` of all demonstrations."""
    return dataclasses.replace(step, source_index=_FIRST_DEMONSTRATION + number)


def build_replays(
    settings: AlgorithmSettings,
    spec: PolicySpec,
    lookahead: int,
    episodes: Sequence[Sequence[Step]],
    log: ImageSource | None,
) -> dict[Place, Replay]:
    """Empty replays for steps of that spec; with pictures where it names cameras.

    The newest pictures of practice stay in memory, `image_memory_bytes` of them at most (and a quarter of that again
    for people's steps among the demonstrations); older ones are read from the log; ConfigError if there is none.
    """
    cameras = image_features(spec.observation)
    if cameras and log is None:
        raise ConfigError(
            f"algorithm.images asks for {', '.join(cameras)}, and there is no log of steps beside this learner to read "
            "older pictures from: learn from pictures with one learner, not with a cluster"
        )
    source = RunPictures(episodes, log, cameras) if log is not None and cameras else None
    memory = settings.image_memory_bytes if isinstance(settings, StepSettings) else 0

    def replay(capacity: int, budget: int) -> Replay:
        return Replay(
            ReplayConfig(
                capacity,
                vector_length(vector_features(spec.observation)),
                spec.action.shape[0],
                images={name: (feature.shape[0], feature.shape[1], 3) for name, feature in cameras.items()},
                frame_budget_bytes=budget,
                lookahead=lookahead,
                return_discount=settings.discount,
            ),
            source,
        )

    shown = sum(len(episode) for episode in episodes)
    return {
        Place.DEMONSTRATIONS: replay(shown + settings.replay_capacity, memory // _DEMONSTRATIONS_MEMORY),
        Place.ONLINE: replay(settings.replay_capacity, memory),
    }
