"""The ROS 2 node against a real robot server process, seen by a real rclpy node."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from robot_stack.apps.connections import ROBOT_STATE, free_network, remote_robot
from robot_stack.apps.keys import EDGE_KEY, ROBOT_KEY, VIEWER_KEY
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import (
    CameraFrame,
    Lifecycle,
    RobotState,
)
from robot_stack.core.specs import STATE
from robot_stack.transport.keys import KeyStore, Role
from robot_stack.transport.ros2.config import Ros2NodeConfig
from robot_stack.transport.ros2.conversions import (
    JOINT_POSITION,
    JOINT_VELOCITY,
)
from robot_stack.transport.services import SERVICES
from robot_stack.transport.stream import Publisher, Subscriber

pytest.importorskip("rclpy", reason="the ROS 2 node needs rclpy: pip install 'robot-stack[ros]'")

from robot_stack.transport.ros2.qos import newest_best_effort, newest_reliable
from tests.ros2_kit import DOMAIN_ID, Server, Watcher, rotation_of, until, watching


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("ros2"))
    one.start()
    yield one
    one.end()


CAMERA_ADDRESS = free_network().robot_address


@pytest.fixture(scope="module")
def watcher(server: Server) -> Iterator[Watcher]:
    with watching(server, "seen", cameras={"wrist": CAMERA_ADDRESS}, intrinsics={"wrist": (9.0, 9.0, 2.0, 1.0)}) as one:
        yield one


@pytest.fixture
def inactive(server: Server) -> Server:
    if server.state().lifecycle is not Lifecycle.INACTIVE:
        server.transition(Lifecycle.INACTIVE)
    until(lambda: not server.state().moving)
    return server


def _wiggle(server: Server, steps: int) -> None:
    """Move the arm to and fro, as an edge node would."""
    with remote_robot(server.network, server.keys, EDGE_KEY) as robot:
        robot.connect(5.0)
        robot.arm(5.0)
        robot.reset(3)
        sideways = robot.spec.action.upper_array()
        for step in range(steps):
            robot.step(sideways if step % 10 < 5 else -sideways)


def test_joint_states_are_the_servers_own(inactive: Server, watcher: Watcher) -> None:
    """Every message equals the state of its stamp, at about the server's rate, while the arm moves."""
    from sensor_msgs.msg import JointState

    heard: list[Any] = []
    sent: dict[int, RobotState] = {}
    subscription = watcher.link.node.create_subscription(JointState, "joint_states", heard.append, 100)
    states: Subscriber[RobotState] = Subscriber(
        ROBOT_STATE, inactive.network.state_address, inactive.keys, VIEWER_KEY, ROBOT_KEY, RobotState
    )
    edge = threading.Thread(target=_wiggle, args=(inactive, 25))
    edge.start()
    with states:
        while edge.is_alive():
            watcher.link.spin()
            state = states.newest(0.002)
            if state is not None:
                sent[state.stamp_ns] = state
    watcher.link.node.destroy_subscription(subscription)
    offset_ns = time.time_ns() - time.monotonic_ns()
    stamps = np.array(sorted(sent))
    matched = 0
    for message in heard:
        stamp_ns = _stamp_ns(message) - offset_ns
        nearest = stamps[np.argmin(np.abs(stamps - stamp_ns))]
        if abs(int(nearest) - stamp_ns) < 2_000_000:
            matched += 1
            features = sent[int(nearest)].features
            np.testing.assert_array_equal(np.float32(message.position), features[JOINT_POSITION])
            np.testing.assert_array_equal(np.float32(message.velocity), features[JOINT_VELOCITY])
    assert list(heard[0].name) == [f"fr3_joint{number}" for number in range(1, 8)]
    assert len(heard) / ((_stamp_ns(heard[-1]) - _stamp_ns(heard[0])) / 1e9) > 40.0
    assert matched > len(heard) / 4
    assert np.ptp([message.position[0] for message in heard]) > 1e-3


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)


def test_pose_and_wrench_are_in_the_base_frame(inactive: Server, watcher: Watcher) -> None:
    from geometry_msgs.msg import PoseStamped, WrenchStamped

    pose = watcher.link.subscribe_newest(PoseStamped, "tool_pose", newest_reliable())
    wrench = watcher.link.subscribe_newest(WrenchStamped, "external_wrench", newest_best_effort())

    def settled() -> bool:
        if pose.message is None or wrench.message is None:
            return False
        there = pose.message.pose.position
        return np.allclose([there.x, there.y, there.z], inactive.state().features[STATE][:3], rtol=0, atol=1e-4)

    watcher.until(settled)
    assert pose.message is not None and wrench.message is not None
    turned = pose.message.pose.orientation
    assert rotation_of((turned.w, turned.x, turned.y, turned.z))[2, 2] < -0.99
    assert pose.message.header.frame_id == wrench.message.header.frame_id == "fr3_link0"


def test_camera_frames_reach_ros(inactive: Server, watcher: Watcher) -> None:
    from sensor_msgs.msg import CameraInfo, Image

    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    color = watcher.link.subscribe_newest(Image, "wrist/image_raw", newest_best_effort())
    depth = watcher.link.subscribe_newest(Image, "wrist/depth/image_raw", newest_best_effort())
    info = watcher.link.subscribe_newest(CameraInfo, "wrist/camera_info", newest_best_effort())
    with Publisher(SERVICES["camera.frame"], CAMERA_ADDRESS, inactive.keys, ROBOT_KEY) as frames:
        number = 0

        def arrived() -> bool:
            nonlocal number
            number += 1
            frame = CameraFrame(
                boot="b",
                camera="wrist",
                stamp_ns=time.monotonic_ns(),
                device_time_ns=number,
                number=number,
                image=image,
                depth_mm=np.full((48, 64), 700, dtype=np.uint16),
            )
            frames.send(frame)
            fine = watcher.line("franka_0: camera wrist")
            return bool(color.count and depth.count and info.count and fine and fine.level == b"\x00")

        watcher.until(arrived)
    assert color.message is not None and bytes(color.message.data) == image.tobytes()
    assert depth.message is not None and bytes(depth.message.data)[:2] == (700).to_bytes(2, "little")
    assert info.message is not None and info.message.k[0] == 9.0
    assert abs(_stamp_ns(color.message) - time.time_ns()) < 5 * 10**9


def test_stop_service_stops_the_arm(inactive: Server, watcher: Watcher) -> None:
    stops = inactive.diagnostics().stops
    with remote_robot(inactive.network, inactive.keys, EDGE_KEY) as robot:
        robot.connect(5.0)
        robot.arm(5.0)
        robot.reset(3)
        for _ in range(4):
            moving = robot.step(robot.spec.action.upper_array()).state.moving
        assert moving
        answer = watcher.call("stop")
    assert answer.success, answer.message
    assert inactive.diagnostics().stops == stops + 1
    until(lambda: not inactive.state().moving, 2.0)
    assert inactive.state().lifecycle is Lifecycle.ACTIVE


def test_diagnostics_carry_the_servers_counts(inactive: Server, watcher: Watcher) -> None:
    with remote_robot(inactive.network, inactive.keys, EDGE_KEY) as robot:
        robot.connect(5.0)
        robot.arm(5.0)
        robot.reset(3)
        before = inactive.diagnostics().refusals.get("not_finite", 0)
        for _ in range(3):
            robot.step(np.full(robot.spec.action.shape, np.nan, dtype=np.float32))
        watcher.until(lambda: watcher.values().get("refusals.not_finite") == str(before + 3))
    counts = inactive.diagnostics()
    assert counts.refusals["not_finite"] == before + 3
    watcher.until(lambda: int(watcher.values()["ticks"]) >= counts.ticks)
    assert float(watcher.values()["state_rate_hz"]) > 40.0
    assert watcher.values()["boot"] == counts.boot
    watcher.until(lambda: watcher.level() == b"\x00")


def test_lifecycle_follows_the_server_and_arming_needs_a_person(inactive: Server, watcher: Watcher) -> None:
    watcher.until(lambda: watcher.shown() == "inactive")
    assert not watcher.change("activate")
    assert inactive.state().lifecycle is Lifecycle.INACTIVE
    assert not watcher.change("cleanup")
    inactive.transition(Lifecycle.ACTIVE)
    watcher.until(lambda: watcher.shown() == "active")
    assert watcher.change("deactivate")
    assert inactive.state().lifecycle is Lifecycle.INACTIVE
    assert watcher.shown() == "inactive"


def test_emergency_stop_latches_until_cleared(inactive: Server, watcher: Watcher) -> None:
    assert not watcher.call("clear_fault").success
    inactive.transition(Lifecycle.ACTIVE)
    assert watcher.call("emergency_stop").success
    assert inactive.state().lifecycle is Lifecycle.FAULT
    watcher.until(lambda: watcher.level() == b"\x02" and watcher.values()["fault"] != "")
    assert watcher.shown() == "inactive"
    assert watcher.call("clear_fault").success
    assert inactive.state().lifecycle is Lifecycle.INACTIVE
    watcher.until(lambda: watcher.level() == b"\x00")


def test_release_makes_the_robot_inactive(inactive: Server, watcher: Watcher) -> None:
    inactive.transition(Lifecycle.ACTIVE)
    assert watcher.call("release").success
    until(lambda: inactive.state().lifecycle is Lifecycle.INACTIVE, 5.0)


def test_home_needs_an_active_robot_that_nobody_commands(inactive: Server, watcher: Watcher) -> None:
    assert not watcher.call("home").success
    with remote_robot(inactive.network, inactive.keys, EDGE_KEY) as robot:
        robot.connect(5.0)
        robot.arm(5.0)
        start = robot.reset(5).state.features[JOINT_POSITION]
        for _ in range(8):
            robot.step(robot.spec.action.upper_array())
        away = inactive.state().features[JOINT_POSITION]
        refused = watcher.call("home")
    assert not refused.success
    assert np.abs(away - start).max() > 1e-2
    watcher.until(lambda: watcher.values()["lease_session"] == "")
    answer = watcher.call("home")
    assert answer.success, answer.message
    np.testing.assert_allclose(inactive.state().features[JOINT_POSITION], start, atol=1e-2)


def test_a_stalled_node_does_not_hold_up_the_robot_server(inactive: Server, watcher: Watcher) -> None:
    before = inactive.diagnostics().ticks
    assert watcher.process.pid is not None
    os.kill(watcher.process.pid, signal.SIGSTOP)
    try:
        time.sleep(1.5)
        assert inactive.diagnostics().ticks - before > 75
    finally:
        os.kill(watcher.process.pid, signal.SIGCONT)
    seen = watcher.joints.count
    watcher.until(lambda: watcher.joints.count > seen + 10)


def test_somebody_else_on_our_topic_is_shown(inactive: Server, watcher: Watcher) -> None:
    from sensor_msgs.msg import JointState

    intruder = watcher.link.node.create_publisher(JointState, "joint_states", 1)
    watcher.until(lambda: watcher.level() == b"\x01" and "joint_states" in watcher.line().message)
    watcher.link.node.destroy_publisher(intruder)
    watcher.until(lambda: watcher.level() == b"\x00")


def test_a_node_without_the_operators_key_only_watches(inactive: Server) -> None:
    with watching(inactive, "viewer", operator_key="", allow_activation=True) as viewer:
        stops = inactive.diagnostics().stops
        for service in ("stop", "release", "emergency_stop", "home", "clear_fault"):
            answer = viewer.call(service)
            assert not answer.success
            assert "operator" in answer.message
        viewer.until(lambda: viewer.shown() == "inactive")
        assert not viewer.change("activate")
        assert inactive.state().lifecycle is Lifecycle.INACTIVE
        assert inactive.diagnostics().stops == stops
        assert viewer.change("shutdown")
        viewer.process.join(15.0)
        assert viewer.process.exitcode == 0
    assert inactive.state().lifecycle is Lifecycle.INACTIVE


def test_activation_from_ros_where_it_is_allowed_and_a_revoked_key(inactive: Server) -> None:
    inactive.keys.make("hand", Role.OPERATOR)
    with watching(inactive, "arming", allow_activation=True, operator_key="hand") as arming:
        arming.until(lambda: arming.shown() == "inactive")
        assert arming.change("activate")
        assert inactive.state().lifecycle is Lifecycle.ACTIVE
        assert arming.shown() == "active"
        inactive.keys.revoke("hand")
        arming.until(lambda: not arming.call("stop").success, 10.0)
        assert not arming.call("release").success
        assert inactive.state().lifecycle is Lifecycle.ACTIVE


def test_a_dead_server_is_shown_and_a_new_one_found(inactive: Server, watcher: Watcher) -> None:
    boot = inactive.state().boot
    inactive.end(signal.SIGKILL)
    watcher.until(lambda: watcher.level() == b"\x03")
    assert "robot.request" in watcher.line().message
    watcher.until(lambda: watcher.shown() == "unconfigured")
    assert not watcher.call("stop").success
    assert watcher.process.is_alive()
    inactive.start("franka_1")
    seen = watcher.joints.count
    line = "franka_1: robot server"
    watcher.until(lambda: bool(watcher.line(line)) and watcher.line(line).level == b"\x00")
    watcher.until(lambda: watcher.joints.count > seen + 10)
    boots = {pair.value for pair in watcher.line(line).values if pair.key == "boot"}
    assert boots == {inactive.state().boot} != {boot}
    watcher.until(lambda: watcher.shown() == "inactive")


def test_a_missing_viewer_key_ends_the_node_with_words(tmp_path: Path) -> None:
    from robot_stack.apps.ros2_node import run_ros2_node

    settings = structs.replace(Ros2NodeConfig(), namespace=f"nobody_{os.getpid()}", domain_id=DOMAIN_ID)
    with pytest.raises(ConfigError, match="viewer"):
        run_ros2_node(free_network(), KeyStore(tmp_path), settings, lambda: True)
