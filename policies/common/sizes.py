"""What a network has to know of a policy's spec: how many numbers, observations and cameras."""

from __future__ import annotations

from dataclasses import dataclass

from policies.common.features import image_features, vector_features, vector_length
from robot_stack.core.specs import PolicySpec


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shapes of a policy's tensors.

    Attributes:
        horizon: actions in a chunk, H. action_dim: numbers of an action, A.
        history: observations that are read, To. vector_dim: numbers of an observation beside its images, D.
        images: (height, width) of each camera, in the order of the spec.
        words: size of the vocabulary of instructions, with the token for "nothing"; 0 where none are read.
    """

    horizon: int
    action_dim: int
    history: int
    vector_dim: int
    images: tuple[tuple[int, int], ...] = ()
    words: int = 0

    @classmethod
    def of(cls, spec: PolicySpec, words: int = 0) -> Sizes:
        return cls(
            horizon=spec.horizon,
            action_dim=spec.action.shape[0],
            history=spec.history,
            vector_dim=vector_length(vector_features(spec.observation)),
            images=tuple((feature.shape[0], feature.shape[1]) for feature in image_features(spec.observation).values()),
            words=words,
        )
