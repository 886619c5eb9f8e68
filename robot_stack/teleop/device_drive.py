"""One robot's devices at work: a thread that asks the pilot, and sends what it wants to the edge's seat.

It looks at every change and sixty times a second, so a device that is gone, let go or silent is told to the edge as
HOLD at once; were even that lost, the last drive runs out after `VALID_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from robot_stack.core.clock import s_to_ns
from robot_stack.core.messages import Failed
from robot_stack.core.seat import Drive, Driven, Intent, Phase, SeatReply
from robot_stack.teleop.device_link import DeviceLink
from robot_stack.teleop.pilot import Body, Pilot, Wanted
from robot_stack.teleop.seat_link import SeatLink, words_of
from robot_stack.teleop.threads import LinkThread

PERIOD_S = 1.0 / 60.0
VALID_S = 0.2
_DRIVEN = (Phase.RECOVERING, Phase.CORRECTING)


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a device, for the page that chose it. `problem`: why the robot does not follow it (any more), in
    words, or ''."""

    page: int
    what: str
    problem: str = ""


@dataclass(slots=True)
class Use:
    """A device that a page has chosen for this robot."""

    link: DeviceLink
    pilot: Pilot
    page: int


class DeviceDrive(LinkThread):
    """Drives one robot by the device that was chosen for it, from entered to left.

    Args:
        body: the robot's newest state, or None. told: called in this thread, and in the seat's.
    """

    def __init__(
        self, robot: str, seat: SeatLink, body: Callable[[], Body | None], told: Callable[[Told], None]
    ) -> None:
        super().__init__(f"devices of {robot}")
        self.problem = ""
        self._seat, self._body, self._told = seat, body, told
        self._changed = threading.Condition(threading.RLock())
        self._use: Use | None = None
        self._sent_s = 0.0
        self._news = False

    # ---- called from other threads -------------------------------------------------------------------------------

    def changed(self) -> None:
        """A device has something new to say."""
        with self._changed:
            self._news = True
            self._changed.notify()

    def choose(self, use: Use) -> None:
        """From now on this device, once its switch was opened and closed. What was driven before stands still."""
        with self._changed:
            self.give_up()
            self._use = use
            self._changed.notify()

    def give_up(self, page: int | None = None) -> None:
        """No device drives any more. `page`: only if it was that page's."""
        with self._changed:
            use = self._use
            if use is not None and page in (None, use.page):
                self._use = None
                if use.pilot.release():
                    self._ask(use, Wanted(intent=Intent.HOLD))

    def stand_back(self) -> None:
        """The person does something else with the robot: whatever the device holds does not count until it was let go.
        After this, nothing of it is sent."""
        with self._changed:
            if self._use is not None:
                self._use.pilot.release()

    def intend(self, intent: Intent) -> None:
        """Driving by hand is this now."""
        with self._changed:
            if self._use is not None:
                self._use.pilot.intent = intent

    def hold_switch(self, until_ns: int) -> None:
        """The page holds the device's dead man's switch until then; a time that is past lets go."""
        with self._changed:
            if self._use is not None:
                self._use.pilot.switch_until_ns = until_ns
                self._news = True
                self._changed.notify()

    @property
    def use(self) -> Use | None:
        return self._use

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.changed()

    def _serve(self) -> None:
        while not self._end.is_set():
            with self._changed:
                if not self._news:
                    self._changed.wait(None if self._use is None and not self._end.is_set() else PERIOD_S)
                self._news = False
                if self._use is not None:
                    self._look(self._use)
        self.give_up()

    def _failed(self, words: str) -> None:
        with self._changed:
            use, self._use = self._use, None
            if use is not None:
                use.pilot.release()
                self._ask(use, Wanted(intent=Intent.HOLD))

    def _look(self, use: Use) -> None:
        was = use.pilot.engaged
        wanted = use.pilot.look(time.monotonic_ns(), use.link.look, self._body())
        if use.pilot.engaged != was:
            self._told(Told(use.page, "engaged" if use.pilot.engaged else "let go", use.pilot.words))
        elif use.pilot.words and wanted is None:
            self._told(Told(use.page, "refused", use.pilot.words))
            use.pilot.words = ""
        now_s = time.monotonic()
        if wanted is not None and (wanted.intent is Intent.HOLD or now_s - self._sent_s > PERIOD_S / 2 or not was):
            self._sent_s = now_s
            self._ask(use, wanted)

    def _ask(self, use: Use, wanted: Wanted) -> None:
        deadline_ns = time.monotonic_ns() + s_to_ns(VALID_S)
        wish = Drive(session="", seq=0, deadline_ns=deadline_ns, intent=wanted.intent, moves=wanted.moves)
        self._seat.ask(wish, use.page, lambda reply: self._answered(use, wanted, reply))

    def _answered(self, use: Use, wanted: Wanted, reply: SeatReply) -> None:
        """The edge refused a drive, and the robot does not move by hand: the person lets go and begins anew. One that
        only came late is followed by the next."""
        refusal = words_of(reply)
        if not refusal or wanted.intent is Intent.HOLD:
            return
        late = isinstance(reply, Failed) and reply.reason == "late"
        if late or (isinstance(reply, Driven) and reply.phase in _DRIVEN):
            return
        with self._changed:
            if use is self._use and use.pilot.release():
                self._told(Told(use.page, "refused", refusal))
