"""The routes of the page: its files, log-in, the stop by plain HTTP, and the WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from robot_stack.core.errors import AuthenticationError, MessageError, MissingDependencyError
from robot_stack.teleop.access import LoginLimit, Session, Sessions, Tokens
from robot_stack.teleop.audit import Audit
from robot_stack.teleop.config import TeleopConfig
from robot_stack.teleop.device_desk import DeviceDesk
from robot_stack.teleop.hub import EXPIRED, Hub
from robot_stack.teleop.messages import Role, decode_page_message
from robot_stack.teleop.page import MALFORMED_COSTS, Page
from robot_stack.teleop.robot import RobotLink

try:
    from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
    from fastapi.staticfiles import StaticFiles
except ImportError as error:
    raise MissingDependencyError("fastapi", "gui", "the teleop server") from error

STATIC = Path(__file__).parent / "static"
COOKIE = "teleop"
MAX_BODY_BYTES = 2000
STOP_WAIT_S = 6.0
CLOSE_EXPIRED, CLOSE_FLOOD, CLOSE_LOGIN = 4401, 4429, 4403
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class LoginBody(Struct, frozen=True, forbid_unknown_fields=True):
    token: str


class StopBody(Struct, frozen=True, forbid_unknown_fields=True):
    robot: str


class Site:
    """What the routes share. `hub` exists while the server runs.

    Args:
        robots: entered links, by name. desk: of the input devices. secure: it is served by https. names: hosts
            under which browsers may call it.
    """

    def __init__(
        self,
        config: TeleopConfig,
        robots: dict[str, RobotLink],
        tokens: Tokens,
        audit: Audit,
        desk: DeviceDesk,
        *,
        secure: bool,
        names: frozenset[str],
    ) -> None:
        self.config, self.robots, self.tokens, self.audit, self.desk = config, robots, tokens, audit, desk
        self.secure, self._names = secure, names
        self.sessions = Sessions(config.session_s)
        self._limit = LoginLimit(config.logins_per_minute)
        self.hub: Hub | None = None

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The hub, for as long as the server runs."""
        self.hub = Hub(self.robots, self.desk, self.audit, self.config.state_rate_hz)
        task = asyncio.create_task(self.hub.run())
        try:
            yield
        finally:
            self.hub = None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def foreign(self, host: str, origin: str | None) -> str:
        """Why a request of another site's page is refused, or ''. Browsers send both headers by themselves."""
        if urlsplit(f"//{host}").hostname not in self._names:
            return f"this server is not called '{host}'; allowed: {', '.join(sorted(self._names))}"
        if origin is not None and origin != f"{'https' if self.secure else 'http'}://{host}":
            return f"the request comes from another site's page ({origin})"
        return ""

    def session(self, cookie: str | None) -> Session | None:
        return None if cookie is None else self.sessions.find(cookie)

    async def login(self, request: Request) -> Response:
        address = _address(request)
        if not self._limit.allows(address):
            self.audit.note("", "", address, "", "log in", "too many attempts")
            return _answer(429, error="too many attempts to log in; wait a minute")
        try:
            body = msgspec.json.decode(await _body(request), type=LoginBody)
            record = await asyncio.to_thread(self.tokens.check, body.token)
        except (msgspec.DecodeError, MessageError) as error:
            return _answer(400, error=f"the request is malformed: {error}")
        except AuthenticationError as error:
            self.audit.note("", "", address, "", "log in", "unknown token")
            return _answer(401, error=str(error))
        response = _answer(200, user=record.user, role=record.role.value)
        response.set_cookie(
            COOKIE,
            self.sessions.open(record.user, record.role),
            max_age=round(self.config.session_s),
            httponly=True,
            secure=self.secure,
            samesite="strict",
        )
        self.audit.note(record.user, record.role.value, address, "", "log in", "done")
        return response

    async def logout(self, request: Request) -> Response:
        cookie = request.cookies.get(COOKIE, "")
        self.sessions.close(cookie)
        if self.hub is not None:
            self.hub.logged_out(cookie)
        response = _answer(200)
        response.delete_cookie(COOKIE)
        return response

    async def who(self, request: Request) -> Response:
        session = self.session(request.cookies.get(COOKIE))
        if session is None:
            return _answer(401, error=EXPIRED if COOKIE in request.cookies else "")
        return _answer(200, user=session.user, role=session.role.value)

    async def stop(self, request: Request) -> Response:
        """The stop button's second way: works without a WebSocket, and behind no other message."""
        session = self.session(request.cookies.get(COOKIE)) or Session(user="", role=Role.VIEWER, ends_ns=0)
        try:
            body = msgspec.json.decode(await _body(request), type=StopBody)
        except (msgspec.DecodeError, MessageError) as error:
            return _answer(400, error=f"the request is malformed: {error}")
        if self.hub is None:
            return _answer(503, error="the server is ending")
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        refusal = self.hub.stop(
            session, _address(request), body.robot, lambda problem: None if told.done() else told.set_result(problem)
        )
        if refusal:
            return _answer(403, error=refusal)
        try:
            problem = await asyncio.wait_for(told, STOP_WAIT_S)
        except asyncio.TimeoutError:
            problem = "the robot server does not answer"
        return _answer(502, error=problem) if problem else _answer(200)

    async def talk(self, socket: WebSocket) -> None:
        """One page's WebSocket, from its log-in to its end."""
        refusal = self.foreign(socket.headers.get("host", ""), socket.headers.get("origin", ""))
        if refusal or self.hub is None:
            await socket.close(1008, refusal)
            return
        await socket.accept()
        cookie = socket.cookies.get(COOKIE)
        session = self.session(cookie)
        if session is None or cookie is None:
            await socket.close(CLOSE_LOGIN, "log in first" if cookie is None else EXPIRED)
            return
        hub = self.hub
        page = hub.enter(session, cookie, _address(socket), self.config.message_rate_hz)
        writer = asyncio.create_task(_write(hub, page, socket))
        try:
            await _read(hub, page, socket)
        finally:
            hub.leave(page)
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await writer


async def _read(hub: Hub, page: Page, socket: WebSocket) -> None:
    while True:
        event = await socket.receive()
        if event["type"] == "websocket.disconnect":
            return
        if not page.may_speak():
            if page.floods:
                page.refuse("this page sends too many messages; the connection is closed")
                await socket.close(CLOSE_FLOOD, "too many messages")
                return
            continue
        text = event.get("text")
        try:
            message = decode_page_message(event.get("bytes") or b"" if text is None else text)
        except MessageError as error:
            page.refuse(str(error))
            page.may_speak(MALFORMED_COSTS)
            continue
        hub.take_in(page, message)


async def _write(hub: Hub, page: Page, socket: WebSocket) -> None:
    """Send what is newest whenever the page can take it; a slow page waits here alone."""
    while True:
        await page.wake.wait()
        page.wake.clear()
        over = hub.expired(page)
        for text in page.texts():
            await socket.send_text(text)
        if over:
            await socket.close(CLOSE_EXPIRED, EXPIRED)
            return
        for picture in page.pictures():
            await socket.send_bytes(picture)


def build_app(site: Site) -> FastAPI:
    """The application; its robots are connected by whoever made the site."""
    app = FastAPI(lifespan=site.running, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if request.method == "POST" and origin is None:
            origin = ""
        refusal = site.foreign(request.headers.get("host", ""), origin)
        response = _answer(403, error=refusal) if refusal else await call_next(request)
        response.headers.update(_HEADERS)
        return response

    app.add_api_route("/api/login", site.login, methods=["POST"], response_model=None)
    app.add_api_route("/api/logout", site.logout, methods=["POST"], response_model=None)
    app.add_api_route("/api/who", site.who, methods=["GET"], response_model=None)
    app.add_api_route("/api/stop", site.stop, methods=["POST"], response_model=None)
    app.add_api_websocket_route("/ws", site.talk)
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


async def _body(request: Request) -> bytes:
    """MessageError if it is larger than any of ours."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise MessageError(f"a body has {MAX_BODY_BYTES} bytes at most")
    return body


def _answer(status: int, **fields: str) -> Response:
    return Response(msgspec.json.encode(fields), status_code=status, media_type="application/json")


def _address(connection: Request | WebSocket) -> str:
    return "" if connection.client is None else connection.client.host
