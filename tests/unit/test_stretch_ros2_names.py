"""The Stretch's ROS 2 messages to setpoints and back, and its base as two virtual joints."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from sensor_msgs.msg import JointState

from hardware.stretch import ros2_names as names
from hardware.stretch.base import BaseAxes, BaseFollower
from hardware.stretch.joints import ARM, LIFT, SETPOINT_NAMES
from hardware.stretch.sim import SimulatedStretch
from robot_stack.core.errors import RobotError

pytest_plugins = ("tests.stretch_ros2_kit",)


def joint_state(world: SimulatedStretch, order: list[str], drop: tuple[str, ...] = ()) -> JointState:
    by_axis = dict(zip(SETPOINT_NAMES, world.measured.setpoint.tolist(), strict=True))
    values = {joint: by_axis[axis] for axis, joint in names.JOINT_STATE_OF.items()}
    values["joint_gripper_finger_left"] = by_axis["gripper_aperture_m"] / 0.342
    values["joint_gripper_finger_right"] = values["joint_gripper_finger_left"]
    values |= {f"joint_arm_l{segment}": by_axis["arm_m"] / 4 for segment in range(4)}
    kept = [name for name in order if name not in drop]
    return JointState(name=kept, position=[values[name] for name in kept])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("drop", [(), ("wrist_extension",), ("joint_arm_l0", "joint_arm_l1")])
def test_joints_are_read_by_name_in_any_order(world, seed, drop):
    world.reset(seed)
    order = [*names.JOINT_STATE_OF.values(), "joint_gripper_finger_right", *(f"joint_arm_l{n}" for n in range(4))]
    random.Random(seed).shuffle(order)
    position, velocity, effort = names.joints_from_state(joint_state(world, order, drop))
    np.testing.assert_allclose(position, world.measured.setpoint[2:], atol=1e-12)
    assert not velocity.any() and not effort.any()


def test_a_joint_that_is_missing_is_named(world):
    order = list(names.JOINT_STATE_OF.values())
    with pytest.raises(RobotError, match="no joint 'joint_wrist_pitch'"):
        names.joints_from_state(joint_state(world, order, ("joint_wrist_pitch",)))


@pytest.mark.parametrize("unit", [names.FINGER_RAD, names.PERCENT])
def test_a_streamed_command_says_every_joint_and_converts_the_gripper_both_ways(unit):
    setpoint = np.linspace(0.01, 0.09, 10)
    command = names.pose_command(setpoint, unit)
    assert len(command) == 10 and command[8:] == [0.0, 0.0]
    assert command[0] == setpoint[ARM] and command[1] == setpoint[LIFT]
    targets = names.targets_of_command(command, unit)
    assert targets == pytest.approx(dict(zip(SETPOINT_NAMES[2:], setpoint[2:].tolist(), strict=True)))


def test_the_gripper_constants_are_the_vendors():
    assert names.gripper_from_aperture(0.09, names.FINGER_RAD) == pytest.approx(0.263, abs=5e-4)
    assert names.gripper_from_aperture(0.09, names.PERCENT) == pytest.approx(70.0)


@pytest.mark.parametrize(("lower", "upper"), [(-100.0, 70.0), (-0.3, 0.263158)])
def test_gripper_limits_in_percent_or_radians_are_told_apart(lower, upper):
    message = JointState(name=["joint_gripper_finger_left"], position=[lower], velocity=[upper])
    limits = names.limits_from_message(message)["gripper_aperture_m"]
    assert limits[1] == pytest.approx(0.09, abs=1e-4) and limits[0] < -0.1


def test_base_axes_count_what_was_driven_and_turned_without_wrapping():
    axes = BaseAxes()
    radius_m, period_s, turn_rad_s = 0.5, 1 / 30, 0.3
    steps = 1200
    for step in range(steps + 1):
        angle = turn_rad_s * period_s * step
        pose = np.array([radius_m * math.sin(angle), radius_m * (1 - math.cos(angle)), math.remainder(angle, math.tau)])
        axes.update(pose, np.array([radius_m * turn_rad_s, turn_rad_s]), step * period_s)
    turned = turn_rad_s * period_s * steps
    assert turned > math.tau
    np.testing.assert_allclose(axes.axes, [radius_m * turned, turned], rtol=1e-4)


def test_base_axes_count_backwards_and_go_on_where_odometry_begins_anew():
    axes = BaseAxes()
    for step in range(10):
        axes.update(np.array([1.0 - 0.003 * step, 2.0, 0.0]), np.array([-0.09, 0.0]), step / 30)
    np.testing.assert_allclose(axes.axes, [-0.027, 0.0], atol=1e-9)
    axes.update(np.zeros(3), np.zeros(2), 10 / 30)
    np.testing.assert_allclose(axes.axes, [-0.027, 0.0], atol=1e-9)
    axes.update(np.array([0.003, 0.0, 0.0]), np.array([0.09, 0.0]), 11 / 30)
    np.testing.assert_allclose(axes.axes, [-0.024, 0.0], atol=1e-9)


def test_the_base_follower_adds_the_setpoints_rate_to_the_error_and_clamps():
    follower = BaseFollower(2.0, 0.1, np.array([0.1, 0.3]))
    assert follower.velocity(np.zeros(2), np.array([-0.01, 0.0])) == pytest.approx((0.02, 0.0))
    assert follower.velocity(np.array([0.005, 0.0]), np.array([-0.005, 0.0])) == pytest.approx((0.07, 0.0))
    assert follower.velocity(np.array([1.0, -1.0]), np.zeros(2)) == pytest.approx((0.1, -0.3))
    follower.forget()
    assert follower.velocity(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == pytest.approx((0.0, 0.0))
