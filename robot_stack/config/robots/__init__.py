"""The robots that exist: one file each in this folder, found by itself.

A file offers one subclass of `RobotConfig`; its `presets` are the choices of `robot=...`.
"""

from __future__ import annotations

import importlib
import pkgutil

from robot_stack.config.robots.base import AxisLimits, RobotConfig, Setting

__all__ = ["ROBOT_PRESETS", "AxisLimits", "RobotConfig", "Setting"]


def _find_presets() -> dict[str, RobotConfig]:
    presets: dict[str, RobotConfig] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, RobotConfig) and value.__module__ == module.__name__:
                presets |= value.presets() if value is not RobotConfig else {}
    return presets


ROBOT_PRESETS = _find_presets()
