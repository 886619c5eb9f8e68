"""The ROS 2 face of one robot server: states out, a few services in.

It is a process of its own beside the robot server, so a stalled viewer or a flood of ROS 2 messages holds up nothing
but itself. One thread does everything, in this order, over and over: the newest state from the server, its messages
to ROS 2, the cameras, whatever ROS 2 asks for, and once a second /diagnostics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from robot_stack.core.messages import Lifecycle, RobotState
from robot_stack.core.specs import STATE, RobotSpec
from robot_stack.transport.ros2 import diagnostics
from robot_stack.transport.ros2.camera_node import CameraRelay, Images
from robot_stack.transport.ros2.config import Ros2NodeConfig
from robot_stack.transport.ros2.conversions import JointStates, Pose, RosTime, Wrench, header
from robot_stack.transport.ros2.diagnostics import RobotHealth, diagnostic_array
from robot_stack.transport.ros2.lifecycle import FINALIZED
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.names import MODELS, ModelNames, poses_in
from robot_stack.transport.ros2.qos import newest_best_effort
from robot_stack.transport.ros2.robot_connection import LOST_AFTER_S, RobotConnection
from robot_stack.transport.ros2.robot_services import RobotServices

logger = logging.getLogger(__name__)

WAIT_S = 0.01
GREETING_PAUSE_S = 0.2
RELIABLE_DEPTH = 20
"""Messages kept for a reliable reader that is late, as a recorder is now and then. rclpy takes a bare depth as
reliable, keep last; a writer of it waits for nobody."""


class StatePublishers:
    """The topics of one robot, as its spec offers them."""

    def __init__(self, node: Any, spec: RobotSpec, settings: Ros2NodeConfig) -> None:
        from geometry_msgs.msg import PoseStamped, WrenchStamped
        from sensor_msgs.msg import JointState

        frame = settings.frame_prefix + (settings.base_frame or MODELS.get(spec.model, ModelNames()).base_frame)
        self._node = node
        self._sources: list[tuple[Any, JointStates | Pose | Wrench]] = []
        joints = JointStates(spec, settings.joint_names)
        if joints.names:
            self._add(JointState, "joint_states", RELIABLE_DEPTH, joints)
        state = spec.observation.get(STATE)
        for topic, elements in ((poses_in(state.names) if state else {}) | settings.poses).items():
            pose = Pose(spec, elements, frame)
            if pose.missing:
                logger.warning("no pose '%s': %s has no %s in its state", topic, spec.name, ", ".join(pose.missing))
            else:
                self._add(PoseStamped, topic, RELIABLE_DEPTH, pose)
        wrench = Wrench(spec, frame)
        if wrench.offered:
            self._add(WrenchStamped, "external_wrench", newest_best_effort(), wrench)

    def _add(self, message_type: Any, topic: str, qos: Any, source: JointStates | Pose | Wrench) -> None:
        self._sources.append((self._node.create_publisher(message_type, topic, qos), source))

    def publish(self, state: RobotState, stamp_ns: int) -> None:
        """`stamp_ns` is ROS time."""
        for publisher, source in self._sources:
            message = source.message(state.features, stamp_ns)
            if message is not None:
                publisher.publish(message)

    def intruders(self) -> tuple[str, ...]:
        """Topics that somebody else publishes on too, so that a reader gets a mixture."""
        names = (publisher.topic_name for publisher, _ in self._sources)
        return tuple(name for name in names if self._node.count_publishers(name) > 1)

    def close(self) -> None:
        for publisher, _ in self._sources:
            self._node.destroy_publisher(publisher)


class RobotNode:
    """Runs on an open link whose node is a `lifecycle_node`."""

    def __init__(
        self,
        link: Ros2Link,
        connection: RobotConnection,
        services: RobotServices,
        cameras: CameraRelay,
        images: Images,
        ros_time: RosTime,
        settings: Ros2NodeConfig,
    ) -> None:
        from diagnostic_msgs.msg import DiagnosticArray

        self._link = link
        self._connection = connection
        self._cameras = cameras
        self._images = images
        self._ros_time = ros_time
        self._settings = settings
        self._health = RobotHealth(connection)
        self._diagnostics = link.node.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE_DEPTH)
        self._states: StatePublishers | None = None
        self._published_spec: RobotSpec | None = None
        self._looked_s = time.monotonic()
        self._greeted_s = 0.0
        services.offer(link.node)

    def run(self, keep_running: Callable[[], bool]) -> None:
        """Until `keep_running` says no, or somebody shuts the lifecycle node down."""
        while keep_running() and self._link.node.shown != FINALIZED:
            state = self._connection.poll(WAIT_S)
            self._meet_server()
            if state is not None and self._states is not None:
                self._publish(state, self._states)
            self._cameras.relay()
            self._spin()
            self._show_lifecycle()
            if time.monotonic() - self._looked_s >= diagnostics.PERIOD_S:
                self._look()

    def _meet_server(self) -> None:
        """Learn what a server that has just come up offers, and make the topics for it."""
        unknown = self._connection.info is None and self._connection.state_age_s < LOST_AFTER_S
        if unknown and time.monotonic() - self._greeted_s > GREETING_PAUSE_S:
            self._greeted_s = time.monotonic()
            self._connection.refresh()
        info = self._connection.info
        if info is None or info.spec == self._published_spec:
            return
        if self._states is not None:
            self._states.close()
        self._states = StatePublishers(self._link.node, info.spec, self._settings)
        self._published_spec = info.spec
        logger.info(
            "%s (%s) is shown as %s", info.spec.name, info.spec.model, self._link.node.get_fully_qualified_name()
        )

    def _publish(self, state: RobotState, states: StatePublishers) -> None:
        stamp_ns = self._ros_time.of_server(state.stamp_ns)
        states.publish(state, stamp_ns)
        self._images.publish_features(state.features, stamp_ns)

    def _spin(self) -> None:
        try:
            self._link.spin()
        except Exception:
            # Whatever a stranger in this ROS 2 domain sent, the node goes on: Humble's rclpy raises where a lifecycle
            # transition does not exist in the present state.
            logger.exception("a ROS 2 callback failed")

    def _show_lifecycle(self) -> None:
        state = self._connection.state
        shown = state.lifecycle if state is not None and self._connection.alive else Lifecycle.UNCONFIGURED
        self._link.node.show(shown)

    def _look(self) -> None:
        self._connection.refresh()
        self._ros_time.refresh()
        self._show_lifecycle()
        now_s = time.monotonic()
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        name = self._published_spec.name if self._published_spec else self._link.node.get_namespace().strip("/")
        lines = {f"{name}: robot server": self._health.look(elapsed_s, self._warnings())}
        for camera, health in self._cameras.look(elapsed_s).items():
            lines[f"{name}: camera {camera}"] = health
        stamp_ns = self._link.node.get_clock().now().nanoseconds
        self._diagnostics.publish(diagnostic_array(header(stamp_ns, ""), lines, name))

    def _warnings(self) -> tuple[str, ...]:
        if self._states is None:
            return ()
        return tuple(
            f"somebody else publishes {topic} too: choose another ros2_node.namespace"
            for topic in self._states.intruders()
        )
