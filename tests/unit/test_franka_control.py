"""Inverse kinematics and the four action spaces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from hardware.franka import limits
from hardware.franka.actions import MAX_JOINT_LEAD_RAD, MAX_JOINT_STEP_RAD, MAX_LEAD_M, tool_down
from hardware.franka.embodiment import FrankaEmbodiment
from hardware.franka.kinematics import ArmKinematics
from hardware.franka.model import ARM_JOINTS, READY_RAD, TCP_SITE, FrankaModel, build_franka
from hardware.franka.sim import SimulatedFranka
from hardware.sim.tasks import make_task
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.specs import STATE

LOWER, UPPER = np.asarray(limits.RECTANGLE_LOWER_RAD), np.asarray(limits.RECTANGLE_UPPER_RAD)


@pytest.fixture(scope="module")
def kinematics() -> ArmKinematics:
    spec = build_franka(FrankaModel(finger_width_m=0.0))
    for index, joint in enumerate(ARM_JOINTS):
        spec.joint(joint).range = (LOWER[index], UPPER[index])
    return ArmKinematics(spec.compile(), TCP_SITE, np.asarray(READY_RAD))


def drive(robot: SimulatedFranka, action: list[float], steps: int) -> None:
    """Send the same action for some control steps, with setpoints on a straight line."""
    for _ in range(steps):
        start = robot.measured_setpoint()
        goal = robot.resolve(np.asarray(action, dtype=np.float32))
        for tick in range(1, 11):
            robot.send(start + (goal - start) * tick / 10)
            robot.advance(0.01)


def tool(robot: SimulatedFranka) -> np.ndarray:
    return robot.read().features[STATE][:3].astype(np.float64)


def test_a_moving_target_is_tracked_within_a_fifth_of_a_millimetre(kinematics: ArmKinematics) -> None:
    rng = np.random.default_rng(0)
    position, yaw = np.array([0.5, 0.0, 0.15]), 0.0
    joints = kinematics.solve(position, tool_down(yaw), np.asarray(READY_RAD), max_iterations=100)
    for _ in range(300):
        position = np.clip(position + rng.uniform(-0.01, 0.01, 3), [0.42, -0.1, 0.05], [0.58, 0.1, 0.3])
        yaw = float(np.clip(yaw + rng.uniform(-0.08, 0.08), -0.7, 0.7))
        joints = kinematics.solve(position, tool_down(yaw), joints)
        reached, rotation = kinematics.tool_pose(joints)
        assert np.linalg.norm(reached - position) < 2e-4
        assert np.arctan2(rotation[1, 0], rotation[0, 0]) == pytest.approx(yaw, abs=1e-3)
        assert np.linalg.norm(rotation[:2, 2]) < 1e-3


def test_an_unreachable_target_ends_inside_the_limits(kinematics: ArmKinematics) -> None:
    for position in ([2.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.3, 0.0, 3.0]):
        joints = kinematics.solve(np.asarray(position), tool_down(0.0), np.asarray(READY_RAD), max_iterations=30)
        assert np.isfinite(joints).all()
        assert (joints >= LOWER).all()
        assert (joints <= UPPER).all()


@pytest.mark.parametrize("task", ["peg_insertion", "pick_cube"])
def test_the_whole_workspace_lies_inside_the_joint_limits(task: str) -> None:
    robot = SimulatedFranka("franka", task, action_space="ee_pose")
    robot.connect()
    motion = make_task(task).motion
    for corner in itertools.product(*zip(motion.workspace_lower_m, motion.workspace_upper_m, strict=True)):
        for yaw in (-0.8, 0.0, 0.8):
            robot.reset(0)
            action = [*corner, *tool_down(yaw)]
            action += [1.0] * (len(robot.spec.action.names) - len(action))
            goal = robot.resolve(np.asarray(action, dtype=np.float32))
            state = dict(zip(robot.spec.observation[STATE].names, robot.read().features[STATE], strict=True))
            reached = [state[f"tool_{axis}_m"] + state[f"goal_minus_tool_{axis}_m"] for axis in "xyz"]
            np.testing.assert_allclose(reached, corner, atol=2e-4)
            assert (goal[:7] > LOWER).all()
            assert (goal[:7] < UPPER).all()


def test_ee_delta_moves_the_tool_by_the_action_and_keeps_it_upright() -> None:
    robot = SimulatedFranka("franka", "pick_cube")
    robot.connect()
    start = tool(robot)
    drive(robot, [0.005, -0.004, 0.003, 0.05, 1.0], 10)
    drive(robot, [0.0, 0.0, 0.0, 0.0, 1.0], 10)
    np.testing.assert_allclose(tool(robot) - start, [0.05, -0.04, 0.03], atol=1e-3)
    yaw, tilt_x, tilt_y = robot.read().features[STATE][3:6]
    assert yaw == pytest.approx(0.5, abs=5e-3)
    assert abs(tilt_x) + abs(tilt_y) < 2e-3


def test_ee_delta_target_leads_the_tool_by_no_more_than_the_bound() -> None:
    robot = SimulatedFranka("franka", "peg_insertion")
    robot.connect()
    for _ in range(10):  # the world stands still, so the lead would grow without end
        robot.resolve(np.array([0.01, 0.01, 0.0, 0.08], dtype=np.float32))
    state = robot.read().features[STATE]
    assert np.linalg.norm(state[9:12]) == pytest.approx(MAX_LEAD_M, abs=2e-4)
    assert state[12] == pytest.approx(0.25, abs=1e-2)


def test_ee_delta_target_stays_in_the_workspace() -> None:
    robot = SimulatedFranka("franka", "pick_cube")
    robot.connect()
    highest = make_task("pick_cube").motion.workspace_upper_m[2]
    drive(robot, [0.0, 0.0, 0.015, 0.0, 1.0], 20)
    assert tool(robot)[2] == pytest.approx(highest, abs=1e-3)


def test_hold_forgets_the_goal() -> None:
    robot = SimulatedFranka("franka", "peg_insertion")
    robot.connect()
    robot.resolve(np.array([0.01, 0.0, 0.0, 0.0], dtype=np.float32))
    robot.hold()
    goal = robot.resolve(np.zeros(4, dtype=np.float32))
    np.testing.assert_allclose(goal, robot.measured_setpoint(), atol=1e-4)
    np.testing.assert_allclose(robot.read().features[STATE][9:13], 0.0, atol=1e-4)


def test_ee_pose_reaches_the_pose() -> None:
    robot = SimulatedFranka("franka", "pick_cube", action_space="ee_pose")
    robot.connect()
    drive(robot, [0.52, 0.05, 0.2, *tool_down(0.3), 0.5], 12)
    state = robot.read().features[STATE]
    np.testing.assert_allclose(state[:4], [0.52, 0.05, 0.2, 0.3], atol=1e-3)
    assert state[13] == pytest.approx(0.04, abs=1e-3)


def test_ee_pose_refuses_a_quaternion_that_is_none() -> None:
    robot = SimulatedFranka("franka", "pick_cube", action_space="ee_pose")
    robot.connect()
    with pytest.raises(RobotError, match="unit quaternion"):
        robot.resolve(np.array([0.5, 0, 0.2, 0, 0, 0, 0, 1], dtype=np.float32))


def test_joint_position_reaches_the_joints() -> None:
    robot = SimulatedFranka("franka", "pick_cube", action_space="joint_position")
    robot.connect()
    wanted = np.array([0.1, 0.0, 0.1, -2.0, 0.1, 2.0, 0.8])
    drive(robot, [*wanted, 0.25], 12)
    np.testing.assert_allclose(robot.measured_setpoint(), [*wanted, 0.02], atol=1e-3)


@pytest.fixture
def by_joints() -> Iterator[SimulatedFranka]:
    robot = SimulatedFranka("franka", "pick_cube", action_space="joint_delta")
    robot.connect()
    yield robot
    robot.close()


def joint_leads(robot: SimulatedFranka) -> np.ndarray:
    state = dict(zip(robot.spec.observation[STATE].names, robot.read().features[STATE], strict=True))
    return np.array([state[f"goal_minus_{name}_rad"] for name in limits.JOINT_NAMES])


@pytest.mark.parametrize("axis", range(7))
def test_joint_delta_moves_that_joint_by_the_actions_together_and_no_other(
    by_joints: SimulatedFranka, axis: int
) -> None:
    assert by_joints.spec.action.names == (*(f"{name}_delta_rad" for name in limits.JOINT_NAMES), "gripper")
    start, action = by_joints.measured_setpoint(), np.zeros(8)
    action[axis], action[7] = -0.03, 0.25
    drive(by_joints, action.tolist(), 5)
    action[axis] = 0.0
    drive(by_joints, action.tolist(), 8)
    expected = start.copy()
    expected[axis] -= 0.15
    expected[7] = 0.02
    np.testing.assert_allclose(by_joints.measured_setpoint(), expected, atol=1e-3)
    np.testing.assert_allclose(joint_leads(by_joints), 0.0, atol=1e-3)


def test_joint_delta_goals_lead_the_joints_by_no_more_than_the_bound(by_joints: SimulatedFranka) -> None:
    signs = np.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    for _ in range(10):  # the world stands still, so the lead would grow without end
        goal = by_joints.resolve(np.append(signs * MAX_JOINT_STEP_RAD, 1.0).astype(np.float32))
    leads = signs * MAX_JOINT_LEAD_RAD
    np.testing.assert_allclose(goal[:7] - by_joints.measured_setpoint()[:7], leads, atol=1e-9)
    np.testing.assert_allclose(joint_leads(by_joints), leads, atol=1e-6)
    back = by_joints.resolve(np.append(-signs * MAX_JOINT_STEP_RAD, 1.0).astype(np.float32))
    np.testing.assert_allclose(goal[:7] - back[:7], signs * MAX_JOINT_STEP_RAD, atol=1e-6, err_msg="it turns at once")


def test_joint_delta_stands_still_bit_for_bit_wherever_the_arm_is_pushed(by_joints: SimulatedFranka) -> None:
    rng, still = np.random.default_rng(0), np.append(np.zeros(7), 1.0).astype(np.float32)
    goal = by_joints.resolve(np.append(rng.uniform(-0.04, 0.04, 7), 1.0).astype(np.float32))
    for _ in range(50):
        by_joints.send(goal + np.append(rng.uniform(-0.02, 0.02, 7), 0.0))
        by_joints.advance(0.01)
        assert by_joints.resolve(still).tobytes() == goal.tobytes()


def test_joint_delta_goals_do_not_run_away_behind_a_limit(by_joints: SimulatedFranka) -> None:
    arm = by_joints.embodiment
    for sign, bound in ((-1.0, LOWER), (1.0, UPPER)):
        measured = arm.measured(bound - sign * 0.03, np.zeros(7), np.zeros(6), 0.08)
        arm.hold(measured)
        for _ in range(5):
            goal = arm.resolve(np.append(np.full(7, sign * MAX_JOINT_STEP_RAD), 1.0).astype(np.float32), measured)
            assert (goal[:7] >= LOWER).all() and (goal[:7] <= UPPER).all()
        np.testing.assert_array_equal(goal[:7], bound)
        back = arm.resolve(np.append(np.full(7, -sign * MAX_JOINT_STEP_RAD), 1.0).astype(np.float32), measured)
        np.testing.assert_allclose(back[:7], bound - sign * MAX_JOINT_STEP_RAD, atol=1e-6)


def test_joint_delta_keeps_to_the_limits_that_the_robot_itself_states() -> None:
    robot = FrankaEmbodiment("franka", "pick_cube", action_space="joint_delta", control_rate_hz=10, tick_rate_hz=100)
    ready = np.asarray(READY_RAD)
    robot.open(limits.JointFacts(ready - 0.05, ready + 0.05, np.ones(7)))
    measured = robot.measured(ready, np.zeros(7), np.zeros(6), 0.08)
    robot.hold(measured)
    for _ in range(3):
        goal = robot.resolve(np.append(np.full(7, MAX_JOINT_STEP_RAD), 1.0).astype(np.float32), measured)
    np.testing.assert_allclose(goal[:7], ready + 0.05)
    np.testing.assert_allclose(robot.features(measured)[STATE][-7:], 0.05, atol=1e-6)
    back = robot.resolve(np.append(np.full(7, -MAX_JOINT_STEP_RAD), 1.0).astype(np.float32), measured)
    np.testing.assert_allclose(back[:7], ready + 0.05 - MAX_JOINT_STEP_RAD, atol=1e-6)


def test_joint_delta_counts_from_where_the_arm_is_after_hold(by_joints: SimulatedFranka) -> None:
    by_joints.resolve(np.append(np.full(7, 0.04), 1.0).astype(np.float32))
    by_joints.hold()
    np.testing.assert_array_equal(joint_leads(by_joints), 0.0)
    goal = by_joints.resolve(np.append(np.full(7, -0.02), 1.0).astype(np.float32))
    np.testing.assert_allclose(goal[:7], by_joints.measured_setpoint()[:7] - 0.02, atol=1e-6)


def test_an_unknown_action_space_or_task_is_named() -> None:
    with pytest.raises(ConfigError, match="ee_delta, ee_pose, joint_position, joint_delta"):
        SimulatedFranka("franka", "pick_cube", action_space="ee_wrench")
    with pytest.raises(ConfigError, match="peg_insertion, pick_cube"):
        SimulatedFranka("franka", "fold_laundry")
