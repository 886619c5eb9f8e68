"""The Stretch's ROS 2 driver against the vendor's side in simulation."""

from __future__ import annotations

import math
import time

import msgspec
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from sensor_msgs.msg import JointState

from hardware.stretch import ros2_names as names
from hardware.stretch.config import StretchRos2Config
from hardware.stretch.joints import ARM, BASE_ROTATION, BASE_TRANSLATION, GRIPPER, LIFT
from hardware.stretch.limits import default_limits
from hardware.stretch.ros2 import StretchRos2
from hardware.stretch.ros2_safe_state import StretchRos2SafeState
from robot_stack.core.errors import ConfigError, RobotError, UnreachableError
from robot_stack.core.scene_messages import InjectFault, VendorFault
from robot_stack.core.specs import ENVIRONMENT_STATE

pytest_plugins = ("tests.stretch_ros2_kit",)


# ---- connect ----


def test_the_driver_offers_what_the_simulated_robot_offers_but_the_environment(rig):
    simulated, vendor = rig.world.spec, rig.driver.spec
    assert not vendor.simulated
    assert vendor.action == simulated.action
    offered = {name: feature for name, feature in simulated.observation.items() if name != ENVIRONMENT_STATE}
    assert vendor.observation == offered
    reading = rig.driver.read()
    assert {name: value.shape for name, value in reading.features.items()} == {
        name: feature.shape for name, feature in offered.items()
    }
    for name, value in reading.features.items():
        np.testing.assert_allclose(value, rig.world.read().features[name], atol=2e-3, err_msg=name)


def test_the_measured_setpoint_is_the_worlds_own(rig):
    rig.ticks(3)
    np.testing.assert_allclose(rig.driver.measured_setpoint(), rig.world.measured.setpoint, atol=1e-3)


def test_a_reading_is_as_old_as_its_message(rig):
    rig.ticks(3)
    stamp_ns = rig.driver.read().stamp_ns
    time.sleep(0.05)
    assert rig.driver.read().stamp_ns == stamp_ns
    assert time.monotonic_ns() - stamp_ns > 50_000_000


def test_a_robot_that_is_not_homed_is_refused(make_rig):
    rig = make_rig()
    rig.simulator.is_homed = False
    with pytest.raises(RobotError, match=r"not homed.*home_the_robot"):
        rig.connect()


def test_a_run_stopped_robot_is_refused(make_rig):
    rig = make_rig()
    rig.simulator.inject(InjectFault(fault=VendorFault.RUNSTOP))
    with pytest.raises(RobotError, match="run-stop is pressed"):
        rig.connect()
    assert rig.simulator.is_runstopped


def test_a_missing_driver_node_is_named(make_rig):
    rig = make_rig(connect_timeout_s=0.3)
    rig.simulator.close()
    with pytest.raises(UnreachableError, match=r"switch_to_navigation_mode.*is stretch_driver running"):
        rig.driver.connect()


def test_a_driver_node_that_publishes_nothing_is_named(make_rig):
    rig = make_rig(connect_timeout_s=1.0)
    rig.simulator.inject(InjectFault(fault=VendorFault.FROZEN_STATE))
    with pytest.raises(UnreachableError, match="stretch/joint_states"):
        rig.connect()


def test_narrower_limits_of_the_robot_are_taken_and_wider_ones_are_not(make_rig):
    rig = make_rig()
    rig.simulator.inject(InjectFault(fault=VendorFault.WRONG_LIMITS))
    rig.connect()
    ours, theirs = default_limits(), rig.driver.limits
    width = ours.upper[LIFT] - ours.lower[LIFT]
    assert theirs.lower[LIFT] == pytest.approx(ours.lower[LIFT] + 0.1 * width)
    assert theirs.upper[LIFT] == pytest.approx(ours.upper[LIFT] - 0.1 * width)
    assert theirs.upper[GRIPPER] == pytest.approx(0.9 * ours.upper[GRIPPER])
    assert theirs.lower[BASE_TRANSLATION] == ours.lower[BASE_TRANSLATION]
    rig.engage()
    above = rig.driver.measured_setpoint()
    above[GRIPPER] = ours.upper[GRIPPER]
    rig.until(lambda: rig.poses[-1][7] == pytest.approx(theirs.upper[GRIPPER] / (2 * 0.171)), above)


def test_an_unknown_gripper_unit_is_a_configuration_error():
    with pytest.raises(ConfigError, match="gripper_unit is 'inch'"):
        StretchRos2("s", "stretch_reach_grasp", StretchRos2Config(gripper_unit="inch"), control_rate_hz=10.0)


def test_limits_of_the_vendor_are_published_on_request_only(rig):
    heard: list[JointState] = []
    rig.ear.node.create_subscription(JointState, names.JOINT_LIMITS, heard.append, 10)
    rig.ticks(20)
    assert not heard
    assert rig.call(names.GET_JOINT_STATES).success
    rig.until(lambda: len(heard) > 0)
    limits = names.limits_from_message(heard[0])
    assert limits["lift_m"] == pytest.approx((0.0, 1.1))
    assert limits["gripper_aperture_m"] == pytest.approx((0.0, 0.09))


# ---- motion ----


def test_the_first_command_is_the_measured_pose_and_the_rest_comes_no_faster_than_the_limits(rig):
    rig.ticks(3)
    start = rig.driver.measured_setpoint()
    rig.driver.hold()
    rig.driver.engage()
    goal = start.copy()
    goal[LIFT] += 0.03
    rig.until(lambda: len(rig.poses) > 0, goal)
    lift, arm = names.STREAM_AXES.index("lift_m"), names.STREAM_AXES.index("arm_m")
    assert rig.poses[0][lift] == pytest.approx(start[LIFT], abs=1e-4)
    assert rig.poses[0][arm] == pytest.approx(start[ARM], abs=1e-4)
    rig.ticks(20, goal)
    lifts = np.array([pose[lift] for pose in rig.poses])
    assert lifts[-1] == pytest.approx(goal[LIFT])
    assert np.diff(lifts).max() <= rig.driver.limits.max_velocity[LIFT] / 30.0 + 1e-9


def test_nothing_is_sent_before_the_vendors_side_has_confirmed(rig):
    rig.ticks(3)
    rig.driver.hold()
    rig.driver.engage()
    for _ in range(5):
        rig.driver.send(rig.driver.measured_setpoint())
    time.sleep(0.05)
    rig.ear.spin()
    assert not rig.poses and not rig.twists
    rig.engage()
    assert rig.simulator.mode == names.NAVIGATION and rig.simulator.is_streaming


def test_streaming_that_is_already_on_is_switched_off_first(rig):
    rig.call(names.ACTIVATE_STREAMING)
    rig.ticks(5)
    switched: list[bool] = []
    switch = rig.simulator._set_streaming

    def record(streaming: bool) -> str:
        switched.append(streaming)
        return switch(streaming)

    rig.simulator._set_streaming = record
    rig.engage()
    assert switched == [False, True]


def test_lift_arm_and_base_follow_and_every_other_joint_keeps_its_pose(rig):
    start = rig.engage()
    goal = start.copy()
    goal[LIFT] += 0.05
    goal[ARM] += 0.05
    goal[BASE_TRANSLATION] += 0.08
    goal[BASE_ROTATION] -= 0.15
    rig.go(start, goal, 60)
    np.testing.assert_allclose(rig.world.measured.setpoint, goal, atol=0.01)
    np.testing.assert_allclose(rig.driver.measured_setpoint(), goal, atol=0.01)
    odometry = rig.world.odometry()
    assert odometry[2] == pytest.approx(-0.15, abs=0.01)
    assert odometry[0] == pytest.approx(0.08, abs=0.01)
    assert all(pose[8:] == [0.0, 0.0] for pose in rig.poses), "base increments in navigation mode"
    still = [axis for axis in range(10) if axis not in (LIFT, ARM, BASE_TRANSLATION, BASE_ROTATION)]
    assert np.abs(rig.world.measured.setpoint - start)[still].max() < 0.005


def test_base_commands_never_exceed_its_limits(rig):
    start = rig.engage()
    far = start.copy()
    far[BASE_TRANSLATION] += 0.1
    for _ in range(5):
        rig.tick(far)
    rig.ear.spin()
    fastest = max(abs(forward) for forward, _ in rig.twists)
    assert 0.0 < fastest <= rig.driver.limits.max_velocity[BASE_TRANSLATION] + 1e-9


def test_the_base_stops_half_a_second_after_commands_cease(rig):
    setpoint = rig.engage()
    for _ in range(30):
        setpoint = setpoint.copy()
        setpoint[BASE_TRANSLATION] += 0.1 / 30
        rig.ticks(1, setpoint)
    assert rig.world.odometry()[3] > 0.08
    rig.ticks(10)
    assert rig.world.odometry()[3] > 0.05, "the vendor's dead-man waits half a second"
    rig.ticks(15)
    assert abs(rig.world.odometry()[3]) < 0.005


def test_a_setpoint_that_begins_anew_has_no_rate_of_change(rig):
    setpoint = rig.engage()
    rig.ticks(5, setpoint)
    moved = setpoint.copy()
    moved[BASE_TRANSLATION] += 0.02
    rig.driver.hold()
    heard = len(rig.twists)
    rig.tick(moved)
    rig.until(lambda: len(rig.twists) > heard)
    assert rig.twists[heard][0] == pytest.approx(rig.config.base_gain_hz * 0.02, abs=0.005)


def test_a_base_that_is_blocked_is_a_fault(rig):
    setpoint = rig.engage()
    rig.simulator.inject(InjectFault(fault=VendorFault.STUCK_JOINT, axis=BASE_TRANSLATION))
    with pytest.raises(RobotError, match="from its setpoint"):
        for _ in range(100):
            setpoint = setpoint.copy()
            setpoint[BASE_TRANSLATION] += 0.1 / 30
            rig.ticks(1, setpoint)


def test_a_new_scene_moves_the_odometry_but_not_the_base(rig):
    start = rig.engage()
    goal = start.copy()
    goal[BASE_TRANSLATION] += 0.05
    goal[BASE_ROTATION] += 0.1
    rig.go(start, goal, 40)
    rig.simulator.reset(1)
    heard = len(rig.twists)
    for _ in range(3):
        rig.tick()
    np.testing.assert_allclose(rig.driver.measured_setpoint()[2:], rig.world.measured.setpoint[2:], atol=2e-3)
    np.testing.assert_allclose(rig.driver.measured_setpoint()[:2], goal[:2], atol=0.01)
    rig.driver.hold()
    rest = rig.driver.measured_setpoint()
    rest[:2] = goal[:2]
    rig.ticks(20, rest)
    assert np.abs(rig.twists[heard:]).max() < 0.03
    np.testing.assert_allclose(rig.world.odometry()[:3], 0.0, atol=0.015)


def test_relative_actions_reach_the_robot(rig):
    setpoint = rig.engage()
    action = np.zeros(len(rig.driver.spec.action.names), dtype=np.float32)
    action[-1] = setpoint[GRIPPER] / 0.09
    action[rig.driver.spec.action.names.index("lift_delta_m")] = 0.01
    goal = rig.driver.resolve(action)
    assert goal[LIFT] == pytest.approx(setpoint[LIFT] + 0.01, abs=1e-3)
    rig.go(setpoint, goal, 10)
    assert rig.world.measured.setpoint[LIFT] == pytest.approx(goal[LIFT], abs=2e-3)


@pytest.mark.parametrize("unit", [names.FINGER_RAD, names.PERCENT])
def test_the_gripper_moves_the_same_in_every_unit(make_rig, unit):
    rig = make_rig(gripper_unit=unit)
    rig.connect()
    start = rig.engage()
    goal = start.copy()
    goal[GRIPPER] = 0.05
    rig.go(start, goal, 20)
    assert rig.world.measured.setpoint[GRIPPER] == pytest.approx(0.05, abs=3e-3)
    sent = {names.FINGER_RAD: 0.05 / 0.342, names.PERCENT: 0.05 / 0.09 * 70}
    assert rig.poses[-1][names.STREAM_AXES.index("gripper_aperture_m")] == pytest.approx(sent[unit])


# ---- faults ----


def test_a_pressed_run_stop_is_a_fault_and_stays_pressed(rig):
    setpoint = rig.engage()
    rig.simulator.inject(InjectFault(fault=VendorFault.RUNSTOP))
    assert "run-stop is pressed" in rig.fault()
    heard = len(rig.poses)
    with pytest.raises(RobotError, match="run-stop is pressed"):
        rig.driver.send(setpoint)
    with pytest.raises(RobotError, match="run-stop is pressed"):
        rig.driver.engage()
    rig.driver.release()
    for _ in range(10):
        rig.tick()
        rig.driver.idle()
    assert rig.simulator.is_runstopped and rig.simulator.mode == names.RUNSTOPPED
    assert len(rig.poses) == heard


def test_a_released_run_stop_returns_to_the_mode_before(rig):
    rig.engage()
    rig.simulator.inject(InjectFault(fault=VendorFault.RUNSTOP))
    rig.fault()
    rig.simulator.inject(InjectFault(fault=VendorFault.NONE))
    rig.until(lambda: rig.tick() == "")
    assert rig.simulator.mode == names.NAVIGATION


@pytest.mark.parametrize("fault", [VendorFault.FROZEN_STATE, VendorFault.LOST_PACKETS])
def test_state_that_no_longer_arrives_is_a_fault_and_ends_commands(rig, fault):
    setpoint = rig.engage()
    rig.simulator.inject(InjectFault(fault=fault, share=1.0))
    text = rig.fault()
    assert "no state for" in text and "allowed: 500 ms" in text and text.startswith("stretch_test: ")
    with pytest.raises(RobotError, match="no state for"):
        rig.driver.send(setpoint)
    rig.simulator.inject(InjectFault(fault=VendorFault.NONE))
    rig.until(lambda: rig.tick() == "")


def test_a_third_of_all_packets_lost_still_follows(rig):
    start = rig.engage()
    rig.simulator.inject(InjectFault(fault=VendorFault.LOST_PACKETS, share=0.3))
    goal = start.copy()
    goal[LIFT] += 0.03
    goal[BASE_TRANSLATION] += 0.03
    for step in range(1, 61):
        rig.tick(start + (goal - start) * min(1.0, step / 40))
    np.testing.assert_allclose(rig.world.measured.setpoint, goal, atol=0.01)


def test_a_mode_that_somebody_else_changes_is_a_fault(rig):
    setpoint = rig.engage()
    assert rig.call(names.SWITCH_TO_POSITION).success
    assert "mode changed from 'navigation' to 'position'" in rig.fault()
    with pytest.raises(RobotError, match="somebody else commands the robot"):
        rig.driver.send(setpoint)


def test_streaming_that_somebody_else_switches_off_is_a_fault(rig):
    rig.engage()
    assert rig.call(names.DEACTIVATE_STREAMING).success
    assert "streaming position was switched off" in rig.fault()


def test_a_mode_that_changes_while_we_command_nothing_is_no_fault(rig):
    rig.call(names.SWITCH_TO_POSITION)
    rig.ticks(10)


def test_homing_by_somebody_else_is_a_fault_while_engaged(rig):
    rig.engage()
    assert rig.call(names.HOME_THE_ROBOT).success
    assert "'homing'" in rig.fault()


def test_a_robot_that_loses_its_homing_is_a_fault(rig):
    rig.simulator.is_homed = False
    assert "not homed" in rig.fault()


def test_a_low_battery_is_a_fault(rig):
    rig.simulator.battery_v = 9.9
    assert "battery is at 9.9 V" in rig.fault()


def test_a_state_that_is_not_a_number_is_an_error(rig):
    message = JointState(name=list(names.JOINT_STATE_OF.values()), position=[math.nan] * 8)
    publisher = rig.ear.node.create_publisher(JointState, names.JOINT_STATES, 1)
    with pytest.raises(RobotError, match="not finite"):
        for _ in range(1000):
            rig.tick()
            publisher.publish(message)
            time.sleep(0.003)
            rig.driver.read()


def test_setpoints_that_must_not_be_sent_raise(rig):
    setpoint = rig.driver.measured_setpoint()
    with pytest.raises(RobotError, match="before the robot was activated"):
        rig.driver.send(setpoint)
    rig.engage()
    heard = len(rig.poses)
    setpoint[ARM] = math.nan
    with pytest.raises(RobotError, match="not finite"):
        rig.driver.send(setpoint)
    rig.ticks(3)
    assert len(rig.poses) == heard


def test_a_vendors_side_that_does_not_take_part_is_a_fault(make_rig):
    rig = make_rig(engage_timeout_s=0.3)
    rig.connect()
    rig.ticks(3)
    rig.simulator._set_streaming = lambda streaming: "no effect"
    rig.driver.engage()
    setpoint = rig.driver.measured_setpoint()
    with pytest.raises(RobotError, match=r"'activate_streaming_position' did not take effect within 0\.3 s"):
        rig.until(lambda: False, setpoint)
    assert not rig.poses


def test_state_from_before_the_vendors_side_obeyed_does_not_count(make_rig):
    rig = make_rig(engage_timeout_s=0.6, max_state_age_s=20.0)
    rig.connect()
    rig.call(names.SWITCH_TO_NAVIGATION)
    rig.call(names.ACTIVATE_STREAMING)
    rig.ticks(5)
    rig.simulator.inject(InjectFault(fault=VendorFault.FROZEN_STATE))
    rig.driver.engage()
    setpoint = rig.driver.measured_setpoint()
    with pytest.raises(RobotError, match="did not take effect"):
        rig.until(lambda: False, setpoint)
    assert not rig.poses


@pytest.mark.parametrize("service", [names.SWITCH_TO_NAVIGATION, names.ACTIVATE_STREAMING])
def test_an_answer_that_gets_lost_is_asked_for_again(rig, service):
    rig.lose_answer(service)
    rig.engage()
    assert rig.simulator.mode == names.NAVIGATION and rig.simulator.is_streaming


# ---- stops ----


def test_release_stops_the_base_switches_streaming_off_and_falls_silent(rig):
    setpoint = rig.engage()
    for _ in range(20):
        setpoint = setpoint.copy()
        setpoint[BASE_TRANSLATION] += 0.1 / 30
        rig.ticks(1, setpoint)
    rig.driver.release()
    rig.until(lambda: not rig.simulator.is_streaming)
    rig.ticks(10)
    assert abs(rig.world.odometry()[3]) < 0.005
    time.sleep(names.BASE_TIMEOUT_S)
    rig.ticks(2)
    heard = len(rig.twists), len(rig.poses)
    for _ in range(10):
        rig.driver.idle()
        rig.ticks(1)
    assert (len(rig.twists), len(rig.poses)) == heard


def test_an_emergency_stop_presses_the_run_stop_for_good(rig):
    setpoint = rig.engage()
    for _ in range(20):
        setpoint = setpoint.copy()
        setpoint[BASE_TRANSLATION] += 0.1 / 30
        rig.ticks(1, setpoint)
    rig.driver.emergency_stop()
    assert "run-stop is pressed" in rig.fault()
    for _ in range(10):
        rig.tick()
    assert abs(rig.world.odometry()[3]) < 0.005
    rig.driver.release()
    rig.while_ticking(rig.driver.close)
    assert rig.simulator.is_runstopped


def test_closing_switches_streaming_off_and_a_closed_driver_connects_again(rig):
    rig.engage()
    rig.while_ticking(rig.driver.close)
    assert not rig.simulator.is_streaming
    rig.driver.close()
    with pytest.raises(RobotError, match="not connected"):
        rig.driver.measured_setpoint()
    rig.connect()
    rig.ticks(3)
    np.testing.assert_allclose(rig.driver.measured_setpoint()[2:], rig.world.measured.setpoint[2:], atol=2e-3)


def test_the_safe_state_stops_a_robot_whose_driver_died(rig):
    safe_state = StretchRos2SafeState(rig.config)
    rig.while_ticking(safe_state.connect)
    setpoint = rig.engage()
    for _ in range(25):
        setpoint = setpoint.copy()
        setpoint[BASE_TRANSLATION] += 0.1 / 30
        setpoint[LIFT] += 0.1 / 30
        rig.ticks(1, setpoint)
        safe_state.watch()
    assert rig.world.odometry()[3] > 0.08 and rig.simulator.is_streaming, "it is silent while the driver lives"
    time_s = rig.simulator._time_s
    rig.while_ticking(safe_state.make_safe)
    assert rig.simulator._time_s - time_s < names.BASE_TIMEOUT_S, "the dead-man would have stopped it too"
    assert not rig.simulator.is_streaming
    for _ in range(5):
        rig.simulator.tick()
    assert abs(rig.world.odometry()[3]) < 0.005
    lift = rig.world.measured.setpoint[LIFT]
    for _ in range(30):
        rig.simulator.tick()
    assert rig.world.measured.setpoint[LIFT] == pytest.approx(lift, abs=5e-3)
    safe_state.close()


def test_the_safe_state_stops_joints_on_their_way_to_a_target(rig):
    safe_state = StretchRos2SafeState(rig.config)
    rig.while_ticking(safe_state.connect)
    rig.call(names.ACTIVATE_STREAMING)
    target = rig.world.measured.setpoint
    target[LIFT] += 0.4
    rig.somebody_sends(*names.pose_command(target, rig.config.gripper_unit))
    rig.while_ticking(safe_state.make_safe)
    safe_state.close()
    for _ in range(60):
        rig.simulator.tick()
    assert rig.world.measured.setpoint[LIFT] < target[LIFT] - 0.05


def test_a_safe_state_without_a_driver_node_says_so(make_rig):
    config = msgspec.structs.replace(make_rig().config, namespace="stretch_nobody", connect_timeout_s=0.3)
    safe_state = StretchRos2SafeState(config)
    with pytest.raises(UnreachableError, match=r"stretch_nobody/stop_the_robot.*stretch_nobody/stretch/cmd_vel"):
        safe_state.connect()
    with pytest.raises(UnreachableError, match="is stretch_driver running"):
        safe_state.make_safe()


def test_a_safe_state_that_never_connected_still_acts_and_asks_until_it_is_answered(rig):
    rig.engage()
    rig.lose_answer(names.DEACTIVATE_STREAMING)
    safe_state = StretchRos2SafeState(rig.config)
    rig.while_ticking(safe_state.make_safe)
    safe_state.close()
    assert not rig.simulator.is_streaming
