"""Settings of the camera drivers and of the process that owns a camera.

Every driver has: name of the camera, also its image feature's (`observation.images.<name>`); width, height in pixels
and rate_hz, which the device has to deliver exactly; latency_s, from exposure to arrival on this host, as measured (it
is taken off the stamp).
"""

from __future__ import annotations

from msgspec import Struct


class RealSenseConfig(Struct, frozen=True, kw_only=True, tag_field="driver", tag="realsense"):
    """An Intel RealSense through pyrealsense2. serial: on its label, or what `rs-enumerate-devices -s` prints.

    model: D435i or D405. depth: also depth, aligned to the colour picture.
    """

    name: str
    serial: str
    model: str = "D435i"
    width: int = 640
    height: int = 480
    rate_hz: float = 30.0
    latency_s: float = 0.0
    depth: bool = False


class Ros2CameraConfig(Struct, frozen=True, kw_only=True, tag_field="driver", tag="ros2"):
    """A camera that a ROS 2 node drives. topic: sensor_msgs/Image, or CompressedImage with `compressed`.

    depth_topic: sensor_msgs/Image 16UC1 in mm, aligned to the colour picture, or '' for none. namespace: of our node.
    domain_id: DDS domain, -1 for the environment's. loopback_only: false to reach other machines.
    connect_timeout_s: how long the first picture may take.
    """

    name: str
    topic: str
    depth_topic: str = ""
    compressed: bool = False
    width: int = 640
    height: int = 480
    rate_hz: float = 30.0
    latency_s: float = 0.0
    namespace: str = ""
    domain_id: int = -1
    loopback_only: bool = True
    connect_timeout_s: float = 1.5


class UvcConfig(Struct, frozen=True, kw_only=True, tag_field="driver", tag="uvc"):
    """A webcam or a video file through OpenCV. device: index (`0`), path (`/dev/video0`), or path of a video file.

    loop: begin a video file again at its end, instead of an error.
    """

    name: str
    device: str = "0"
    width: int = 640
    height: int = 480
    rate_hz: float = 30.0
    latency_s: float = 0.0
    loop: bool = False


class SimulatedCameraConfig(Struct, frozen=True, kw_only=True, tag_field="driver", tag="sim"):
    """A camera of a simulated robot, rendered by whatever function it is given."""

    name: str
    width: int = 640
    height: int = 480
    rate_hz: float = 30.0
    latency_s: float = 0.0


CameraConfig = RealSenseConfig | Ros2CameraConfig | UvcConfig | SimulatedCameraConfig


class CameraServerConfig(Struct, frozen=True, kw_only=True):
    """The process of one camera. address: its stream's, every camera has one of its own.

    max_age_s: an older picture is not published. give_up_s: without a fresh picture for so long, or with a driver that
    does not return for so long, the process ends, and its supervisor starts it again.
    """

    address: str = "tcp://127.0.0.1:7740"
    max_age_s: float = 0.2
    give_up_s: float = 5.0
