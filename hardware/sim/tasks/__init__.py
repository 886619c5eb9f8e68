"""Simulated tasks, each in its own file; `make_task` finds one by name."""

from __future__ import annotations

from collections.abc import Callable

from hardware.sim.task import Task
from hardware.sim.tasks.peg_cycle import PegCycle
from hardware.sim.tasks.peg_insertion import PegInsertion
from hardware.sim.tasks.pick_cube import PickCube
from hardware.sim.tasks.touch_block import TouchBlock
from robot_stack.core.errors import ConfigError

_TASKS: dict[str, Callable[[], Task]] = {
    "peg_cycle": PegCycle,
    "peg_insertion": PegInsertion,
    "pick_cube": PickCube,
    "touch_block": TouchBlock,
}


def make_task(name: str) -> Task:
    """The task with its default difficulty; ConfigError for an unknown name."""
    if name not in _TASKS:
        raise ConfigError(f"simulated task '{name}' is unknown; choose one of {', '.join(_TASKS)}")
    return _TASKS[name]()
