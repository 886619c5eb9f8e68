"""Touch the one of several coloured blocks that the episode's instruction names.

What is wanted stands in the instruction alone, and where it is in the picture alone: no number that a policy reads
tells either. Whoever touches another block first has failed, and the episode is over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.mjcf import SCENE_CONTACT, Primitive, Rgba, add_primitive
from hardware.sim.rendering import mujoco
from hardware.sim.task import TOOL_SITE, ToolMotion, ToolStart
from robot_stack.core.messages import Features, TaskStatus

FloatVector = NDArray[np.float64]

PALETTE: dict[str, Rgba] = {
    "red": (0.85, 0.10, 0.10, 1.0),
    "green": (0.10, 0.60, 0.15, 1.0),
    "blue": (0.10, 0.20, 0.85, 1.0),
    "yellow": (0.95, 0.85, 0.10, 1.0),
    "purple": (0.60, 0.10, 0.65, 1.0),
}
NO_BLOCK = -1
_TABLE: Rgba = (0.30, 0.29, 0.28, 1.0)


@dataclass(frozen=True, slots=True)
class TouchBlockConfig:
    """Difficulty and geometry, lengths in metres. Blocks lie inside `lower_m` to `upper_m`, `apart_m` between centres.

    A block is touched while the tool's tip is `touch_distance_m` or less from its surface.
    """

    blocks: int = 3
    colours: tuple[str, ...] = tuple(PALETTE)
    block_width_m: float = 0.040
    lower_m: tuple[float, float] = (0.46, -0.14)
    upper_m: tuple[float, float] = (0.63, 0.14)
    apart_m: float = 0.10
    touch_distance_m: float = 0.015
    start_m: tuple[float, float, float] = (0.43, 0.0, 0.15)
    start_range_m: float = 0.02
    max_step_m: float = 0.020
    max_episode_steps: int = 30


class TouchBlock:
    """See the module. The tool site is the tip of the closed fingers; the table's top is z = 0.

    Ground truth: `block_positions_m` (blocks, 3), centres; `block_colours` (blocks,), places in `PALETTE`;
    `target_block` (1,) and `touched_block` (1,), numbers of blocks, `NO_BLOCK` while none is touched.
    """

    name = "touch_block"
    finger_width_m: float | None = 0.0
    environment_names: tuple[str, ...] = ("tool_above_blocks_m",)

    def __init__(self, config: TouchBlockConfig | None = None) -> None:
        self.config = config = config or TouchBlockConfig()
        self.max_episode_steps = config.max_episode_steps
        (lower_x, lower_y), (upper_x, upper_y) = config.lower_m, config.upper_m
        self.motion = ToolMotion(
            axes=("dx", "dy", "dz"),
            max_step_m=config.max_step_m,
            max_step_rad=0.0,
            workspace_lower_m=(min(lower_x, config.start_m[0]) - 0.03, lower_y - 0.03, config.block_width_m - 0.005),
            workspace_upper_m=(upper_x + 0.03, upper_y + 0.03, config.start_m[2] + 0.05),
        )
        self._colours = np.zeros(config.blocks, np.int64)
        self._target = 0

    # ---- model ------------------------------------------------------------------------------------------------

    def add_tool(self, hand: mujoco.MjsBody, tcp_z_m: float) -> None:
        hand.add_site(name=TOOL_SITE, pos=(0, 0, tcp_z_m))

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        table = Primitive("world", "box", (0.35, 0.45, 0.02), (0.5, 0, -0.02))
        add_primitive(spec.worldbody, table, _TABLE, SCENE_CONTACT, name="table")
        half_m = self.config.block_width_m / 2
        for number in range(self.config.blocks):
            block = spec.worldbody.add_body(name=_block(number), mocap=True)
            shape = Primitive(_block(number), "box", (half_m, half_m, half_m))
            add_primitive(block, shape, PALETTE[self.config.colours[number]], SCENE_CONTACT, name=_block(number))

    # ---- episode ----------------------------------------------------------------------------------------------

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> ToolStart:
        config = self.config
        names = list(PALETTE)
        drawn = rng.permutation(len(config.colours))[: config.blocks]
        self._colours = np.array([names.index(config.colours[index]) for index in drawn])
        self._target = int(rng.integers(config.blocks))
        for number, centre in enumerate(self._draw_centres(rng)):
            data.mocap_pos[number] = (*centre, config.block_width_m / 2)
            model.geom(_block(number)).rgba = PALETTE[names[self._colours[number]]]
        start = np.asarray(config.start_m) + rng.uniform(-config.start_range_m, config.start_range_m, 3)
        return ToolStart(position_m=start, yaw_rad=0.0, gripper_width_m=0.0)

    def _draw_centres(self, rng: np.random.Generator) -> FloatVector:
        """Centres (blocks, 2), drawn anew until they are far enough from each other."""
        config = self.config
        while True:
            centres: FloatVector = rng.uniform(config.lower_m, config.upper_m, (config.blocks, 2))
            distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.diag([np.inf] * config.blocks)
            if distances.min() >= config.apart_m:
                return centres

    def instruction(self) -> str:
        """For example: touch the red block."""
        return f"touch the {list(PALETTE)[self._colours[self._target]]} block"

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """Any touch ends the episode; success: it is the named block."""
        touched = self._touched(data)
        success = touched == self._target
        return TaskStatus(reward=float(success), success=success, terminated=touched != NO_BLOCK)

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """How far the tip is above the plane of the blocks' tops: the same for every scene."""
        return np.array([data.site(TOOL_SITE).xpos[2] - self.config.block_width_m])

    def ground_truth(self, data: mujoco.MjData) -> Features:
        return {
            "block_positions_m": data.mocap_pos.copy(),
            "block_colours": self._colours.copy(),
            "target_block": np.array([self._target]),
            "touched_block": np.array([self._touched(data)]),
        }

    def _touched(self, data: mujoco.MjData) -> int:
        outside = np.abs(data.site(TOOL_SITE).xpos - data.mocap_pos) - self.config.block_width_m / 2
        distances = np.linalg.norm(np.maximum(outside, 0.0), axis=1)
        nearest = int(distances.argmin())
        return nearest if distances[nearest] <= self.config.touch_distance_m else NO_BLOCK


def _block(number: int) -> str:
    return f"block_{number}"
