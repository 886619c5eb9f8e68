"""Scaling of vectors, with statistics that are fitted once and travel with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray

MIN_RANGE = 1e-2
MIN_STD = 3e-3  # millimetres and milliradians matter; anything that varies less is as good as constant
MAX_STANDARDIZED = 10.0

OBSERVATION_MEAN = "observation_mean"
OBSERVATION_STD = "observation_std"


class MinMaxNormalizer(Struct, frozen=True, kw_only=True):
    """Maps each dimension's range [centre - half_range, centre + half_range] to [-1, 1] and back; (..., D) float32."""

    centre: tuple[float, ...]
    half_range: tuple[float, ...]

    def __post_init__(self) -> None:
        _check("centre", self.centre)
        _check("half_range", self.half_range, positive=True)
        _check_lengths(self.centre, self.half_range)

    def normalize(self, value: FloatArray) -> FloatArray:
        centre, half_range = _row(self.centre), _row(self.half_range)
        return (value - centre) / half_range

    def denormalize(self, value: FloatArray) -> FloatArray:
        return value * _row(self.half_range) + _row(self.centre)


class Standardizer(Struct, frozen=True, kw_only=True):
    """Maps each dimension to zero mean and unit standard deviation, clipped to +-`MAX_STANDARDIZED`; (..., D) float32.

    The clip keeps what was never seen while fitting (a hard contact) from drowning everything else.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _check("mean", self.mean)
        _check("std", self.std, positive=True)
        _check_lengths(self.mean, self.std)

    def normalize(self, value: FloatArray) -> FloatArray:
        mean, std = _row(self.mean), _row(self.std)
        return np.clip((value - mean) / std, -MAX_STANDARDIZED, MAX_STANDARDIZED)


def fit_min_max(data: NDArray[Any], min_range: float = MIN_RANGE) -> MinMaxNormalizer:
    """Range of each column of (N, D) data. A narrower range is widened to `min_range`, so constants stay finite."""
    _check_data(data)
    lower, upper = data.min(axis=0).astype(np.float64), data.max(axis=0).astype(np.float64)
    return min_max_of_bounds(lower, upper, min_range)


def min_max_of_bounds(lower: NDArray[Any], upper: NDArray[Any], min_range: float = 0.0) -> MinMaxNormalizer:
    """Maps [lower, upper] (D,) to [-1, 1]."""
    half_range = np.maximum(upper - lower, min_range) / 2
    return MinMaxNormalizer(centre=_floats((lower + upper) / 2), half_range=_floats(half_range))


def fit_standardizer(data: NDArray[Any], min_std: float = MIN_STD) -> Standardizer:
    """Mean and standard deviation of each column of (N, D) data; the deviation is at least `min_std`."""
    _check_data(data)
    mean, std = data.mean(axis=0, dtype=np.float64), data.std(axis=0, dtype=np.float64)
    return Standardizer(mean=_floats(mean), std=_floats(np.maximum(std, min_std)))


def statistics_tensors(observation: Standardizer) -> dict[str, Array]:
    """Observation statistics (D,) as float32 tensors that travel beside weights."""
    return {
        OBSERVATION_MEAN: np.asarray(observation.mean, np.float32),
        OBSERVATION_STD: np.asarray(observation.std, np.float32),
    }


def statistics_shapes(observation_dim: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors of `statistics_tensors`."""
    return {OBSERVATION_MEAN: (observation_dim,), OBSERVATION_STD: (observation_dim,)}


def standardizer_of(tensors: Mapping[str, Array]) -> Standardizer:
    """What `statistics_tensors` was made of, out of tensors that hold it; PolicyError for values not allowed."""
    return Standardizer(mean=tuple(tensors[OBSERVATION_MEAN].tolist()), std=tuple(tensors[OBSERVATION_STD].tolist()))


def _row(values: tuple[float, ...]) -> FloatArray:
    return np.asarray(values, np.float32)


def _floats(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _check_data(data: NDArray[Any]) -> None:
    if data.ndim != 2 or len(data) == 0:
        raise PolicyError(f"normalisation needs data (N, D) with N >= 1, got shape {data.shape}")
    if not np.isfinite(data).all():
        columns = np.flatnonzero(~np.isfinite(data).all(axis=0)).tolist()
        raise PolicyError(f"normalisation data has NaN or infinity in column(s) {columns}; look for the bad recording")


def _check(name: str, values: tuple[float, ...], *, positive: bool = False) -> None:
    array = np.asarray(values)
    if len(values) == 0:
        raise PolicyError(f"normalisation statistic '{name}' is missing; train the policy again or restore its file")
    if not np.isfinite(array).all() or (positive and (array <= 0).any()):
        allowed = "finite and above 0" if positive else "finite"
        raise PolicyError(f"normalisation statistic '{name}' is {values}; allowed: {allowed}")


def _check_lengths(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    if len(first) != len(second):
        raise PolicyError(f"normalisation statistics of lengths {len(first)} and {len(second)} do not belong together")
