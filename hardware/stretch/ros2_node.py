"""Our end of the wire to stretch_ros2's driver node: its newest state, the commands it takes, what is wrong with it."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.stretch import ros2_names as names
from hardware.stretch.config import StretchRos2Config
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import RobotError, UnreachableError
from robot_stack.transport.ros2.link import Newest, Ros2Link
from robot_stack.transport.ros2.qos import newest_best_effort, newest_reliable

FloatVector = NDArray[np.float64]

_SERVICES = (
    names.SWITCH_TO_NAVIGATION,
    names.ACTIVATE_STREAMING,
    names.DEACTIVATE_STREAMING,
    names.STOP_THE_ROBOT,
    names.GET_JOINT_STATES,
    names.RUNSTOP,
)
_LIMITS_WAIT_S = 1.0
_ASK_AGAIN_S = 0.5


class Asked:
    """A service call under way."""

    def __init__(self, service: str, future: Any) -> None:
        self.service = service
        self._future = future

    def done(self) -> bool:
        """True once the answer came; RobotError if it says no."""
        if not self._future.done():
            return False
        answer = self._future.result()
        if not answer.success:
            raise RobotError(f"stretch: the driver node refused '{self.service}': {answer.message}")
        return True


class StretchNode:
    """The node's topics and services. Only `open`, `wait_until_ready` and `joint_limits` wait for anything.

    Everything it reads is the newest message of a topic, updated by `spin`. `listens`: false for commands alone.
    """

    def __init__(self, node_name: str, config: StretchRos2Config, *, listens: bool = True) -> None:
        self._config = config
        self._listens = listens
        self._link = Ros2Link(
            node_name,
            config.namespace,
            domain_id=None if config.domain_id < 0 else config.domain_id,
            loopback_only=config.loopback_only,
        )
        self._open = False

    # ---- life ----

    def open(self) -> None:
        from geometry_msgs.msg import Twist
        from std_msgs.msg import Float64MultiArray
        from std_srvs.srv import SetBool, Trigger

        self._link.open()
        node = self._link.node
        self._state: dict[str, Newest[Any]] = {}
        if self._listens:
            self._subscribe()
        self._pose_message, self._twist_message = Float64MultiArray, Twist
        self._pose = node.create_publisher(Float64MultiArray, names.POSE_COMMAND, newest_reliable())
        self._twist = node.create_publisher(Twist, names.COMMAND_VELOCITY, newest_reliable())
        self._clients = {
            service: node.create_client(SetBool if service == names.RUNSTOP else Trigger, service)
            for service in _SERVICES
        }
        self._open = True

    def _subscribe(self) -> None:
        from nav_msgs.msg import Odometry
        from sensor_msgs.msg import BatteryState, JointState
        from std_msgs.msg import Bool, String

        qos = newest_best_effort()
        self._joint_limits: Newest[Any] = self._link.subscribe_newest(JointState, names.JOINT_LIMITS, qos)
        self._battery: Newest[Any] = self._link.subscribe_newest(BatteryState, names.BATTERY, qos)
        types = {
            names.JOINT_STATES: JointState,
            names.ODOMETRY: Odometry,
            names.MODE: String,
            names.IS_HOMED: Bool,
            names.IS_RUNSTOPPED: Bool,
            names.IS_STREAMING: Bool,
        }
        for topic, kind in types.items():
            self._state[topic] = self._link.subscribe_newest(kind, topic, qos)

    def close(self) -> None:
        """Harmless if it was never opened."""
        self._open = False
        self._link.close()

    @property
    def is_open(self) -> bool:
        return self._open

    def spin(self, timeout_s: float = 0.0) -> None:
        """Take what arrived; waits up to `timeout_s` for the first of it."""
        self._link.spin(timeout_s)

    def wait_until_ready(self) -> None:
        """Until a message of every topic, every service and a taker of every command is there; UnreachableError names
        what is missing."""
        deadline = time.monotonic() + self._config.connect_timeout_s
        while missing := self._missing():
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"the driver node offers no {missing} after {self._config.connect_timeout_s:g} s; is "
                    "stretch_driver running, and its stretch_ros2 recent enough to stream positions?"
                )
            self.spin(0.01)
        # only now, when discovery no longer holds anything up, does the age of a message tell something
        for topic, newest in self._state.items():
            newest.clear()
            self._link.wait_for(newest, topic, max(deadline - time.monotonic(), 0.0))

    def _missing(self) -> str:
        node = self._link.node
        services = [name for name, client in self._clients.items() if not client.service_is_ready()]
        topics = [
            publisher.topic_name for publisher in (self._pose, self._twist) if not publisher.get_subscription_count()
        ]
        return ", ".join([node.resolve_service_name(name) for name in services] + topics)

    def joint_limits(self) -> dict[str, tuple[float, float]]:
        """The robot's own limits by axis. The node publishes them once per request, so it is asked until they come."""
        deadline = time.monotonic() + self._config.connect_timeout_s
        while time.monotonic() < deadline:
            self.ask(names.GET_JOINT_STATES)
            try:
                return names.limits_from_message(
                    self._link.wait_for(self._joint_limits, names.JOINT_LIMITS, _LIMITS_WAIT_S)
                )
            except UnreachableError:
                continue
        raise UnreachableError(
            f"nothing arrived on the ROS 2 topic '{names.JOINT_LIMITS}' within {self._config.connect_timeout_s:g} s, "
            f"though '{names.GET_JOINT_STATES}' was called; without the robot's own limits nothing may move"
        )

    # ---- state ----

    def newest(self, topic: str) -> Newest[Any]:
        return self._state[topic]

    def value(self, topic: str) -> Any:
        """Data of the newest message of a topic that carries one value."""
        message: Any = self._state[topic].message
        return message.data

    def problem(self) -> str:
        """In words why the robot must not be commanded now, else ''."""
        now_ns = time.monotonic_ns()
        topic, oldest = min(self._state.items(), key=lambda item: item[1].received_ns)
        age_s = (now_ns - oldest.received_ns) / 1e9
        if age_s > self._config.max_state_age_s:
            return (
                f"no state for {age_s * 1000:.0f} ms on '{topic}' (allowed: {self._config.max_state_age_s * 1000:.0f} "
                "ms); is stretch_driver running, and the network up?"
            )
        if self.value(names.IS_RUNSTOPPED):
            return "the run-stop is pressed; find out why, release it at the robot, then clear this fault"
        if not self.value(names.IS_HOMED):
            return f"the robot is not homed; make room around it and call '{names.HOME_THE_ROBOT}'"
        battery = self._battery.message
        if battery is not None and battery.voltage < self._config.min_battery_v:
            return f"the battery is at {battery.voltage:.1f} V (at least {self._config.min_battery_v:g} V); charge it"
        return ""

    # ---- commands ----

    def ask(self, service: str, on: bool | None = None) -> Asked:
        """Call a service and go on; `on`: for a switch. Answers arrive with `spin`."""
        client = self._clients[service]
        request = client.srv_type.Request()
        if on is not None:
            request.data = on
        return Asked(service, client.call_async(request))

    def wait_for_answers(self, asked: list[Asked], timeout_s: float) -> None:
        """Spin until all are answered; RobotError names what was refused, or not answered in time."""
        deadline = time.monotonic() + timeout_s
        while waiting := [call for call in asked if not call.done()]:
            if time.monotonic() > deadline:
                services = ", ".join(call.service for call in waiting)
                raise RobotError(f"stretch: no answer from the driver node to {services} within {timeout_s:g} s")
            self.spin(0.005)

    def send_pose(self, values: list[float]) -> None:
        self._pose.publish(self._pose_message(data=values))

    def send_base_velocity(self, forward_m_s: float, turn_rad_s: float) -> None:
        message = self._twist_message()
        message.linear.x, message.angular.z = forward_m_s, turn_rad_s
        self._twist.publish(message)


class Engagement:
    """The way from silence to authority: streaming off, navigation mode, streaming on, and all of it seen in the state.

    Call `advance` at every tick until it is True; RobotError if a step is refused or takes too long. An answer can get
    lost while the node is still being discovered, and every step may be asked for twice: so it is, after 0.5 s.
    """

    def __init__(self, node: StretchNode, timeout_s: float) -> None:
        self._node = node
        self._timeout_s = timeout_s
        self._deadline_ns = time.monotonic_ns() + s_to_ns(timeout_s)
        self._steps = deque([names.SWITCH_TO_NAVIGATION, names.ACTIVATE_STREAMING])
        if node.value(names.IS_STREAMING):
            self._steps.appendleft(names.DEACTIVATE_STREAMING)
        self._ask(self._steps.popleft())
        self._answered_ns = 0
        self.complete = False

    def _ask(self, service: str) -> None:
        self._asked = self._node.ask(service)
        self._asked_ns = time.monotonic_ns()

    def advance(self) -> bool:
        if self.complete:
            return True
        now_ns = time.monotonic_ns()
        if self._answered_ns == 0:
            self._take_answer(now_ns)
        self.complete = self._confirmed()
        if not self.complete and now_ns > self._deadline_ns:
            raise RobotError(
                f"stretch: cannot take control: '{self._asked.service}' did not take effect within "
                f"{self._timeout_s:g} s; look at the log of stretch_driver"
            )
        return self.complete

    def _take_answer(self, now_ns: int) -> None:
        if not self._asked.done():
            if now_ns - self._asked_ns > s_to_ns(_ASK_AGAIN_S):
                self._ask(self._asked.service)
        elif self._steps:
            self._ask(self._steps.popleft())
        else:
            self._answered_ns = now_ns

    def _confirmed(self) -> bool:
        """Only messages that came after the last answer count."""
        mode, streaming = self._node.newest(names.MODE), self._node.newest(names.IS_STREAMING)
        after = self._answered_ns > 0 and min(mode.received_ns, streaming.received_ns) > self._answered_ns
        return after and self.lost() == ""

    def lost(self) -> str:
        """In words if the vendor's side no longer obeys us, else ''."""
        mode = self._node.value(names.MODE)
        if mode != names.NAVIGATION:
            return f"the mode changed from '{names.NAVIGATION}' to '{mode}'; somebody else commands the robot"
        if not self._node.value(names.IS_STREAMING):
            return "streaming position was switched off; somebody else commands the robot"
        return ""


def pose_of_odometry(message: Any) -> tuple[FloatVector, FloatVector, float]:
    """Pose (3,) x, y, heading; velocity (2,) forward, turn; stamp in s. RobotError if a value is not finite."""
    position, q = message.pose.pose.position, message.pose.pose.orientation
    yaw_rad = math.atan2(2.0 * (q.w * q.z + q.x * q.y), 1.0 - 2.0 * (q.y * q.y + q.z * q.z))
    pose = np.array([position.x, position.y, yaw_rad])
    velocity = np.array([message.twist.twist.linear.x, message.twist.twist.angular.z])
    if not (np.isfinite(pose).all() and np.isfinite(velocity).all()):
        raise RobotError(f"stretch: '{names.ODOMETRY}' carries a value that is not finite: {pose} {velocity}")
    return pose, velocity, message.header.stamp.sec + message.header.stamp.nanosec / 1e9
