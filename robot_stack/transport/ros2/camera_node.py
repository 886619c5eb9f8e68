"""Images in ROS 2: what the robot server renders or grabs, and the streams of camera processes.

`<camera>/image_raw` (rgb8), `<camera>/camera_info`, and `<camera>/depth/image_raw` (16UC1, mm) where there is depth.
Nothing is converted while nobody watches.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import Array, CameraFrame, Features
from robot_stack.core.specs import IMAGES
from robot_stack.transport.ros2.config import Ros2NodeConfig
from robot_stack.transport.ros2.conversions import RosTime, camera_info, color_image, depth_image
from robot_stack.transport.ros2.diagnostics import Health
from robot_stack.transport.ros2.qos import newest_best_effort, newest_reliable
from robot_stack.transport.stream import Subscriber


class ImagePublisher:
    """One camera's topics."""

    def __init__(self, node: Any, camera: str, settings: Ros2NodeConfig) -> None:
        from sensor_msgs.msg import CameraInfo, Image

        self._node = node
        self._camera = camera
        self._qos = newest_reliable() if settings.reliable_images else newest_best_effort()
        self._intrinsics = settings.intrinsics.get(camera)
        self._frame_id = f"{settings.frame_prefix}{camera}_optical_frame"
        self._image = node.create_publisher(Image, f"{camera}/image_raw", self._qos)
        self._info = node.create_publisher(CameraInfo, f"{camera}/camera_info", self._qos)
        self._depth: Any = None

    def publish(self, image: Array, depth_mm: Array | None, stamp_ns: int) -> None:
        """Image uint8 (height, width, 3), depth uint16 (height, width); `stamp_ns` is ROS time."""
        if self._image.get_subscription_count():
            self._image.publish(color_image(image, stamp_ns, self._frame_id))
        if self._info.get_subscription_count():
            self._info.publish(camera_info(image.shape, self._intrinsics, stamp_ns, self._frame_id))
        if depth_mm is not None:
            self._publish_depth(depth_mm, stamp_ns)

    def _publish_depth(self, depth_mm: Array, stamp_ns: int) -> None:
        if self._depth is None:
            from sensor_msgs.msg import Image

            self._depth = self._node.create_publisher(Image, f"{self._camera}/depth/image_raw", self._qos)
        if self._depth.get_subscription_count():
            self._depth.publish(depth_image(depth_mm, stamp_ns, self._frame_id))


class Images:
    """All images of one node: publishers are made as cameras show up."""

    def __init__(self, node: Any, settings: Ros2NodeConfig) -> None:
        self._node = node
        self._settings = settings
        self._publishers: dict[str, ImagePublisher] = {}

    def publish(self, camera: str, image: Array, depth_mm: Array | None, stamp_ns: int) -> None:
        if camera not in self._publishers:
            self._publishers[camera] = ImagePublisher(self._node, camera, self._settings)
        self._publishers[camera].publish(image, depth_mm, stamp_ns)

    def publish_features(self, features: Features, stamp_ns: int) -> None:
        """The `observation.images.*` of a robot's state."""
        for name, value in features.items():
            if name.startswith(IMAGES):
                self.publish(name.removeprefix(IMAGES), value, None, stamp_ns)


class CameraRelay:
    """Passes the newest frames of camera processes on, and counts them."""

    def __init__(self, streams: dict[str, Subscriber[CameraFrame]], images: Images, ros_time: RosTime) -> None:
        self._streams = streams
        self._images = images
        self._ros_time = ros_time
        self._open = ExitStack()
        self._frames = dict.fromkeys(streams, 0)
        self._problems = dict.fromkeys(streams, "")

    def __enter__(self) -> CameraRelay:
        for stream in self._streams.values():
            self._open.enter_context(stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def relay(self) -> None:
        """Publish what has arrived; waits for nothing."""
        for camera, stream in self._streams.items():
            try:
                frame = stream.newest(0.0)
            except RobotStackError as error:
                self._problems[camera] = str(error)
                continue
            if frame is not None:
                self._problems[camera] = frame.fault
                self._take(camera, frame)

    def _take(self, camera: str, frame: CameraFrame) -> None:
        if frame.image.size == 0:
            return
        self._frames[camera] += 1
        self._images.publish(camera, frame.image, frame.depth_mm, self._ros_time.of_camera(frame.stamp_ns))

    def look(self, elapsed_s: float) -> dict[str, Health]:
        """How each camera fared since the last look, by name."""
        lines = {}
        for camera, frames in self._frames.items():
            problem = self._problems[camera]
            level = "ERROR" if problem else "OK" if frames else "STALE"
            message = problem or ("frames arrive" if frames else "no frame arrives; robot-stack camera")
            lines[camera] = Health(level, message, {"rate_hz": f"{frames / elapsed_s:.1f}"})
            self._frames[camera] = 0
        return lines
