"""The words of franka_ros2 and of the CRISP controllers: topics, services, frames, and joints by name.

Shared by the driver, the vendor-side simulator and the safe state. Names are relative to the configured namespace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka.config import FrankaRos2Config
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.qos import newest_reliable

FloatVector = NDArray[np.float64]

JOINT_STATES = "franka/joint_states"
ROBOT_STATE = "franka_robot_state_broadcaster/robot_state"
EXTERNAL_WRENCH = "franka_robot_state_broadcaster/external_wrench_in_base_frame"
EXTERNAL_TORQUES = "franka_robot_state_broadcaster/external_joint_torques"
ROBOT_DESCRIPTION = "robot_description"
ERROR_RECOVERY_ACTION = "action_server/error_recovery"
ERROR_RECOVERY = "error_recovery"
"""Ours, std_srvs/Trigger: stands for the vendor's action where franka_msgs is absent."""

TARGET_JOINT = "target_joint"
TARGET_POSE = "target_pose"
JOINT_TRAJECTORY = "joint_trajectory"
CURRENT_POSE = "current_pose"
STREAMS = (TARGET_JOINT, TARGET_POSE, JOINT_TRAJECTORY)

BASE_FRAME = "fr3_link0"


def stream_topic(config: FrankaRos2Config) -> str:
    """Where targets go; ConfigError for an unknown stream."""
    if config.stream not in STREAMS:
        raise ConfigError(f"the Franka has no stream '{config.stream}'; choose one of {', '.join(STREAMS)}")
    return f"{config.controller}/{JOINT_TRAJECTORY}" if config.stream == JOINT_TRAJECTORY else config.stream


def gripper_joint_states(config: FrankaRos2Config) -> str:
    return f"{config.gripper}/joint_states"


def gripper_target(config: FrankaRos2Config) -> str:
    """Ours, std_msgs/Float64MultiArray with the width in m: for an adapter node where action messages are absent."""
    return f"{config.gripper}/target_width"


def gripper_stop(config: FrankaRos2Config) -> str:
    return f"{config.gripper}/stop"


def make_link(node_name: str, config: FrankaRos2Config) -> Ros2Link:
    """A node below the robot's namespace, not yet open."""
    domain_id = None if config.domain_id < 0 else config.domain_id
    return Ros2Link(node_name, config.namespace, domain_id=domain_id, loopback_only=config.loopback_only)


def latched() -> Any:
    """Quality of service of a topic whose last message also late subscribers get (robot_description)."""
    profile = newest_reliable()
    profile.durability = type(profile.durability).TRANSIENT_LOCAL
    return profile


class JointReader:
    """Picks named joints out of a sensor_msgs/JointState: publishers promise no order, and may mix in other joints."""

    def __init__(self, names: Sequence[str], topic: str, robot: str) -> None:
        self._names = tuple(names)
        self._topic = topic
        self._robot = robot
        self._seen: list[str] | None = None
        self._order = np.arange(0)

    def pick(self, message: Any, quantity: str) -> FloatVector:
        """`position`, `velocity` or `effort` of our joints, in our order. RobotError names what is missing."""
        if message.name != self._seen:
            self._learn(list(message.name))
        values = np.asarray(getattr(message, quantity), dtype=np.float64)
        if len(values) != len(message.name):
            raise RobotError(
                f"{self._robot}: {self._topic} has {len(message.name)} names and {len(values)} values of {quantity}; "
                "check its broadcaster"
            )
        picked: FloatVector = values[self._order]
        if not np.isfinite(picked).all():
            raise RobotError(f"{self._robot}: {quantity} on {self._topic} is not finite: {picked.tolist()}")
        return picked

    def _learn(self, names: list[str]) -> None:
        missing = [name for name in self._names if name not in names]
        if missing:
            raise RobotError(
                f"{self._robot}: {self._topic} lacks {', '.join(missing)}; it has {', '.join(names) or 'no joints'}. "
                "Is it that of another robot?"
            )
        self._order = np.array([names.index(name) for name in self._names])
        self._seen = names
