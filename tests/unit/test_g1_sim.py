"""The simulated G1: its motors, what it tells, and that it holds what it is told."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from hardware.sim.rendering import CameraConfig
from hardware.unitree_g1.actions import ARM_JOINTS, MAX_JOINT_LEAD_RAD, MAX_JOINT_STEP_RAD
from hardware.unitree_g1.embodiment import JOINT_EFFORT, JOINT_POSITION, G1Embodiment, G1Measured
from hardware.unitree_g1.joints import ARM_SDK_MOTORS, MOTOR_NAMES
from hardware.unitree_g1.sim import SimulatedG1
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.safety.motion import MotionFilter

TASK = "g1_bimanual_lift"
ZERO = np.zeros(6, dtype=np.float32)


@pytest.fixture
def robot() -> Iterator[SimulatedG1]:
    made = SimulatedG1("g1_0", TASK)
    made.connect()
    yield made
    made.close()


def state_of(robot: SimulatedG1) -> dict[str, float]:
    reading = robot.read()
    return dict(zip(robot.spec.observation[STATE].names, reading.features[STATE].tolist(), strict=True))


def follow(robot: SimulatedG1, actions: list[np.ndarray]) -> None:
    tick_s = 1.0 / robot.spec.tick_rate_hz
    motion = MotionFilter(robot.limits, tick_s)
    motion.start(robot.measured_setpoint())
    for action in actions:
        goal = robot.resolve(action)
        for tick in range(10):
            robot.send(motion.toward(goal, (10 - tick) * tick_s))
            robot.advance(tick_s)


# ---- motors ---------------------------------------------------------------------------------------------------------


def test_motors_follow_the_law_of_the_real_ones(robot: SimulatedG1) -> None:
    rng = np.random.default_rng(0)
    kp, kd = rng.uniform(1, 20, 29), rng.uniform(0.1, 1, 29)
    q, dq, tau = (rng.uniform(-0.05, 0.05, 29) for _ in range(3))
    before, velocity, _ = robot.motor_state()
    robot.command_motors(q, dq, kp, kd, tau)
    robot.advance(0.002)
    effort = robot.motor_state()[2]
    expected = tau + kp * (q - before) + kd * (dq - velocity)
    free = np.abs(expected) < 5.0
    assert free.sum() > 20
    np.testing.assert_allclose(effort[free], expected[free], atol=1e-6)


def test_motors_give_no_more_than_they_can(robot: SimulatedG1) -> None:
    target = np.zeros(29)
    target[20] = 100.0
    robot.command_motors(target, np.zeros(29), np.full(29, 60.0), np.ones(29), np.zeros(29))
    robot.advance(0.002)
    assert robot.motor_state()[2][20] == pytest.approx(5.0)


def test_motors_without_gains_let_the_arms_fall(robot: SimulatedG1) -> None:
    nothing = np.zeros(29)
    robot.command_motors(nothing, nothing, nothing, nothing, nothing)
    for _ in range(100):
        robot.advance(0.002)
    assert state_of(robot)["left_palm_z_m"] < 0.10
    np.testing.assert_array_equal(robot.motor_state()[2], 0.0)


def test_a_reset_takes_the_motors_back(robot: SimulatedG1) -> None:
    nothing = np.zeros(29)
    robot.command_motors(nothing, nothing, nothing, nothing, nothing)
    robot.advance(0.1)
    robot.reset(3)
    before = robot.measured_setpoint()
    robot.advance(0.5)
    np.testing.assert_allclose(robot.measured_setpoint(), before, atol=2e-3)


def test_two_milliseconds_at_a_time_are_the_same_as_a_tick(robot: SimulatedG1) -> None:
    robot.send(robot.measured_setpoint() + 0.02)
    robot.advance(0.01)
    once = robot.motor_state()[0]
    robot.reset(0)
    robot.send(robot.measured_setpoint() + 0.02)
    for _ in range(5):
        robot.advance(0.002)
    np.testing.assert_array_equal(robot.motor_state()[0], once)


def test_the_pelvis_feels_gravity_and_nothing_else(robot: SimulatedG1) -> None:
    quat, gyro, acceleration = robot.imu()
    np.testing.assert_array_equal(quat, (1, 0, 0, 0))
    np.testing.assert_array_equal(gyro, (0, 0, 0))
    np.testing.assert_allclose(acceleration, (0, 0, 9.81))


# ---- control --------------------------------------------------------------------------------------------------------


def test_gravity_feed_forward_holds_the_arms_where_they_are_told(robot: SimulatedG1) -> None:
    setpoint = robot.measured_setpoint()
    for _ in range(200):
        robot.send(setpoint)
        robot.advance(0.01)
    np.testing.assert_allclose(robot.measured_setpoint(), setpoint, atol=2e-3)
    assert np.abs(robot.motor_state()[1]).max() < 1e-2


def test_a_palm_goes_where_it_is_commanded_and_the_other_stays(robot: SimulatedG1) -> None:
    before = state_of(robot)
    action = ZERO.copy()
    action[:3] = 0.01, -0.01, 0.008
    follow(robot, [action] * 3 + [ZERO] * 8)
    after = state_of(robot)
    moved = [after[f"left_palm_{axis}_m"] - before[f"left_palm_{axis}_m"] for axis in "xyz"]
    still = [after[f"right_palm_{axis}_m"] - before[f"right_palm_{axis}_m"] for axis in "xyz"]
    np.testing.assert_allclose(moved, (0.03, -0.03, 0.024), atol=0.004)
    np.testing.assert_allclose(still, 0.0, atol=0.002)
    turns = [after[f"{side}_palm_turn_{axis}_rad"] for side in ("left", "right") for axis in "xyz"]
    np.testing.assert_allclose(turns, 0.0, atol=0.02)


def test_goals_lead_the_palms_by_a_bounded_way_and_stay_in_the_workspace(robot: SimulatedG1) -> None:
    action = np.array([0, 0, 0.015, 0, 0, 0.015], dtype=np.float32)
    for _ in range(40):
        goal = robot.resolve(action)
    state = state_of(robot)
    assert state["goal_minus_left_palm_z_m"] == pytest.approx(0.05, abs=2e-3)
    assert not np.allclose(goal, robot.measured_setpoint(), atol=0.05)
    robot.hold()
    assert state_of(robot)["goal_minus_left_palm_z_m"] == pytest.approx(0.0, abs=1e-6)


def test_waist_stays_where_it_is(robot: SimulatedG1) -> None:
    goal = robot.resolve(np.full(6, 0.015, dtype=np.float32))
    np.testing.assert_allclose(goal[14:17], robot.measured_setpoint()[14:17])


# ---- joint by joint -------------------------------------------------------------------------------------------------


@pytest.fixture
def by_joints() -> Iterator[SimulatedG1]:
    made = SimulatedG1("g1_0", TASK, action_space="joint_delta")
    made.connect()
    yield made
    made.close()


def joint_action(**changes_rad: float) -> np.ndarray:
    return np.array([changes_rad.get(joint, 0.0) for joint in ARM_JOINTS], dtype=np.float32)


def joint_leads(robot: SimulatedG1) -> np.ndarray:
    state = state_of(robot)
    return np.array([state[f"goal_minus_{joint}_rad"] for joint in ARM_JOINTS])


@pytest.mark.parametrize("joint", ["left_shoulder_roll", "left_wrist_yaw", "right_elbow", "right_wrist_roll"])
def test_a_joint_moves_by_the_actions_together_and_no_other_does(by_joints: SimulatedG1, joint: str) -> None:
    assert by_joints.spec.action.names == tuple(f"{name}_delta_rad" for name in ARM_JOINTS)
    before, action = by_joints.measured_setpoint(), joint_action(**{joint: 0.03 if "left" in joint else -0.03})
    follow(by_joints, [action] * 5 + [joint_action()] * 10)
    moved = by_joints.measured_setpoint() - before
    np.testing.assert_allclose(moved, [*(action * 5), 0.0, 0.0, 0.0], atol=8e-3)
    np.testing.assert_allclose(joint_leads(by_joints), 0.0, atol=8e-3)


def test_joint_goals_lead_by_a_bounded_angle_and_turn_at_once(by_joints: SimulatedG1) -> None:
    signs = np.resize([1.0, -1.0, -1.0], 14)
    for _ in range(10):  # the world stands still, so the lead would grow without end
        goal = by_joints.resolve((signs * MAX_JOINT_STEP_RAD).astype(np.float32))
    measured = by_joints.measured_setpoint()
    np.testing.assert_allclose((goal - measured)[:14], signs * MAX_JOINT_LEAD_RAD, atol=1e-9)
    np.testing.assert_array_equal(goal[14:], measured[14:], err_msg="the waist stays")
    np.testing.assert_allclose(joint_leads(by_joints), signs * MAX_JOINT_LEAD_RAD, atol=1e-6)
    back = by_joints.resolve((-signs * MAX_JOINT_STEP_RAD).astype(np.float32))
    np.testing.assert_allclose((goal - back)[:14], signs * MAX_JOINT_STEP_RAD, atol=1e-6)
    by_joints.hold()
    np.testing.assert_array_equal(joint_leads(by_joints), 0.0)
    goal = by_joints.resolve(joint_action(left_elbow=0.02))
    np.testing.assert_allclose(goal[:14], measured[:14] + joint_action(left_elbow=0.02), atol=1e-9)


def test_joint_goals_do_not_run_away_behind_a_limit() -> None:
    robot = G1Embodiment("g1_0", TASK, action_space="joint_delta", simulated=False, with_environment=False)
    robot.connect()
    lower, upper, motors = *(np.array(side)[:14] for side in (robot.limits.lower, robot.limits.upper)), ARM_SDK_MOTORS
    for sign, bound in ((-1.0, lower), (1.0, upper)):
        position = np.zeros(29)
        position[list(motors[:14])] = bound - sign * 0.03
        measured = G1Measured(position, np.zeros(29), np.zeros(29), np.zeros(2))
        robot.hold(measured)
        for _ in range(5):
            goal = robot.resolve(np.full(14, sign * MAX_JOINT_STEP_RAD, np.float32), measured)
            assert (goal[:14] >= lower).all() and (goal[:14] <= upper).all()
        np.testing.assert_array_equal(goal[:14], bound)
        back = robot.resolve(np.full(14, -sign * MAX_JOINT_STEP_RAD, np.float32), measured)
        np.testing.assert_allclose(back[:14], bound - sign * MAX_JOINT_STEP_RAD, atol=1e-6)


def test_joints_and_hands_move_together() -> None:
    robot = SimulatedG1("g1_0", TASK, hands="dex3", action_space="joint_delta")
    robot.connect()
    assert robot.spec.action.names[14:] == ("left_gripper", "right_gripper")
    before = robot.measured_setpoint()
    follow(robot, [np.append(joint_action(right_wrist_yaw=-0.03), [0.0, 1.0]).astype(np.float32)] * 10)
    moved = robot.measured_setpoint() - before
    np.testing.assert_allclose(moved[17:], (-1.0, 0.0), atol=0.1)
    assert moved[ARM_JOINTS.index("right_wrist_yaw")] == pytest.approx(-0.3, abs=0.05)
    state = state_of(robot)
    assert (state["left_gripper_goal"], state["right_gripper_goal"]) == (0.0, 1.0)
    robot.close()


# ---- what it tells --------------------------------------------------------------------------------------------------


def test_joint_features_are_in_motor_order(robot: SimulatedG1) -> None:
    features = robot.read().features
    setpoint = robot.measured_setpoint()
    np.testing.assert_allclose(features[JOINT_POSITION][list(ARM_SDK_MOTORS)], setpoint[:17], atol=1e-6)
    assert robot.spec.observation[JOINT_POSITION].names[MOTOR_NAMES.index("left_elbow")] == "left_elbow_rad"
    # the waist holds the upper body up: this is a torque, not a force somewhere else
    assert 0.5 < abs(features[JOINT_EFFORT][MOTOR_NAMES.index("waist_pitch")]) < 30.0


def test_the_same_features_without_a_simulation(robot: SimulatedG1) -> None:
    real = G1Embodiment("g1_0", TASK, simulated=False, with_environment=False)
    real.connect()
    follow(robot, [np.full(6, 0.01, dtype=np.float32)] * 2)
    measured = robot.measured
    real.hold(measured)
    robot.hold()
    mine, theirs = real.features(measured), robot.read().features
    assert ENVIRONMENT_STATE not in real.spec.observation
    assert theirs.keys() == mine.keys() | {ENVIRONMENT_STATE}
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name])
    action = np.full(6, -0.01, dtype=np.float32)
    np.testing.assert_array_equal(real.resolve(action, measured), robot.resolve(action))
    assert real.spec.action == robot.spec.action


def test_hands_add_two_grippers() -> None:
    robot = SimulatedG1("g1_0", TASK, hands="dex3")
    robot.connect()
    assert robot.spec.action.names[6:] == ("left_gripper", "right_gripper")
    assert len(robot.limits.names) == len(robot.measured_setpoint()) == 19
    np.testing.assert_allclose(robot.measured.gripper, 1.0, atol=1e-3)
    action = np.array([0, 0, 0, 0, 0, 0, 0.0, 1.0], dtype=np.float32)
    follow(robot, [action] * 10)
    np.testing.assert_allclose(robot.measured.gripper, (0.0, 1.0), atol=0.1)
    state = state_of(robot)
    assert (state["left_gripper_goal"], state["right_gripper_goal"]) == (0.0, 1.0)
    assert state["left_gripper"] < 0.1
    robot.close()


def test_refusals_say_what_to_do() -> None:
    robot = SimulatedG1("g1_0", TASK)
    with pytest.raises(RobotError, match="connect"):
        robot.read()
    with pytest.raises(ConfigError, match=TASK):
        SimulatedG1("g1_0", "knitting")
    with pytest.raises(ConfigError, match="'ee_delta'; choose one of palm_delta, joint_delta"):
        SimulatedG1("g1_0", TASK, action_space="ee_delta")
    with pytest.raises(ConfigError, match="dex3"):
        SimulatedG1("g1_0", TASK, hands="hooks")
    embodiment = G1Embodiment("g1_0", TASK, simulated=False, with_environment=False)
    with pytest.raises(RobotError, match="mode_machine 6"):
        embodiment.connect(mode_machine=6)
    still = np.zeros(29)
    with pytest.raises(RobotError, match="connect"):
        embodiment.features(G1Measured(still, still, still, np.zeros(2)))


def test_its_cameras_see_something() -> None:
    views = (CameraConfig(name="front", width=64, height=48), CameraConfig(name="head_d435", width=64, height=48))
    robot = SimulatedG1("g1_0", TASK, view_cameras=views)
    robot.connect()
    for view in views:
        image = robot.render(view.name)
        assert image.shape == (48, 64, 3)
        assert image.std() > 10
    assert not [name for name in robot.spec.observation if "images" in name]
    robot.close()
