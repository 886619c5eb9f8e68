"""From an input device's readings to one robot's drives: what is held now, and nothing else.

A device is engaged when its dead man's switch closes after a person on the page chose it, and after it was seen open
since. Letting go, silence, a device that is gone, and whatever else is wrong ends that at once with HOLD; then the
switch has to be opened and closed again. No thread and no clock: whoever owns a pilot asks it again and again.
"""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import RobotError, RobotStackError
from robot_stack.core.messages import Features
from robot_stack.core.seat import Intent
from robot_stack.core.specs import RobotSpec
from robot_stack.core.teleop_device import DeviceReading
from robot_stack.teleop.device_link import Look
from robot_stack.teleop.devices.settings import DeviceSettings
from robot_stack.teleop.steering import build_steering

STATE_MAX_AGE_S = 0.3


class Body(Struct, frozen=True, kw_only=True):
    """The robot's newest features, and when they came."""

    features: Features
    came_ns: int


class Wanted(Struct, frozen=True, kw_only=True):
    """HOLD, or a drive by hand."""

    intent: Intent
    moves: dict[str, float] = {}


HOLD = Wanted(intent=Intent.HOLD)


class Pilot:
    """One device on one robot, from chosen to given up.

    Args:
        begun: only a `Look` that was begun so often counts.

    Attributes:
        intent: RECOVER or CORRECT, what driving by hand is now.
        switch_until_ns: the page holds the device's switch until then.
        engaged: the robot follows the device.
        words: why it does not any more, or ''.

    Raises:
        ConfigError: this robot cannot be driven by this device.
    """

    def __init__(self, settings: DeviceSettings, spec: RobotSpec, intent: Intent, begun: int) -> None:
        self._settings, self._begun = settings, begun
        self._steering = build_steering(settings, spec)
        self.intent = intent
        self.switch_until_ns = 0
        self.engaged = False
        self.words = ""
        self._was_open = False

    def look(self, now_ns: int, look: Look, body: Body | None) -> Wanted | None:
        """What the robot is to do now; None: this device has nothing to say. HOLD comes once for each time that it was
        engaged."""
        if look.problem or look.begun < self._begun:
            self._was_open = False
            return self._let_go(f"'{self._settings.name}' is gone: {look.problem}")
        reading, problem = self._held(now_ns, look)
        if self.engaged:
            if reading is None:
                self._was_open = self._is_open(now_ns, look)
                return self._let_go(problem)
            return self._drive(now_ns, reading, body)
        if not self._was_open:
            self._was_open = self._is_open(now_ns, look)
        elif reading is not None:
            return self._engage(now_ns, reading, body)
        return None

    def release(self, words: str = "") -> bool:
        """Whatever is held does not count any more, and says nothing. Whether it was engaged."""
        was, self.engaged, self._was_open = self.engaged, False, False
        self.words = words
        return was

    @property
    def needs_page_switch(self) -> bool:
        """Whether the page's switch is what engages a device without one of its own."""
        return self._steering.needs_switch

    # ---- the dead man's switch -----------------------------------------------------------------------------------

    def _held(self, now_ns: int, look: Look) -> tuple[DeviceReading | None, str]:
        """The reading that is held now; None, and why that is worth a word, or ''."""
        reading = look.reading
        if reading is None or not self._switch(now_ns, reading):
            return None, ""
        age_s = (now_ns - reading.stamp_ns) / 1e9
        if age_s > self._settings.max_age_s:
            return None, f"nothing came from '{self._settings.name}' for {age_s * 1e3:.0f} ms while it was held"
        return reading, ""

    def _switch(self, now_ns: int, reading: DeviceReading) -> bool:
        if reading.held is not None:
            return reading.held
        if self._steering.needs_switch:
            return now_ns < self.switch_until_ns
        return not self._steering.at_rest(reading)

    def _is_open(self, now_ns: int, look: Look) -> bool:
        """Whether the switch is seen to be open. A device that has said nothing since it was opened is at rest; one
        that fell silent while it was held is not known to be."""
        if look.reading is not None:
            return not self._switch(now_ns, look.reading)
        return now_ns - look.opened_ns > s_to_ns(self._settings.max_age_s) and now_ns >= self.switch_until_ns

    # ---- driving -------------------------------------------------------------------------------------------------

    def _engage(self, now_ns: int, reading: DeviceReading, body: Body | None) -> Wanted | None:
        try:
            self._steering.engage(reading, self._features(now_ns, body))
        except RobotStackError as error:
            self.release(str(error))
            return None
        self.engaged, self.words = True, ""
        return self._drive(now_ns, reading, body)

    def _drive(self, now_ns: int, reading: DeviceReading, body: Body | None) -> Wanted | None:
        try:
            return Wanted(intent=self.intent, moves=self._steering.moves(reading, self._features(now_ns, body)))
        except RobotStackError as error:
            self._was_open = False
            return self._let_go(str(error))

    def _features(self, now_ns: int, body: Body | None) -> Features:
        if not self._steering.needs_state:
            return {}
        age_s = float("inf") if body is None else (now_ns - body.came_ns) / 1e9
        if body is None or age_s > STATE_MAX_AGE_S:
            raise RobotError(f"the robot's state is too old to follow '{self._settings.name}': {age_s:.1f} s")
        return body.features

    def _let_go(self, words: str) -> Wanted | None:
        if not self.engaged:
            return None
        self.engaged, self.words = False, words
        return HOLD
