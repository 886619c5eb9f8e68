"""Recorded steps as a policy would have observed them."""

from __future__ import annotations

from collections.abc import Sequence

from policies.common.features import image_features
from robot_stack.buffer.images import decode_image
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Features, Observation, Step
from robot_stack.core.specs import PolicySpec


def observation_at(
    frames: Sequence[Features], index: int, episode: Sequence[Step], spec: PolicySpec, instruction: str = ""
) -> Observation:
    """What a policy of that spec would have read at step `index` of an episode.

    `frames`: the features of its steps and, where it was recorded, of what followed the last one. `instruction` stands
    in where none was recorded. PolicyError if something that the policy reads was not recorded.
    """
    step = episode[min(index, len(episode) - 1)]
    window = [_read(frame, spec) for frame in frames[max(0, index + 1 - spec.history) : index + 1]]
    return Observation(
        id=index,
        stamp_ns=step.stamp_ns,
        features=window[-1],
        age_ns={},
        episode_seed=step.episode_seed,
        index=index,
        past=tuple(window[:-1]),
        instruction=step.instruction or instruction,
    )


def _read(features: Features, spec: PolicySpec) -> Features:
    """Only what the policy reads, pictures as pixels."""
    missing = [name for name in spec.observation if name not in features]
    if missing:
        raise PolicyError(f"the demonstrations have no {', '.join(missing)}, which the policy reads; collect others")
    pictures = image_features(spec.observation)
    return {name: decode_image(features[name]) if name in pictures else features[name] for name in spec.observation}
