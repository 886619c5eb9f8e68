"""A vendor-side simulator: the vendor's exact interface over the real middleware, with our MuJoCo world behind it.

It stands where the vendor's computer stands: in a process of its own (`robot-stack vendor-sim`), in front of which the
driver, robot server and safety filter are exactly those that drive hardware. Whatever the vendor's side does not
check, it does not check either: it keeps the last target when its sender dies, where the real one does.
"""

from __future__ import annotations

from typing import Protocol

from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.scene_messages import InjectFault


class VendorSimulator(Protocol):
    """One vendor's side. The process calls `tick` every `period_s` on one thread, and `reset` between ticks."""

    @property
    def world(self) -> SimulatedRobot:
        """The simulated robot behind the interface: scene, truth, cameras."""

    @property
    def period_s(self) -> float:
        """Period of the vendor's own loop as simulated here."""

    def open(self) -> None:
        """Connect `world` and open the vendor's interface."""

    def tick(self) -> None:
        """Take the commands that arrived, move the world on by `period_s`, publish what is due."""

    def reset(self, seed: int) -> None:
        """Reset the world's scene and forget every earlier target, so that the robot rests in its start pose."""

    def inject(self, fault: InjectFault) -> None:
        """Begin or end a fault of the vendor's side; RobotError for one that this vendor does not have."""

    def close(self) -> None: ...
