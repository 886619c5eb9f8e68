"""CURVE key pairs on disk, and the list of who may connect.

    <directory>/public/<name>.json    0644  name, role, public key: copy this one to the other computers
    <directory>/private/<name>.json   0600  the secret half: never leaves the computer it was made on
    <directory>/revoked/<name>.json         public records that count no more

A key is authorised exactly while its record lies in `public/`. A name is used once: a revoked name is never given
to another key, so a log line naming a peer stays true.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq
from msgspec import Struct

from robot_stack.core.errors import AuthenticationError, ConfigError, StorageError

_log = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")

_Signature = tuple[tuple[str, int, int, int], ...]


class Role(enum.Enum):
    """What a key may do; the service table (`services.py`) says which role may ask for what."""

    ROBOT = "robot"
    EDGE = "edge"
    OPERATOR = "operator"
    VIEWER = "viewer"
    LEARNER = "learner"
    POLICY = "policy"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A peer's own key: both halves as 40 z85 characters. The secret half is kept out of `repr`."""

    name: str
    role: Role
    public_key: bytes
    secret_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """The public half of a key. `created` is wall time (ISO 8601, UTC), for people."""

    name: str
    role: Role
    public_key: bytes
    created: str
    revoked: bool = False


class _PublicRecord(Struct, frozen=True, kw_only=True):
    schema_version: int
    name: str
    role: Role
    created: str
    public_key: str


class _PrivateRecord(_PublicRecord, frozen=True, kw_only=True):
    secret_key: str


_Record = TypeVar("_Record", bound=_PublicRecord)


class KeyStore:
    """The keys in one directory. Nothing is read or written before a method is called; safe to share by threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._lock = threading.Lock()
        self._signature: _Signature | None = None
        self._authorised: dict[bytes, tuple[str, Role]] = {}

    def make(self, name: str, role: Role) -> KeyPair:
        """Make and save a new key; ConfigError if the name is malformed or was ever used here."""
        self._check_name(name)
        for path in (self._public(name), self._private(name), self._revoked(name)):
            if path.exists():
                raise ConfigError(
                    f"a key named '{name}' exists already ({path}) and is not overwritten; choose another name, "
                    "and revoke the old key if it must not be used any more: robot-stack keys revoke " + name
                )
        public_key, secret_key = zmq.curve_keypair()
        public = _PublicRecord(
            schema_version=_SCHEMA_VERSION,
            name=name,
            role=role,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            public_key=public_key.decode("ascii"),
        )
        private = _PrivateRecord(**msgspec.structs.asdict(public), secret_key=secret_key.decode("ascii"))
        # The secret half first: an authorised key always has an owner.
        _write_new(self._private(name), msgspec.json.encode(private), mode=0o600)
        _write_new(self._public(name), msgspec.json.encode(public), mode=0o644)
        return KeyPair(name, role, public_key, secret_key)

    def list(self) -> list[KeyInfo]:
        """Every readable public record, the revoked ones included, by name."""
        found = []
        for folder, revoked in ((self._public("").parent, False), (self._revoked("").parent, True)):
            for path in sorted(folder.glob("*.json")):
                found.append(_info(_read(path, _PublicRecord), revoked))
        return sorted(found, key=lambda info: (info.name, info.revoked))

    def revoke(self, name: str) -> None:
        """Take the key off the allow-list of this directory; running servers follow within a second."""
        self._check_name(name)
        if self._revoked(name).exists():
            raise ConfigError(f"the key '{name}' is revoked already ({self._revoked(name)})")
        _make_folder(self._revoked(name).parent)
        try:
            self._public(name).rename(self._revoked(name))
        except FileNotFoundError:
            raise ConfigError(self._missing(name, self._public(name))) from None
        except OSError as error:
            raise StorageError(f"the key '{name}' could not be revoked in {self.directory}: {error}") from error
        _sync_folder(self._revoked(name).parent)
        _sync_folder(self._public(name).parent)

    def load(self, name: str) -> KeyPair:
        """Both halves of this computer's own key; AuthenticationError if it was revoked here."""
        self._check_not_revoked(name)
        path = self._private(name)
        if not path.exists():
            raise ConfigError(self._missing(name, path))
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(
                f"the private key {path} can be read by other users (mode {mode:04o}, allowed: 0600); "
                f"make a new key if it may have been copied, or run: chmod 600 {path}"
            )
        record = _read(path, _PrivateRecord)
        return KeyPair(record.name, record.role, record.public_key.encode(), record.secret_key.encode())

    def public(self, name: str) -> KeyInfo:
        """The public half of a peer's key; AuthenticationError if it was revoked here."""
        self._check_not_revoked(name)
        path = self._public(name)
        if not path.exists():
            raise ConfigError(self._missing(name, path))
        return _info(_read(path, _PublicRecord), revoked=False)

    def authorised(self) -> dict[bytes, tuple[str, Role]]:
        """Who may connect now: public key (z85) -> (name, role). Read again whenever the folder has changed.

        A record that is unreadable, or a key that stands in two records, authorises nobody; it is logged once.
        """
        with self._lock:
            signature = self._scan()
            if signature != self._signature:
                self._authorised = self._read_all(entry[0] for entry in signature)
                self._signature = signature
            return self._authorised

    def _scan(self) -> _Signature:
        try:
            with os.scandir(self.directory / "public") as entries:
                found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".json")]
        except OSError as error:
            raise ConfigError(
                f"the allow-list {self.directory / 'public'} cannot be read ({error.strerror}), so nobody is "
                "authorised; make a key with: robot-stack keys make <name> --role <role>"
            ) from error
        return tuple(sorted((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found))

    def _read_all(self, names: Iterable[str]) -> dict[bytes, tuple[str, Role]]:
        records: dict[bytes, tuple[str, Role]] = {}
        ambiguous: set[bytes] = set()
        for name in names:
            path = self.directory / "public" / name
            try:
                info = _info(_read(path, _PublicRecord), revoked=False)
            except ConfigError as error:
                _log.warning("this record authorises nobody: %s", error)
                continue
            if info.public_key in records:
                ambiguous.add(info.public_key)
                _log.warning("the key of %s stands in another record too: it authorises nobody", path)
            records[info.public_key] = (info.name, info.role)
        return {key: owner for key, owner in records.items() if key not in ambiguous}

    def _public(self, name: str) -> Path:
        return self.directory / "public" / f"{name}.json"

    def _private(self, name: str) -> Path:
        return self.directory / "private" / f"{name}.json"

    def _revoked(self, name: str) -> Path:
        return self.directory / "revoked" / f"{name}.json"

    @staticmethod
    def _check_name(name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"'{name}' cannot name a key: use 1 to 63 lower-case letters, digits, '_' and '-', "
                "beginning with a letter or digit"
            )

    def _check_not_revoked(self, name: str) -> None:
        self._check_name(name)
        if self._revoked(name).exists():
            raise AuthenticationError(
                f"the key '{name}' was revoked ({self._revoked(name)}); make another one under a new name: "
                "robot-stack keys make <name> --role <role>"
            )

    def _missing(self, name: str, path: Path) -> str:
        return (
            f"there is no key '{name}' ({path}); make it with: robot-stack keys make {name} --role "
            f"<{'|'.join(role.value for role in Role)}>, or copy its public record here if it was made elsewhere"
        )


def _info(record: _PublicRecord, revoked: bool) -> KeyInfo:
    return KeyInfo(record.name, record.role, record.public_key.encode(), record.created, revoked)


def _read(path: Path, record_type: type[_Record]) -> _Record:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=record_type)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key record {path} cannot be read: {error}; restore it, or make a new key") from error
    keys = [record.public_key] + ([record.secret_key] if isinstance(record, _PrivateRecord) else [])
    if not all(_Z85_KEY.fullmatch(key.encode()) for key in keys):
        raise ConfigError(f"the key record {path} holds no valid CURVE key (40 z85 characters); make a new key")
    if record.schema_version != _SCHEMA_VERSION:
        raise ConfigError(
            f"the key record {path} has schema version {record.schema_version}, this program reads {_SCHEMA_VERSION}"
        )
    if record.name != path.name.removesuffix(".json"):
        raise ConfigError(f"the key record {path} is named '{record.name}' inside; restore the file's own name")
    return record


def _make_folder(folder: Path) -> None:
    for part in (folder.parent, folder):
        if not part.exists():
            part.mkdir(mode=0o700, parents=True)
    folder.chmod(0o700)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Durably create `path`, whole or not at all, and never over an existing file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _make_folder(path.parent)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)  # unlike a rename, a link never replaces a file made meanwhile
        aside.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(f"the key file {path} could not be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
