"""All input devices of one teleop server, and which robot each of them drives. One robot has a device at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import ConfigError, RobotStackError
from robot_stack.core.seat import MAX_VALID_S, Intent
from robot_stack.core.teleop_device import TeleopDevice
from robot_stack.teleop.device_drive import DeviceDrive, Told, Use
from robot_stack.teleop.device_link import DeviceLink
from robot_stack.teleop.devices.build import build_device
from robot_stack.teleop.devices.settings import DeviceSettings
from robot_stack.teleop.messages import DeviceView
from robot_stack.teleop.pilot import Body, Pilot
from robot_stack.teleop.robot import RobotLink

Heard = Callable[[str, Told], None]
"""A robot's name, and what became of its device; called in other threads."""


class DeviceDesk:
    """Devices are open, and their robots can be driven by them, while this is entered. Asked by one thread, the hub's.

    Args:
        robots: by name, all there when it is entered. build: how a device is made of its settings.
    """

    def __init__(
        self,
        devices: tuple[DeviceSettings, ...],
        robots: Mapping[str, RobotLink],
        build: Callable[[DeviceSettings], TeleopDevice] = build_device,
    ) -> None:
        names = [one.name for one in devices]
        if len(set(names)) < len(names) or not all(names):
            raise ConfigError(f"input devices need names of their own; given: {', '.join(map(repr, names))}")
        self._settings = {one.name: one for one in devices}
        self._links = {one.name: DeviceLink(build(one)) for one in devices}
        self._robots = robots
        self._drives: dict[str, DeviceDrive] = {}
        self._used_by: dict[str, str] = {}
        self._hears: Heard | None = None
        self._opened = ExitStack()

    def __enter__(self) -> DeviceDesk:
        for name, robot in self._robots.items() if self._links else ():
            drive = DeviceDrive(name, robot.seat, partial(_body, robot), partial(self._heard, name))
            self._drives[name] = drive
            self._opened.enter_context(drive)
        for link in self._links.values():
            for drive in self._drives.values():
                link.listen(drive.changed)
            self._opened.enter_context(link)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def hear(self, heard: Heard | None) -> None:
        """Tell what becomes of devices to this from now on."""
        self._hears = heard

    def _heard(self, robot: str, told: Told) -> None:
        if self._hears is not None:
            self._hears(robot, told)

    def use(self, robot: str, device: str, intent: Intent, page: int) -> str:
        """Drive a robot by this device, '' for none; again with another intent changes that alone. Why not, or ''."""
        if not device:
            self.free(robot)
            return ""
        refusal = self._refusal(robot, device, intent)
        if refusal:
            return refusal
        drive, now = self._drives[robot], self._drives[robot].use
        if now is not None and now.link.name == device and now.page == page:
            drive.intend(intent)
            return ""
        info, link = self._robots[robot].seat.info, self._links[device]
        if info is None:
            return f"the edge of {robot} has not answered yet; try again when it has"
        try:
            pilot = Pilot(self._settings[device], info.spec, intent, link.begin())
        except RobotStackError as error:
            return str(error)
        self.free(robot)
        self._used_by[device] = robot
        drive.choose(Use(link, pilot, page))
        return ""

    def _refusal(self, robot: str, device: str, intent: Intent) -> str:
        if device not in self._links:
            return f"there is no device '{device}' here; there are: {', '.join(self._links) or 'none'}"
        if intent not in (Intent.RECOVER, Intent.CORRECT):
            return f"driving by a device is to recover or to correct, not to {intent.value}"
        other = self._used_by.get(device, robot)
        return "" if other == robot else f"'{device}' drives {other}; give it up there first"

    def free(self, robot: str) -> None:
        """The robot has no device any more; if it was driven by one it stands still."""
        self._used_by = {device: other for device, other in self._used_by.items() if other != robot}
        if robot in self._drives:
            self._drives[robot].give_up()

    def stand_back(self, robot: str) -> None:
        """The person does something else with the robot."""
        if robot in self._drives:
            self._drives[robot].stand_back()

    def hold_switch(self, robot: str, until_ns: int) -> None:
        """The page holds the switch until then, on this host's clock; not longer than a drive may be valid."""
        if robot in self._drives:
            self._drives[robot].hold_switch(min(until_ns, time.monotonic_ns() + s_to_ns(MAX_VALID_S)))

    def device_of(self, robot: str) -> str:
        """The device that was chosen for a robot, or ''."""
        drive = self._drives.get(robot)
        use = None if drive is None else drive.use
        return "" if use is None else use.link.name

    def views(self) -> tuple[DeviceView, ...]:
        """What pages show of all devices."""
        return tuple(self._view(name, link) for name, link in self._links.items())

    def _view(self, name: str, link: DeviceLink) -> DeviceView:
        robot, look = self._used_by.get(name, ""), link.look
        use = self._drives[robot].use if robot else None
        engaged = use is not None and use.pilot.engaged
        silent_ms = -1.0 if look.reading is None else (time.monotonic_ns() - look.reading.stamp_ns) / 1e6
        has_switch = look.reading is not None and look.reading.held is not None
        return DeviceView(
            name=name,
            state="gone" if look.problem else "engaged" if engaged else "ready",
            problem=look.problem,
            robot=robot,
            silent_ms=silent_ms,
            needs_switch=use is not None and use.pilot.needs_page_switch and not has_switch,
        )


def _body(link: RobotLink) -> Body | None:
    newest = link.body
    return None if newest is None else Body(features=newest.message.features, came_ns=newest.came_ns)
