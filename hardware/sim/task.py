"""What a task adds to a robot's world: bodies, a scene per seed, what is observed of it, and its own verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import mujoco
from robot_stack.core.direction import Direction
from robot_stack.core.messages import Features, TaskStatus

TOOL_SITE = "tool"

FloatVector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ToolMotion:
    """How a policy may move the tool in this task.

    Attributes:
        axes: the commanded ones of dx, dy, dz, droll, dpitch, dyaw (base frame) and gripper.
        max_step_m, max_step_rad: largest command in one control step.
        workspace_lower_m, workspace_upper_m: box that the commanded tool position stays in, base frame.
    """

    axes: tuple[str, ...]
    max_step_m: float
    max_step_rad: float
    workspace_lower_m: tuple[float, float, float]
    workspace_upper_m: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ToolStart:
    """Where an episode begins: tool position (3,) in the base frame, heading, gripper width. Tool z points down."""

    position_m: FloatVector
    yaw_rad: float
    gripper_width_m: float


class Task(Protocol):
    """One task of one arm with a gripper. The robot owns the order of calls:

    `add_tool`, `add_scene` -> compile -> (`reset` -> physics -> `status`, `environment_state`, `ground_truth`)*.
    """

    name: str
    motion: ToolMotion
    max_episode_steps: int
    finger_width_m: float | None
    environment_names: tuple[str, ...]

    def add_tool(self, hand: mujoco.MjsBody, tcp_z_m: float) -> None:
        """Add the site `tool`, and what the hand holds for good. `tcp_z_m`: between the finger tips, hand frame."""

    def add_scene(self, spec: mujoco.MjSpec) -> None:
        """Add tables and objects."""

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> ToolStart:
        """Draw a scene and put it into a freshly reset state."""

    def status(self, data: mujoco.MjData) -> TaskStatus:
        """The verdict on the present state."""

    def environment_state(self, data: mujoco.MjData) -> FloatVector:
        """What the robot is told about the scene, one value per `environment_names`."""

    def ground_truth(self, data: mujoco.MjData) -> Features:
        """What is really there; for experts and tests."""


@runtime_checkable
class InstructedTask(Task, Protocol):
    """A task that asks for something else in every episode."""

    def instruction(self) -> str:
        """What the scene of the last `reset` asks for, in words."""


@runtime_checkable
class ReversibleTask(InstructedTask, Protocol):
    """A task that can be undone. Its instruction, its verdict and what is observed follow the direction."""

    def begin_here(self, data: mujoco.MjData, rng: np.random.Generator, direction: Direction) -> None:
        """An episode in that direction begins in the present state; nothing in `data` may change."""
