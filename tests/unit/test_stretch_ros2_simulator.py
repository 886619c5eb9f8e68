"""The vendor's side of the Stretch in simulation: it does what the vendor's node does, its weaknesses included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from std_srvs.srv import SetBool

from hardware.stretch import ros2_names as names
from hardware.stretch.joints import ARM, AXIS, HEAD_PAN, LIFT
from robot_stack.core.errors import RobotError
from robot_stack.core.scene_messages import InjectFault, VendorFault

pytest_plugins = ("tests.stretch_ros2_kit",)


def pose_of(rig: Any, **changed: float) -> list[float]:
    setpoint = rig.world.measured.setpoint
    for name, value in changed.items():
        setpoint[AXIS[name]] = value
    return names.pose_command(setpoint, rig.config.gripper_unit)


def test_streamed_poses_count_only_while_streaming(rig):
    before = rig.world.measured.setpoint[HEAD_PAN]
    rig.somebody_sends(*pose_of(rig, head_pan_rad=before + 0.2))
    rig.ticks(10)
    assert rig.world.measured.setpoint[HEAD_PAN] == pytest.approx(before, abs=1e-2)
    assert rig.simulator.ignored["not_streaming"] == 1
    rig.call(names.ACTIVATE_STREAMING)
    rig.somebody_sends(*pose_of(rig, head_pan_rad=before + 0.2))
    rig.ticks(30)
    assert rig.world.measured.setpoint[HEAD_PAN] == pytest.approx(before + 0.2, abs=2e-2)


def test_a_pose_of_the_wrong_length_is_dropped_with_a_log_line(rig, caplog):
    rig.call(names.ACTIVATE_STREAMING)
    before = rig.world.measured.setpoint
    rig.somebody_sends(*[0.0] * 9)
    rig.ticks(10)
    assert rig.simulator.ignored["wrong_length"] == 1
    assert "joint_pose_cmd has 9 values" in caplog.text
    np.testing.assert_allclose(rig.world.measured.setpoint, before, atol=5e-3)


def test_a_pose_that_is_not_finite_is_ignored_and_counted(rig):
    rig.call(names.ACTIVATE_STREAMING)
    rig.somebody_sends(*[math.nan] * 10)
    rig.ticks(10)
    assert rig.simulator.ignored["not_finite"] == 1
    assert np.isfinite(rig.world.measured.setpoint).all() and rig.world.read().fault == ""


def test_zeros_mean_go_to_zero_and_are_held_for_ever(rig):
    rig.call(names.ACTIVATE_STREAMING)
    rig.somebody_sends(*[0.0] * 10)
    rig.ticks(60)
    assert rig.world.measured.setpoint[HEAD_PAN] == pytest.approx(0.0, abs=0.02)


def test_the_base_is_moved_by_increments_in_position_mode_only(rig):
    rig.call(names.ACTIVATE_STREAMING)
    rig.somebody_sends(*pose_of(rig)[:8], 0.05, 0.0)
    rig.ticks(60)
    assert rig.world.odometry()[0] == pytest.approx(0.05, abs=0.01)
    rig.call(names.SWITCH_TO_NAVIGATION)
    rig.somebody_sends(*pose_of(rig)[:8], 0.05, 0.0)
    rig.ticks(30)
    assert rig.world.odometry()[0] == pytest.approx(0.05, abs=0.01)


def test_a_run_stop_blocks_every_command(rig):
    rig.call(names.ACTIVATE_STREAMING)
    assert rig.call(names.RUNSTOP, SetBool, data=True).success
    before = rig.world.measured.setpoint[HEAD_PAN]
    rig.somebody_sends(*pose_of(rig, head_pan_rad=before + 0.3))
    for _ in range(20):
        rig.tick()
    assert rig.world.measured.setpoint[HEAD_PAN] == pytest.approx(before, abs=0.02)
    assert rig.call(names.RUNSTOP, SetBool, data=False).success
    assert rig.simulator.mode == names.POSITION


def test_homing_takes_a_while_and_comes_back_homed(rig):
    rig.simulator.is_homed = False
    assert rig.call(names.HOME_THE_ROBOT).success
    assert rig.simulator.mode == names.HOMING
    assert not rig.call(names.STOW_THE_ROBOT).success
    rig.until(lambda: rig.simulator.mode == names.POSITION)
    assert rig.simulator.is_homed


def test_a_stuck_joint_stays_where_it_is_and_others_move(rig):
    start = rig.engage()
    rig.simulator.inject(InjectFault(fault=VendorFault.STUCK_JOINT, axis=LIFT))
    goal = start.copy()
    goal[LIFT] += 0.03
    goal[ARM] += 0.03
    rig.go(start, goal, 30)
    assert rig.world.measured.setpoint[LIFT] == pytest.approx(start[LIFT], abs=2e-3)
    assert rig.world.measured.setpoint[ARM] == pytest.approx(goal[ARM], abs=5e-3)


def test_a_fault_that_a_stretch_does_not_have_is_refused(rig):
    with pytest.raises(RobotError, match="no fault 'reflex'"):
        rig.simulator.inject(InjectFault(fault=VendorFault.REFLEX))
