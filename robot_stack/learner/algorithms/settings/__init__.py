"""The settings of the algorithms that exist: one file each in this folder, found by itself.

The `presets` of their classes are the choices of `algorithm=...`.
"""

from __future__ import annotations

import importlib
import pkgutil

from robot_stack.learner.algorithms.settings.base import (
    AlgorithmSettings,
    ChunkPolicySettings,
    ResidualSettings,
    StepSettings,
)

__all__ = ["ALGORITHM_PRESETS", "AlgorithmSettings", "ChunkPolicySettings", "ResidualSettings", "StepSettings"]


def _find_presets() -> dict[str, AlgorithmSettings]:
    presets: dict[str, AlgorithmSettings] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, AlgorithmSettings) and value.__module__ == module.__name__:
                presets |= value.presets()
    return presets


ALGORITHM_PRESETS = _find_presets()
