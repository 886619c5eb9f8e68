"""Keys that must not get in, on a real server of the learner's service; the long form is `benchmarks.wire`."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from benchmarks.wire_keys import REVOKED_WITHIN_S, SERVICE, Serving, revoke_in_use, try_keys
from robot_stack.core.errors import AuthenticationError
from robot_stack.core.messages import GetProgress, LearnerReply
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore, Role


def test_thirty_unknown_missing_revoked_and_wrong_keys_are_refused_and_each_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    result = try_keys(tmp_path, count=30, seed=0)
    assert (result.tried, result.accepted, result.shown) == (30, 0, 30), result
    logged = [record.getMessage() for record in caplog.records if "refused a peer" in record.getMessage()]
    unknown = [line for line in logged if "is not on the allow-list" in line]
    assert len(unknown) == 12  # each such key has a line of its own: six were never known, six were revoked
    for words in ("not use CURVE", "has the role operator", "expects another server key"):
        assert any(words in line for line in logged), words


def test_a_revoked_key_in_use_stops_working_within_a_second(tmp_path: Path) -> None:
    found = revoke_in_use(tmp_path, count=3)
    assert len(found) == 3
    assert max(found) < 1.0 < REVOKED_WITHIN_S


def test_a_key_revoked_a_moment_ago_does_not_open_a_new_connection(tmp_path: Path) -> None:
    """The allow-list is read at every handshake, not only a few times a second."""
    keys = KeyStore(tmp_path / "server")
    keys.make("learner", Role.LEARNER)
    keys.make("edge", Role.EDGE)
    theirs = KeyStore(tmp_path / "edge")
    with Serving(keys) as serving:
        for index in range(8):
            name = f"fresh-{index}"
            pair = keys.make(name, Role.EDGE)
            _copy(keys.directory, theirs.directory, name)
            keys.revoke(name)
            client: RequestClient[LearnerReply]
            client = RequestClient(SERVICE, serving.server.address, theirs, name, "learner", LearnerReply)
            with client, pytest.raises(AuthenticationError):
                client.request(GetProgress(), 5.0)
            assert any(pair.public_key.decode() in peer.reason for peer in serving.server.refused)
        assert serving.served == 0


def _copy(source: Path, target: Path, name: str) -> None:
    """This key, and the server's public record, as they lie on another computer."""
    for folder, file in (("public", name), ("private", name), ("public", "learner")):
        copy = target / folder / f"{file}.json"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((source / folder / f"{file}.json").read_bytes())
        copy.chmod(0o600)
