"""What a teleop server is told of an input device: one typed record per kind, from one word or a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from robot_stack.core.errors import ConfigError

Gives = Literal["deflection", "pose", "joints"]
"""What of a reading drives the robot: speeds, a place, or joint angles. Of the last two only the changes count."""

MAX_JOINTS = 32
MIN_HAND_RAD = 0.05
Positive = Annotated[float, Meta(gt=0.0)]


class DeviceSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every kind has.

    Attributes:
        name: how people call it.
        max_age_s: a reading that is older counts as nothing held.
        speed: of deflections: share of the robot's full speed at full deflection.
        dead_zone: smaller deflections are none.
        scale: of positions and joints: how far the robot goes for 1 m or 1 rad of the device. Headings go 1 to 1.
        follow_per_s: of places and joints: the robot goes that share of the distance in a second, at first.
        turned_rad: the device's frame is turned by so much about the vertical against the robot's base.
        side: of a robot with two arms, the one that is driven: `left` or `right`.
        mapping: the device's axis, joint or `hand` -> the action's element, or `-element` for the other direction. What
            is not named here goes by the names: `x` -> `dx_m`, `yaw` -> `dyaw_rad`, `elbow` -> `elbow_delta_rad`.
        record: path of a log to write, which kind `replay` plays again; '' for none.
    """

    name: str = ""
    max_age_s: Positive = 0.1
    speed: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.5
    dead_zone: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.1
    scale: Positive = 1.0
    follow_per_s: Annotated[float, Meta(gt=0.0, le=20.0)] = 6.0
    turned_rad: float = 0.0
    side: Literal["", "left", "right"] = ""
    mapping: dict[str, str] = {}
    record: str = ""

    @property
    def drives_by(self) -> Gives:
        raise NotImplementedError


class SpaceMouseSettings(DeviceSettings, frozen=True, kw_only=True, tag="spacemouse"):
    """A SpaceMouse of 3Dconnexion. It has no dead man's switch but itself: let go, it is at rest.

    Attributes:
        model: as pyspacemouse calls it (`SpaceMouse Compact`); '' for the first that is found.
        index: which of several of that model.
        closes, opens: the buttons that close and open the hand, by their numbers.
    """

    model: str = ""
    index: Annotated[int, Meta(ge=0)] = 0
    closes: int = 0
    opens: int = 1

    @property
    def drives_by(self) -> Gives:
        return "deflection"


class LeaderJoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A servo of a leader arm: angle = sign * (its own angle - zero_rad). `id`: on the bus."""

    name: str
    id: Annotated[int, Meta(ge=0, le=252)]
    sign: Literal[1, -1] = 1
    zero_rad: float = 0.0


class LeaderHand(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The servo of a leader arm's trigger: its own angles where the hand is open and where it is closed."""

    id: Annotated[int, Meta(ge=0, le=252)]
    open_rad: float
    closed_rad: float

    def __post_init__(self) -> None:
        if abs(self.open_rad - self.closed_rad) < MIN_HAND_RAD:
            raise ConfigError(
                f"a leader arm's hand opens at {self.open_rad} rad and closes at {self.closed_rad} rad; they must "
                f"differ by {MIN_HAND_RAD} rad"
            )


class LeaderArmSettings(DeviceSettings, frozen=True, kw_only=True, tag="leader_arm"):
    """A passive arm of Dynamixel servos (protocol 2.0), in the manner of GELLO (arXiv 2309.13037).

    Attributes:
        port: serial port; better a name under `/dev/serial/by-id/`, which stays the same.
        rate_hz: the bus is asked no more often.
    """

    port: str
    joints: Annotated[tuple[LeaderJoint, ...], Meta(min_length=1, max_length=MAX_JOINTS)]
    hand: LeaderHand | None = None
    baud_rate: int = 57_600
    rate_hz: Positive = 100.0

    def __post_init__(self) -> None:
        names = [joint.name for joint in self.joints]
        ids = [joint.id for joint in self.joints] + ([self.hand.id] if self.hand else [])
        if len(set(names)) < len(names) or len(set(ids)) < len(ids):
            raise ConfigError(f"a leader arm's servos need names and ids of their own; given: {names}, ids {ids}")

    @property
    def drives_by(self) -> Gives:
        return "joints"


class Ros2Settings(DeviceSettings, frozen=True, kw_only=True):
    """A topic of ROS 2, which asks nobody for a key: `loopback_only` false reaches other machines.

    Attributes:
        domain_id: DDS domain; -1 for the environment's ROS_DOMAIN_ID.
        held_button: number of the joystick's button that is the dead man's switch; -1: none.
    """

    topic: str
    domain_id: int = -1
    loopback_only: bool = True
    held_button: int = -1


class Ros2JoySettings(Ros2Settings, frozen=True, kw_only=True, tag="ros2_joy"):
    """sensor_msgs/Joy. `axes`: what the message's axes are, in its order, '' for one that does nothing. `joy_node` has
    to repeat itself (autorepeat_rate 20 Hz or more), or what is held still gets too old."""

    topic: str = "joy"
    axes: tuple[str, ...] = ("y", "x", "", "yaw", "z")

    @property
    def drives_by(self) -> Gives:
        return "deflection"


class Ros2PoseSettings(Ros2Settings, frozen=True, kw_only=True, tag="ros2_pose"):
    """geometry_msgs/PoseStamped. `joy_topic`: of the sensor_msgs/Joy with its dead man's switch; '' for none."""

    joy_topic: str = ""

    @property
    def drives_by(self) -> Gives:
        return "pose"


class Ros2JointStateSettings(Ros2Settings, frozen=True, kw_only=True, tag="ros2_joint_state"):
    """sensor_msgs/JointState of a leader arm. `joy_topic` as above."""

    joy_topic: str = ""

    @property
    def drives_by(self) -> Gives:
        return "joints"


class ZeroMqSettings(DeviceSettings, frozen=True, kw_only=True, tag="zeromq"):
    """A bridge of our own kind: it publishes `DeviceReading` on the service `teleop.device`, encrypted.

    Attributes:
        address: of the bridge. keys_directory: where our key lies, and the public half of the bridge's.
        key: ours, of role operator. server_key: the bridge's, of role device.
    """

    address: str
    keys_directory: str
    key: str = "operator"
    server_key: str = "device"
    gives: Gives = "pose"

    @property
    def drives_by(self) -> Gives:
        return self.gives


class ReplaySettings(DeviceSettings, frozen=True, kw_only=True, tag="replay"):
    """A log that was recorded with `record`, played once each time it is chosen."""

    path: str
    gives: Gives = "deflection"

    def __post_init__(self) -> None:
        if self.record:
            raise ConfigError("a log that is played is not recorded again; leave 'record' out")

    @property
    def drives_by(self) -> Gives:
        return self.gives


_RECORDS: tuple[type[DeviceSettings], ...] = (
    SpaceMouseSettings,
    LeaderArmSettings,
    Ros2JoySettings,
    Ros2PoseSettings,
    Ros2JointStateSettings,
    ZeroMqSettings,
    ReplaySettings,
)
KINDS: dict[str, type[DeviceSettings]] = {str(record.__struct_config__.tag): record for record in _RECORDS}


def device_settings(name: str, given: str) -> DeviceSettings:
    """The settings of the device `name`, from a kind (`spacemouse`: as they come) or from the path of a JSON file.

    ConfigError if there is no such kind or file, or what it says is wrong.
    """
    if given in KINDS:
        return _convert(name, given, {"kind": given})
    path = Path(given)
    if path.suffix != ".json":
        raise ConfigError(
            f"device '{name}': there is no kind '{given}'; there are: {', '.join(KINDS)}. Or give the path of a JSON "
            "file with the key 'kind' and the settings of that kind"
        )
    try:
        plain = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except OSError as error:
        raise ConfigError(f"device '{name}': {path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"device '{name}': {path} is no JSON object: {error}") from error
    return _convert(name, str(path), plain)


def _convert(name: str, source: str, plain: dict[str, object]) -> DeviceSettings:
    kind = plain.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"device '{name}' ({source}): there is no kind {kind!r}; there are: {', '.join(KINDS)}")
    try:
        return msgspec.convert({**plain, "name": name}, KINDS[kind])
    except msgspec.ValidationError as error:
        raise ConfigError(f"device '{name}' ({source}): {error}") from error
