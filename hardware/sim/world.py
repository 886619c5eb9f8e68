"""A compiled MuJoCo world: time, whole-state reset, and its cameras. Robot back-ends build on it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import CameraConfig, CameraRenderer, mujoco
from robot_stack.core.messages import Array

FloatVector = NDArray[np.float64]

_DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
    mujoco.mjtWarning.mjWARN_BADCTRL,
)


class World:
    """Owns one model and its state. All of its work happens on the calling thread.

    Everything the physics depends on lives in `data`, so after `reset` the same commands give the same states, bit
    for bit, whatever ran before.
    """

    def __init__(self, spec: mujoco.MjSpec, cameras: tuple[CameraConfig, ...] = ()) -> None:
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self._owed_s = 0.0
        self._renderer = CameraRenderer(self.model, cameras)

    def reset(self) -> None:
        """Clear the whole state: positions, velocities, controls, warm starts, time."""
        mujoco.mj_resetData(self.model, self.data)
        self._owed_s = 0.0

    def forward(self) -> None:
        """Make everything derived (poses, contacts) agree with positions and velocities."""
        mujoco.mj_forward(self.model, self.data)

    def advance(self, duration_s: float) -> None:
        """Step the physics; what is left below one time step is owed to the next call."""
        timestep_s = self.model.opt.timestep
        self._owed_s += duration_s
        steps = int(self._owed_s / timestep_s + 1e-6)
        self._owed_s -= steps * timestep_s
        mujoco.mj_step(self.model, self.data, steps)

    @property
    def fault(self) -> str:
        """In words if the physics diverged since the last reset, else ''."""
        if any(self.data.warning[warning].number for warning in _DIVERGED):
            return "the simulated physics diverged; reset the episode, and use a smaller time step if it happens again"
        return ""

    def render(self, camera: str) -> Array:
        """RGB image (height, width, 3) uint8 of the present state."""
        return self._renderer.render(self.data, camera)

    def close(self) -> None:
        self._renderer.close()


def yaw_of(rotation: FloatVector) -> float:
    """Heading of a frame's x axis about the world's z axis, rad in (-pi, pi]."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def wrap_angle(angle_rad: float) -> float:
    """The same angle in [-pi, pi)."""
    return float((angle_rad + np.pi) % (2 * np.pi) - np.pi)
