"""The small interfaces that the parts of the stack meet each other through."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.core.messages import ActionChunk, Array, Features, FloatArray, Observation, TaskStatus
from robot_stack.core.specs import PolicySpec, RobotSpec

Setpoint = NDArray[np.float64]


class SetpointLimits(Struct, frozen=True, kw_only=True):
    """Limits of a driver's native command vector (S,), in its own units and their time derivatives.

    `names` carry the unit (`fr3_joint1_rad`). Velocity and acceleration may be inf where the driver has none.
    """

    names: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    max_velocity: tuple[float, ...]
    max_acceleration: tuple[float, ...]


class Reading(Struct, frozen=True, kw_only=True):
    """One sample of a robot: capture time (host monotonic clock), features of its spec, a fault in words or ''."""

    stamp_ns: int
    features: Features
    fault: str = ""


class Robot(Protocol):
    """A driver. The robot server owns it, alone and on one thread, and puts the safety filter before `send`.

    Life: constructor does no I/O -> `connect` -> (`read`, `resolve`, `send`)* -> `close`. `spec` and `limits` can be
    read before `connect`.
    """

    @property
    def spec(self) -> RobotSpec: ...

    @property
    def limits(self) -> SetpointLimits: ...

    def connect(self) -> None:
        """Open the device; RobotError says what is missing and what to do."""

    def close(self) -> None:
        """Leave the device in its safe state and release it."""

    def measured_setpoint(self) -> Setpoint:
        """Where the robot is now, (S,) in the units of `limits`: the first command equals it."""

    def resolve(self, action: FloatArray) -> Setpoint:
        """The goal (S,) that a checked action (A,) means from here; called once per accepted command.

        Inverse kinematics live here. Relative actions count from the last goal. Raises RobotError if there is none.
        """

    def send(self, setpoint: Setpoint) -> None:
        """Give a filtered setpoint (S,) to the device; called at every tick."""

    def hold(self) -> None:
        """Forget the goal: later relative actions count from the measured state."""

    def read(self) -> Reading:
        """The newest sample; never blocks for a new one."""


@runtime_checkable
class SimulatedRobot(Robot, Protocol):
    """A robot whose world is computed here; its server may run it on the wall clock or in lock-step."""

    def reset(self, seed: int) -> None:
        """Set up the scene: the same seed gives the same scene, bit for bit."""

    def advance(self, duration_s: float) -> None:
        """Move the world's time on."""

    def task_status(self) -> TaskStatus:
        """The task's own predicate on the present state."""

    def ground_truth(self) -> Features:
        """True quantities that no sensor gives; for scripted experts and tests, never recorded."""

    def render(self, camera: str) -> Array:
        """RGB image (height, width, 3) uint8 of that camera."""

    @property
    def cameras(self) -> tuple[str, ...]: ...


class Policy(Protocol):
    """Anything that proposes actions: diffusion, flow, scripted expert, remote."""

    @property
    def spec(self) -> PolicySpec: ...

    def predict(self, observation: Observation) -> ActionChunk:
        """A chunk (H, A) in the action's own units, inside its bounds; a pure function of the observation."""


class ResidualPolicy(Protocol):
    """A small per-step correction on top of a base policy's action."""

    @property
    def version(self) -> int: ...

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        """The action to execute (A,): base plus a bounded residual, inside the action's bounds."""
