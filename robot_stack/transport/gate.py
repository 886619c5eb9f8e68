"""The serving end's gate: who may connect (ZAP), and who was turned away (ZAP and the socket monitor).

ZeroMQ refuses a wrong key without a word to anybody. Here every refusal is recorded and logged with the peer's
address. A CURVE server without a ZAP handler would let *every* key in; ZAP_ENFORCE_DOMAIN makes it let nobody in.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import zmq
from zmq.utils import z85

from robot_stack.core.errors import ConfigError, TransportError
from robot_stack.transport.backlog import Backlog, peer_address
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.services import Pattern, Service
from robot_stack.transport.wire import Throttle, check_address, set_common_options

_log = logging.getLogger(__name__)

_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_REFRESH_S = 0.2
_LOG_PERIOD_S = 1.0
_KEPT_REFUSALS = 256
_WATCHED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_MONITOR_STOPPED
)
_PROTOCOL_REASONS = {
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it expects another server key than ours: give it our public record",
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it does not use CURVE",
}
_UNKNOWN_ADDRESS = "an unknown address"


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom an authenticated key belongs to."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class RefusedPeer:
    """A peer that was turned away, and why, in words. `stamp_ns` is this host's monotonic clock.

    `address` is the peer's host; for a handshake that failed before a key was seen, host and port. libzmq may close
    such a link before we can ask whose it is: then the address is "an unknown address" until the peer tries again.
    """

    stamp_ns: int
    address: str
    reason: str


class RefusalLog:
    """The newest refusals (`peers`) and the count of all; each kind is logged at most once a second per host."""

    def __init__(self, service_name: str) -> None:
        self.peers: deque[RefusedPeer] = deque(maxlen=_KEPT_REFUSALS)
        self.count = 0
        self._service_name = service_name
        self._throttle = Throttle(_LOG_PERIOD_S)

    def add(self, address: str, reason: str) -> None:
        self.count += 1
        self.peers.append(RefusedPeer(time.monotonic_ns(), address, reason))
        if self._throttle.allows(address.partition(":")[0], reason):
            _log.warning(
                "%s refused a peer at %s: %s (refused so far: %d; see who may connect: robot-stack keys list)",
                self._service_name,
                address,
                reason,
                self.count,
            )


class Gatekeeper:
    """A thread beside one serving socket: answers ZAP, watches the monitor, reads the allow-list again.

    Reading the allow-list here keeps the disk out of the message path: `peer` is a look-up in a table that is at
    most `_REFRESH_S` old. The table is replaced whole, never changed, so the look-up needs no lock.
    """

    def __init__(self, service: Service, keys: KeyStore, refusals: RefusalLog) -> None:
        self._service = service
        self._keys = keys
        self._refusals = refusals
        self._allowed: dict[bytes, Peer] = {}
        self._admitted: frozenset[bytes] = frozenset()
        self._accepted: dict[int, str] = {}
        self._failed_handshake = ""
        self._backlog = Backlog(service.max_message_bytes) if service.pattern is Pattern.REQUEST else None
        self._thread: threading.Thread | None = None
        self.admitted_was_revoked = False

    def start(self, context: zmq.Context[zmq.Socket[bytes]], served: zmq.Socket[bytes]) -> None:
        """Call before `served` is bound; ConfigError if there is no allow-list."""
        self._refresh()
        zap = context.socket(zmq.ROUTER)
        zap.setsockopt(zmq.LINGER, 0)
        zap.bind(_ZAP_ADDRESS)
        monitor = served.get_monitor_socket(_WATCHED)
        monitor.setsockopt(zmq.LINGER, 0)
        name = f"gate {self._service.name}"
        self._thread = threading.Thread(target=self._run, args=(zap, monitor), name=name, daemon=True)
        self._thread.start()

    def stop(self, served: zmq.Socket[bytes]) -> None:
        """Ends the thread; from now on nobody new is let in."""
        if self._thread is not None:
            served.disable_monitor()  # the thread reads the last event, MONITOR_STOPPED, and leaves
            self._thread.join()
            self._thread = None

    def peer(self, user_id: str) -> Peer | None:
        """Whose key this is, or None if it is no longer authorised here."""
        peer = self._allowed.get(user_id.encode())
        return peer if peer is not None and peer.role in self._service.roles else None

    def heard_from(self, frame: zmq.Frame) -> None:
        """Call with the first frame of every message that was read whole: its connection holds nothing back."""
        if self._backlog is not None:
            self._backlog.heard(int(frame.get(zmq.SRCFD)))

    def _run(self, zap: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        refresh_at_s = 0.0
        poller = zmq.Poller()
        poller.register(zap, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        serving = True
        while serving:
            try:
                ready = dict(poller.poll(int(_REFRESH_S * 1000)))
                if monitor in ready:
                    serving = self._watch(monitor.recv_multipart())
                if zap in ready:
                    self._answer(zap)
                if time.monotonic() >= refresh_at_s:
                    self._refresh()
                    for address, reason in self._backlog.cut() if self._backlog is not None else ():
                        self._refusals.add(address, reason)
                    refresh_at_s = time.monotonic() + _REFRESH_S
            except Exception:
                # Nobody reads the monitor if this thread dies, and libzmq blocks. So: admit nobody, say so, go on.
                self._allowed = {}
                _log.exception("the gate of %s failed; nobody is authorised until it recovers", self._service.name)
                time.sleep(_REFRESH_S)
        zap.close()
        monitor.close()

    def _refresh(self) -> None:
        authorised = self._keys.authorised()
        self._allowed = {key: Peer(name, role) for key, (name, role) in authorised.items()}
        self.admitted_was_revoked = bool(self._admitted - self._allowed.keys())

    def _answer(self, zap: zmq.Socket[bytes]) -> None:
        routing, _, version, request_id, _, address, _, mechanism, *credentials = zap.recv_multipart()
        key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
        self._refresh()  # the key may have been made, or revoked, a moment ago
        reason = self._why_refused(key)
        if reason:
            self._refusals.add(address.decode("ascii", "replace"), reason)
            verdict = [b"400", b"refused", b"", b""]
        else:
            self._admitted |= {key}
            verdict = [b"200", b"OK", key, b""]  # the key becomes the User-Id of every message of this peer
        zap.send_multipart([routing, b"", version, request_id, *verdict])

    def _why_refused(self, key: bytes) -> str:
        peer = self._allowed.get(key)
        if peer is None:
            return f"its key {key.decode()} is not on the allow-list (unknown or revoked)"
        if peer.role not in self._service.roles:
            return f"its key '{peer.name}' has the role {peer.role.value}, allowed here: {_names(self._service.roles)}"
        return ""

    def _watch(self, event_frames: list[bytes]) -> bool:
        """Take one monitor event; False after the last.

        A failed handshake names no connection, but libzmq closes that connection in the next breath and names it then.
        """
        event, value = struct.unpack("=HI", event_frames[0])
        if event == zmq.EVENT_ACCEPTED:
            self._accepted[value] = peer_address(value) or _UNKNOWN_ADDRESS
            if self._backlog is not None:
                self._backlog.accepted(value, self._accepted[value])
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._accepted.pop(value, _UNKNOWN_ADDRESS)
            if self._backlog is not None:
                self._backlog.disconnected(value)
            if self._failed_handshake:
                self._refusals.add(address, self._failed_handshake)
                self._failed_handshake = ""
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._failed_handshake = _PROTOCOL_REASONS.get(value, f"it speaks another protocol (error {value:#x})")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._failed_handshake = "it left or fell silent before it showed a key; maybe it does not use CURVE"
        return bool(event != zmq.EVENT_MONITOR_STOPPED)


class BoundSocket:
    """A bound CURVE socket in its own ZeroMQ context, with its gatekeeper. A context has room for one ZAP handler."""

    def __init__(self, socket_type: int, service: Service, keys: KeyStore, key_name: str) -> None:
        self.refusals = RefusalLog(service.name)
        self.address = ""
        self._socket_type = socket_type
        self._service = service
        self._keys = keys
        self._key_name = key_name
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._gate = Gatekeeper(service, keys, self.refusals)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            raise TransportError(f"{self._service.name} is not open; use it in a 'with' block")
        return self._socket

    @property
    def gate(self) -> Gatekeeper:
        return self._gate

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self, address: str) -> None:
        """Bind; `address` then names the port. ConfigError for a bad key or address, TransportError if it is taken."""
        check_address(address)
        pair = self._keys.load(self._key_name)
        if pair.role is not self._service.server_role:
            raise ConfigError(
                f"{self._service.name} is served with a key of role {self._service.server_role.value}; "
                f"'{pair.name}' has the role {pair.role.value}"
            )
        self._context = zmq.Context()
        self._socket = self._context.socket(self._socket_type)
        self._gate = Gatekeeper(self._service, self._keys, self.refusals)
        try:
            self._set_options(self._socket, pair.public_key, pair.secret_key)
            self._gate.start(self._context, self._socket)
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(
                f"{self._service.name} cannot listen at {address}: {error.strerror}; "
                "stop the program that uses this port, or choose another port"
            ) from error
        except BaseException:
            self.close()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\x00")

    def close(self) -> None:
        if self._socket is not None:
            self._gate.stop(self._socket)
            self._socket = None
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def _set_options(self, socket: zmq.Socket[bytes], public_key: bytes, secret_key: bytes) -> None:
        set_common_options(socket, self._service, self._service.max_message_bytes)
        if self._service.queue:
            socket.setsockopt(zmq.RCVHWM, self._service.queue)
            socket.setsockopt(zmq.SNDHWM, self._service.queue)
        else:
            socket.setsockopt(zmq.CONFLATE, 1)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, public_key)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret_key)
        socket.setsockopt(zmq.ZAP_DOMAIN, self._service.name.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def _names(roles: Iterable[Role]) -> str:
    return ", ".join(sorted(role.value for role in roles))
