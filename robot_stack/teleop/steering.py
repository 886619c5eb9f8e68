"""What a device's readings mean for a robot: moves of its action's elements, -1 to 1 of what a control step may do.

Deflections are speeds. A place or joint angles drive by their change since the device was engaged: the robot's goal
follows that change, scaled, in proportion to what is left of the way. So nothing jumps, whatever the device shows when
it is engaged, and a robot that is behind comes after for as long as the person holds on. Of a place the position and
the heading are followed; how the hand is tilted is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import ConfigError, DeviceError
from robot_stack.core.handling import Handling
from robot_stack.core.messages import Features
from robot_stack.core.specs import RobotSpec
from robot_stack.core.teleop_device import DeviceReading
from robot_stack.teleop.devices.settings import DeviceSettings

Moves = dict[str, float]
FloatVector = NDArray[np.float64]

HAND = "hand"
HAND_MOVED = 0.15
"""A hand that differs from the robot's is followed once it has moved by so much since it was engaged."""
_CARTESIAN = {"x": "dx_m", "y": "dy_m", "z": "dz_m", "roll": "droll_rad", "pitch": "dpitch_rad", "yaw": "dyaw_rad"}
_PLACE = ("x", "y", "z", "yaw")
_GRIPPER = "gripper"


class Steering(Protocol):
    """One device on one robot. `needs_switch`: it says by itself whether it is held, or the page has to.
    `needs_state`: it follows the robot's goal."""

    needs_switch: bool
    needs_state: bool

    def at_rest(self, reading: DeviceReading) -> bool:
        """Nothing is deflected or pressed."""

    def engage(self, reading: DeviceReading, features: Features) -> None:
        """From here on, changes count."""

    def moves(self, reading: DeviceReading, features: Features) -> Moves: ...


def build_steering(settings: DeviceSettings, spec: RobotSpec) -> Steering:
    """ConfigError, in words for the person who chose the device, if this robot cannot be driven by it."""
    if settings.drives_by == "deflection":
        return RateSteering(settings, spec)
    return FollowSteering(settings, spec)


class _Names:
    """The device's axes and the action's elements: those that the settings name, else those that are called alike."""

    def __init__(self, settings: DeviceSettings, spec: RobotSpec, known: Iterable[str]) -> None:
        self._given, self._spec, self._who = settings.mapping, spec, settings.name
        self._known = tuple(known)
        self._side = f"{settings.side}_" if settings.side else ""
        for axis in settings.mapping:
            self._element(axis)

    def find(self, axis: str) -> tuple[str, float] | None:
        """The element that an axis drives, and its direction; None if it drives none."""
        if axis in self._given:
            return self._element(axis)
        alike = _CARTESIAN.get(axis, _GRIPPER if axis in (HAND, _GRIPPER) else f"{axis}_delta_rad")
        for name in (f"{self._side}{alike}", alike, f"{axis.removesuffix('_rad')}_delta_rad"):
            if name in self._known:
                return name, 1.0
        return None

    def _element(self, axis: str) -> tuple[str, float]:
        element = self._given[axis]
        name = element.removeprefix("-")
        if name not in self._known:
            raise ConfigError(
                f"device '{self._who}': '{axis}' is to drive '{name}', which {self._spec.name} does not offer to it; "
                f"it offers: {', '.join(self._known) or 'nothing'}"
            )
        return name, -1.0 if element.startswith("-") else 1.0


class RateSteering:
    """Deflections are speeds. A dead man's switch of the device counts; without one, what is deflected is held."""

    needs_switch = False
    needs_state = False

    def __init__(self, settings: DeviceSettings, spec: RobotSpec) -> None:
        self._settings = settings
        handling = Handling(spec)
        self._names = _Names(settings, spec, handling.drivable)
        if not settings.mapping and not any(self._names.find(axis) for axis in _CARTESIAN):
            raise ConfigError(
                f"device '{settings.name}' says x, y, z, roll, pitch, yaw, and none of it is an element of "
                f"{spec.name}'s action ({', '.join(spec.action.names)}); name what drives what in its setting "
                "'mapping', or the 'side' of a robot with two arms"
            )

    def at_rest(self, reading: DeviceReading) -> bool:
        return reading.hand is None and all(self._beyond(value) == 0.0 for value in reading.deflection.values())

    def engage(self, reading: DeviceReading, features: Features) -> None:
        """Speeds have no beginning."""

    def moves(self, reading: DeviceReading, features: Features) -> Moves:
        moves: Moves = {}
        for axis, value in reading.deflection.items():
            found = self._names.find(axis)
            if found is not None and self._beyond(value):
                name, sign = found
                moves[name] = moves.get(name, 0.0) + sign * self._settings.speed * self._beyond(value)
        moves = {name: max(-1.0, min(1.0, value)) for name, value in moves.items()}
        hand = self._names.find(HAND)
        if hand is not None and reading.hand is not None:
            moves[hand[0]] = hand[1] * (2.0 * reading.hand - 1.0)
        return moves

    def _beyond(self, value: float) -> float:
        """0 in the dead zone, and from 0 to full beyond it."""
        zone = self._settings.dead_zone
        return math.copysign(max(0.0, abs(value) - zone) / (1.0 - zone), value)


class FollowSteering:
    """The robot's goal follows the device's place, or its joints. Needs a dead man's switch: its own, or the page's."""

    needs_switch = True
    needs_state = True

    def __init__(self, settings: DeviceSettings, spec: RobotSpec) -> None:
        self._settings, self._period_s = settings, spec.control_period_s
        self._handling = Handling(spec)
        led = [axis.name for axis in self._handling.axes]
        absolute = {
            name for name, moves_on in zip(spec.action.names, self._handling.relative, strict=True) if not moves_on
        }
        hands = [name for name in self._handling.drivable if name in absolute]
        self._names = _Names(settings, spec, (*led, *hands))
        self._rows = {name: row for row, name in enumerate(led)}
        self._placed = settings.drives_by == "pose"
        if not led or (self._placed and not any(self._names.find(axis) for axis in _PLACE)):
            raise ConfigError(self._unfit(spec, led))
        self._start: DeviceReading | None = None
        self._goal = np.zeros(len(led))
        self._hand_follows = False

    def _unfit(self, spec: RobotSpec, led: list[str]) -> str:
        wanted = "changes of its tool's place (dx_m, dy_m, dz_m, dyaw_rad)" if self._placed else "changes of its joints"
        can = f"those that can follow are: {', '.join(led)}" if led else "none of them can follow"
        return (
            f"device '{self._settings.name}' needs {wanted}, and {spec.name}'s action is "
            f"{', '.join(spec.action.names)}; {can}. Choose another action space, the 'side' of a robot with two arms, "
            "or name what drives what in 'mapping'"
        )

    def at_rest(self, reading: DeviceReading) -> bool:
        return True

    def engage(self, reading: DeviceReading, features: Features) -> None:
        """ConfigError if nothing of it drives the robot."""
        driven = [self._names.find(axis) for axis in self._displacement(reading, reading)]
        if not any(driven):
            said = ", ".join(reading.joints) or "no place"
            raise ConfigError(
                f"device '{self._settings.name}' says {said}, and nothing of it drives {', '.join(self._rows)}; name "
                "what drives what in its setting 'mapping'"
            )
        self._start, self._goal = reading, self._goal_of(features)
        self._hand_follows = False

    def moves(self, reading: DeviceReading, features: Features) -> Moves:
        """DeviceError if the device has lost its place: a headset that does not see its controller."""
        start = self._start or reading
        wanted = self._goal.copy()
        driven = set[str]()
        for axis, change in self._displacement(start, reading).items():
            found = self._names.find(axis)
            if found is not None:
                wanted[self._rows[found[0]]] += found[1] * change
                driven.add(found[0])
        if not driven:
            raise DeviceError(f"'{self._settings.name}' does not know its place any more")
        left = self._handling.difference(wanted, self._goal_of(features))
        share = self._settings.follow_per_s * self._period_s * left / self._handling.reach
        share /= max(1.0, float(np.max(np.abs(share), initial=0.0)))
        moves = {name: float(share[row]) for name, row in self._rows.items() if name in driven}
        return moves | self._hand(start, reading)

    def _goal_of(self, features: Features) -> FloatVector:
        try:
            return self._handling.goal(features)
        except (KeyError, IndexError) as error:
            raise ConfigError(f"the robot's state does not say where its goal is: {error}") from error

    def _hand(self, start: DeviceReading, reading: DeviceReading) -> Moves:
        found = self._names.find(HAND)
        if found is None or reading.hand is None:
            return {}
        self._hand_follows |= start.hand is None or abs(reading.hand - start.hand) > HAND_MOVED
        return {found[0]: found[1] * (2.0 * reading.hand - 1.0)} if self._hand_follows else {}

    def _displacement(self, start: DeviceReading, now: DeviceReading) -> Mapping[str, float]:
        """How far the robot is to be moved, by the device's axes, in the robot's frame. Headings are not scaled."""
        scale = self._settings.scale
        if not self._placed:
            return {
                name: scale * (angle - start.joints[name]) for name, angle in now.joints.items() if name in start.joints
            }
        if start.pose_in_device is None or now.pose_in_device is None:
            return {}
        x_m, y_m, z_m = (scale * (now.pose_in_device[i] - start.pose_in_device[i]) for i in range(3))
        cos, sin = math.cos(self._settings.turned_rad), math.sin(self._settings.turned_rad)
        heading_rad = _heading_change(start.pose_in_device[3:], now.pose_in_device[3:])
        return {"x": cos * x_m - sin * y_m, "y": sin * x_m + cos * y_m, "z": z_m, "yaw": heading_rad}


def _heading_change(start: tuple[float, ...], now: tuple[float, ...]) -> float:
    """The turn about the vertical between two unit quaternions x, y, z, w: the twist of their difference, -pi to pi."""
    ax, ay, az, aw = start
    bx, by, bz, bw = now
    z = -bw * az + aw * bz - bx * ay + by * ax
    w = bw * aw + bx * ax + by * ay + bz * az
    return math.remainder(2.0 * math.atan2(z, w), 2.0 * math.pi)
