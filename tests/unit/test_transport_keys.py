"""The key store: files, modes, names, revocation, and the allow-list that follows the folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq

from robot_stack.core.errors import AuthenticationError, ConfigError
from robot_stack.transport.keys import KeyStore, Role


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "etc" / "keys")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_loaded_as_it_was_made_and_is_a_curve_pair(keys: KeyStore) -> None:
    made = keys.make("edge_0", Role.EDGE)
    assert keys.load("edge_0") == made
    assert zmq.curve_public(made.secret_key) == made.public_key
    info = keys.public("edge_0")
    assert (info.name, info.role, info.public_key) == ("edge_0", Role.EDGE, made.public_key)
    assert keys.authorised() == {made.public_key: ("edge_0", Role.EDGE)}


def test_the_secret_half_is_for_its_owner_only(keys: KeyStore) -> None:
    made = keys.make("robot", Role.ROBOT)
    assert _mode(keys.directory / "private" / "robot.json") == 0o600
    for folder in (keys.directory, keys.directory / "private", keys.directory / "public"):
        assert _mode(folder) == 0o700
    assert made.secret_key.decode() not in (keys.directory / "public" / "robot.json").read_text()
    assert made.secret_key.decode() not in repr(made)
    assert list(keys.directory.rglob(".*")) == []  # nothing written aside is left behind


def test_a_private_key_that_others_can_read_is_not_used(keys: KeyStore) -> None:
    keys.make("robot", Role.ROBOT)
    (keys.directory / "private" / "robot.json").chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640, allowed: 0600.*chmod 600"):
        keys.load("robot")


def test_no_key_is_overwritten_and_no_name_is_used_twice(keys: KeyStore) -> None:
    made = keys.make("edge", Role.EDGE)
    with pytest.raises(ConfigError, match="exists already"):
        keys.make("edge", Role.OPERATOR)
    keys.revoke("edge")
    (keys.directory / "private" / "edge.json").unlink()
    with pytest.raises(ConfigError, match="exists already"):
        keys.make("edge", Role.EDGE)
    assert [(info.public_key, info.revoked) for info in keys.list()] == [(made.public_key, True)]


@pytest.mark.parametrize("name", ["", "..", "../robot", "a/b", "Robot", "-x", "a" * 64, "a\n", "a b"])
def test_a_name_cannot_leave_the_folder(keys: KeyStore, name: str) -> None:
    for use in (lambda: keys.make(name, Role.EDGE), lambda: keys.load(name), lambda: keys.revoke(name)):
        with pytest.raises(ConfigError, match="cannot name a key"):
            use()


def test_a_revoked_key_is_off_the_list_and_says_so(keys: KeyStore) -> None:
    keys.make("edge", Role.EDGE)
    viewer = keys.make("viewer", Role.VIEWER)
    assert len(keys.authorised()) == 2
    keys.revoke("edge")
    assert keys.authorised() == {viewer.public_key: ("viewer", Role.VIEWER)}
    with pytest.raises(AuthenticationError, match="'edge' was revoked"):
        keys.load("edge")
    with pytest.raises(AuthenticationError, match="'edge' was revoked"):
        keys.public("edge")
    with pytest.raises(ConfigError, match="revoked already"):
        keys.revoke("edge")
    assert [(info.name, info.revoked) for info in keys.list()] == [("edge", True), ("viewer", False)]


def test_the_allow_list_follows_every_change_of_the_folder(keys: KeyStore, tmp_path: Path) -> None:
    first = keys.make("first", Role.EDGE)
    keys.authorised()
    elsewhere = KeyStore(tmp_path / "elsewhere")
    second = elsewhere.make("second", Role.VIEWER)
    record = keys.directory / "public" / "second.json"
    record.write_bytes((tmp_path / "elsewhere" / "public" / "second.json").read_bytes())
    assert set(keys.authorised()) == {first.public_key, second.public_key}
    record.write_text(record.read_text().replace("viewer", "operator"))
    assert keys.authorised()[second.public_key] == ("second", Role.OPERATOR)
    record.unlink()
    assert set(keys.authorised()) == {first.public_key}


def test_a_broken_record_authorises_nobody_and_harms_no_other(keys: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    good = keys.make("good", Role.EDGE)
    public = keys.directory / "public"
    text = (public / "good.json").read_text()
    (public / "torn.json").write_text(text[:40])
    (public / "role.json").write_text(text.replace("edge", "admin"))
    (public / "short.json").write_text(
        '{"schema_version":1,"name":"short","role":"edge","created":"","public_key":"x"}'
    )
    (public / "future.json").write_text(text.replace('"schema_version":1', '"schema_version":2'))
    for _ in range(3):
        assert keys.authorised() == {good.public_key: ("good", Role.EDGE)}
    assert caplog.text.count("authorises nobody") == 4


def test_a_key_under_two_names_authorises_nobody(keys: KeyStore) -> None:
    keys.make("edge", Role.EDGE)
    public = keys.directory / "public"
    (public / "edge_b.json").write_text((public / "edge.json").read_text().replace('"name":"edge"', '"name":"edge_b"'))
    assert keys.authorised() == {}


def test_what_is_missing_is_named_with_the_command_that_makes_it(keys: KeyStore) -> None:
    with pytest.raises(ConfigError, match="robot-stack keys make"):
        keys.authorised()
    for use in (keys.load, keys.public, keys.revoke):
        with pytest.raises(ConfigError, match="robot-stack keys make edge --role"):
            use("edge")
