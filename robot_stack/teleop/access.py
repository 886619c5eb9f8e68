"""Who may use the page: tokens on disk (scrypt, mode 0600), log-ins in memory, limits against guessing.

A token is `<user>.<secret>`. The file keeps a salted hash only; a lost token is replaced, never shown again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from robot_stack.core.errors import AuthenticationError, ConfigError, StorageError
from robot_stack.teleop.messages import Role

SCHEMA_VERSION = 1
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**14, 8, 1
FIRST_USERS = (("admin", Role.ADMIN), ("operator", Role.OPERATOR), ("viewer", Role.VIEWER))
MAX_TOKEN = 200
MAX_SESSIONS = 200
_WRONG = "this token is not known here; copy it again, or ask whoever started the teleop server for another one"


class TokenRecord(Struct, frozen=True, kw_only=True):
    user: str
    role: Role
    salt: bytes
    hash: bytes


class TokenFile(Struct, frozen=True, kw_only=True):
    schema_version: int
    tokens: tuple[TokenRecord, ...]


class Tokens:
    """The tokens in one file. `make` adds users; nothing is read before a method is called."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ensure(self) -> dict[str, str]:
        """Make one token for each role if there is no file yet: token by user, to be shown once; else empty."""
        if self._path.exists():
            self.read()
            return {}
        return {user: self.make(user, role) for user, role in FIRST_USERS}

    def make(self, user: str, role: Role) -> str:
        """A new token for this user, in the place of an older one."""
        if not user.isidentifier() or len(user) > 40:
            raise ConfigError(f"'{user}' cannot name a user: use up to 40 letters, digits and '_', no digit first")
        secret, salt = secrets.token_urlsafe(24), secrets.token_bytes(16)
        record = TokenRecord(user=user, role=role, salt=salt, hash=_hash(secret, salt))
        others = tuple(one for one in (self.read() if self._path.exists() else ()) if one.user != user)
        self._write(TokenFile(schema_version=SCHEMA_VERSION, tokens=(*others, record)))
        return f"{user}.{secret}"

    def read(self) -> tuple[TokenRecord, ...]:
        """ConfigError if the file cannot be read, or others can read it."""
        try:
            mode = self._path.stat().st_mode & 0o777
            content = msgspec.json.decode(self._path.read_bytes(), type=TokenFile)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"the tokens {self._path} cannot be read: {error}; remove the file to make new"
            ) from error
        if mode & 0o077:
            raise ConfigError(f"{self._path} can be read by other users (mode {mode:04o}); run: chmod 600 {self._path}")
        if content.schema_version != SCHEMA_VERSION:
            raise ConfigError(f"{self._path} has schema version {content.schema_version}, not {SCHEMA_VERSION}")
        return content.tokens

    def check(self, token: str) -> TokenRecord:
        """Whose token it is; AuthenticationError. Takes tens of milliseconds, for unknown users too."""
        user, _, secret = token.strip()[:MAX_TOKEN].partition(".")
        record = next((one for one in self.read() if one.user == user), None)
        salt = b"0" * 16 if record is None else record.salt
        fits = hmac.compare_digest(_hash(secret, salt), b"" if record is None else record.hash)
        if record is None or not fits:
            raise AuthenticationError(_WRONG)
        return record

    def _write(self, content: TokenFile) -> None:
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(content))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
        except OSError as error:
            raise StorageError(f"the tokens {self._path} could not be written: {error.strerror}") from error


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P)


class Session(Struct, frozen=True, kw_only=True):
    """A log-in. `ends_ns`: monotonic."""

    user: str
    role: Role
    ends_ns: int

    @property
    def valid_s(self) -> float:
        return (self.ends_ns - time.monotonic_ns()) / 1e9


class Sessions:
    """Log-ins by the hash of their cookie. Thread-safe; they end with the process."""

    def __init__(self, valid_s: float, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._valid_ns, self._now_ns = round(valid_s * 1e9), now_ns
        self._lock = threading.Lock()
        self._sessions: dict[bytes, Session] = {}

    def open(self, user: str, role: Role) -> str:
        """The cookie's value of a new log-in."""
        cookie = secrets.token_urlsafe(32)
        session = Session(user=user, role=role, ends_ns=self._now_ns() + self._valid_ns)
        with self._lock:
            self._forget_old()
            if len(self._sessions) >= MAX_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[_key(cookie)] = session
        return cookie

    def find(self, cookie: str) -> Session | None:
        """The log-in of this cookie, if it has not ended."""
        with self._lock:
            self._forget_old()
            return self._sessions.get(_key(cookie))

    def close(self, cookie: str) -> None:
        with self._lock:
            self._sessions.pop(_key(cookie), None)

    def _forget_old(self) -> None:
        now_ns = self._now_ns()
        self._sessions = {key: one for key, one in self._sessions.items() if one.ends_ns > now_ns}


def _key(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()


class LoginLimit:
    """So many attempts per minute and address, and ten times as many in all. Not thread-safe."""

    _MAX_ADDRESSES = 1000

    def __init__(self, per_minute: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._now_s = per_minute, now_s
        self._tries: dict[str, list[float]] = {}

    def allows(self, address: str) -> bool:
        now_s = self._now_s()
        for key in (address, ""):
            self._tries[key] = [one for one in self._tries.get(key, []) if now_s - one < 60.0]
        if len(self._tries[address]) >= self._per_minute or len(self._tries[""]) >= 10 * self._per_minute:
            return False
        if len(self._tries) > self._MAX_ADDRESSES:
            self._tries = {"": self._tries[""], address: self._tries[address]}
        for key in (address, ""):
            self._tries[key].append(now_s)
        return True
