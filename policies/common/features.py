"""From named features to the one vector that a low-dimensional policy reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.specs import Feature


def vector_length(observation: Mapping[str, Feature]) -> int:
    """Length D of `flatten`'s result. Only vector features can be concatenated."""
    for name, feature in observation.items():
        if len(feature.shape) != 1:
            raise PolicyError(f"feature '{name}' has shape {feature.shape}; this policy reads vectors only")
    return sum(feature.shape[0] for feature in observation.values())


def flatten(features: Features, observation: Mapping[str, Feature]) -> FloatArray:
    """The features that the spec lists, in its order, as one float32 vector (D,).

    PolicyError for a missing feature, a wrong shape or a value that is not finite: no policy may act on those.
    """
    parts = []
    for name, feature in observation.items():
        value = features.get(name)
        if value is None:
            raise PolicyError(f"the observation lacks '{name}' (it has {', '.join(sorted(features))})")
        if value.shape != feature.shape:
            raise PolicyError(f"'{name}' has shape {value.shape}, the policy was trained on {feature.shape}")
        parts.append(value)
    vector: FloatArray = np.concatenate(parts).astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        bad = [name for name in observation if not np.isfinite(features[name]).all()]
        raise PolicyError(f"{', '.join(bad)}: NaN or infinity in the observation; check the sensor behind it")
    return vector
