"""The service table: every stream and request of the stack, as data.

Rates, roles, size caps, queues and ports are read from here and nowhere else. Default-deny: a role or a request
that is not listed is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from robot_stack.transport.keys import Role

KIB = 1024
MIB = 1024 * KIB


class Pattern(enum.Enum):
    """REQUEST: a client asks, the server answers (DEALER/ROUTER). STREAM: one sends, many watch (PUB/SUB)."""

    REQUEST = "request"
    STREAM = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service.

    Attributes:
        name: unique name, also the ZAP domain.
        pattern: see `Pattern`.
        direction: in words, who sends what to whom.
        server_role: role of the key at the serving end; clients pin that key.
        requests: for each role that may connect, the message types it may send (none on a stream).
        rate_hz: nominal rate; 0 where there is none.
        quota_hz: requests answered per peer and second, bursts of one second included; more are refused.
        quota_bytes_per_s: bytes of requests taken per peer and second, in the same way.
        queue: messages kept per peer while the receiver is busy, or 0: the newest only.
        max_message_bytes: cap of a request, or of a message of a stream, all frames together.
        max_reply_bytes: cap of a reply.
        link_timeout_s: a link that carried nothing for so long is cut, and what waits on it is thrown away. So
            nothing that a client sent arrives much later than this. Must exceed the time of the largest message.
        default_port: TCP port.
        start_with: the command that starts the serving end.
    """

    name: str
    pattern: Pattern
    direction: str
    server_role: Role
    requests: Mapping[Role, frozenset[str]]
    rate_hz: float
    queue: int
    max_message_bytes: int
    link_timeout_s: float
    default_port: int
    start_with: str
    description: str
    quota_hz: float = 0.0
    quota_bytes_per_s: float = 0.0
    max_reply_bytes: int = 0
    roles: frozenset[Role] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", frozenset(self.requests))

    def may_send(self, role: Role, message_type: str) -> bool:
        """Whether a peer of this role may send a request of this type (the class's name)."""
        return message_type in self.requests.get(role, frozenset())


_NONE: frozenset[str] = frozenset()
_WATCH_ROBOT = frozenset({"Hello", "Ping", "GetState", "GetDiagnostics"})
_DRIVE_ROBOT = _WATCH_ROBOT | {"AcquireLease", "ReleaseLease", "Transition", "StopRobot", "ResetEpisode", "Command"}
_SIT = frozenset(
    {"Hello", "Ping", "GetSeat", "TakeSeat", "KeepSeat", "LeaveSeat", "Drive", "LabelEpisode", "SceneReady"}
)

_TABLE = (
    Service(
        name="robot.request",
        pattern=Pattern.REQUEST,
        direction="edge, operator or viewer asks; robot server answers",
        server_role=Role.ROBOT,
        requests={Role.EDGE: _DRIVE_ROBOT, Role.OPERATOR: _DRIVE_ROBOT, Role.VIEWER: _WATCH_ROBOT},
        rate_hz=0.0,
        quota_hz=5000.0,
        quota_bytes_per_s=4 * MIB,
        queue=64,
        max_message_bytes=64 * KIB,
        max_reply_bytes=8 * MIB,
        link_timeout_s=2.0,
        default_port=7710,
        start_with="robot-stack robot-server",
        description="lease, lifecycle, commands and state of one robot",
    ),
    Service(
        name="robot.state",
        pattern=Pattern.STREAM,
        direction="robot server to everybody who watches",
        server_role=Role.ROBOT,
        requests={Role.EDGE: _NONE, Role.OPERATOR: _NONE, Role.VIEWER: _NONE, Role.LEARNER: _NONE},
        rate_hz=100.0,
        queue=0,
        max_message_bytes=8 * MIB,
        link_timeout_s=2.0,
        default_port=7711,
        start_with="robot-stack robot-server",
        description="the newest state of one robot; older ones are dropped for a slow watcher",
    ),
    Service(
        name="learner.request",
        pattern=Pattern.REQUEST,
        direction="edge sends steps and asks for weights, viewer asks for progress; learner answers",
        server_role=Role.LEARNER,
        requests={
            Role.EDGE: frozenset({"Hello", "StepBatch", "GetProgress", "GetWeights"}),
            Role.VIEWER: frozenset({"Hello", "GetProgress"}),
        },
        rate_hz=0.0,
        quota_hz=5000.0,
        quota_bytes_per_s=256 * MIB,
        queue=4,
        max_message_bytes=32 * MIB,
        max_reply_bytes=8 * MIB,
        link_timeout_s=30.0,
        default_port=7720,
        start_with="robot-stack learner",
        description="recorded steps in, acknowledgements and weights out",
    ),
    Service(
        name="scene.request",
        pattern=Pattern.REQUEST,
        direction="robot server or a test asks; vendor-side simulator answers",
        server_role=Role.ROBOT,
        requests={
            Role.ROBOT: frozenset({"Hello", "ResetScene", "GetScene"}),
            Role.OPERATOR: frozenset({"Hello", "GetScene", "InjectFault"}),
            Role.VIEWER: frozenset({"Hello", "GetScene"}),
        },
        rate_hz=0.0,
        quota_hz=1000.0,
        quota_bytes_per_s=4 * MIB,
        queue=16,
        max_message_bytes=64 * KIB,
        max_reply_bytes=8 * MIB,
        link_timeout_s=5.0,
        default_port=7730,
        start_with="robot-stack vendor-sim",
        description="what no vendor's interface has: the scene's reset, its truth, faults on request; simulation only",
    ),
    Service(
        name="scene.state",
        pattern=Pattern.STREAM,
        direction="vendor-side simulator to the robot server",
        server_role=Role.ROBOT,
        requests={Role.ROBOT: _NONE, Role.OPERATOR: _NONE, Role.VIEWER: _NONE},
        rate_hz=100.0,
        queue=0,
        max_message_bytes=64 * KIB,
        link_timeout_s=2.0,
        default_port=7731,
        start_with="robot-stack vendor-sim",
        description="scene, truth and verdict of a simulated episode",
    ),
    Service(
        name="camera.frame",
        pattern=Pattern.STREAM,
        direction="camera process to edge, operator and viewer",
        server_role=Role.ROBOT,
        requests={Role.EDGE: _NONE, Role.OPERATOR: _NONE, Role.VIEWER: _NONE},
        rate_hz=30.0,
        queue=0,
        max_message_bytes=32 * MIB,
        link_timeout_s=2.0,
        default_port=7740,
        start_with="robot-stack camera",
        description="the newest frame of one camera, with capture time, device time and frame number",
    ),
    Service(
        name="seat.request",
        pattern=Pattern.REQUEST,
        direction="teleop server asks for its operators; edge answers",
        server_role=Role.EDGE,
        requests={Role.OPERATOR: _SIT, Role.VIEWER: frozenset({"Hello", "Ping", "GetSeat"})},
        rate_hz=0.0,
        quota_hz=1000.0,
        quota_bytes_per_s=4 * MIB,
        queue=64,
        max_message_bytes=64 * KIB,
        max_reply_bytes=MIB,
        link_timeout_s=2.0,
        default_port=7760,
        start_with="robot-stack edge edge.operator=seat",
        description="the operator's seat of one robot: taking over, driving, labels",
    ),
    Service(
        name="seat.state",
        pattern=Pattern.STREAM,
        direction="edge to every teleop server",
        server_role=Role.EDGE,
        requests={Role.OPERATOR: _NONE, Role.VIEWER: _NONE},
        rate_hz=50.0,
        queue=0,
        max_message_bytes=MIB,
        link_timeout_s=2.0,
        default_port=7761,
        start_with="robot-stack edge edge.operator=seat",
        description="who moves the robot, where it is, and why something was refused; the newest only",
    ),
    Service(
        name="teleop.device",
        pattern=Pattern.STREAM,
        direction="bridge of a person's input device to the teleop server that was told to listen to it",
        server_role=Role.DEVICE,
        requests={Role.OPERATOR: _NONE},
        rate_hz=90.0,
        queue=0,
        max_message_bytes=64 * KIB,
        link_timeout_s=2.0,
        default_port=7770,
        start_with="your bridge, which publishes DeviceReading (docs/teleoperation.md, Devices)",
        description="what a person holds (a VR controller): pose, dead man's switch, hand; the newest only",
    ),
    Service(
        name="policy.request",
        pattern=Pattern.REQUEST,
        direction="edge sends observations; policy server answers with chunks of actions",
        server_role=Role.POLICY,
        requests={Role.EDGE: frozenset({"Hello", "PredictChunk"})},
        rate_hz=0.0,
        quota_hz=500.0,
        quota_bytes_per_s=256 * MIB,
        queue=8,
        max_message_bytes=32 * MIB,
        max_reply_bytes=MIB,
        link_timeout_s=5.0,
        default_port=7750,
        start_with="robot-stack policy-server",
        description="one policy for the edges of several robots: their requests are batched where that pays",
    ),
)

SERVICES: Mapping[str, Service] = {service.name: service for service in _TABLE}
