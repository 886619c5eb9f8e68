"""Gymnasium spaces and observations as the stack's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Features
from robot_stack.core.specs import IMAGES, Feature, vector

Keys = tuple[tuple[str, str], ...]


def observation_features(space: Any, keys: Keys, names: Mapping[str, tuple[str, ...]]) -> dict[str, Feature]:
    """The features that `observe` will give for this observation space, in the order of `keys`.

    Boxes become float32 vectors (flattened), and stay uint8 images (height, width, 3) under `observation.images.*`.
    Their stated bounds are left out: many environments do not keep to them.
    """
    features = {}
    for feature, path in keys:
        box = space
        for part in filter(None, path.split(".")):
            try:
                box = box[part]
            except (KeyError, TypeError, IndexError) as error:
                raise ConfigError(
                    f"feature '{feature}': there is no '{path}' in the observation space {space}"
                ) from error
        shape = getattr(box, "shape", None)
        if shape is None:
            raise ConfigError(f"feature '{feature}': '{path}' must lead to one array, it leads to {box}")
        if feature.startswith(IMAGES):
            features[feature] = Feature(dtype="uint8", shape=tuple(shape))
            continue
        size = int(np.prod(shape))
        stem = feature.rpartition(".")[2]
        given = names.get(feature, tuple(f"{stem}{index}" for index in range(size)))
        if len(given) != size:
            raise ConfigError(f"feature '{feature}': {len(given)} names for {size} elements at '{path}'")
        features[feature] = vector(given)
    return features


def observe(observation: Any, keys: Keys, spec: Mapping[str, Feature]) -> Features:
    """Copies of the parts of an observation, each with the dtype and shape of its feature."""
    features: Features = {}
    for feature, path in keys:
        value = observation
        for part in filter(None, path.split(".")):
            value = value[part]
        features[feature] = np.array(value, dtype=spec[feature].dtype).reshape(spec[feature].shape)
    return features


def flat_features(info: Mapping[str, Any]) -> Features:
    """Every numeric entry of an info dictionary as `info.<key>`, float32 of shape (n,)."""
    features: Features = {}
    for key, value in info.items():
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            features[f"info.{key}"] = array.astype(np.float32).reshape(-1)
    return features
