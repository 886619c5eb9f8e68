"""Who of this server's pages has control of one robot, and who asks for it."""

from __future__ import annotations

from robot_stack.teleop.messages import Asker, ControlView

NOBODY = -1


class Control:
    """One robot's. The edge decides; this is what the pages are shown and judged by."""

    def __init__(self) -> None:
        self.page = NOBODY
        self.user = ""
        self._askers: dict[int, str] = {}

    def given(self, page: int, user: str) -> None:
        """This page has control now; whoever else asked still does."""
        self.page, self.user = page, user
        self._askers.pop(page, None)

    def free(self) -> None:
        self.page, self.user = NOBODY, ""

    def asked(self, page: int, user: str) -> None:
        self._askers[page] = user

    def has_asked(self, page: int) -> bool:
        return page in self._askers

    def forget(self, page: int) -> None:
        """The page asks no more."""
        self._askers.pop(page, None)

    def view(self) -> ControlView:
        askers = tuple(Asker(page=page, user=user) for page, user in self._askers.items())
        return ControlView(page=self.page, user=self.user, askers=askers)
