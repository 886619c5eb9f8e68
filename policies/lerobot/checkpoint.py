"""What lies in the folder of a LeRobot checkpoint, beside the weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import safetensors.numpy
from msgspec import Struct
from safetensors import SafetensorError

from policies.common.store import parse_tensors
from policies.lerobot.imports import CLASSES
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_OLD_PREFIXES = ("normalize_inputs.buffer_", "normalize_targets.buffer_", "unnormalize_outputs.buffer_")
_EPSILON = 1e-8  # LeRobot's
_STATISTICS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


class LeRobotFeature(Struct, frozen=True):
    """`type`: STATE, ENV, VISUAL or ACTION; images have the shape (3, height, width)."""

    type: str
    shape: tuple[int, ...]


class LeRobotConfig(Struct, frozen=True, kw_only=True):
    """What the adapter itself reads of `config.json`. `chunk_size` is of ACT, `horizon` of a diffusion policy."""

    type: str
    n_obs_steps: int
    n_action_steps: int
    input_features: dict[str, LeRobotFeature]
    output_features: dict[str, LeRobotFeature]
    normalization_mapping: dict[str, str]
    chunk_size: int = 0
    horizon: int = 0

    @property
    def chunk_steps(self) -> int:
        """Actions of a chunk from the present step on."""
        return self.chunk_size if self.type == "act" else self.n_action_steps


class Scale(Struct, frozen=True, kw_only=True):
    """LeRobot's normalisation of one feature. `low` and `high` are its mean and standard deviation (`MEAN_STD`), or the
    two values that become -1 and 1."""

    mode: str
    low: FloatArray
    high: FloatArray

    def apply(self, value: FloatArray) -> FloatArray:
        """In the checkpoint's units; images (..., 3, height, width) have statistics (3, 1, 1)."""
        if self.mode == "MEAN_STD":
            return (value - self.low) / (self.high + np.float32(_EPSILON))
        return np.float32(2.0) * (value - self.low) / self._width() - np.float32(1.0)

    def undo(self, value: FloatArray) -> FloatArray:
        """In the robot's units."""
        if self.mode == "MEAN_STD":
            return value * self.high + self.low
        return (value + np.float32(1.0)) / np.float32(2.0) * self._width() + self.low

    def _width(self) -> FloatArray:
        width = self.high - self.low
        return np.where(width == 0, np.float32(_EPSILON), width)


def read_config(folder: Path) -> LeRobotConfig:
    """PolicyError if it is absent, malformed, or of a kind that this adapter does not run."""
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=LeRobotConfig)
    except OSError as error:
        raise PolicyError(f"no LeRobot checkpoint at {folder} ({error}); give its folder `pretrained_model`") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{folder / CONFIG} is no configuration of a LeRobot policy: {error}") from error
    if config.type not in CLASSES:
        raise PolicyError(f"{folder} holds a LeRobot policy '{config.type}'; this adapter runs {', '.join(CLASSES)}")
    return config


def read_scales(folder: Path, config: LeRobotConfig) -> dict[str, Scale | None]:
    """For every feature how it is normalised; None where the checkpoint says that it is not.

    Newer checkpoints keep the statistics in files of their processors, older ones among the weights. LeRobot lets a
    feature whose statistics are missing pass as it is; here that is a PolicyError, and so is one that is not finite.
    """
    found = read_statistics(folder)
    features = {**config.input_features, **config.output_features}
    return {name: _scale(folder, config, name, feature, found) for name, feature in features.items()}


def read_statistics(folder: Path) -> dict[str, Array]:
    """`<feature>.<statistic>` of every normaliser in the folder; PolicyError if two of them disagree."""
    statistics: dict[str, Array] = {}
    for path in sorted(folder.glob("policy_p*processor_step_*normalizer_processor.safetensors")):
        _merge(statistics, parse_tensors(path.read_bytes(), str(path)), str(path))
    for name, value in read_weights(folder).items():
        for prefix in _OLD_PREFIXES:
            if name.startswith(prefix):
                # `observation_images_top.mean`: older checkpoints have underscores where features have dots
                _merge(statistics, {name.removeprefix(prefix): value}, str(folder / WEIGHTS))
    return statistics


def read_weights(folder: Path) -> dict[str, Array]:
    """Every tensor of the weights file, unchecked: statistics that were never filled may be infinite."""
    path = folder / WEIGHTS
    try:
        tensors: dict[str, Array] = safetensors.numpy.load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise PolicyError(f"{path} cannot be read ({error}); copy the whole checkpoint again") from error
    return tensors


def _merge(statistics: dict[str, Array], more: dict[str, Array], origin: str) -> None:
    for name, value in more.items():
        if name in statistics and not np.array_equal(statistics[name], value):
            raise PolicyError(f"{origin}: statistic '{name}' differs from that of another file of the checkpoint")
        statistics[name] = value


def _scale(
    folder: Path, config: LeRobotConfig, name: str, feature: LeRobotFeature, found: dict[str, Array]
) -> Scale | None:
    mode = config.normalization_mapping.get(feature.type, "IDENTITY")
    if mode == "IDENTITY":
        return None
    if mode not in _STATISTICS:
        raise PolicyError(f"{folder}: '{name}' is normalised by '{mode}'; this adapter knows {', '.join(_STATISTICS)}")
    shape = (feature.shape[0], 1, 1) if feature.type == "VISUAL" else feature.shape
    parts = []
    for statistic in _STATISTICS[mode]:
        value = found.get(f"{name}.{statistic}", found.get(f"{name.replace('.', '_')}.{statistic}"))
        if value is None or not np.isfinite(value).all():
            what = "is missing" if value is None else "is not finite"
            raise PolicyError(
                f"{folder}: statistic '{statistic}' of '{name}' {what}, and the policy means nothing without it; copy "
                "the whole folder of the checkpoint, with the files of its processors"
            )
        if value.size != np.prod(shape):
            raise PolicyError(f"{folder}: statistic '{statistic}' of '{name}' has shape {value.shape}, needed: {shape}")
        parts.append(value.reshape(shape).astype(np.float32))
    return Scale(mode=mode, low=parts[0], high=parts[1])
