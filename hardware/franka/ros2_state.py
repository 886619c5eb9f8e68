"""What the Franka's ROS 2 side tells: subscriptions, their ages, and the vendor's own error flags.

Only standard messages are needed. Where franka_msgs is installed, the vendor's state message adds its error flags.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.config import FrankaRos2Config
from hardware.franka.model import FINGER_JOINTS
from hardware.franka.ros2_names import (
    EXTERNAL_TORQUES,
    EXTERNAL_WRENCH,
    JOINT_STATES,
    ROBOT_DESCRIPTION,
    ROBOT_STATE,
    JointReader,
    gripper_joint_states,
    latched,
)
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import RobotError
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort

logger = logging.getLogger(__name__)

FloatVector = NDArray[np.float64]

OPTIONAL_GRACE_S = 1.0
# The gripper's node publishes at 15 Hz.
GRIPPER_MAX_AGE_S = 1.0

_REFLEX, _USER_STOPPED = 4, 5


class FrankaRos2State:
    """The newest of everything. `franka/joint_states` is the sample that stamps a reading.

    The wrench is the vendor's `O_F_ext_hat_K`: it acts at the stiffness frame, which is the hand's tool centre point
    unless somebody moved it, and it points the other way than the force on the robot: `config.external_sign`.
    """

    def __init__(self, link: Ros2Link, config: FrankaRos2Config, robot: str, *, with_gripper: bool, ticks: int) -> None:
        from geometry_msgs.msg import WrenchStamped
        from sensor_msgs.msg import JointState
        from std_msgs.msg import String

        qos = newest_best_effort()
        self._link, self._config, self._robot = link, config, robot
        self.joints: Newest[Any] = link.subscribe_newest(JointState, JOINT_STATES, qos)
        self.wrench: Newest[Any] = link.subscribe_newest(WrenchStamped, EXTERNAL_WRENCH, qos)
        self.torques: Newest[Any] = link.subscribe_newest(JointState, EXTERNAL_TORQUES, qos)
        self.description: Newest[Any] = link.subscribe_newest(String, ROBOT_DESCRIPTION, latched())
        gripper_topic = gripper_joint_states(config)
        self.gripper: Newest[Any] = link.subscribe_newest(JointState, gripper_topic, qos)
        self.vendor = _subscribe_vendor_state(link)
        self._joint_reader = JointReader(limits.JOINT_NAMES, JOINT_STATES, robot)
        self._torque_reader = JointReader(limits.JOINT_NAMES, EXTERNAL_TORQUES, robot)
        self._gripper_reader = JointReader(FINGER_JOINTS, gripper_topic, robot)
        self._required = [(self.joints, JOINT_STATES, config.max_state_age_s)]
        self._required.append((self.wrench, EXTERNAL_WRENCH, config.max_state_age_s))
        if with_gripper:
            self._required.append((self.gripper, gripper_topic, GRIPPER_MAX_AGE_S))
        self._with_gripper = with_gripper
        self._wrenches: deque[FloatVector] = deque(maxlen=ticks)
        self._wrench_count = 0

    def wait(self, deadline_s: float) -> None:
        """Until every required topic has brought a message; UnreachableError names the one that has not."""
        for newest, topic, _ in self._required:
            name = self._link.node.resolve_topic_name(topic)
            self._link.wait_for(newest, name, max(0.0, deadline_s - time.monotonic()))

    def await_optional(self) -> None:
        """A moment for what a robot need not publish: its description and its external torques."""
        deadline_s = time.monotonic() + OPTIONAL_GRACE_S
        while time.monotonic() < deadline_s and (self.description.message is None or self.torques.message is None):
            self._link.spin(0.01)

    def facts(self) -> limits.JointFacts | None:
        """The robot's own limits, or None (with a warning) if it publishes no description. RobotError: unusable."""
        if self.description.message is None:
            logger.warning("%s publishes no %s: our own limits hold", self._robot, ROBOT_DESCRIPTION)
            return None
        return limits.read_urdf(self.description.message.data, self._robot)

    def joint_positions(self) -> FloatVector:
        return self._joint_reader.pick(self.joints.message, "position")

    def joint_velocities(self) -> FloatVector:
        return self._joint_reader.pick(self.joints.message, "velocity")

    def gripper_width(self) -> float:
        """m; each finger tells half of it."""
        return float(self._gripper_reader.pick(self.gripper.message, "position").sum()) if self._with_gripper else 0.0

    def mean_wrench(self) -> FloatVector:
        """Force and moment (6,) on the robot at the hand's tool centre point, mean of the last control period."""
        if self.wrench.message is not None and self.wrench.count != self._wrench_count:
            self._wrench_count = self.wrench.count
            force, moment = self.wrench.message.wrench.force, self.wrench.message.wrench.torque
            wrench = np.array([force.x, force.y, force.z, moment.x, moment.y, moment.z])
            if not np.isfinite(wrench).all():
                raise RobotError(f"{self._robot}: the wrench on {EXTERNAL_WRENCH} is not finite: {wrench.tolist()}")
            self._wrenches.append(wrench)
        mean: FloatVector = np.asarray(np.mean(self._wrenches, axis=0), dtype=np.float64)
        return mean * self._config.external_sign

    def external_torques(self, now_ns: int) -> FloatVector | None:
        """External torques (7,) on the joints, None if they never came. RobotError if they ceased to come."""
        if self.torques.message is None:
            return None
        age_ns = now_ns - self.torques.received_ns
        if age_ns > s_to_ns(self._config.max_state_age_s):
            raise RobotError(f"{self._robot}: no state for {age_ns / 1e6:.0f} ms on {EXTERNAL_TORQUES}")
        return self._torque_reader.pick(self.torques.message, "effort") * self._config.external_sign

    def fault(self, now_ns: int) -> str:
        """In words if a state is too old or the vendor reports an error."""
        for newest, topic, max_age_s in self._required:
            age_ns = now_ns - newest.received_ns
            if age_ns > s_to_ns(max_age_s):
                return (
                    f"{self._robot}: no state for {age_ns / 1e6:.0f} ms on {topic} (allowed {max_age_s * 1e3:.0f} ms); "
                    "check the network and the robot's ROS 2 nodes"
                )
        if self.vendor is None or self.vendor.message is None:
            return ""
        return vendor_fault(self.vendor.message, self._robot)


def vendor_fault(state: Any, robot: str) -> str:
    """Of a franka_msgs/FrankaRobotState: its mode and every error flag that is up, in words; '' if it is well."""
    flags = state.current_errors
    errors = [name.lstrip("_") for name in flags.get_fields_and_field_types() if getattr(flags, name) is True]
    mode = {_REFLEX: "reflex", _USER_STOPPED: "user stop"}.get(int(state.robot_mode), "")
    words = [word for word in (mode, *errors) if word]
    if not words:
        return ""
    return f"{robot}: the robot reports {', '.join(words)}; look at it, recover it, then clear the fault"


def _subscribe_vendor_state(link: Ros2Link) -> Newest[Any] | None:
    try:
        messages = importlib.import_module("franka_msgs.msg")
    except ImportError:
        return None
    newest: Newest[Any] = link.subscribe_newest(messages.FrankaRobotState, ROBOT_STATE, newest_best_effort())
    return newest
