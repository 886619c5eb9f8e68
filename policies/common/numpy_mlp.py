"""One member of an `EnsembleMlp` in plain numpy, for one row: there it is faster than torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robot_stack.core.messages import Array, FloatArray

_LAYER_NORM_EPSILON = np.float32(1e-5)

Layers = list[tuple[FloatArray, FloatArray]]
"""Weight (in, out) and bias (out,) of every layer."""


def layers_of(tensors: Mapping[str, Array], hidden: int, prefix: str = "") -> Layers:
    """The first member's layers, `hidden` of them hidden, out of tensors named as `EnsembleMlp.arrays` does. Copies."""
    return [
        (
            np.array(tensors[f"{prefix}weight.{index}"][0], np.float32),
            np.array(tensors[f"{prefix}bias.{index}"][0, 0], np.float32),
        )
        for index in range(hidden + 1)
    ]


def forward(layers: Layers, value: FloatArray) -> FloatArray:
    """One row (in,) -> (out,), float32, as `EnsembleMlp` computes it: LayerNorm without gain or shift, then ReLU."""
    for weight, bias in layers[:-1]:
        value = value @ weight + bias
        value -= value.mean()
        value /= np.sqrt(np.dot(value, value) / np.float32(len(value)) + _LAYER_NORM_EPSILON)
        np.maximum(value, np.float32(0.0), out=value)
    weight, bias = layers[-1]
    output: FloatArray = value @ weight + bias
    return output
