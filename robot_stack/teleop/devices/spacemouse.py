"""A SpaceMouse of 3Dconnexion, through pyspacemouse and hidapi."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import DeviceError, MissingDependencyError
from robot_stack.core.teleop_device import DeviceReading, TeleopDevice
from robot_stack.teleop.devices.settings import SpaceMouseSettings

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
POLL_S = 0.004
REPEAT_S = 0.02
MAX_REPORTS = 64
BEFORE_REPORTS = -1.0

AxesCame = Callable[[object], None]


class MouseState(Protocol):
    """`t` changes with every report; `buttons`: 0 or 1 each; the axes by their names, about -1 to 1."""

    @property
    def t(self) -> float: ...

    @property
    def buttons(self) -> Sequence[int]: ...


class Mouse(Protocol):
    """An open one of pyspacemouse: `read` takes one report at most, waits for none, and gives the newest state."""

    def read(self) -> MouseState: ...

    def close(self) -> None: ...


class SpaceMouse(TeleopDevice):
    """x forward, y left, z up, as ROS has them.

    A puck that is deflected reports all the time, one at rest says nothing. What was deflected and falls silent gets
    too old, and nothing is repeated but a button that is pressed.

    Args:
        open_mouse: how the device is opened; its second argument is called at every report of axes.
    """

    def __init__(
        self, settings: SpaceMouseSettings, open_mouse: Callable[[SpaceMouseSettings, AxesCame], Mouse] | None = None
    ) -> None:
        self._settings, self._open_mouse = settings, open_mouse or open_space_mouse
        self._mouse: Mouse | None = None
        self._state: MouseState | None = None
        self._report_t = BEFORE_REPORTS
        self._said_ns = self._axes_ns = 0

    @property
    def name(self) -> str:
        return self._settings.name

    def open(self) -> None:
        self._state, self._report_t, self._axes_ns = None, BEFORE_REPORTS, 0
        self._mouse = self._open_mouse(self._settings, self._axes_came)

    def close(self) -> None:
        mouse, self._mouse = self._mouse, None
        if mouse is not None:
            mouse.close()

    def read(self, timeout_s: float) -> DeviceReading | None:
        until_s = time.monotonic() + timeout_s
        while True:
            reading = self._look()
            if reading is not None or time.monotonic() >= until_s:
                return reading
            time.sleep(POLL_S)

    def _axes_came(self, state: object) -> None:
        self._axes_ns = time.monotonic_ns()

    def _look(self) -> DeviceReading | None:
        """A report, or a button that is still pressed."""
        if self._mouse is None:
            raise DeviceError(f"the SpaceMouse '{self.name}' is not open")
        came = False
        try:
            for _ in range(MAX_REPORTS):
                self._state = self._mouse.read()
                if self._state.t == self._report_t:
                    break
                self._report_t, came = self._state.t, True
        except Exception as error:  # hidapi's binding has its own, which is no part of pyspacemouse
            raise DeviceError(f"the SpaceMouse '{self.name}' is gone ({error}); plug it in again") from error
        now_ns = time.monotonic_ns()
        reading = self._reading(self._state, now_ns)
        if not came and not (reading.hand is not None and now_ns - self._said_ns >= s_to_ns(REPEAT_S)):
            return None
        self._said_ns = now_ns
        return reading

    def _reading(self, state: MouseState | None, now_ns: int) -> DeviceReading:
        if state is None:
            return DeviceReading(stamp_ns=now_ns)
        fresh = now_ns - self._axes_ns <= s_to_ns(self._settings.max_age_s)
        pressed = [number for number, value in enumerate(state.buttons) if value]
        hand = 0.0 if self._settings.closes in pressed else 1.0 if self._settings.opens in pressed else None
        return DeviceReading(
            stamp_ns=now_ns,
            deflection={axis: max(-1.0, min(1.0, float(getattr(state, axis)))) if fresh else 0.0 for axis in AXES},
            hand=hand,
            buttons=tuple(str(number) for number in pressed),
        )


def open_space_mouse(settings: SpaceMouseSettings, axes_came: AxesCame) -> Mouse:
    """The first that fits. DeviceError says what is missing."""
    try:
        import pyspacemouse
        from pyspacemouse.types import AxisConvention
    except ImportError as error:
        raise MissingDependencyError("pyspacemouse", "devices", "a SpaceMouse") from error
    try:
        mouse: Any = pyspacemouse.open(
            dof_callback=axes_came,
            device=settings.model or None,
            device_index=settings.index,
            axis_convention=AxisConvention.ROS,
        )
    except Exception as error:  # it lets through what its HID binding raises
        raise DeviceError(
            f"there is no SpaceMouse for '{settings.name}': {error}. Plug it in; install the HID library with: apt-get "
            "install libhidapi-hidraw0; and give this user access to /dev/hidraw* (a udev rule for vendor 256f)"
        ) from error
    opened: Mouse = mouse
    return opened
