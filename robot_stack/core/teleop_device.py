"""What a person holds to drive a robot: SpaceMouse, leader arm, VR controller, or the log of one."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from msgspec import Struct


class DeviceReading(Struct, frozen=True, kw_only=True):
    """One sample of an input device. What a device has not is None or empty.

    Attributes:
        stamp_ns: when it was read, monotonic clock of the host that read it.
        held: the device's own dead man's switch; None: it has none.
        deflection: -1 to 1 by the device's own axes (`x y z roll pitch yaw`: forward, left, up, and about them), 0 at
            rest: speeds.
        pose_in_device: x, y, z in m and a unit quaternion x, y, z, w, in the device's own frame. Only changes count.
        joints: angles in rad by the device's own names. Only their changes count.
        hand: 0 closed to 1 open.
        buttons: names of those that are pressed.
    """

    stamp_ns: int
    held: bool | None = None
    deflection: dict[str, float] = {}
    pose_in_device: tuple[float, float, float, float, float, float, float] | None = None
    joints: dict[str, float] = {}
    hand: float | None = None
    buttons: tuple[str, ...] = ()


class TeleopDevice(Protocol):
    """One input device. Its link owns it, alone and on one thread.

    Life: constructor does no I/O -> `open` -> `read`* -> `close`, and again from `open` after every error.
    """

    @property
    def name(self) -> str: ...

    def open(self) -> None:
        """Find and open it. DeviceError, or another RobotStackError, says what is missing and what to do."""

    def read(self, timeout_s: float) -> DeviceReading | None:
        """The newest sample that was not returned before; None if there is none within about `timeout_s`. DeviceError
        if it is gone."""
        ...

    def close(self) -> None:
        """Release it; harmless if it was never opened."""


@runtime_checkable
class PlayedDevice(TeleopDevice, Protocol):
    """A device without a person, whose readings begin when it is chosen: a log that is played again."""

    def begin(self) -> None:
        """From its first reading, from now on."""


def wrong_with(reading: DeviceReading) -> str:
    """What cannot be in a reading, in words, or ''."""
    for axis, value in reading.deflection.items():
        if not -1.0 <= value <= 1.0:
            return f"deflection of '{axis}' is {value}; allowed: -1 to 1"
    for joint, angle in reading.joints.items():
        if not math.isfinite(angle):
            return f"joint '{joint}' is {angle}; it must be a number of rad"
    if reading.hand is not None and not 0.0 <= reading.hand <= 1.0:
        return f"hand is {reading.hand}; allowed: 0 (closed) to 1 (open)"
    pose = reading.pose_in_device
    if pose is not None and not (all(map(math.isfinite, pose)) and abs(math.hypot(*pose[3:]) - 1.0) < 0.01):
        return f"pose is {pose}; it must be x, y, z in m and a unit quaternion x, y, z, w"
    return ""
