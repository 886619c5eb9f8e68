"""Where pages meet robots: who has control, who may do what, and what everybody is shown.

Everything here runs in the event loop's thread and waits for nobody. Links to robots answer from their own threads;
`_later` brings their answers here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from robot_stack.core.seat import LeaveSeat, SeatReply, SeatTaken, TakeSeat
from robot_stack.teleop.access import Session
from robot_stack.teleop.audit import Audit
from robot_stack.teleop.commands import Commands
from robot_stack.teleop.control import Control
from robot_stack.teleop.device_desk import DeviceDesk
from robot_stack.teleop.device_drive import Told
from robot_stack.teleop.messages import (
    Ack,
    Ask,
    Drive,
    Expired,
    Grant,
    Label,
    Leave,
    Notice,
    PageMessage,
    Ping,
    Pong,
    Ready,
    Role,
    Stop,
    Switch,
    Take,
    UseDevice,
    Watch,
    Welcome,
    encode_for_page,
)
from robot_stack.teleop.page import Page
from robot_stack.teleop.robot import RobotLink
from robot_stack.teleop.seat_link import words_of

logger = logging.getLogger(__name__)

TICK_S = 1.0 / 60.0
PAGE_SILENT_S = 1.0
EXPIRED = "your log-in has ended; log in again. Nothing that you drove goes on"
VIEWER = "you are logged in as a viewer: you can watch, but not command; log in with an operator's token"

Command = Take | Ask | Grant | Leave | Drive | UseDevice | Switch | Label | Ready | Stop


class Hub:
    """All pages and robots of one server. Made in the event loop's thread.

    Args:
        robots: entered links, by name. desk: of the input devices. state_rate_hz: of states to pages.
    """

    def __init__(self, robots: Mapping[str, RobotLink], desk: DeviceDesk, audit: Audit, state_rate_hz: float) -> None:
        self._robots, self._desk, self._audit = robots, desk, audit
        self._commands = Commands(robots, desk, audit, self._later)
        desk.hear(lambda robot, told: self._later(self._device_told, robot, told))
        self._state_every = max(1, round(1.0 / (state_rate_hz * TICK_S)))
        self._loop = asyncio.get_running_loop()
        self._controls = {name: Control() for name in robots}
        self._pages: dict[int, Page] = {}
        self._numbers = 0
        self._ticks = 0

    # ---- pages come and go -----------------------------------------------------------------------------------

    def enter(self, session: Session, cookie: str, address: str, rate_hz: float) -> Page:
        """A new page of this log-in; it is told who it is."""
        self._numbers += 1
        page = Page(self._numbers, session, cookie, address, rate_hz)
        self._pages[page.number] = page
        page.tell(
            Welcome(
                user=session.user,
                role=session.role,
                page=page.number,
                valid_s=session.valid_s,
                robots=tuple(self._robots),
            )
        )
        self._commands.note(page, "", "connect", "done")
        return page

    def leave(self, page: Page) -> None:
        """The page is gone: whatever it held is let go at once."""
        self._pages.pop(page.number, None)
        for name, control in self._controls.items():
            control.forget(page.number)
            if control.page == page.number:
                self._let_go(name, page)
                self._tell_askers(name, f"{page.session.user}'s page is gone; {name} is free: take control")
        self._commands.note(page, "", "disconnect", "done")

    def logged_out(self, cookie: str) -> None:
        """The pages of this log-in are over."""
        for page in list(self._pages.values()):
            if page.cookie == cookie:
                page.session = Session(user=page.session.user, role=Role.VIEWER, ends_ns=0)
                page.wake.set()

    # ---- what everybody is shown -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Show the newest to everybody, until cancelled."""
        while True:
            self._ticks += 1
            self._release_from_silent_pages()
            if self._ticks % self._state_every == 0:
                self._show_states()
            for page in self._pages.values():
                page.wake.set()
            await asyncio.sleep(TICK_S)

    def _show_states(self) -> None:
        devices = self._desk.views()
        for name, link in self._robots.items():
            watching = [page for page in self._pages.values() if page.robot == name]
            if not watching:
                continue
            text = encode_for_page(link.state(self._controls[name].view(), self._ticks, devices))
            for page in watching:
                if page.card is not link.seat.info:
                    self._show_card(page, link)
                page.show(self._ticks, text)

    @staticmethod
    def _show_card(page: Page, link: RobotLink) -> None:
        page.card = link.seat.info
        page.tell(link.card())

    # ---- what pages say ----------------------------------------------------------------------------------------

    def take_in(self, page: Page, message: PageMessage) -> None:
        """Do what a page asks, or tell it why not."""
        now_us = time.monotonic_ns() // 1000
        page.heard_s = now_us / 1e6
        if isinstance(message, Ping):
            page.tell(Pong(sent_us=message.sent_us, server_us=now_us))
        elif isinstance(message, Ack):
            page.acknowledged(message.camera, message.number)
        elif message.robot not in self._robots:
            known = ", ".join(self._robots)
            page.refuse(f"there is no robot '{message.robot}' here; there are: {known}", type(message).__name__.lower())
        elif isinstance(message, Watch):
            self._watch(page, message)
        else:
            self._command(page, message)

    def _watch(self, page: Page, message: Watch) -> None:
        link = self._robots[message.robot]
        unknown = [camera for camera in message.cameras if camera not in link.boxes]
        if unknown:
            known = ", ".join(link.boxes) or "none"
            page.refuse(f"{message.robot} has no camera '{unknown[0]}'; it has: {known}", "watch", message.robot)
        known_cameras = {name: link.boxes[name] for name in message.cameras if name in link.boxes}
        page.watch(message.robot, {**known_cameras})
        self._show_card(page, link)

    def _command(self, page: Page, message: Command) -> None:
        what = type(message).__name__.lower()
        refusal = self._forbidden(page.session)
        if refusal:
            page.refuse(refusal, what, message.robot)
            self._commands.note(page, message.robot, what, refusal)
        elif isinstance(message, Stop):
            self.stop(page.session, page.address, message.robot, partial(self._stopped, page, message.robot))
        elif isinstance(message, Take):
            self._take(page, message.robot, force=message.force)
        elif isinstance(message, Ask):
            self._ask(page, message.robot)
        elif self._controls[message.robot].page != page.number:
            holder = self._controls[message.robot].user
            words = f"{holder} has control of {message.robot}; ask for it" if holder else "take control first"
            page.refuse(words, what, message.robot)
            self._commands.note_once(page, message.robot, what, words)
        elif isinstance(message, Grant):
            self._grant(page, message)
        elif isinstance(message, Leave):
            self._let_go(message.robot, page)
            self._tell_askers(message.robot, f"{page.session.user} has left {message.robot}: take control")
        else:
            self._of_holder(page, message)

    def _of_holder(self, page: Page, message: Drive | UseDevice | Switch | Label | Ready) -> None:
        if isinstance(message, Drive):
            self._commands.drive(page, message)
        elif isinstance(message, UseDevice):
            self._commands.use_device(page, message)
        elif isinstance(message, Switch):
            self._commands.switch(message)
        else:
            self._commands.label(page, message)

    @staticmethod
    def _forbidden(session: Session) -> str:
        if session.valid_s <= 0.0:
            return EXPIRED
        return VIEWER if session.role is Role.VIEWER else ""

    # ---- stop ----------------------------------------------------------------------------------------------------

    def stop(self, session: Session, address: str, robot: str, told: Callable[[str], None]) -> str:
        """Stop a robot, whoever has control. `told`, in the event loop: why it could not be, or ''. Returns why the
        asker may not, or ''."""
        refusal = self._forbidden(session)
        if robot not in self._robots:
            refusal = refusal or f"there is no robot '{robot}' here"
        if not refusal:
            link = self._robots[robot]
            self._desk.stand_back(robot)

            def done(problem: str) -> None:
                self._audit.note(session.user, session.role.value, address, robot, "stop", problem or "done")
                told(problem)

            link.stop.stop(session.user, lambda problem: self._later(done, problem))
        return refusal

    def _stopped(self, page: Page, robot: str, problem: str) -> None:
        if problem:
            words = f"THE STOP DID NOT REACH {robot}: {problem}. Use the emergency stop on the robot"
            page.refuse(words, "stop", robot)
            return
        for other in self._pages.values():
            text = f"{page.session.user} stopped {robot}"
            other.tell(Notice(level="warning", text=text, about="stop", robot=robot))

    # ---- control -------------------------------------------------------------------------------------------------

    def _take(self, page: Page, robot: str, *, force: bool) -> None:
        control, session = self._controls[robot], page.session
        if control.page == page.number:
            return
        if force and session.role is not Role.ADMIN:
            page.refuse("only an admin can take control by force; ask the holder for it", "take", robot)
            self._commands.note(page, robot, "take by force", "not an admin")
            return
        own = control.page >= 0 and control.user == session.user
        if control.page >= 0 and not (force or own):
            page.refuse(f"{control.user} has control of {robot}; ask them for it", "take", robot)
            self._commands.note(page, robot, "take", f"{control.user} has it")
            return
        self._give(page, robot, by_force=force or own, what="take by force" if force else "take")

    def _give(self, page: Page, robot: str, *, by_force: bool, what: str) -> None:
        """Take the edge's seat for this page."""
        wish = TakeSeat(holder=page.session.user, by_force=by_force)
        link = self._robots[robot].seat
        link.ask(wish, page.number, lambda reply: self._later(self._given, page, robot, what, reply))

    def _given(self, page: Page, robot: str, what: str, reply: SeatReply) -> None:
        control = self._controls[robot]
        if not isinstance(reply, SeatTaken):
            page.refuse(words_of(reply), "take", robot)
            self._commands.note(page, robot, what, words_of(reply))
            return
        before = self._pages.get(control.page)
        if before is not None and before is not page:
            before.tell(Notice(level="warning", text=f"{page.session.user} has control of {robot} now", robot=robot))
        if page.number not in self._pages:
            self._let_go(robot, page)
            return
        self._desk.free(robot)
        control.given(page.number, page.session.user)
        page.tell(Notice(level="info", text=f"you have control of {robot}", about="take", robot=robot))
        self._commands.note(page, robot, what, "done")

    def _ask(self, page: Page, robot: str) -> None:
        control = self._controls[robot]
        holder = self._pages.get(control.page)
        if holder is None:
            self._take(page, robot, force=False)
        elif holder is not page:
            control.asked(page.number, page.session.user)
            holder.tell(Notice(level="warning", text=f"{page.session.user} asks for control of {robot}", robot=robot))
            page.tell(Notice(level="info", text=f"{control.user} was asked for control of {robot}", robot=robot))
            self._commands.note(page, robot, "ask", "done")

    def _grant(self, page: Page, message: Grant) -> None:
        asker = self._pages.get(message.page)
        if asker is None or not self._controls[message.robot].has_asked(message.page):
            page.refuse("nobody there asks for control any more", "grant", message.robot)
            return
        self._commands.note(page, message.robot, f"grant to {asker.session.user}", "done")
        self._give(asker, message.robot, by_force=True, what="take as granted")

    def _let_go(self, robot: str, page: Page) -> None:
        """Give the seat back: what was driven stands still, and an intervention that was finished ends."""
        self._desk.free(robot)
        link = self._robots[robot].seat
        link.drop(page.number)
        link.ask(LeaveSeat(session=""), page.number, lambda reply: None)
        self._controls[robot].free()
        self._commands.note(page, robot, "leave", "done")

    def lost(self, robot: str, words: str) -> None:
        """The edge's seat is not this server's any more. May be called from any thread."""
        self._later(self._lost, robot, words)

    def _lost(self, robot: str, words: str) -> None:
        control = self._controls[robot]
        page = self._pages.get(control.page)
        self._desk.free(robot)
        control.free()
        if page is not None:
            page.refuse(f"control of {robot} was lost: {words}", "take", robot)
            self._commands.note(page, robot, "lost", words)

    # ---- input devices -----------------------------------------------------------------------------------------------

    def _device_told(self, robot: str, told: Told) -> None:
        page = self._pages.get(told.page)
        if page is not None:
            self._commands.device_told(page, robot, told)

    def _release_from_silent_pages(self) -> None:
        """A page that is not heard cannot see or stop what its device does."""
        for robot, control in self._controls.items():
            page = self._pages.get(control.page)
            device = self._desk.device_of(robot)
            if page is None or not device:
                continue
            if time.monotonic() - page.heard_s > PAGE_SILENT_S or page.session.valid_s <= 0.0:
                self._desk.free(robot)
                words = f"this page was not heard for {PAGE_SILENT_S:.0f} s: '{device}' does not drive {robot} any more"
                page.refuse(words, "usedevice", robot)
                self._commands.note(page, robot, f"device '{device}': given up", words)

    def _tell_askers(self, robot: str, text: str) -> None:
        for asker in self._controls[robot].view().askers:
            page = self._pages.get(asker.page)
            if page is not None:
                page.tell(Notice(level="info", text=text, robot=robot))

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def expired(self, page: Page) -> bool:
        """Whether the page's log-in has ended; it is told so."""
        if page.session.valid_s > 0.0:
            return False
        page.tell(Expired(text=EXPIRED))
        return True

    def _later(self, call: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)
