"""Targets for the arm, as the vendor's side takes them: one message per tick on one topic.

`target_joint`, `target_pose`: the CRISP controllers; they follow the newest target and **ignore all of them while more
than one publisher is on the topic**. `joint_trajectory`: a ros2_control trajectory controller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hardware.franka import limits
from hardware.franka.config import FrankaRos2Config
from hardware.franka.kinematics import ArmKinematics
from hardware.franka.model import READY_RAD, TCP_SITE, FrankaModel, build_franka
from hardware.franka.ros2_names import BASE_FRAME, TARGET_JOINT, TARGET_POSE, FloatVector, stream_topic
from robot_stack.core.clock import s_to_ns
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable

HandPose = Callable[[FloatVector], tuple[FloatVector, FloatVector]]

# One point lies so many ticks ahead: a late message must not let the trajectory run out.
_TICKS_AHEAD = 1.5


def hand_kinematics() -> ArmKinematics:
    """Of the bare arm within its full range; its tool is the hand's tool centre point."""
    return ArmKinematics(build_franka(FrankaModel(finger_width_m=0.0)).compile(), TCP_SITE, np.asarray(READY_RAD))


class TargetStream:
    """Publishes joint targets in the configured form.

    Args:
        hand_pose: position and quaternion of the hand's tool centre point at joints (7,), for `target_pose`.
    """

    def __init__(self, link: Ros2Link, config: FrankaRos2Config, tick_s: float, hand_pose: HandPose) -> None:
        self.topic = stream_topic(config)
        self._link = link
        self._ahead_ns = s_to_ns(_TICKS_AHEAD * tick_s)
        self._hand_pose = hand_pose
        self._make = {TARGET_JOINT: self._joint, TARGET_POSE: self._pose}.get(config.stream, self._trajectory)
        self._publisher = link.node.create_publisher(_message_type(config.stream), self.topic, newest_reliable())

    def publish(self, joints_rad: FloatVector) -> None:
        """Send one target: joints (7,) in rad."""
        self._publisher.publish(self._make(joints_rad))

    def listeners(self) -> int:
        """How many controllers take our targets."""
        return int(self._publisher.get_subscription_count())

    def rivals(self) -> int:
        """How many other publishers are on the topic."""
        return int(self._link.node.count_publishers(self.topic)) - 1

    def _stamp(self) -> Any:
        return self._link.node.get_clock().now().to_msg()

    def _joint(self, joints_rad: FloatVector) -> Any:
        from sensor_msgs.msg import JointState

        message = JointState(name=list(limits.JOINT_NAMES), position=joints_rad.tolist())
        message.header.stamp = self._stamp()
        return message

    def _pose(self, joints_rad: FloatVector) -> Any:
        position, quat = self._hand_pose(joints_rad)
        return pose_message(position, quat, self._stamp())

    def _trajectory(self, joints_rad: FloatVector) -> Any:
        from builtin_interfaces.msg import Duration
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        # no stamp: the controller begins at once, whatever the other computer's clock says
        ahead = Duration(sec=self._ahead_ns // 10**9, nanosec=self._ahead_ns % 10**9)
        point = JointTrajectoryPoint(positions=joints_rad.tolist(), time_from_start=ahead)
        return JointTrajectory(joint_names=list(limits.JOINT_NAMES), points=[point])


def _message_type(stream: str) -> Any:
    if stream == TARGET_JOINT:
        from sensor_msgs.msg import JointState

        return JointState
    if stream == TARGET_POSE:
        from geometry_msgs.msg import PoseStamped

        return PoseStamped
    from trajectory_msgs.msg import JointTrajectory

    return JointTrajectory


def pose_message(position_m: FloatVector, quat_wxyz: FloatVector, stamp: Any) -> Any:
    """geometry_msgs/PoseStamped in the robot's base frame."""
    from geometry_msgs.msg import PoseStamped

    message = PoseStamped()
    message.header.frame_id = BASE_FRAME
    message.header.stamp = stamp
    pose = message.pose
    pose.position.x, pose.position.y, pose.position.z = position_m.tolist()
    pose.orientation.w, pose.orientation.x, pose.orientation.y, pose.orientation.z = quat_wxyz.tolist()
    return message
