"""The tasks, as data: one entry each."""

from __future__ import annotations

from robot_stack.config.schema import TaskConfig

TASKS: dict[str, TaskConfig] = {
    "peg_insertion": TaskConfig(
        name="peg_insertion",
        features=("observation.state", "observation.environment_state", "observation.external_wrench"),
        demonstrations=60,
        demonstration_noise=0.1,
    ),
    "pick_cube": TaskConfig(
        name="pick_cube",
        features=("observation.state", "observation.environment_state"),
        demonstrations=60,
        demonstration_noise=0.05,
    ),
    "pusht": TaskConfig(
        name="pusht",
        features=("observation.state", "observation.environment_state"),
        demonstrations=60,
        demonstration_noise=0.01,
    ),
    "panda_pick_cube": TaskConfig(
        name="panda_pick_cube",
        features=("observation.state", "observation.environment_state"),
        demonstrations=40,
        demonstration_noise=0.05,
    ),
}
