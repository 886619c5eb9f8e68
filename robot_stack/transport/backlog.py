"""Connections that send and send, but never finish a message.

ZeroMQ caps a frame, and the messages that wait, but not the frames of one message: a peer that never sends the last
one fills the memory, and nobody can see it, since a message appears only when it is whole. The kernel knows better how
much came in over a connection. One that has brought more than a message can need, without a message, is cut; ZeroMQ
then frees what it held.
"""

from __future__ import annotations

import contextlib
import socket as tcp
import struct
import time
from dataclasses import dataclass
from os import dup

MIB = 1 << 20

_SLACK_BYTES = 16 * MIB  # what the kernel itself may hold
_HEARTBEAT_BYTES_PER_S = 4096.0  # far above what heartbeats need
_TCP_INFO_BYTES = 136
_BYTES_RECEIVED = 128  # offset of tcpi_bytes_received in Linux's struct tcp_info


@dataclass(slots=True)
class _Connection:
    address: str
    baseline_bytes: float
    messages: int
    stamp_s: float


class Backlog:
    """Watches the connections of one serving socket. `heard` runs in the server's thread, the rest in the gate's."""

    def __init__(self, max_message_bytes: int) -> None:
        self._allowed_bytes = 2 * max_message_bytes + _SLACK_BYTES
        self._connections: dict[int, _Connection] = {}
        self._messages: dict[int, int] = {}

    def accepted(self, descriptor: int, address: str) -> None:
        self._messages[descriptor] = 0
        self._connections[descriptor] = _Connection(address, 0.0, 0, time.monotonic())

    def disconnected(self, descriptor: int) -> None:
        self._connections.pop(descriptor, None)
        self._messages.pop(descriptor, None)

    def heard(self, descriptor: int) -> None:
        """A whole message of this connection was read."""
        self._messages[descriptor] = self._messages.get(descriptor, 0) + 1

    def cut(self) -> list[tuple[str, str]]:
        """Cut the connections that hold too much back; their addresses, and why, in words."""
        found = []
        for descriptor, connection in list(self._connections.items()):
            held_bytes = self._held_bytes(descriptor, connection)
            if held_bytes > self._allowed_bytes and _shut(descriptor, connection.address):
                del self._connections[descriptor]
                words = f"it sent {held_bytes / MIB:.0f} MiB without finishing a message"
                found.append((connection.address, words))
        return found

    def _held_bytes(self, descriptor: int, connection: _Connection) -> float:
        received = _received_bytes(descriptor, connection.address)
        now_s, messages = time.monotonic(), self._messages.get(descriptor, 0)
        if received is None or messages != connection.messages:
            connection.baseline_bytes = received or 0.0
            connection.messages = messages
        else:
            connection.baseline_bytes += (now_s - connection.stamp_s) * _HEARTBEAT_BYTES_PER_S
        connection.stamp_s = now_s
        return 0.0 if received is None else received - connection.baseline_bytes


def peer_address(descriptor: int) -> str | None:
    """Who is at the other end of a TCP socket that libzmq owns; None if libzmq has closed it already."""
    with contextlib.suppress(OSError), tcp.socket(fileno=dup(descriptor)) as connection:
        host, port, *_ = connection.getpeername()
        return f"{host}:{port}"
    return None


def _received_bytes(descriptor: int, address: str) -> float | None:
    """Payload bytes that came in over this connection; None if the system does not tell, or it is gone."""
    if not hasattr(tcp, "TCP_INFO") or peer_address(descriptor) != address:
        return None
    with contextlib.suppress(OSError), tcp.socket(fileno=dup(descriptor)) as connection:
        info = connection.getsockopt(tcp.IPPROTO_TCP, tcp.TCP_INFO, _TCP_INFO_BYTES)
        if len(info) == _TCP_INFO_BYTES:
            return float(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0])
    return None


def _shut(descriptor: int, address: str) -> bool:
    """End the connection under libzmq, which then cleans up; False if it is gone already."""
    if peer_address(descriptor) != address:
        return False
    with contextlib.suppress(OSError), tcp.socket(fileno=dup(descriptor)) as connection:
        connection.shutdown(tcp.SHUT_RDWR)
        return True
    return False
