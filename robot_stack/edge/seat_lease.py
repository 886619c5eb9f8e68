"""Who has the operator's seat: one person, by a session that nobody else knows."""

from __future__ import annotations

from uuid import uuid4

from robot_stack.core.clock import s_to_ns

SILENCE_S = 2.0
"""The seat is free again when its holder was silent for so long."""


class SeatLease:
    """Not thread-safe; the seat holds its lock around it.

    Attributes:
        holder, session: '' while nobody has the seat.
        last_seq: number of the newest command of this session, -1 before it.
    """

    def __init__(self) -> None:
        self.holder = self.session = ""
        self.last_seq = -1
        self._heard_ns = 0

    def take(self, holder: str, now_ns: int, *, by_force: bool) -> str:
        """Why the seat is not free, in words, or '': then `session` is new, and its commands are counted anew."""
        self.expire(now_ns)
        if self.session and not by_force:
            return f"{self.holder} has the seat; ask them to leave it, or take it by force"
        self.holder, self.session, self.last_seq, self._heard_ns = holder, uuid4().hex, -1, now_ns
        return ""

    def keep(self, session: str, now_ns: int) -> bool:
        """A sign of life; False if that session does not have the seat."""
        self.expire(now_ns)
        if not session or session != self.session:
            return False
        self._heard_ns = now_ns
        return True

    def leave(self) -> None:
        self.holder = self.session = ""

    def expire(self, now_ns: int) -> None:
        if self.session and now_ns - self._heard_ns > s_to_ns(SILENCE_S):
            self.leave()
