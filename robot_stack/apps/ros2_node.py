"""`robot-stack ros2-node`: shows one robot server to ROS 2 (rviz2, rosbag2, Foxglove, the ros2 command line)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from robot_stack.apps.connections import ROBOT_STATE, robot_client
from robot_stack.apps.keys import ROBOT_KEY
from robot_stack.config.schema import NetworkConfig
from robot_stack.core.messages import CameraFrame, RobotReply, RobotState
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.ros2.camera_node import CameraRelay, Images
from robot_stack.transport.ros2.config import Ros2NodeConfig
from robot_stack.transport.ros2.conversions import RosTime
from robot_stack.transport.ros2.lifecycle import lifecycle_node
from robot_stack.transport.ros2.link import Ros2Link
from robot_stack.transport.ros2.robot_connection import RobotConnection
from robot_stack.transport.ros2.robot_node import RobotNode
from robot_stack.transport.ros2.robot_services import RobotServices
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Subscriber


def run_ros2_node(
    network: NetworkConfig, keys: KeyStore, settings: Ros2NodeConfig, keep_running: Callable[[], bool]
) -> None:
    """Show the robot server at `network` until told to end; it may come and go meanwhile.

    Raises:
        MissingDependencyError: rclpy or the message packages are not installed.
        ConfigError, AuthenticationError: the viewer's key or the robot's public record is missing or revoked.
    """
    link = Ros2Link(
        settings.node_name,
        settings.namespace,
        domain_id=None if settings.domain_id < 0 else settings.domain_id,
        loopback_only=settings.loopback_only,
    )
    ros_time = RosTime()
    with _connection(network, keys, settings, ros_time) as connection, ExitStack() as opened:
        services = RobotServices(connection, settings)
        link.open(lifecycle_node(services.transition))
        opened.callback(link.close)
        images = Images(link.node, settings)
        cameras = opened.enter_context(CameraRelay(_streams(keys, settings), images, ros_time))
        RobotNode(link, connection, services, cameras, images, ros_time, settings).run(keep_running)


def _connection(network: NetworkConfig, keys: KeyStore, settings: Ros2NodeConfig, ros_time: RosTime) -> RobotConnection:
    def operator() -> RequestClient[RobotReply]:
        return robot_client(network, keys, settings.operator_key)

    states: Subscriber[RobotState] = Subscriber(
        ROBOT_STATE, network.state_address, keys, settings.viewer_key, ROBOT_KEY, RobotState
    )
    watcher = robot_client(network, keys, settings.viewer_key)
    return RobotConnection(watcher, states, operator if settings.operator_key else None, ros_time)


def _streams(keys: KeyStore, settings: Ros2NodeConfig) -> dict[str, Subscriber[CameraFrame]]:
    service = SERVICES["camera.frame"]
    return {
        name: Subscriber(service, address, keys, settings.viewer_key, ROBOT_KEY, CameraFrame)
        for name, address in settings.cameras.items()
    }
