"""Streams over real sockets: the newest only, no watcher can hold up the publisher, revocation cuts a watcher off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from robot_stack.core.errors import AuthenticationError, MessageError
from robot_stack.core.messages import Done, RobotState
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher, Subscriber
from tests.transport_kit import LOOPBACK, eventually, make_keys, state

STATE = SERVICES["robot.state"]


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


def watch(keys: KeyStore, address: str, key: str = "viewer", server_key: str = "robot") -> Subscriber[RobotState]:
    return Subscriber(STATE, address, keys, key, server_key, RobotState)


@contextmanager
def publishing(publisher: Publisher) -> Iterator[None]:
    """Sends states 0, 1, 2, ... from another thread."""
    stop = threading.Event()

    def run() -> None:
        seq = 0
        while not stop.wait(0.005):
            publisher.send(state(seq))
            seq += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def first(watcher: Subscriber[RobotState], publisher: Publisher) -> RobotState:
    """Send until the watcher, which joins in its own time, has seen a state."""
    for _ in range(500):
        publisher.send(state(-1))
        seen = watcher.newest(0.01)
        if seen is not None:
            return seen
    raise AssertionError("nothing arrived")


def test_states_arrive_whole_and_each_once(keys: KeyStore) -> None:
    with Publisher(STATE, LOOPBACK, keys, "robot") as publisher, watch(keys, publisher.address) as watcher:
        first(watcher, publisher)
        publisher.send(state(3))
        seen = watcher.newest(5.0)
        while seen is not None and seen.seq != 3:
            seen = watcher.newest(5.0)
        assert seen is not None
        np.testing.assert_array_equal(seen.features["observation.state"], np.arange(7, dtype=np.float32) + 3)
        assert watcher.newest(0.05) is None


def test_after_a_stall_the_newest_state_comes_first(keys: KeyStore) -> None:
    with Publisher(STATE, LOOPBACK, keys, "robot") as publisher, watch(keys, publisher.address) as watcher:
        first(watcher, publisher)
        for seq in range(2000):
            publisher.send(state(seq))
        time.sleep(0.5)
        seen = watcher.newest(5.0)
        assert seen is not None
        assert seen.seq == 1999
        assert watcher.newest(0.05) is None


def test_a_watcher_that_never_reads_does_not_hold_up_the_others(keys: KeyStore) -> None:
    with (
        Publisher(STATE, LOOPBACK, keys, "robot") as publisher,
        watch(keys, publisher.address),
        watch(keys, publisher.address, "edge") as watcher,
    ):
        first(watcher, publisher)
        big = RobotState(**{**_fields(state(1)), "features": {"image": np.zeros(2_000_000, np.uint8)}})
        for _ in range(50):  # 100 MB: far more than any queue or TCP buffer holds
            publisher.send(big)
        publisher.send(state(77))
        assert eventually(lambda: (seen := watcher.newest(0.1)) is not None and seen.seq == 77, within_s=5.0)


def _fields(record: RobotState) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_a_watcher_of_another_role_or_with_an_unknown_key_is_refused_and_shown(keys: KeyStore, tmp_path: Path) -> None:
    stranger = make_keys(tmp_path / "elsewhere")
    record = Path("keys", "public", "robot.json")
    (tmp_path / "elsewhere" / record).write_bytes((tmp_path / record).read_bytes())
    with Publisher(STATE, LOOPBACK, keys, "robot") as publisher:
        with watch(stranger, publisher.address) as watcher, pytest.raises(AuthenticationError, match="refused our key"):
            watcher.newest(5.0)
        assert eventually(lambda: publisher.refused_count == 1, within_s=2.0)
        assert "not on the allow-list" in publisher.refused[0].reason


def test_a_publisher_whose_gate_is_gone_lets_nobody_in(keys: KeyStore) -> None:
    with Publisher(STATE, LOOPBACK, keys, "robot") as publisher, watch(keys, publisher.address) as admitted:
        first(admitted, publisher)
        publisher._bound.gate.stop(publisher._bound.socket)
        with watch(keys, publisher.address, "edge") as late, pytest.raises(AuthenticationError):
            for seq in range(200):
                publisher.send(state(seq))
                assert late.newest(0.01) is None
        assert admitted.newest(1.0) is not None


def test_a_wrong_server_key_is_shown(keys: KeyStore) -> None:
    keys.make("robot_2", Role.ROBOT)
    with Publisher(STATE, LOOPBACK, keys, "robot") as publisher:
        with (
            watch(keys, publisher.address, server_key="robot_2") as watcher,
            pytest.raises(AuthenticationError, match="not the one we know as 'robot_2'"),
        ):
            watcher.newest(0.5)
        assert eventually(lambda: publisher.refused_count > 0, within_s=2.0)


def test_a_revoked_watcher_is_cut_off_and_the_others_go_on(keys: KeyStore) -> None:
    with (
        Publisher(STATE, LOOPBACK, keys, "robot") as publisher,
        watch(keys, publisher.address) as viewer,
        watch(keys, publisher.address, "edge") as edge,
    ):
        address = publisher.address
        with publishing(publisher):
            assert viewer.newest(5.0) is not None
            assert edge.newest(5.0) is not None
            keys.revoke("viewer")
            until_s = time.monotonic() + 1.0
            with pytest.raises(AuthenticationError):
                while time.monotonic() < until_s:
                    viewer.newest(0.3)
            time.sleep(0.3)
            before = edge.newest(5.0)
            after = edge.newest(5.0)
        assert before is not None
        assert after is not None
        assert after.seq > before.seq
        assert publisher.address == address


def test_a_watcher_survives_the_restart_of_its_publisher(keys: KeyStore) -> None:
    with Publisher(STATE, LOOPBACK, keys, "robot") as publisher:
        address = publisher.address
        watcher = watch(keys, address)
        watcher.__enter__()
        first(watcher, publisher)
    with watcher:
        assert watcher.newest(0.05) is None
        with Publisher(STATE, address, keys, "robot") as publisher:
            assert first(watcher, publisher).seq == -1


def test_messages_that_are_too_large_or_of_another_kind_are_errors(keys: KeyStore) -> None:
    with Publisher(STATE, LOOPBACK, keys, "robot") as publisher, watch(keys, publisher.address) as watcher:
        first(watcher, publisher)
        with pytest.raises(MessageError, match="larger than"):
            publisher.send(RobotState(**{**_fields(state()), "features": {"x": np.zeros(9_000_000, np.uint8)}}))
        while watcher.newest(0.1) is not None:
            pass
        publisher.send(Done())
        with pytest.raises(MessageError, match="malformed"):
            watcher.newest(5.0)
