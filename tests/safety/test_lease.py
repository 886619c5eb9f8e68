"""One session at a time; it lapses in silence, and remembers what it said."""

from __future__ import annotations

from robot_stack.safety.lease import REMEMBERED_SESSIONS, ControlLease


def test_it_lapses_after_its_timeout_and_not_before() -> None:
    lease = ControlLease(1.0)
    assert lease.holder(0) is None
    assert lease.acquire("a", "edge", 5)
    assert lease.holder(5 + 10**9) == "a"
    assert lease.holder(6 + 10**9) is None


def test_it_is_renewed_by_its_holder_alone() -> None:
    lease = ControlLease(1.0)
    lease.acquire("a", "edge", 0)
    lease.renew("b", 10**9)
    assert lease.holder(10**9 + 1) is None
    lease.acquire("a", "edge", 0)
    lease.renew("a", 10**9)
    assert lease.holder(2 * 10**9) == "a"


def test_another_peer_waits_and_the_same_peer_replaces_its_own() -> None:
    lease = ControlLease(1.0)
    assert lease.acquire("a", "edge", 0)
    assert not lease.acquire("b", "operator", 1)
    assert lease.acquire("a", "operator", 2)  # the same session, wherever it comes from
    assert lease.acquire("c", "operator", 3)
    assert lease.holder(4) == "c"
    lease.release("a")
    assert lease.holder(4) == "c"
    lease.release("c")
    assert lease.holder(4) is None


def test_it_remembers_the_sessions_that_spoke_last() -> None:
    lease = ControlLease(1.0)
    assert lease.last_seq("new") == -1
    for number in range(REMEMBERED_SESSIONS):
        lease.saw(str(number), number)
    lease.saw("0", 77)
    lease.saw("one more", 5)
    assert lease.last_seq("0") == 77
    assert lease.last_seq("1") == -1
    assert lease.last_seq("2") == 2
    assert lease.last_seq("one more") == 5
