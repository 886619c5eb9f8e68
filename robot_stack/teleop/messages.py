"""What browsers and the teleop server say to each other over one WebSocket per page.

Text frames are JSON, decoded by type with unknown fields forbidden; binary frames are pictures (`pictures.py`). Times
are microseconds of the teleop server's monotonic clock, which JavaScript's numbers hold exactly; a page measures its
distance to that clock with `Ping`.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from robot_stack.core.errors import MessageError
from robot_stack.core.messages import Features, Lifecycle
from robot_stack.core.seat import EpisodeRef, Intent, SeatInfo, SeatState
from robot_stack.teleop.config import RobotStatus, Skeleton

MAX_MESSAGE_BYTES = 16 * 1024
MAX_MOVES = 64

Name = Annotated[str, Meta(max_length=64)]
Words = Annotated[str, Meta(max_length=2000)]


class Role(enum.Enum):
    """VIEWER sees. OPERATOR drives, labels and stops. ADMIN also takes control by force."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


# ---- from the page ----------------------------------------------------------------------------------------------


class FromPage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag=str.lower):
    """Tagged by the lower-case name of its class."""


class Ping(FromPage, frozen=True, kw_only=True):
    """`sent_us`: the page's clock, given back as it is."""

    sent_us: float


class Watch(FromPage, frozen=True, kw_only=True):
    """Show this robot, and pictures of these cameras."""

    robot: Name
    cameras: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()


class Ack(FromPage, frozen=True, kw_only=True):
    """The page has shown `number` of that camera's pictures, or of the states (camera ''), and can take more."""

    number: int
    camera: Name = ""


class Take(FromPage, frozen=True, kw_only=True):
    """Take control of the robot. `force`: from whoever has it; an admin's right."""

    robot: Name
    force: bool = False


class Ask(FromPage, frozen=True, kw_only=True):
    """Ask the holder for control."""

    robot: Name


class Grant(FromPage, frozen=True, kw_only=True):
    """The holder gives control to the page that asked for it."""

    robot: Name
    page: int


class Leave(FromPage, frozen=True, kw_only=True):
    robot: Name


class Drive(FromPage, frozen=True, kw_only=True):
    """`robot_stack.core.seat.Drive`, with the deadline on the teleop server's clock; `seq` counts on this socket."""

    robot: Name
    seq: int
    deadline_us: int
    intent: Intent
    moves: Annotated[dict[Name, float], Meta(max_length=MAX_MOVES)] = {}
    speed: float = 0.5
    to_index: int = -1


class UseDevice(FromPage, frozen=True, kw_only=True):
    """Drive with an input device of the server's host, to recover or to correct; '' for the page's own keys."""

    robot: Name
    device: Name
    intent: Intent = Intent.RECOVER


class Switch(FromPage, frozen=True, kw_only=True):
    """The dead man's switch of a device that has none is held on the page until then, on the teleop server's clock; a
    time that is past lets go."""

    robot: Name
    until_us: int


class Label(FromPage, frozen=True, kw_only=True):
    robot: Name
    episode: EpisodeRef
    success: bool | None = None
    reset_needed: bool = False
    discard: bool = False
    note: Words = ""


class Ready(FromPage, frozen=True, kw_only=True):
    """The scene was set up by hand."""

    robot: Name


class Stop(FromPage, frozen=True, kw_only=True):
    robot: Name


PageMessage = Ping | Watch | Ack | Take | Ask | Grant | Leave | Drive | UseDevice | Switch | Label | Ready | Stop
_decoder = msgspec.json.Decoder(PageMessage)


def decode_page_message(text: str | bytes) -> PageMessage:
    """MessageError, with what is wrong in words, for anything else."""
    if len(text) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(text)} bytes is larger than the {MAX_MESSAGE_BYTES} allowed here")
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"the message is malformed: {error}") from error


# ---- to the page ------------------------------------------------------------------------------------------------


class ToPage(Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    """Tagged by the lower-case name of its class."""


class Welcome(ToPage, frozen=True, kw_only=True):
    """First message. `page` names this connection; `valid_s`: until the log-in ends."""

    user: str
    role: Role
    page: int
    valid_s: float
    robots: tuple[str, ...]


class Pong(ToPage, frozen=True, kw_only=True):
    sent_us: float
    server_us: int


class Card(ToPage, frozen=True, kw_only=True):
    """What changes seldom. `info` is None until the edge has answered."""

    robot: str
    cameras: tuple[str, ...]
    skeleton: Skeleton | None
    info: SeatInfo | None


class Notice(ToPage, frozen=True, kw_only=True):
    """Words for the person. `level`: info, warning or error. `about`: what they did, or ''."""

    level: str
    text: str
    about: str = ""
    robot: str = ""


class Driven(ToPage, frozen=True, kw_only=True):
    """What became of the page's newest `Drive`."""

    robot: str
    seq: int
    phase: str
    refusal: str


class Expired(ToPage, frozen=True, kw_only=True):
    text: str


class BodyView(Struct, frozen=True, kw_only=True):
    """What the robot server says of the robot."""

    lifecycle: Lifecycle
    fault: str
    held_back: str
    stopping: bool
    moving: bool
    features: Features


class Asker(Struct, frozen=True, kw_only=True):
    page: int
    user: str


class ControlView(Struct, frozen=True, kw_only=True):
    """Who drives (`page` -1: nobody of this server), and who asked to."""

    page: int = -1
    user: str = ""
    askers: tuple[Asker, ...] = ()


class CameraView(Struct, frozen=True, kw_only=True):
    """`age_ms`: of the newest picture, -1 before the first one."""

    name: str
    age_ms: float
    problem: str


class DeviceView(Struct, frozen=True, kw_only=True):
    """An input device of the server's host.

    Attributes:
        state: `ready`, `engaged` (its robot follows it) or `gone`; problem: why, in words.
        robot: for which it was chosen, or ''. silent_ms: since its last reading, -1 before the first.
        needs_switch: the page holds its dead man's switch.
    """

    name: str
    state: str
    problem: str
    robot: str
    silent_ms: float
    needs_switch: bool


class State(ToPage, frozen=True, kw_only=True):
    """The newest of one robot. Ages in ms, -1 before the first message; problems in words, '' for none.

    `number` counts them. `stop_problem`: why the stop button would not reach the robot. `seat_trip_ms`: round trip to
    the edge. `devices`: all of the server's host.
    """

    robot: str
    number: int
    server_us: int
    control: ControlView
    seat: SeatState | None
    seat_age_ms: float
    seat_problem: str
    seat_trip_ms: float
    body: BodyView | None
    body_age_ms: float
    body_problem: str
    stop_problem: str
    cameras: tuple[CameraView, ...]
    status: RobotStatus | None
    devices: tuple[DeviceView, ...] = ()


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise MessageError(f"a value of type {type(value).__name__} cannot be shown")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def encode_for_page(message: ToPage) -> str:
    return _encoder.encode(message).decode()
