"""From the stack's records to standard ROS 2 messages: names, units, frames and time.

`RosTime` is the one place that turns a monotonic stamp into ROS time. ROS 2 uses SI units and radians, as the stack
does; only names change (`names.py`).
"""

from __future__ import annotations

import array
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.clock import NS_PER_S, ClockOffset
from robot_stack.core.messages import Array, Features
from robot_stack.core.specs import STATE, RobotSpec
from robot_stack.transport.ros2.config import HEADING, QUATERNION
from robot_stack.transport.ros2.names import ros_joints, without_unit

JOINT_POSITION = "observation.joint_position"
JOINT_VELOCITY = "observation.joint_velocity"
JOINT_EFFORT = "observation.joint_effort"
EXTERNAL_WRENCH = "observation.external_wrench"

PINGS_PER_ESTIMATE = 60
_WRENCH_NAMES = ("force_x_n", "force_y_n", "force_z_n", "moment_x_nm", "moment_y_nm", "moment_z_nm")
# ---- time -------------------------------------------------------------------------------------------------------


class RosTime:
    """Turns a robot server's monotonic stamps into ROS time, in ns.

    Two offsets: from the server's clock to this host's (zero on one host, where the measured one is within its own
    error), and from this host's monotonic clock to ROS time, which is measured again at every `refresh` because wall
    time is set now and then. Clocks of two hosts drift apart, so an estimate of the first is used for a minute only.
    """

    def __init__(self, ros_now_ns: Callable[[], int] = time.time_ns) -> None:
        self._ros_now_ns = ros_now_ns
        self._used = ClockOffset()
        self._next = ClockOffset()
        self._pings = 0
        self._to_ros_ns = 0
        self.refresh()

    def refresh(self) -> None:
        """Measure ROS time against the monotonic clock, of three tries the one that took least."""
        tries = []
        for _ in range(3):
            before_ns = time.monotonic_ns()
            ros_ns = self._ros_now_ns()
            after_ns = time.monotonic_ns()
            tries.append((after_ns - before_ns, ros_ns - (before_ns + after_ns) // 2))
        self._to_ros_ns = min(tries)[1]

    def forget_server(self) -> None:
        """Another incarnation of the server, perhaps after its host was started again."""
        self._used, self._next, self._pings = ClockOffset(), ClockOffset(), 0

    def ping(self, sent_ns: int, server_ns: int, received_ns: int) -> None:
        """Take one ping: sent and received on this host's clock, answered at `server_ns` on the server's."""
        for estimate in (self._used, self._next):
            estimate.update(sent_ns, server_ns, received_ns)
        self._pings += 1
        if self._pings >= PINGS_PER_ESTIMATE:
            self._used, self._next, self._pings = self._next, ClockOffset(), 0

    def of_server(self, stamp_ns: int) -> int:
        """ROS time of a stamp of the robot server."""
        offset_ns = self._used.offset_ns if abs(self._used.offset_ns) > self._used.error_ns else 0
        return stamp_ns - offset_ns + self._to_ros_ns

    def of_camera(self, stamp_ns: int) -> int:
        """ROS time of a stamp of a camera process. One whose clock is not this host's shows its frames as taken now:
        streams carry no ping."""
        now_ns = time.monotonic_ns()
        return (stamp_ns if abs(now_ns - stamp_ns) < NS_PER_S else now_ns) + self._to_ros_ns


def header(stamp_ns: int, frame_id: str) -> Any:
    """std_msgs/Header; `stamp_ns` is ROS time."""
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    return Header(stamp=Time(sec=stamp_ns // NS_PER_S, nanosec=stamp_ns % NS_PER_S), frame_id=frame_id)


# ---- joints, poses, wrench --------------------------------------------------------------------------------------


class JointStates:
    """sensor_msgs/JointState from `observation.joint_position`, `joint_velocity` and `joint_effort`.

    A message never holds velocities or efforts of some joints only: they are left out unless every joint has one.
    """

    def __init__(self, spec: RobotSpec, renamed: Mapping[str, str]) -> None:
        joints = _joints_of(spec, JOINT_POSITION)
        rows = [
            (name, joint, 1.0 / len(shared))
            for joint in joints
            for shared in [ros_joints(spec.model, joint, renamed)]
            for name in shared
        ]
        self.names = [name for name, _, _ in rows]
        self._share = np.array([share for _, _, share in rows])
        self._index = [joints.index(joint) for _, joint, _ in rows]
        self._velocity_index = self._index_in(spec, JOINT_VELOCITY, [joint for _, joint, _ in rows])
        self._effort_index = self._index_in(spec, JOINT_EFFORT, [joint for _, joint, _ in rows])

    @staticmethod
    def _index_in(spec: RobotSpec, feature: str, joints: list[str]) -> list[int]:
        offered = _joints_of(spec, feature)
        return [offered.index(joint) for joint in joints] if set(joints) <= set(offered) else []

    def message(self, features: Features, stamp_ns: int) -> Any | None:
        """None where the state holds no joints."""
        from sensor_msgs.msg import JointState

        if not self.names or JOINT_POSITION not in features:
            return None
        message = JointState(header=header(stamp_ns, ""), name=self.names)
        message.position = array.array("d", features[JOINT_POSITION][self._index] * self._share)
        if self._velocity_index and JOINT_VELOCITY in features:
            message.velocity = array.array("d", features[JOINT_VELOCITY][self._velocity_index] * self._share)
        if self._effort_index and JOINT_EFFORT in features:
            message.effort = array.array("d", features[JOINT_EFFORT][self._effort_index])
        return message


def _joints_of(spec: RobotSpec, feature: str) -> list[str]:
    return [without_unit(name) for name in spec.observation[feature].names] if feature in spec.observation else []


class Pose:
    """geometry_msgs/PoseStamped from named elements of `observation.state`; see `Ros2NodeConfig.poses`."""

    def __init__(self, spec: RobotSpec, elements: tuple[str, ...], frame_id: str) -> None:
        state = spec.observation.get(STATE)
        names = state.names if state else ()
        self.missing = tuple(element for element in elements if element not in names)
        self._elements = elements
        self._index = [names.index(element) for element in elements if element in names]
        self._frame_id = frame_id

    def message(self, features: Features, stamp_ns: int) -> Any | None:
        from geometry_msgs.msg import Point, PoseStamped, Quaternion

        if self.missing or STATE not in features:
            return None
        values = [float(value) for value in features[STATE][self._index]]
        w, x, y, z = quat_wxyz_of(self._elements[3:], values[3:])
        message = PoseStamped(header=header(stamp_ns, self._frame_id))
        message.pose.position = Point(x=values[0], y=values[1], z=values[2])
        message.pose.orientation = Quaternion(w=w, x=x, y=y, z=z)
        return message


def quat_wxyz_of(elements: tuple[str, ...], values: list[float]) -> tuple[float, float, float, float]:
    """Unit quaternion of an orientation given by elements with these names; see `Ros2NodeConfig.poses`.

    With a tilt the z axis is (tilt_x, tilt_y, -sqrt(1 - tilt_x^2 - tilt_y^2)), and the x axis is the unit vector
    normal to it whose horizontal part has the heading yaw.
    """
    if len(values) == QUATERNION:
        w, x, y, z = np.asarray(values) / np.linalg.norm(values)
        return float(w), float(x), float(y), float(z)
    if len(values) == HEADING:
        return math.cos(values[0] / 2), 0.0, 0.0, math.sin(values[0] / 2)
    if all(element.endswith("_rad") for element in elements):
        angle_rad = math.hypot(*values)
        per_rad = 0.5 * float(np.sinc(angle_rad / (2 * math.pi)))
        return math.cos(angle_rad / 2), per_rad * values[0], per_rad * values[1], per_rad * values[2]
    return _downward(values[0], np.array(values[1:]))


def _downward(yaw_rad: float, tilt: NDArray[np.float64]) -> tuple[float, float, float, float]:
    z_axis = np.array([*tilt, -math.sqrt(max(1e-12, 1.0 - float(tilt @ tilt)))])
    x_axis = np.array([math.cos(yaw_rad), math.sin(yaw_rad), 0.0])
    x_axis[2] = -float(x_axis[:2] @ z_axis[:2]) / z_axis[2]
    x_axis /= np.linalg.norm(x_axis)
    return _quat_wxyz(np.column_stack([x_axis, np.cross(z_axis, x_axis), z_axis]))


def _quat_wxyz(rotation: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Of a rotation matrix (3, 3): the eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix)[1][:, -1]
    return float(w), float(x), float(y), float(z)


class Wrench:
    """geometry_msgs/WrenchStamped from `observation.external_wrench`: axes of the base frame, moment about the tool."""

    def __init__(self, spec: RobotSpec, frame_id: str) -> None:
        feature = spec.observation.get(EXTERNAL_WRENCH)
        self.offered = feature is not None and feature.names == _WRENCH_NAMES
        self._frame_id = frame_id

    def message(self, features: Features, stamp_ns: int) -> Any | None:
        from geometry_msgs.msg import Vector3, WrenchStamped

        if not self.offered or EXTERNAL_WRENCH not in features:
            return None
        force, moment = features[EXTERNAL_WRENCH].astype(float).reshape(2, 3).tolist()
        message = WrenchStamped(header=header(stamp_ns, self._frame_id))
        message.wrench.force = Vector3(x=force[0], y=force[1], z=force[2])
        message.wrench.torque = Vector3(x=moment[0], y=moment[1], z=moment[2])
        return message


# ---- images -----------------------------------------------------------------------------------------------------


def color_image(image: Array, stamp_ns: int, frame_id: str) -> Any:
    """sensor_msgs/Image, rgb8, from uint8 (height, width, 3)."""
    return _image(image, "rgb8", stamp_ns, frame_id)


def depth_image(depth_mm: Array, stamp_ns: int, frame_id: str) -> Any:
    """sensor_msgs/Image, 16UC1 in mm, from uint16 (height, width)."""
    return _image(depth_mm, "16UC1", stamp_ns, frame_id)


def _image(pixels: Array, encoding: str, stamp_ns: int, frame_id: str) -> Any:
    from sensor_msgs.msg import Image

    height, width = pixels.shape[:2]
    message = Image(header=header(stamp_ns, frame_id), height=height, width=width, encoding=encoding)
    message.step = pixels.dtype.itemsize * int(np.prod(pixels.shape[1:]))
    little_endian = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    # rclpy takes an array('B') as it is; from bytes it would check every pixel
    data = array.array("B")
    data.frombytes(little_endian.tobytes())
    message.data = data
    return message


def camera_info(shape: tuple[int, ...], intrinsics: tuple[float, ...] | None, stamp_ns: int, frame_id: str) -> Any:
    """sensor_msgs/CameraInfo of an image of this shape; K is zero, as ROS marks an uncalibrated camera, where there
    are no intrinsics."""
    from sensor_msgs.msg import CameraInfo

    message = CameraInfo(header=header(stamp_ns, frame_id), height=shape[0], width=shape[1])
    if intrinsics:
        fx, fy, cx, cy = intrinsics[:4]
        message.distortion_model = "plumb_bob"
        message.d = [float(value) for value in intrinsics[4:]] or [0.0] * 5
        message.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
        message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        message.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message
