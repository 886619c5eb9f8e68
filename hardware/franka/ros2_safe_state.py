"""What happens to a Franka on ROS 2 when its robot server is killed: who holds the arm, and how it is taken over.

Guaranteed without doing anything: the CRISP controllers and the trajectory controller hold the last target, and the
safety filter never let a target be further ahead than a stop. So the arm comes to rest within milliseconds, and stays.
What remains is the target's small lead, which presses if the tool touched something.

Done here: the gripper is told to stop, standstill is confirmed, and the target is moved back to where the arm is,
which takes the pressing away. A trajectory controller takes that at once. A CRISP controller ignores every target
while two publishers are on its topic, and a killed server's publisher stays known until its DDS lease runs out (20 s
with Fast DDS as delivered): so the takeover waits for that, and says how it ended. It never arms anything, recovers
nothing, and is no certified stop.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka import limits
from hardware.franka.config import FrankaRos2Config
from hardware.franka.model import TCP_SITE
from hardware.franka.ros2_names import (
    JOINT_STATES,
    JOINT_TRAJECTORY,
    JointReader,
    gripper_stop,
    make_link,
    stream_topic,
)
from hardware.franka.ros2_stream import TargetStream, hand_kinematics
from robot_stack.core.errors import RobotError, UnreachableError
from robot_stack.core.protocols import SafeState
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort

logger = logging.getLogger(__name__)

FloatVector = NDArray[np.float64]

STANDSTILL_RAD_S = 0.02
STANDSTILL_SAMPLES = 5
STANDSTILL_TIMEOUT_S = 3.0
TAKEOVER_TIMEOUT_S = 30.0

_REPEATS = 5
_PERIOD_S = 0.01


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between `connect` and `close`."""

    link: Ros2Link
    joints: Newest[Any]
    gripper_stop: Any
    stop_request: Any


class FrankaRos2SafeState(SafeState):
    """A `SafeState`. Silent until `make_safe`: until then it has no publisher, because a second one would deafen the
    controller."""

    def __init__(self, config: FrankaRos2Config, *, takeover_timeout_s: float = TAKEOVER_TIMEOUT_S) -> None:
        self._config = config
        self._topic = stream_topic(config)
        self._takeover_timeout_s = takeover_timeout_s
        self._reader = JointReader(limits.JOINT_NAMES, JOINT_STATES, config.namespace)
        self._kinematics = hand_kinematics()
        self._opened: _Opened | None = None

    def connect(self) -> None:
        """Subscribe to the joint states; RobotError if none come within `connect_timeout_s`."""
        if self._opened is not None:
            return
        from sensor_msgs.msg import JointState
        from std_srvs.srv import Trigger

        link = make_link("franka_keeper", self._config)
        link.open()
        try:
            joints: Newest[Any] = link.subscribe_newest(JointState, JOINT_STATES, newest_best_effort())
            client = link.node.create_client(Trigger, gripper_stop(self._config))
            link.wait_for(joints, link.node.resolve_topic_name(JOINT_STATES), self._config.connect_timeout_s)
        except UnreachableError as error:
            link.close()
            raise RobotError(f"{self._config.namespace}: the keeper has no state to watch: {error}") from error
        self._opened = _Opened(link, joints, client, Trigger.Request)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.link.close()
            self._opened = None

    def watch(self) -> None:
        self._open.link.spin()

    def make_safe(self) -> None:
        """Stop the gripper, confirm standstill, bring the target back to the arm. See the module for what is promised.

        Returns when the target is there or, with an error in the log, when the old publisher did not vanish in time.
        RobotError if the arm does not come to rest, or no state arrives: then somebody has to press the stop.
        """
        opened = self._open
        if opened.gripper_stop.service_is_ready():
            opened.gripper_stop.call_async(opened.stop_request())
        immediate = self._config.stream == JOINT_TRAJECTORY
        stream = self._make_stream(opened.link) if immediate else None
        if stream is not None:
            self._publish(stream)
        self._await_standstill()
        logger.warning("%s stands still and holds its last target", self._config.namespace)
        self._publish(stream or self._make_stream(opened.link), alone=not immediate)

    def _make_stream(self, link: Ros2Link) -> TargetStream:
        return TargetStream(link, self._config, _PERIOD_S, lambda joints: self._kinematics.site_pose(TCP_SITE, joints))

    def _await_standstill(self) -> None:
        joints, link = self._open.joints, self._open.link
        deadline_s = time.monotonic() + STANDSTILL_TIMEOUT_S
        still, count = 0, joints.count
        while still < STANDSTILL_SAMPLES:
            if time.monotonic() > deadline_s:
                raise RobotError(
                    f"{self._config.namespace} does not come to rest, or sends no state, {STANDSTILL_TIMEOUT_S:g} s "
                    "after its server died: press the stop, and look at the robot"
                )
            link.spin(_PERIOD_S)
            if joints.count != count:
                count = joints.count
                slow = np.abs(self._reader.pick(joints.message, "velocity")).max() < STANDSTILL_RAD_S
                still = still + 1 if slow else 0

    def _publish(self, stream: TargetStream, *, alone: bool = False) -> None:
        """Targets where the arm is, once somebody listens and, if so wanted, nobody else publishes."""
        link = self._open.link
        deadline_s = time.monotonic() + self._takeover_timeout_s
        while stream.listeners() == 0 or (alone and stream.rivals() > 0):
            if time.monotonic() > deadline_s:
                logger.error(
                    "%s: not taken over: %d other publisher(s) on '%s' after %g s, %d controller(s) listen; it holds "
                    "its last target",
                    *(self._config.namespace, stream.rivals(), self._topic),
                    *(self._takeover_timeout_s, stream.listeners()),
                )
                return
            link.spin(_PERIOD_S)
        target = self._reader.pick(self._open.joints.message, "position")
        for _ in range(_REPEATS):
            stream.publish(target)
            link.spin(_PERIOD_S)

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise RobotError(f"the keeper of {self._config.namespace} is not connected; call connect() first")
        return self._opened
