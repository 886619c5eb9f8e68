"""Names, units, frames and time on the way from the stack's records to ROS 2 messages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from robot_stack.apps.connections import ROBOT_STATE, free_network, robot_client
from robot_stack.apps.keys import ROBOT_KEY, VIEWER_KEY
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    Lifecycle,
    RobotInfo,
    RobotState,
)
from robot_stack.core.specs import STATE, RobotSpec, vector
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.ros2.config import Ros2NodeConfig
from robot_stack.transport.ros2.conversions import (
    EXTERNAL_WRENCH,
    JOINT_EFFORT,
    JOINT_POSITION,
    JOINT_VELOCITY,
    JointStates,
    Pose,
    RosTime,
    Wrench,
    camera_info,
    color_image,
    depth_image,
    quat_wxyz_of,
)
from robot_stack.transport.ros2.names import poses_in, without_unit
from robot_stack.transport.ros2.robot_connection import RobotConnection
from robot_stack.transport.stream import Subscriber

pytest.importorskip("rclpy", reason="the ROS 2 node needs rclpy: pip install 'robot-stack[ros]'")


from tests.ros2_kit import rotation_of


def _spec(**observation: tuple[str, ...]) -> RobotSpec:
    return RobotSpec(
        name="arm_0",
        model="franka_fr3",
        task="reach",
        simulated=True,
        control_rate_hz=10.0,
        tick_rate_hz=100.0,
        command_timeout_s=0.15,
        max_episode_steps=10,
        action=vector(("a",), (-1.0,), (1.0,)),
        observation={f"observation.{name}": vector(names) for name, names in observation.items()},
    )


@pytest.mark.parametrize("yaw_rad", [-3.0, -1.2, 0.0, 0.7, 2.9])
@pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.3, -0.2), (-0.05, 0.6)])
def test_a_downward_tool_keeps_heading_and_tilt(yaw_rad: float, tilt: tuple[float, float]) -> None:
    rotation = rotation_of(quat_wxyz_of(("yaw_rad", "tilt_x", "tilt_y"), [yaw_rad, *tilt]))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(rotation[:2, 2], tilt, atol=1e-6)
    assert rotation[2, 2] < 0
    assert np.arctan2(rotation[1, 0], rotation[0, 0]) == pytest.approx(yaw_rad, abs=1e-6)


def test_headings_rotation_vectors_and_quaternions() -> None:
    turned = rotation_of(quat_wxyz_of(("heading_rad",), [0.5]))
    np.testing.assert_allclose(turned[:, 0], [np.cos(0.5), np.sin(0.5), 0.0], atol=1e-9)
    names = ("x_rad", "y_rad", "z_rad")
    np.testing.assert_allclose(rotation_of(quat_wxyz_of(names, [0.0, 0.0, 0.5])), turned, atol=1e-9)
    np.testing.assert_allclose(
        rotation_of(quat_wxyz_of(names, [0.0, np.pi, 0.0])), np.diag([-1.0, 1.0, -1.0]), atol=1e-9
    )
    assert quat_wxyz_of(names, [0.0, 0.0, 0.0]) == (1.0, 0.0, 0.0, 0.0)
    assert quat_wxyz_of(("w", "x", "y", "z"), [2.0, 0.0, 0.0, 0.0]) == (1.0, 0.0, 0.0, 0.0)


def test_poses_are_found_by_their_names() -> None:
    tool = ("tool_x_m", "tool_y_m", "tool_z_m", "tool_yaw_rad", "tool_tilt_x", "tool_tilt_y")
    goal = ("goal_minus_tool_x_m", "goal_minus_tool_y_m", "goal_minus_tool_z_m", "goal_minus_tool_yaw_rad")
    palm = tuple(f"left_palm_{axis}_m" for axis in "xyz") + tuple(f"left_palm_turn_{axis}_rad" for axis in "xyz")
    point = ("elbow_x_m", "elbow_y_m", "elbow_z_m")
    assert poses_in(tool + goal + palm + point) == {"tool_pose": tool, "left_palm_pose": palm}


def test_a_joint_may_be_several_in_the_robot_description() -> None:
    spec = structs.replace(
        _spec(joint_position=("arm_m", "pan_rad"), joint_effort=("pan_nm", "arm_n")), model="stretch_3"
    )
    features = {JOINT_POSITION: np.array([0.4, 0.1]), JOINT_EFFORT: np.array([3.0, 7.0])}
    message = JointStates(spec, {"pan": "neck"}).message(features, 0)
    assert list(message.name) == ["joint_arm_l0", "joint_arm_l1", "joint_arm_l2", "joint_arm_l3", "neck"]
    np.testing.assert_allclose(message.position, [0.1, 0.1, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(message.effort, [7.0, 7.0, 7.0, 7.0, 3.0])
    g1 = structs.replace(_spec(joint_position=("left_knee_rad",)), model="unitree_g1")
    assert JointStates(g1, {}).names == ["left_knee_joint"]


def test_joint_names_lose_their_unit_and_may_be_renamed() -> None:
    assert [without_unit(name) for name in ("a_rad", "a_rad_s", "lift_m", "lift_m_s", "bare")] == [
        "a",
        "a",
        "lift",
        "lift",
        "bare",
    ]
    spec = _spec(joint_position=("a_rad", "lift_m"), joint_velocity=("lift_m_s", "a_rad_s"))
    features = {
        JOINT_POSITION: np.array([1.0, 2.0], dtype=np.float32),
        JOINT_VELOCITY: np.array([0.2, 0.1], dtype=np.float32),
    }
    message = JointStates(spec, {"lift": "joint_lift"}).message(features, 1_500_000_000)
    assert message.name == ["a", "joint_lift"]
    assert list(message.position) == [1.0, 2.0]
    np.testing.assert_allclose(message.velocity, [0.1, 0.2], rtol=1e-6)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1, 500_000_000)


def test_velocities_of_some_joints_only_are_left_out() -> None:
    spec = _spec(joint_position=("a_rad", "b_rad"), joint_velocity=("a_rad_s",))
    features = {JOINT_POSITION: np.zeros(2, np.float32), JOINT_VELOCITY: np.zeros(1, np.float32)}
    assert len(JointStates(spec, {}).message(features, 0).velocity) == 0


def test_what_the_state_lacks_is_not_published() -> None:
    spec = _spec(state=("x_m", "y_m", "z_m"))
    assert JointStates(spec, {}).message({}, 0) is None
    assert Pose(spec, ("x_m", "y_m", "z_m", "yaw_rad"), "base").missing == ("yaw_rad",)
    assert Wrench(spec, "base").message({EXTERNAL_WRENCH: np.zeros(6, np.float32)}, 0) is None


def test_pose_takes_its_elements_by_name() -> None:
    spec = _spec(state=("yaw_rad", "z_m", "y_m", "x_m"))
    message = Pose(spec, ("x_m", "y_m", "z_m", "yaw_rad"), "base").message({STATE: np.array([0.0, 3.0, 2.0, 1.0])}, 0)
    position = message.pose.position
    assert (position.x, position.y, position.z) == (1.0, 2.0, 3.0)
    assert message.pose.orientation.w == 1.0
    assert message.header.frame_id == "base"


def test_images_keep_every_pixel() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    color = color_image(image, 0, "cam")
    assert (color.height, color.width, color.step, color.encoding, color.is_bigendian) == (2, 3, 9, "rgb8", 0)
    assert bytes(color.data) == image.tobytes()
    depth = depth_image(np.array([[1, 258]], dtype=">u2"), 0, "cam")
    assert (depth.step, depth.encoding, bytes(depth.data)) == (4, "16UC1", b"\x01\x00\x02\x01")


def test_a_camera_without_intrinsics_is_uncalibrated() -> None:
    assert not np.any(camera_info((2, 3, 3), None, 0, "cam").k)
    info = camera_info((2, 3, 3), (10.0, 11.0, 1.5, 1.0), 0, "cam")
    assert (info.k[0], info.k[4], info.k[2], info.k[5], info.p[5]) == (10.0, 11.0, 1.5, 1.0, 11.0)
    assert list(info.d) == [0.0] * 5


def test_ros_time_follows_another_hosts_clock_and_a_set_wall_clock() -> None:
    wall_ns = [10**18]
    ros_time = RosTime(lambda: wall_ns[0] + time.monotonic_ns())
    now_ns = time.monotonic_ns()
    assert ros_time.of_server(now_ns) - now_ns == pytest.approx(10**18, abs=10**6)
    ros_time.ping(now_ns, now_ns + 50_000, now_ns + 200_000)  # within the ping's own error: the same clock
    assert ros_time.of_server(now_ns) - now_ns == pytest.approx(10**18, abs=10**6)
    ros_time.ping(now_ns, now_ns + 10**12, now_ns + 1000)
    assert ros_time.of_server(now_ns + 10**12) - now_ns == pytest.approx(10**18, abs=10**6)
    wall_ns[0] += 10**9
    ros_time.refresh()
    assert ros_time.of_server(now_ns + 10**12) - now_ns == pytest.approx(10**18 + 10**9, abs=10**6)
    ros_time.forget_server()
    assert ros_time.of_server(now_ns) - now_ns == pytest.approx(10**18 + 10**9, abs=10**6)
    assert ros_time.of_camera(now_ns - 10**15) > ros_time.of_camera(now_ns)


def test_only_newer_states_count_and_a_new_boot_is_another_server(tmp_path: Path) -> None:
    network, keys = free_network(), KeyStore(tmp_path)
    states: Subscriber[RobotState] = Subscriber(
        ROBOT_STATE, network.state_address, keys, VIEWER_KEY, ROBOT_KEY, RobotState
    )
    connection = RobotConnection(robot_client(network, keys, VIEWER_KEY), states, None, RosTime())
    connection.info = RobotInfo(schema_version=SCHEMA_VERSION, boot="a", lock_step=False, spec=_spec())
    state = RobotState(boot="a", seq=5, stamp_ns=0, lifecycle=Lifecycle.ACTIVE, features={})
    assert connection.take(state)
    assert connection.alive
    assert not connection.take(structs.replace(state, seq=4, lifecycle=Lifecycle.INACTIVE))
    assert connection.state is not None and connection.state.lifecycle is Lifecycle.ACTIVE
    assert connection.take(structs.replace(state, boot="b", seq=1))
    assert connection.info is None and not connection.alive


@pytest.mark.parametrize(
    "wrong", [{"namespace": "7up"}, {"poses": {"tool": ("x_m",)}}, {"intrinsics": {"front": (1.0, 2.0)}}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Ros2NodeConfig(**wrong)
