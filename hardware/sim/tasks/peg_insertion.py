"""Insert a square peg, held rigidly, into a tight socket whose observed position is biased.

The bias is constant within an episode and larger than the clearance, so nobody can succeed by imitating what is
observed alone: the last millimetres must be found by contact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.sim.mjcf import NO_CONTACT, ROBOT_CONTACT, SCENE_CONTACT, Primitive, Rgba, add_primitive
from hardware.sim.rendering import mujoco
from hardware.sim.task import TOOL_SITE, ToolMotion, ToolStart
from hardware.sim.world import wrap_angle, yaw_of
from robot_stack.core.messages import Features, TaskStatus

FloatVector = NDArray[np.float64]

_BLUE: Rgba = (0.15, 0.35, 0.8, 1.0)
_RED: Rgba = (0.85, 0.3, 0.2, 1.0)
_TABLE: Rgba = (0.55, 0.5, 0.42, 1.0)
_SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class PegInsertionConfig:
    """Difficulty and geometry. Lengths in metres, angles in radians; `*_range` are half widths of uniform draws."""

    peg_width_m: float = 0.020
    peg_corner_radius_m: float = 0.002
    peg_reach_m: float = 0.050
    peg_mass_kg: float = 0.05
    clearance_m: float = 0.0005
    socket_height_m: float = 0.040
    socket_wall_m: float = 0.020
    success_depth_m: float = 0.020
    centre_m: tuple[float, float] = (0.50, 0.0)
    socket_xy_range_m: float = 0.030
    socket_yaw_range_rad: float = 0.15
    observation_bias_range_m: float = 0.004
    start_height_m: float = 0.060
    start_range_m: float = 0.010
    max_step_m: float = 0.010
    max_step_rad: float = 0.08
    max_episode_steps: int = 60
    friction: float = 0.3


class PegInsertion:
    """See the module. The tool site is the centre of the peg's tip; yaw 0 lies along the base's x axis."""

    name = "peg_insertion"
    environment_names: tuple[str, ...] = (
        "socket_minus_tip_x_m",
        "socket_minus_tip_y_m",
        "socket_minus_tip_z_m",
        "socket_minus_tip_yaw_rad",
    )

    def __init__(self, config: PegInsertionConfig | None = None) -> None:
        self.config = config = config or PegInsertionConfig()
        self.max_episode_steps = config.max_episode_steps
        self.finger_width_m: float | None = config.peg_width_m
        centre_x, centre_y = config.centre_m
        self.motion = ToolMotion(
            axes=("dx", "dy", "dz", "dyaw"),
            max_step_m=config.max_step_m,
            max_step_rad=config.max_step_rad,
            workspace_lower_m=(centre_x - 0.08, centre_y - 0.08, 0.005),
            workspace_upper_m=(centre_x + 0.08, centre_y + 0.08, config.socket_height_m + 0.12),
        )
        self._bias_m = np.zeros(2)

    # ---- model ------------------------------------------------------------------------------------------------

    def add_tool(self, hand: mujoco.MjsBody, tcp_z_m: float) -> None:
        config = self.config
        tip_z_m = tcp_z_m + config.peg_reach_m
        length_m = config.peg_reach_m + 0.015
        half_m, radius_m = config.peg_width_m / 2, config.peg_corner_radius_m
        inertia = config.peg_mass_kg / 12 * (length_m**2 + config.peg_width_m**2)
        peg = hand.add_body(
            name="peg",
            pos=(0, 0, tip_z_m - length_m / 2),
            mass=config.peg_mass_kg,
            ipos=(0, 0, 0),  # else the compiler takes `pos` for it
            inertia=(inertia, inertia, config.peg_mass_kg / 6 * config.peg_width_m**2),
            explicitinertial=True,
            gravcomp=1.0,
        )
        body = Primitive("peg", "box", (half_m - 0.0002, half_m - 0.0002, length_m / 2 - radius_m / 2))
        add_primitive(peg, body, _RED, NO_CONTACT)
        corner_m, end_m = half_m - radius_m, length_m / 2 - radius_m
        for x_m in (-corner_m, corner_m):
            for y_m in (-corner_m, corner_m):
                corner = Primitive("peg", "capsule", (radius_m,), ends_m=(x_m, y_m, -end_m, x_m, y_m, end_m))
                geom = add_primitive(peg, corner, _RED, ROBOT_CONTACT)
                geom.friction = (config.friction, 0.005, 0.0001)
        hand.add_site(name=TOOL_SITE, pos=(0, 0, tip_z_m))

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        config = self.config
        table = Primitive("world", "box", (0.35, 0.45, 0.02), (0.5, 0, -0.02))
        add_primitive(spec.worldbody, table, _TABLE, SCENE_CONTACT, name="table")
        socket = spec.worldbody.add_body(name=_SOCKET, mocap=True)
        inner_m = config.peg_width_m / 2 + config.clearance_m
        half_wall_m, half_height_m = config.socket_wall_m / 2, config.socket_height_m / 2
        centre_m = inner_m + half_wall_m
        long_m = inner_m + config.socket_wall_m
        for x_m, y_m, size in (
            (centre_m, 0.0, (half_wall_m, long_m, half_height_m)),
            (-centre_m, 0.0, (half_wall_m, long_m, half_height_m)),
            (0.0, centre_m, (inner_m, half_wall_m, half_height_m)),
            (0.0, -centre_m, (inner_m, half_wall_m, half_height_m)),
        ):
            wall = Primitive(_SOCKET, "box", size, (x_m, y_m, -half_height_m))
            geom = add_primitive(socket, wall, _BLUE, SCENE_CONTACT)
            geom.friction = (config.friction, 0.005, 0.0001)

    # ---- episode ----------------------------------------------------------------------------------------------

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> ToolStart:
        config = self.config
        centre = np.array([*config.centre_m, config.socket_height_m])
        shift = rng.uniform(-config.socket_xy_range_m, config.socket_xy_range_m, 2)
        yaw = rng.uniform(-config.socket_yaw_range_rad, config.socket_yaw_range_rad)
        self._bias_m = rng.uniform(-config.observation_bias_range_m, config.observation_bias_range_m, 2)
        data.mocap_pos[0] = centre + np.array([*shift, 0.0])
        data.mocap_quat[0] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        start = centre + np.array([0.0, 0.0, config.start_height_m])
        start += rng.uniform(-config.start_range_m, config.start_range_m, 3)
        return ToolStart(position_m=start, yaw_rad=0.0, gripper_width_m=config.peg_width_m)

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """Success: the tip lies `success_depth_m` below the rim, inside the socket."""
        offset = self._tip_in_socket(data)
        inside = np.abs(offset[:2]).max() < self.config.peg_width_m / 4
        success = bool(inside and offset[2] <= -self.config.success_depth_m)
        return TaskStatus(reward=float(success), success=success, terminated=success)

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """Observed (biased) socket rim centre minus peg tip, base frame, and the difference of their headings."""
        difference = data.mocap_pos[0] - data.site(TOOL_SITE).xpos
        difference[:2] += self._bias_m
        return np.array([*difference, self._yaw_error(data)])

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """True socket rim centre (3,) m and heading (1,) rad, tip in the socket's frame (3,) m, bias (2,) m."""
        return {
            "socket_position_m": data.mocap_pos[0].astype(np.float64),
            "socket_yaw_rad": np.array([self._socket_yaw(data)]),
            "tip_in_socket_m": self._tip_in_socket(data),
            "observation_bias_m": self._bias_m.copy(),
        }

    def _socket_yaw(self, data: mujoco.MjData) -> float:
        return yaw_of(data.body(_SOCKET).xmat.reshape(3, 3))

    def _yaw_error(self, data: mujoco.MjData) -> float:
        return wrap_angle(self._socket_yaw(data) - yaw_of(data.site(TOOL_SITE).xmat.reshape(3, 3)))

    def _tip_in_socket(self, data: mujoco.MjData) -> FloatVector:
        rotation = data.body(_SOCKET).xmat.reshape(3, 3)
        offset: FloatVector = rotation.T @ (data.site(TOOL_SITE).xpos - data.mocap_pos[0])
        return offset
