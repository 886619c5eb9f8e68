"""From named features to the tensors that a policy reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, Features, FloatArray
from robot_stack.core.specs import IMAGES, Feature


def vector_features(observation: Mapping[str, Feature]) -> dict[str, Feature]:
    """Those that are vectors, in the spec's order."""
    return {name: feature for name, feature in observation.items() if not name.startswith(IMAGES)}


def image_features(observation: Mapping[str, Feature]) -> dict[str, Feature]:
    """The cameras' images, in the spec's order."""
    return {name: feature for name, feature in observation.items() if name.startswith(IMAGES)}


def vector_length(observation: Mapping[str, Feature]) -> int:
    """Length D of `flatten`'s result. Only vector features can be concatenated."""
    for name, feature in observation.items():
        if len(feature.shape) != 1:
            raise PolicyError(f"feature '{name}' has shape {feature.shape}; this policy reads vectors only")
    return sum(feature.shape[0] for feature in observation.values())


def flatten(features: Features, observation: Mapping[str, Feature]) -> FloatArray:
    """The vector features that the spec lists, in its order, as one float32 vector (D,).

    PolicyError for a missing feature, a wrong shape or a value that is not finite: no policy may act on those.
    """
    parts = [_checked(name, features, feature) for name, feature in vector_features(observation).items()]
    vector: FloatArray = np.concatenate(parts).astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        bad = [name for name in vector_features(observation) if not np.isfinite(features[name]).all()]
        raise PolicyError(f"{', '.join(bad)}: NaN or infinity in the observation; check the sensor behind it")
    return vector


def images(features: Features, observation: Mapping[str, Feature]) -> list[Array]:
    """The images (height, width, 3) uint8 that the spec lists, in its order; PolicyError as `flatten`."""
    return [_checked(name, features, feature) for name, feature in image_features(observation).items()]


def _checked(name: str, features: Features, feature: Feature) -> Array:
    value = features.get(name)
    if value is None:
        raise PolicyError(f"the observation lacks '{name}' (it has {', '.join(sorted(features))})")
    if value.shape != feature.shape:
        raise PolicyError(f"'{name}' has shape {value.shape}, the policy was trained on {feature.shape}")
    return value
