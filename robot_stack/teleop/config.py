"""What a teleop server is told: where it listens, its robots, and what it may show of them."""

from __future__ import annotations

from msgspec import Struct

from robot_stack.core.messages import StopLevel
from robot_stack.teleop.devices.settings import DeviceSettings


class SkeletonLink(Struct, frozen=True, kw_only=True):
    """A frame of a robot's drawing, in its parent's frame at joint value 0.

    Attributes:
        name, parent: of the link, and of the one before it ('' for the base).
        joint: name of the state's element that moves it (`fr3_joint1_rad`); '' for a fixed one.
        origin_m, origin_rpy_rad: pose of the frame in its parent's: translation, then fixed-axis roll, pitch and yaw.
        axis: of the joint, in the link's own frame.
        slides: the joint's value is a distance in m, not an angle in rad.
    """

    name: str
    parent: str = ""
    joint: str = ""
    origin_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    origin_rpy_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    slides: bool = False


class Skeleton(Struct, frozen=True, kw_only=True):
    """How a robot is drawn: parents before children. Joints are looked up by name in all features of the state."""

    links: tuple[SkeletonLink, ...]


class CameraSource(Struct, frozen=True, kw_only=True):
    """A camera to show. `address`: of its process (`camera.frame`); '': the robot server renders it on request."""

    name: str
    address: str = ""
    server_key: str = "robot"


class TeleopRobot(Struct, frozen=True, kw_only=True):
    """A robot of the page: one tab.

    Attributes:
        seat_address, seat_state_address: of its edge. robot_address, state_address: of its robot server.
        keys_directory: where `operator_key` lies, and the public halves of the servers' keys.
        stop_level: what the page's stop button asks for.
    """

    name: str
    seat_address: str
    seat_state_address: str
    robot_address: str
    state_address: str
    keys_directory: str
    cameras: tuple[CameraSource, ...] = ()
    skeleton: Skeleton | None = None
    operator_key: str = "operator"
    edge_key: str = "edge"
    robot_key: str = "robot"
    stop_level: StopLevel = StopLevel.EMERGENCY


class TeleopConfig(Struct, frozen=True, kw_only=True):
    """One teleop server.

    Attributes:
        directory: of its tokens, certificate and audit log; 0700.
        host, port: where it listens; port 0 chooses one. Beyond loopback only with TLS.
        host_names: under which browsers may call it, beside `host`; a request under another name is refused.
        tls: serve https also on loopback.
        session_s: a log-in ends after so long.
        camera_rate_hz: pictures per second and camera, at most. state_rate_hz: states per second.
        jpeg_quality: 1 to 100.
        message_rate_hz: messages that one browser may send.
        logins_per_minute: attempts to log in, per address.
        devices: input devices of this host, each for any of the robots.
    """

    robots: tuple[TeleopRobot, ...]
    directory: str
    host: str = "127.0.0.1"
    port: int = 7780
    host_names: tuple[str, ...] = ()
    tls: bool = False
    session_s: float = 12 * 3600.0
    camera_rate_hz: float = 15.0
    state_rate_hz: float = 15.0
    jpeg_quality: int = 80
    message_rate_hz: float = 150.0
    logins_per_minute: float = 10.0
    devices: tuple[DeviceSettings, ...] = ()


class RobotStatus(Struct, frozen=True, kw_only=True):
    """What the page shows beside the seat's own state. -1 where something is unknown.

    Attributes:
        age_s: how old this is. alarms: in words.
        steps_kept, steps_waiting, steps_dropped: recorded; not yet at the learner; lost.
        spool_bytes, spool_capacity_bytes, disk_free_bytes: of the edge.
        period_ms: wanted control period; jitter_ms: p99 of its distance from that.
        inference_ms: p50 and p99 of a prediction. observation_age_ms: the oldest field's p50.
        updates, weights_version: of the learner. curves: by title, oldest value first.
    """

    age_s: float = -1.0
    alarms: tuple[str, ...] = ()
    steps_kept: int = -1
    steps_waiting: int = -1
    steps_dropped: int = -1
    spool_bytes: int = -1
    spool_capacity_bytes: int = -1
    disk_free_bytes: int = -1
    period_ms: float = -1.0
    jitter_ms: float = -1.0
    inference_ms: tuple[float, float] = (-1.0, -1.0)
    observation_age_ms: float = -1.0
    updates: int = -1
    weights_version: int = -1
    curves: dict[str, tuple[float, ...]] = {}
