"""The G1's DDS network through CycloneDDS: the one place that imports it.

Samples go in and come out as CDR bytes: the stock (de)serialisation in Python costs more than a period of the robot's
500 Hz. CycloneDDS still gets the full types, because writers and readers are matched by them.

On the interface `lo` everything stays on this machine: no multicast, which containers often lack, and peers are
looked for on 127.0.0.1 alone. On any other interface discovery is CycloneDDS's own. DDS on the robot has no keys:
whoever is on that network can command the robot, so give it a network interface of its own.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakValueDictionary
from xml.sax.saxutils import quoteattr

from hardware.unitree_g1.messages import MESSAGES, SEQUENCE, Field
from robot_stack.core.errors import MissingDependencyError, RobotError

try:
    from cyclonedds._clayer import ddspy_take, ddspy_write
    from cyclonedds.core import DDSException, Policy, Qos
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.idl import make_idl_struct, types
    from cyclonedds.idl.annotations import autoid, final
    from cyclonedds.pub import DataWriter
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration
except ImportError as error:
    raise MissingDependencyError("cyclonedds", "g1", "the Unitree G1's DDS network") from error

LOOPBACK = "lo"

_DOMAINS: WeakValueDictionary[int, _Domain] = WeakValueDictionary()
_DOMAINS_LOCK = threading.Lock()
_STOCK_TYPES: dict[str, Any] = {}


def stock_type(name: str) -> Any:
    """The CycloneDDS type of a message of `messages.MESSAGES`: a dataclass with `serialize` and `deserialize`."""
    if name not in _STOCK_TYPES:
        fields = {field.name: _idl_type(field) for field in MESSAGES[name]}
        _STOCK_TYPES[name] = final(autoid("sequential")(make_idl_struct(name.rsplit("::", 1)[-1], name, fields)))
    return _STOCK_TYPES[name]


def _idl_type(field: Field) -> Any:
    basic = {"string": str, "bool": bool}
    element = stock_type(field.kind) if field.kind in MESSAGES else basic.get(field.kind) or getattr(types, field.kind)
    if field.length is None:
        return element
    containers: Any = types
    return containers.sequence[element] if field.length == SEQUENCE else containers.array[element, field.length]


def _configuration(interface: str) -> str:
    """CycloneDDS's own configuration, as the text it takes instead of a file."""
    if interface != LOOPBACK:
        network = f"<Interfaces><NetworkInterface name={quoteattr(interface)}/></Interfaces>"
        return f"<CycloneDDS><Domain><General>{network}</General></Domain></CycloneDDS>"
    network = (
        '<Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces><AllowMulticast>false</AllowMulticast>'
    )
    discovery = (
        "<ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>32</MaxAutoParticipantIndex>"
        '<Peers><Peer address="127.0.0.1"/></Peers>'
    )
    return f"<CycloneDDS><Domain><General>{network}</General><Discovery>{discovery}</Discovery></Domain></CycloneDDS>"


class _Domain:
    """A domain of this process, shared by every link that is open in it; closed with the last of them."""

    def __init__(self, domain_id: int, interface: str) -> None:
        self.interface = interface
        self.domain = Domain(domain_id, _configuration(interface))


def _domain(domain_id: int, interface: str) -> _Domain:
    with _DOMAINS_LOCK:
        known = _DOMAINS.get(domain_id)
        if known is None:
            _DOMAINS[domain_id] = known = _Domain(domain_id, interface)
    if known.interface != interface:
        raise RobotError(
            f"DDS domain {domain_id} is open on interface '{known.interface}' in this process, so it cannot be opened "
            f"on '{interface}'; use one interface, or another domain_id"
        )
    return known


class RawWriter:
    """Publishes CDR bytes on one topic. Reliable, newest only: it suits every reader and never waits for one."""

    def __init__(self, participant: Any, topic: str, type_name: str, depth: int) -> None:
        qos = Qos(Policy.Reliability.Reliable(duration(seconds=0)), Policy.History.KeepLast(depth))
        self._topic = topic
        self._writer = DataWriter(participant, Topic(participant, topic, stock_type(type_name)), qos)
        self._handle = self._writer._ref

    def write(self, cdr: bytes) -> None:
        """Takes a multiple of four bytes."""
        code = ddspy_write(self._handle, cdr)
        if code < 0:
            raise RobotError(f"CycloneDDS refused a message of {len(cdr)} bytes on '{self._topic}': error {code}")


class RawReader:
    """Takes CDR bytes from one topic. Best effort: it suits every writer; the network keeps the newest `depth`."""

    def __init__(self, participant: Any, topic: str, type_name: str, depth: int) -> None:
        qos = Qos(Policy.Reliability.BestEffort, Policy.History.KeepLast(depth))
        self._topic = topic
        self._depth = depth
        self._reader = DataReader(participant, Topic(participant, topic, stock_type(type_name)), qos)
        self._handle = self._reader._ref

    def take(self) -> list[bytes]:
        """What arrived since the last call, oldest first; without the data-less sample by which a writer leaves."""
        samples = ddspy_take(self._handle, self._depth)
        if isinstance(samples, int):
            raise RobotError(f"CycloneDDS could not read '{self._topic}': error {samples}")
        return [cdr for cdr, info in samples if info.valid_data]


class DdsLink:
    """One participant in a domain, and its writers and readers. RobotError if the network cannot be opened."""

    def __init__(self, domain_id: int, interface: str) -> None:
        try:
            self._domain: _Domain | None = _domain(domain_id, interface)
            self._participant: Any = DomainParticipant(domain_id)
        except DDSException as error:
            raise RobotError(
                f"CycloneDDS could not open domain {domain_id} on the network interface '{interface}': {error}; "
                "check the interface's name (ip link) and that it is up"
            ) from error

    def writer(self, topic: str, type_name: str, depth: int = 1) -> RawWriter:
        return RawWriter(self._participant, topic, type_name, depth)

    def reader(self, topic: str, type_name: str, depth: int = 1) -> RawReader:
        return RawReader(self._participant, topic, type_name, depth)

    def close(self) -> None:
        """Leave the domain; writers and readers of this link are of no use any more."""
        self._participant = None
        self._domain = None
