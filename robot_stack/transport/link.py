"""The connecting end of a socket: pins the server's key and notices when the server refuses ours.

ZeroMQ reconnects by itself, but stops for good once a server has refused the key; the link is then opened afresh
at the next use, so that a key that is authorised later works without a restart.
"""

from __future__ import annotations

import struct
import time

import zmq

from robot_stack.core.codec import Buffer
from robot_stack.core.errors import AuthenticationError, ConfigError, TransportError, UnreachableError
from robot_stack.transport.keys import KeyPair, KeyStore
from robot_stack.transport.services import Pattern, Service
from robot_stack.transport.wire import OneThread, check_address, set_common_options, to_ms

_CLIENT_QUEUE = 2
_REFUSAL_VALID_S = 3.0
_CONVINCING_FAILURES = 2
_FAILED_AFTER_HELLO = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | _FAILED_AFTER_HELLO | zmq.EVENT_DISCONNECTED
)


class Link:
    """One CURVE socket connected to one server, in its own ZeroMQ context. Deadlines are on `time.monotonic`.

    `losses` counts the connections that were lost: what was asked over one of them is never answered.
    """

    def __init__(
        self, socket_type: int, service: Service, address: str, keys: KeyStore, key_name: str, server_key_name: str
    ) -> None:
        self._socket_type = socket_type
        self._service = service
        self._address = address
        self._keys = keys
        self._key_name = key_name
        self._server_key_name = server_key_name
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._connected = False
        self.losses = 0
        self._refusal = ""
        self._failures = 0
        self._refused_at_s = 0.0
        self._refused_for_good = False
        self._thread = OneThread()

    def open(self) -> None:
        """Begin to connect, in the background; ConfigError or AuthenticationError if a key is missing or revoked."""
        check_address(self._address)
        pair = self._own_key()
        server_key = self._server_key()
        self._context = zmq.Context()
        self._socket = self._context.socket(self._socket_type)
        self._connected = False
        self._refusal = ""
        self._failures = 0
        try:
            self._set_options(self._socket, pair, server_key)
            self._monitor = self._socket.get_monitor_socket(_WATCHED)
            self._socket.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(f"cannot connect to {self._where}: {error.strerror}") from error
        self._refused_for_good = False

    def close(self) -> None:
        if self._socket is not None and self._monitor is not None:
            self._read_monitor(self._monitor)  # libzmq waits on a full monitor, and disabling it waits on libzmq
            self._socket.disable_monitor()
        if self._context is not None:
            self._context.destroy(linger=0)
        self._context = self._socket = self._monitor = None

    def send(self, frames: list[Buffer], deadline_s: float) -> bool:
        """Give the frames to a live connection; False if there is none until the deadline, and then nothing was sent.

        Nothing waits for a connection that may come later: an old request must not run after a reconnect.
        """
        while (socket := self._wait(zmq.POLLOUT, deadline_s)) is not None:
            if not self._is_connected(deadline_s):
                if time.monotonic() >= deadline_s:
                    return False
                continue
            try:
                socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
                return True
            except zmq.Again:
                # The connection was lost between the poll and the send. A first part may lie in the socket: drop it.
                self.close()
                self.open()
        return False

    def _is_connected(self, deadline_s: float) -> bool:
        """Whether there is a connection now; if not, waits until something happens to it, or the deadline.
        AuthenticationError once the server has refused us.

        A connection that was lost takes messages for another moment, and nobody ever hears them.
        """
        if self._monitor is None:
            return False
        self._read_monitor(self._monitor)  # what was lost by now is not the connection that is used now
        if self._refused_for_good:
            self.raise_if_refused()
        if not self._connected:
            zmq.zmq_poll([(self._monitor, zmq.POLLIN)], to_ms(deadline_s - time.monotonic()))
        return self._connected

    def receive(self, deadline_s: float, losses: int | None = None) -> list[Buffer] | None:
        """The frames of the next message; None if there is none until the deadline, or a connection was lost since
        `losses` were counted."""
        while (socket := self._wait(zmq.POLLIN, deadline_s, losses)) is not None:
            try:
                return [frame.buffer for frame in socket.recv_multipart(zmq.NOBLOCK, copy=False)]
            except zmq.Again:
                continue  # the connection was lost between the poll and the reading
        return None

    def raise_if_refused(self) -> None:
        """AuthenticationError if the last handshakes, a moment ago, failed.

        A single one may have failed because the server died in the middle of it; a wrong key fails every time.
        """
        convincing = self._refused_for_good or self._failures >= _CONVINCING_FAILURES
        if convincing and self._refusal and time.monotonic() - self._refused_at_s < _REFUSAL_VALID_S:
            raise AuthenticationError(f"{self._where}: {self._refusal}")

    def unreachable(self, timeout_s: float) -> UnreachableError:
        """The error for a server that said nothing."""
        state = "it is connected but silent" if self._connected else "there is no connection"
        return UnreachableError(
            f"no answer from {self._where} within {timeout_s:g} s ({state}); is it running? "
            f"Start it with: {self._service.start_with}"
        )

    @property
    def _where(self) -> str:
        return f"{self._service.name} at {self._address}"

    def _wait(self, event: int, deadline_s: float, losses: int | None = None) -> zmq.Socket[bytes] | None:
        """The socket once it is ready for `event`; None at the deadline, or when more connections than `losses` were
        lost. AuthenticationError once the server has refused us."""
        self._thread.check()
        if self._refused_for_good:
            self.close()
            self.open()
        if self._socket is None or self._monitor is None:
            raise TransportError(f"the client of {self._where} is not open; use it in a 'with' block")
        while True:
            left_s = deadline_s - time.monotonic()
            ready = dict(zmq.zmq_poll([(self._socket, event), (self._monitor, zmq.POLLIN)], to_ms(left_s)))
            if self._monitor in ready:
                self._read_monitor(self._monitor)
                if self._refused_for_good:
                    self.raise_if_refused()
            if self._socket in ready:
                return self._socket
            if left_s <= 0.0 or (losses is not None and losses != self.losses):
                return None

    def _read_monitor(self, monitor: zmq.Socket[bytes]) -> None:
        while monitor.poll(0):
            event, _ = struct.unpack("=HI", monitor.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
                self._refusal = ""
                self._failures = 0
            elif event == zmq.EVENT_DISCONNECTED:
                self._connected = False
                self.losses += 1
            else:
                self._refused_at_s = time.monotonic()
                self._failures += 1
                self._refused_for_good = self._refused_for_good or event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                self._refusal = self._explain(event)

    def _explain(self, event: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return (
                f"the server refused our key '{self._key_name}': there it is unknown, revoked, or its role may not use "
                "this service; compare with the server's list (robot-stack keys list) and copy our public record to it"
            )
        return (
            f"the handshake failed; most likely the server's key is not the one we know as '{self._server_key_name}', "
            "or another program uses this port; copy the server's public record here (robot-stack keys list)"
        )

    def _own_key(self) -> KeyPair:
        pair = self._keys.load(self._key_name)
        if pair.role not in self._service.roles:
            raise AuthenticationError(
                f"the key '{pair.name}' has the role {pair.role.value}; {self._service.name} lets in: "
                + ", ".join(sorted(role.value for role in self._service.roles))
            )
        return pair

    def _server_key(self) -> bytes:
        server = self._keys.public(self._server_key_name)
        if server.role is not self._service.server_role:
            raise ConfigError(
                f"{self._service.name} is served with a key of role {self._service.server_role.value}; "
                f"the key '{server.name}' named as the server's has the role {server.role.value}"
            )
        return server.public_key

    def _set_options(self, socket: zmq.Socket[bytes], pair: KeyPair, server_key: bytes) -> None:
        if self._service.pattern is Pattern.REQUEST:
            set_common_options(socket, self._service, self._service.max_reply_bytes)
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.SNDHWM, _CLIENT_QUEUE)
            socket.setsockopt(zmq.RCVHWM, self._service.queue)
        else:
            set_common_options(socket, self._service, self._service.max_message_bytes)
            socket.setsockopt(zmq.CONFLATE, 1)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public_key)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret_key)
        socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
