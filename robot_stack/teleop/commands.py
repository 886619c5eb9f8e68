"""What the page that has control asks of its robot: driving, input devices, labels. And the notes of who did what.

Everything here runs in the event loop's thread, for the hub, which has checked that the page may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from robot_stack.core.messages import Failed
from robot_stack.core.seat import DRIVING, MAX_VALID_S, Intent, LabelEpisode, SceneReady, SeatReply
from robot_stack.core.seat import Drive as SeatDrive
from robot_stack.core.seat import Driven as SeatDriven
from robot_stack.teleop.audit import Audit
from robot_stack.teleop.device_desk import DeviceDesk
from robot_stack.teleop.device_drive import Told
from robot_stack.teleop.messages import Drive, Driven, Label, Notice, Ready, Switch, UseDevice
from robot_stack.teleop.page import Page
from robot_stack.teleop.robot import RobotLink
from robot_stack.teleop.seat_link import words_of

BY_HAND = (Intent.RECOVER, Intent.CORRECT)


class Commands:
    """What one hub's pages may ask. `later` calls something in the event loop, from any thread."""

    def __init__(
        self, robots: Mapping[str, RobotLink], desk: DeviceDesk, audit: Audit, later: Callable[..., None]
    ) -> None:
        self._robots, self._desk, self._audit, self._later = robots, desk, audit, later

    # ---- driving -----------------------------------------------------------------------------------------------------

    def drive(self, page: Page, message: Drive) -> None:
        refusal = _stale(page, message)
        if refusal:
            self._driven(page, message, Failed(reason="late", message=refusal))
            return
        page.last_seq = message.seq
        device = self._desk.device_of(message.robot)
        if device and message.intent in BY_HAND:
            words = f"'{device}' drives {message.robot}; choose this page's keys first"
            self._driven(page, message, Failed(reason="device", message=words))
            return
        self._desk.stand_back(message.robot)
        wish = SeatDrive(
            session="",
            seq=message.seq,
            deadline_ns=message.deadline_us * 1000,
            intent=message.intent,
            moves=message.moves,
            speed=message.speed,
            to_index=message.to_index,
        )
        link = self._robots[message.robot].seat
        link.ask(wish, page.number, lambda reply: self._later(self._driven, page, message, reply))

    def _driven(self, page: Page, message: Drive, reply: SeatReply) -> None:
        refusal = words_of(reply)
        phase = reply.phase.value if isinstance(reply, SeatDriven) else ""
        if refusal and message.intent not in DRIVING:
            page.refuse(refusal, message.intent.value, message.robot)
        page.tell(Driven(robot=message.robot, seq=message.seq, phase=phase, refusal=refusal))
        self.note_once(page, message.robot, f"drive {message.intent.value}", refusal or "done")

    # ---- input devices -----------------------------------------------------------------------------------------------

    def use_device(self, page: Page, message: UseDevice) -> None:
        before = self._desk.device_of(message.robot)
        refusal = self._desk.use(message.robot, message.device, message.intent, page.number)
        what = (
            f"drive with '{message.device}' to {message.intent.value}"
            if message.device
            else "drive with the page's keys"
        )
        if refusal:
            page.refuse(refusal, "usedevice", message.robot)
        elif before != message.device:
            text = f"'{message.device}' drives {message.robot}: hold it, to move" if message.device else f"you {what}"
            page.tell(Notice(level="info", text=text, about="usedevice", robot=message.robot))
        self.note_once(page, message.robot, what, refusal or "done")

    def switch(self, message: Switch) -> None:
        self._desk.hold_switch(message.robot, message.until_us * 1000)

    def device_told(self, page: Page, robot: str, told: Told) -> None:
        """The page hears what became of its device."""
        if told.problem:
            page.refuse(told.problem, "usedevice", robot)
        self.note(page, robot, f"device '{self._desk.device_of(robot)}': {told.what}", told.problem or "done")

    # ---- labels ------------------------------------------------------------------------------------------------------

    def label(self, page: Page, message: Label | Ready) -> None:
        wish: LabelEpisode | SceneReady
        if isinstance(message, Ready):
            wish, what = SceneReady(session=""), "scene ready"
        else:
            wish = LabelEpisode(
                session="",
                who=page.session.user,
                episode=message.episode,
                success=message.success,
                reset_needed=message.reset_needed,
                discard=message.discard,
                note=message.note,
            )
            what = f"label of episode {message.episode.episode}: {_label_words(message)}"
        link = self._robots[message.robot].seat
        link.ask(wish, page.number, lambda reply: self._later(self._labelled, page, message.robot, what, reply))

    def _labelled(self, page: Page, robot: str, what: str, reply: SeatReply) -> None:
        refusal = words_of(reply)
        if refusal:
            page.refuse(f"{what}: {refusal}", "label", robot)
        else:
            page.tell(Notice(level="info", text=f"kept: {what}", about="label", robot=robot))
        self.note(page, robot, what, refusal or "done")

    # ---- notes -------------------------------------------------------------------------------------------------------

    def note(self, page: Page, robot: str, what: str, outcome: str) -> None:
        self._audit.note(page.session.user, page.session.role.value, page.address, robot, what, outcome)

    def note_once(self, page: Page, robot: str, what: str, outcome: str) -> None:
        """Note what changes: driving says the same thirty times a second."""
        said = f"{robot} {what} {outcome[:20]}"
        if said != page.last_audit:
            page.last_audit = said
            self.note(page, robot, what, outcome)


def _stale(page: Page, message: Drive) -> str:
    """Why a drive is too old to be followed, or ''."""
    if message.seq <= page.last_seq:
        return f"command {message.seq} came after {page.last_seq}: it is old, and dropped"
    if message.intent is Intent.HOLD:
        return ""  # standing still is never too late
    left_s = message.deadline_us / 1e6 - time.monotonic()
    if left_s <= 0.0:
        return f"the command was {-left_s * 1e3:.0f} ms too late: the connection is slow"
    if left_s > MAX_VALID_S:
        return f"the deadline lies {left_s * 1e3:.0f} ms ahead, {MAX_VALID_S * 1e3:.0f} are allowed: reload the page"
    return ""


def _label_words(label: Label) -> str:
    words = [] if label.success is None else ["success" if label.success else "failure"]
    words += ["reset needed"] if label.reset_needed else []
    words += ["discard"] if label.discard else []
    words += [f"note '{label.note}'"] if label.note else []
    return ", ".join(words) or "nothing"
