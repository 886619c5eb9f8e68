"""The parts of the ROS 2 line, each alone: joints by name, gripper goals, following, error flags, controllers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="the package rclpy is not installed")

from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from hardware.franka import limits
from hardware.franka.config import FrankaRos2Config
from hardware.franka.following import FollowingWatch
from hardware.franka.gripper import WidthGoals
from hardware.franka.model import READY_RAD
from hardware.franka.ros2_controller import ArmController, HandController
from hardware.franka.ros2_names import JointReader
from hardware.franka.ros2_simulator import robot_description
from hardware.franka.ros2_state import vendor_fault
from hardware.franka.ros2_stream import hand_kinematics
from robot_stack.core.errors import RobotError

TICK_S = 0.01


@dataclass
class JointMessage:
    name: list[str]
    position: list[float]
    velocity: list[float] = field(default_factory=list)


def test_joints_are_found_by_name_in_any_order() -> None:
    reader = JointReader(("a", "b", "c"), "topic", "robot")
    assert reader.pick(JointMessage(["c", "x", "a", "b"], [3.0, 9.0, 1.0, 2.0]), "position").tolist() == [1, 2, 3]
    assert reader.pick(JointMessage(["b", "c", "a"], [2.0, 3.0, 1.0]), "position").tolist() == [1, 2, 3]


def test_joint_states_that_are_not_usable_are_refused() -> None:
    reader = JointReader(("a", "b", "c"), "joints", "franka_7")
    with pytest.raises(RobotError, match=r"franka_7: joints lacks b, c; it has a"):
        reader.pick(JointMessage(["a"], [1.0]), "position")
    with pytest.raises(RobotError, match="3 names and 0 values of velocity"):
        reader.pick(JointMessage(["a", "b", "c"], [1.0, 2.0, 3.0]), "velocity")
    with pytest.raises(RobotError, match="not finite"):
        reader.pick(JointMessage(["a", "b", "c"], [1.0, float("nan"), 3.0]), "position")


def test_the_gripper_gets_few_goals() -> None:
    goals = WidthGoals()
    goals.start(0.08)
    sent = []
    for tick in range(300):
        width = max(0.0, 0.08 - 0.002 * tick) if tick < 200 else 0.003
        goal = goals.next(width, tick * 10_000_000)
        if goal is not None:
            sent.append((tick, *goal))
    assert sent == [(41, 0.0, True)]  # once it has come to rest; 3 mm are no new goal
    for tick in range(300, 600):
        goal = goals.next(min(0.08, 0.0002 * (tick - 300)), tick * 10_000_000)
        if goal is not None:
            sent.append((tick, *goal))
    times = [tick for tick, _, _ in sent[1:]]
    assert len(times) >= 3  # a slow motion does not wait for its end
    assert min(np.diff(times)) >= 50
    assert not any(closing for _, _, closing in sent[1:])


def watch_for(error_rad: float, speed_rad_s: float, force_n: float, duration_s: float = 0.5) -> str:
    watch = FollowingWatch("franka_0", FrankaRos2Config())
    fault = ""
    joints = np.zeros(7)
    for tick in range(int(duration_s / TICK_S)):
        now_ns = tick * 10_000_000
        watch.target(joints + np.eye(7)[2] * error_rad, now_ns)
        speeds = np.eye(7)[2] * speed_rad_s
        fault = watch.check(joints, speeds, np.array([0, 0, force_n, 0, 0, 0]), now_ns)
    return fault


def test_what_counts_as_not_following() -> None:
    assert watch_for(0.015, 0.0, 0.0) == ""
    assert "fr3_joint3" in watch_for(0.03, 0.0, 0.0)
    assert watch_for(0.03, 0.0, 0.0, duration_s=0.2) == ""
    assert watch_for(0.03, 0.0, 20.0) == ""  # contact holds it
    assert watch_for(0.15, 1.0, 0.0) == ""  # it lags
    assert watch_for(0.25, 1.0, 0.0) == ""
    assert "fr3_joint3" in watch_for(0.25, 0.1, 20.0)


def test_nothing_is_asked_of_an_arm_without_fresh_targets() -> None:
    watch = FollowingWatch("franka_0", FrankaRos2Config())
    watch.target(np.ones(7), 0)
    for now_ns in range(0, 10**9, 10**7):
        fault = watch.check(np.zeros(7), np.zeros(7), np.zeros(6), now_ns)
    assert fault == ""


class VendorErrors:
    """Stands for franka_msgs/Errors: 36 flags."""

    joint_reflex = False
    communication_constraints_violation = False

    def get_fields_and_field_types(self) -> dict[str, str]:
        return {"joint_reflex": "boolean", "communication_constraints_violation": "boolean"}


class VendorState:
    robot_mode = 2

    def __init__(self) -> None:
        self.current_errors = VendorErrors()


def test_the_vendors_error_flags_are_told_in_words() -> None:
    state = VendorState()
    assert vendor_fault(state, "franka_0") == ""
    state.robot_mode = 4
    state.current_errors.communication_constraints_violation = True
    assert vendor_fault(state, "franka_0").startswith(
        "franka_0: the robot reports reflex, communication_constraints_violation"
    )
    state = VendorState()
    state.robot_mode = 5
    assert "user stop" in vendor_fault(state, "franka_0")


def test_foreign_messages_do_not_move_the_simulated_arm() -> None:
    arm, hand, measured = ArmController(hand_kinematics()), HandController(0.1), np.array(READY_RAD)
    arm.rest_at(measured)
    hand.rest_at(0.08)
    arm.take_joints(JointMessage(["fr3_joint1"], [1.0]), measured)
    arm.take_trajectory(JointTrajectory(), measured)
    point = JointTrajectoryPoint(positions=[0.1] * 2)
    arm.take_trajectory(JointTrajectory(joint_names=["a", "b"], points=[point]), measured)
    hand.take(Float64MultiArray(data=[float("nan")]))
    np.testing.assert_array_equal(arm.step(0.01, np.zeros(7), measured), measured)
    assert hand.step(0.01) == 0.08
    assert arm.error == ""


def test_the_simulated_description_is_a_urdf_with_the_vendors_limits() -> None:
    facts = limits.read_urdf(robot_description(), "franka_0")
    np.testing.assert_allclose(facts.lower_rad, limits.FULL_LOWER_RAD)
    np.testing.assert_allclose(facts.upper_rad, limits.FULL_UPPER_RAD)
