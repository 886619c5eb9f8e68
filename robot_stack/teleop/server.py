"""The teleop server: robots, tokens, certificate and page, for as long as it is entered."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from robot_stack.core.errors import ConfigError, MissingDependencyError, TransportError
from robot_stack.teleop.access import Tokens
from robot_stack.teleop.audit import Audit
from robot_stack.teleop.certificate import ensure_certificate
from robot_stack.teleop.config import TeleopConfig
from robot_stack.teleop.device_desk import DeviceDesk
from robot_stack.teleop.messages import MAX_MESSAGE_BYTES
from robot_stack.teleop.robot import RobotLink, Status

if TYPE_CHECKING:
    import uvicorn

    from robot_stack.teleop.app import Site

logger = logging.getLogger(__name__)

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
START_S = 20.0
PING_EVERY_S, PING_TIMEOUT_S = 5.0, 10.0
_NO_STATUSES: Mapping[str, Status] = MappingProxyType({})


class TeleopServer:
    """Serves the page while entered, in a thread of its own.

    Args:
        statuses: by the name of a robot, what else is known of it; called often, must not block.

    Attributes:
        new_tokens: by user, the tokens that were made at this start: to be shown once, and written nowhere.
        url: where the page is.

    Raises (on entering):
        MissingDependencyError: an extra package is not installed.
        ConfigError: it would listen beyond loopback without TLS, or the tokens cannot be used.
        TransportError: the port cannot be listened at.
    """

    def __init__(self, config: TeleopConfig, statuses: Mapping[str, Status] = _NO_STATUSES) -> None:
        self.config, self._statuses = config, statuses
        self._opened = ExitStack()
        self.new_tokens: dict[str, str] = {}
        self.url = ""

    def __enter__(self) -> TeleopServer:
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def _open(self) -> None:
        from robot_stack.teleop.app import Site, build_app

        config, directory = self.config, Path(self.config.directory)
        check_config(config)
        tokens, audit = Tokens(directory / "tokens.json"), Audit(directory / "audit.jsonl")
        audit.open()
        self.new_tokens = tokens.ensure()
        listener = self._opened.enter_context(_listen(config))
        names = LOOPBACK_NAMES | {name.lower() for name in (config.host, *config.host_names, socket.gethostname())}
        secure = config.tls
        robots: dict[str, RobotLink] = {}
        desk = DeviceDesk(config.devices, robots)
        site = Site(config, robots, tokens, audit, desk, secure=secure, names=frozenset(names))
        for robot in config.robots:
            lost = partial(_lost, site, robot.name)
            status = self._statuses.get(robot.name, _nothing)
            robots[robot.name] = self._opened.enter_context(RobotLink(config, robot, status, lost))
        self._opened.enter_context(desk)
        certificate = ensure_certificate(directory, sorted(names)) if secure else None
        self._opened.enter_context(_Serving(_uvicorn(build_app(site), certificate), listener))
        self.url = f"{'https' if secure else 'http'}://{config.host}:{listener.getsockname()[1]}/"
        logger.info("the teleop page is at %s", self.url)


def check_config(config: TeleopConfig) -> None:
    """ConfigError unless it may be served like this."""
    names = [robot.name for robot in config.robots]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"a teleop server needs robots with names of their own; it has: {', '.join(names) or 'none'}")
    if not is_loopback(config.host) and not config.tls:
        raise ConfigError(
            f"the teleop server would listen at {config.host}, beyond this machine, without TLS: everybody there could "
            "read tokens and drive robots; set tls, or listen at 127.0.0.1"
        )
    for name, value in (("camera_rate_hz", config.camera_rate_hz), ("state_rate_hz", config.state_rate_hz)):
        if not 1.0 <= value <= 60.0:
            raise ConfigError(f"{name} is {value}; allowed: 1 to 60")
    if not 1 <= config.jpeg_quality <= 100:
        raise ConfigError(f"jpeg_quality is {config.jpeg_quality}; allowed: 1 to 100")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(config: TeleopConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise TransportError(
            f"the teleop server cannot listen at {config.host}:{config.port}: {error.strerror}; choose another port"
        ) from error
    return listener


def _lost(site: Site, robot: str, words: str) -> None:
    if site.hub is not None:
        site.hub.lost(robot, words)


def _nothing() -> None:
    return None


def _uvicorn(app: object, certificate: tuple[Path, Path] | None) -> uvicorn.Server:
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependencyError("uvicorn", "gui", "the teleop server") from error
    settings = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=PING_EVERY_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,
        server_header=False,
        ssl_certfile=None if certificate is None else str(certificate[0]),
        ssl_keyfile=None if certificate is None else str(certificate[1]),
    )
    return uvicorn.Server(settings)


class _Serving:
    """A uvicorn server in its own thread, from ready to ended."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.run, args=([listener],), name="teleop", daemon=True)

    def __enter__(self) -> _Serving:
        self._thread.start()
        waited = threading.Event()
        for _ in range(round(START_S / 0.02)):
            if self._server.started or not self._thread.is_alive():
                break
            waited.wait(0.02)
        if not self._server.started:
            raise TransportError("the teleop server did not start; its log says why")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10.0)
