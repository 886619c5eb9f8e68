"""Grasp a cube that lies on a table and lift it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.mjcf import SCENE_CONTACT, Primitive, Rgba, add_primitive
from hardware.sim.rendering import mujoco
from hardware.sim.task import TOOL_SITE, ToolMotion, ToolStart
from hardware.sim.world import yaw_of
from robot_stack.core.messages import Features, TaskStatus

FloatVector = NDArray[np.float64]

_GREEN: Rgba = (0.2, 0.65, 0.3, 1.0)
_TABLE: Rgba = (0.55, 0.5, 0.42, 1.0)
_CUBE = "cube"


@dataclass(frozen=True, slots=True)
class PickCubeConfig:
    """Difficulty and geometry. Lengths in metres, angles in radians; `*_range` are half widths of uniform draws."""

    cube_width_m: float = 0.040
    cube_mass_kg: float = 0.1
    centre_m: tuple[float, float] = (0.50, 0.0)
    cube_xy_range_m: float = 0.10
    cube_yaw_range_rad: float = np.pi / 4  # a quarter turn of a cube is no turn
    start_height_m: float = 0.18
    start_range_m: float = 0.02
    start_gripper_width_m: float = 0.08
    lift_height_m: float = 0.10
    slow_m_s: float = 0.05
    grasp_distance_m: float = 0.02
    max_step_m: float = 0.015
    max_step_rad: float = 0.15
    max_episode_steps: int = 100
    friction: float = 1.0


class PickCube:
    """See the module. The tool site is the point between the finger tips; the table's top is z = 0."""

    name = "pick_cube"
    finger_width_m: float | None = None
    environment_names: tuple[str, ...] = (
        *("cube_minus_tool_x_m", "cube_minus_tool_y_m", "cube_minus_tool_z_m"),
        *("cube_minus_tool_yaw_rad", "cube_height_m"),
    )

    def __init__(self, config: PickCubeConfig | None = None) -> None:
        self.config = config = config or PickCubeConfig()
        self.max_episode_steps = config.max_episode_steps
        centre_x, centre_y = config.centre_m
        reach_m = config.cube_xy_range_m + 0.03
        self.motion = ToolMotion(
            axes=("dx", "dy", "dz", "dyaw", "gripper"),
            max_step_m=config.max_step_m,
            max_step_rad=config.max_step_rad,
            workspace_lower_m=(centre_x - reach_m, centre_y - reach_m, 0.012),
            workspace_upper_m=(centre_x + reach_m, centre_y + reach_m, 0.25),
        )

    # ---- model ------------------------------------------------------------------------------------------------

    def add_tool(self, hand: mujoco.MjsBody, tcp_z_m: float) -> None:
        hand.add_site(name=TOOL_SITE, pos=(0, 0, tcp_z_m))

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        config = self.config
        table = Primitive("world", "box", (0.35, 0.45, 0.02), (0.5, 0, -0.02))
        add_primitive(spec.worldbody, table, _TABLE, SCENE_CONTACT, name="table")
        inertia = config.cube_mass_kg / 6 * config.cube_width_m**2
        cube = spec.worldbody.add_body(
            name=_CUBE, mass=config.cube_mass_kg, inertia=(inertia,) * 3, explicitinertial=True
        )
        cube.add_freejoint(name=_CUBE)
        shape = Primitive(_CUBE, "box", (config.cube_width_m / 2,) * 3)
        geom = add_primitive(cube, shape, _GREEN, SCENE_CONTACT)
        geom.friction = (config.friction, 0.01, 0.001)
        geom.condim = 4

    # ---- episode ----------------------------------------------------------------------------------------------

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> ToolStart:
        config = self.config
        centre = np.array([*config.centre_m, 0.0])
        shift = rng.uniform(-config.cube_xy_range_m, config.cube_xy_range_m, 2)
        yaw = rng.uniform(-config.cube_yaw_range_rad, config.cube_yaw_range_rad)
        quat = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        data.joint(_CUBE).qpos = (*(centre[:2] + shift), config.cube_width_m / 2, *quat)
        start = centre + np.array([0.0, 0.0, config.start_height_m])
        start += rng.uniform(-config.start_range_m, config.start_range_m, 3)
        return ToolStart(position_m=start, yaw_rad=0.0, gripper_width_m=config.start_gripper_width_m)

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """Success: the cube hangs `lift_height_m` above the table, between the finger tips, hardly moving."""
        config = self.config
        cube = data.body(_CUBE).xpos
        lifted = cube[2] - config.cube_width_m / 2 >= config.lift_height_m
        held = np.linalg.norm(cube - data.site(TOOL_SITE).xpos) < config.grasp_distance_m
        slow = np.linalg.norm(data.joint(_CUBE).qvel[:3]) < config.slow_m_s
        success = bool(lifted and held and slow)
        return TaskStatus(reward=float(success), success=success, terminated=success)

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """Cube centre minus tool, base frame; the smallest turn that squares the tool to it; height above the table."""
        cube, tool = data.body(_CUBE), data.site(TOOL_SITE)
        turn = yaw_of(cube.xmat.reshape(3, 3)) - yaw_of(tool.xmat.reshape(3, 3))
        height = cube.xpos[2] - self.config.cube_width_m / 2
        return np.array([*(cube.xpos - tool.xpos), _quarter(turn), height])

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """True cube centre (3,) m, smallest turn (1,) rad that squares the tool to it."""
        environment = self.environment_state(data)
        return {"cube_position_m": data.body(_CUBE).xpos.copy(), "cube_turn_rad": environment[3:4]}


def _quarter(angle_rad: float) -> float:
    """The same angle, up to quarter turns, in [-pi/4, pi/4)."""
    return float((angle_rad + np.pi / 4) % (np.pi / 2) - np.pi / 4)
