"""The control lease: at most one session commands a robot. It lapses when its holder falls silent."""

from __future__ import annotations

from collections import OrderedDict

from robot_stack.core.clock import s_to_ns

REMEMBERED_SESSIONS = 4096


class ControlLease:
    """Held by one session of one authenticated peer; every accepted contact of the holder renews it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_ns = s_to_ns(timeout_s)
        self._session: str | None = None
        self._peer = ""
        self._contact_ns = 0
        self._last_seqs: OrderedDict[str, int] = OrderedDict()

    def holder(self, now_ns: int) -> str | None:
        """The session that holds the lease now, or None."""
        if self._session is not None and now_ns - self._contact_ns > self._timeout_ns:
            self._session = None
        return self._session

    def acquire(self, session: str, peer: str, now_ns: int) -> bool:
        """True if the session holds the lease afterwards. A peer may replace its own earlier session.

        Two edge processes with one key would be one peer: give every process that commands its own key.
        """
        holder = self.holder(now_ns)
        if holder is not None and holder != session and peer != self._peer:
            return False
        self._session, self._peer, self._contact_ns = session, peer, now_ns
        return True

    def renew(self, session: str, now_ns: int) -> None:
        if self.holder(now_ns) == session:
            self._contact_ns = now_ns

    def release(self, session: str) -> None:
        if self._session == session:
            self._session = None

    def saw(self, session: str, seq: int) -> None:
        """Remember the newest accepted sequence number of a session."""
        self._last_seqs[session] = seq
        self._last_seqs.move_to_end(session)
        if len(self._last_seqs) > REMEMBERED_SESSIONS:
            self._last_seqs.popitem(last=False)

    def last_seq(self, session: str) -> int:
        """The newest accepted sequence number of a session, -1 for a new one: a session that comes back cannot repeat
        what it already said."""
        return self._last_seqs.get(session, -1)
