"""Driving the simulated Stretch: axes, wheels, odometry, and what the embodiment makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from hardware.sim.rendering import CameraConfig
from hardware.stretch import limits
from hardware.stretch.embodiment import JOINT_POSITION, JOINT_VELOCITY, StretchEmbodiment
from hardware.stretch.joints import ARM, AXIS, GRIPPER, LIFT, SETPOINT_NAMES, WHEEL_RADIUS_M
from hardware.stretch.sim import SimulatedStretch
from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, PolicySpec, check_policy_fits_robot
from robot_stack.safety.motion import MotionFilter

TASK = "stretch_reach_grasp"
TICK_S = 0.01


@pytest.fixture
def robot() -> Iterator[SimulatedStretch]:
    made = SimulatedStretch("stretch", TASK, clock=ManualClock())
    made.connect()
    yield made
    made.close()


def go(robot: SimulatedStretch, goal: np.ndarray, duration_s: float) -> list[np.ndarray]:
    """Filtered setpoints to a goal, one per tick; returns how far the robot was behind each."""
    motion = MotionFilter(robot.limits, TICK_S)
    motion.start(robot.measured_setpoint())
    behind = []
    for _ in range(round(duration_s / TICK_S)):
        setpoint = motion.toward(goal, 0.0)
        robot.send(setpoint)
        robot.advance(TICK_S)
        behind.append(setpoint - robot.measured_setpoint())
    return behind


MOVES = {
    "base_translation_m": 0.2,
    "base_rotation_rad": 0.5,
    "lift_m": 0.15,
    "arm_m": 0.15,
    "wrist_yaw_rad": 0.8,
    "wrist_pitch_rad": -0.4,
    "wrist_roll_rad": 0.5,
    "gripper_aperture_m": -0.05,
    "head_pan_rad": 0.6,
    "head_tilt_rad": 0.4,
}


@pytest.mark.parametrize("name", SETPOINT_NAMES)
def test_each_axis_follows_its_setpoint_and_leaves_the_others(robot: SimulatedStretch, name: str) -> None:
    start = robot.measured_setpoint()
    goal = start.copy()
    goal[AXIS[name]] += MOVES[name]
    behind = go(robot, goal, 4.0)
    speed = robot.limits.max_velocity[AXIS[name]]
    assert np.abs([error[AXIS[name]] for error in behind]).max() < 0.1 * speed  # less than 100 ms
    np.testing.assert_allclose(robot.measured_setpoint(), goal, atol=2e-3)
    assert np.abs(robot.measured.velocity).max() < 5e-3


def test_the_arm_keeps_its_segments_together(robot: SimulatedStretch) -> None:
    goal = robot.measured_setpoint()
    goal[ARM] = 0.4
    go(robot, goal, 4.0)
    data = robot._open.world.data
    segments = [float(data.joint(f"joint_arm_l{number}").qpos[0]) for number in range(4)]
    np.testing.assert_allclose(segments, 0.1, atol=1e-3)


def test_velocities_are_the_derivatives_of_positions(robot: SimulatedStretch) -> None:
    goal = robot.measured_setpoint() + np.array([*MOVES.values()])
    motion = MotionFilter(robot.limits, TICK_S)
    motion.start(robot.measured_setpoint())
    before = robot.measured
    for _ in range(60):
        robot.send(motion.toward(goal, 0.0))
        robot.advance(TICK_S)
        after = robot.measured
        slope = (after.setpoint - before.setpoint) / TICK_S
        mean = (after.velocity + before.velocity) / 2
        np.testing.assert_allclose((mean - slope) / np.asarray(robot.limits.max_velocity), 0.0, atol=0.06)
        before = after


# ---- the base ---------------------------------------------------------------------------------------------------


def true_base(robot: SimulatedStretch) -> np.ndarray:
    return robot.ground_truth()["base_pose_xyyaw"]


def test_odometry_follows_the_base_around_a_bend(robot: SimulatedStretch) -> None:
    robot.command_base_velocity(0.1, 0.25)
    for _ in range(40):
        robot.advance(0.1)
    x_m, y_m, yaw_rad, v_m_s, w_rad_s = robot.odometry()
    assert (v_m_s, w_rad_s) == pytest.approx((0.1, 0.25), abs=0.01)
    assert yaw_rad == pytest.approx(1.0, abs=0.05)
    radius_m = 0.1 / 0.25
    assert x_m == pytest.approx(radius_m * np.sin(yaw_rad), abs=0.01)
    assert y_m == pytest.approx(radius_m * (1 - np.cos(yaw_rad)), abs=0.01)
    np.testing.assert_allclose(true_base(robot), (x_m, y_m, yaw_rad), atol=0.03)
    np.testing.assert_allclose(robot.measured.base_pose_xyyaw, (x_m, y_m, yaw_rad))
    np.testing.assert_allclose(robot.measured.setpoint[:2], (0.4, 1.0), atol=0.05)


def test_the_base_stops_where_its_velocity_ends(robot: SimulatedStretch) -> None:
    robot.command_base_velocity(0.1, 0.0)
    robot.advance(1.0)
    robot.command_base_velocity(0.0, 0.0)
    robot.advance(0.5)
    stopped = true_base(robot)
    robot.advance(2.0)
    np.testing.assert_allclose(true_base(robot), stopped, atol=1e-3)
    assert stopped[0] == pytest.approx(0.1, abs=0.01)


def test_a_base_axis_ends_a_velocity_and_the_other_axis_stays(robot: SimulatedStretch) -> None:
    robot.command_base_velocity(0.0, 0.3)
    robot.advance(1.0)
    turned = robot.measured.setpoint[1]
    robot.command_joint("base_translation_m", 0.05)
    robot.advance(1.5)
    np.testing.assert_allclose(robot.measured.setpoint[:2], (0.05, turned), atol=0.01)


def test_send_ends_a_velocity(robot: SimulatedStretch) -> None:
    robot.command_base_velocity(0.1, 0.0)
    robot.advance(0.5)
    here = robot.measured_setpoint()
    robot.send(here)
    robot.advance(1.0)
    np.testing.assert_allclose(robot.measured_setpoint()[:2], here[:2], atol=2e-3)


@pytest.mark.parametrize("period_s", [1 / 30, 0.0025, 0.1, 0.0123])
def test_time_may_pass_in_any_pieces(period_s: float) -> None:
    robot = SimulatedStretch("stretch", TASK)
    robot.connect()
    lift_m = robot.measured.setpoint[LIFT]
    robot.command_base_velocity(0.05, 0.1)
    robot.command_joint("lift_m", lift_m + 0.02)
    for _ in range(round(2.0 / period_s)):
        robot.advance(period_s)
    assert robot.odometry()[2] == pytest.approx(0.2, abs=0.015)
    assert robot.measured.setpoint[LIFT] == pytest.approx(lift_m + 0.02, abs=1e-3)


def test_reset_puts_the_base_back_to_the_origin(robot: SimulatedStretch) -> None:
    robot.command_base_velocity(0.1, 0.3)
    robot.advance(2.0)
    robot.reset(1)
    np.testing.assert_array_equal(robot.measured.setpoint[:2], 0.0)
    assert robot.odometry() == (0.0, 0.0, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(true_base(robot), 0.0, atol=1e-3)
    robot.advance(1.0)
    np.testing.assert_allclose(true_base(robot), 0.0, atol=1e-3)


# ---- commands and faults ----------------------------------------------------------------------------------------


def test_an_unknown_axis_is_named(robot: SimulatedStretch) -> None:
    with pytest.raises(RobotError, match=r"joint_lift.*lift_m"):
        robot.command_joint("joint_lift", 0.5)


def test_commanded_joints_move_alone(robot: SimulatedStretch) -> None:
    start = robot.measured_setpoint()
    robot.command_joint("gripper_aperture_m", 0.02)
    robot.command_joint("head_pan_rad", -1.0)
    robot.advance(2.0)
    expected = start.copy()
    expected[[GRIPPER, AXIS["head_pan_rad"]]] = (0.02, -1.0)
    np.testing.assert_allclose(robot.measured_setpoint(), expected, atol=2e-3)


def test_a_command_that_is_no_number_is_a_fault_until_reset(robot: SimulatedStretch) -> None:
    assert robot.read().fault == ""
    robot.send(np.full(10, np.nan))
    robot.advance(0.01)
    assert "diverged" in robot.read().fault
    robot.reset(0)
    assert robot.read().fault == ""


def test_using_it_before_connect_says_so() -> None:
    robot = SimulatedStretch("stretch_7", TASK)
    for call in (robot.read, robot.hold, robot.measured_setpoint, lambda: robot.reset(0)):
        with pytest.raises(RobotError, match="stretch_7"):
            call()
    assert robot.geometry is None


def test_an_unknown_task_or_camera_is_named() -> None:
    with pytest.raises(ConfigError, match=TASK):
        SimulatedStretch("stretch", "fold_laundry")
    robot = SimulatedStretch("stretch", TASK, cameras=(CameraConfig(name="ceiling"),))
    with pytest.raises(ConfigError, match="d405_rgb"):
        robot.connect()


def test_effort_tells_what_the_wheels_push(robot: SimulatedStretch) -> None:
    """A wheel that cannot turn pushes with its largest torque."""
    robot.command_base_velocity(0.2, 0.0)
    robot.advance(TICK_S)
    push_n = robot.measured.effort[0]
    assert 10.0 < push_n <= 2 * 30.0 / WHEEL_RADIUS_M
    assert robot.measured.effort[1] == pytest.approx(0.0, abs=5.0)


# ---- the embodiment ---------------------------------------------------------------------------------------------


def test_a_real_robot_has_the_same_features_and_actions(robot: SimulatedStretch) -> None:
    real = StretchEmbodiment(
        "stretch", TASK, control_rate_hz=10.0, tick_rate_hz=30.0, simulated=False, with_environment=False
    )
    assert set(robot.spec.observation) - set(real.spec.observation) == {ENVIRONMENT_STATE}
    assert not real.spec.simulated
    assert robot.spec.model == real.spec.model == "stretch_3"
    policy = PolicySpec(
        name="p",
        task=TASK,
        horizon=8,
        action=robot.spec.action,
        observation={key: robot.spec.observation[key] for key in (STATE, JOINT_POSITION, JOINT_VELOCITY)},
    )
    check_policy_fits_robot(policy, real.spec)
    real.connect()
    measured = robot.measured
    real.hold(measured)
    seen, simulated = real.features(measured), robot.read().features
    assert seen.keys() == real.spec.observation.keys()
    for key, value in seen.items():
        np.testing.assert_array_equal(value, simulated[key])


def test_state_names_point_at_the_right_values(robot: SimulatedStretch) -> None:
    action = np.array([0.01, -0.01, 0.01, 0.1, 0.5], dtype=np.float32)
    robot.resolve(action)
    state = dict(zip(robot.spec.observation[STATE].names, robot.read().features[STATE], strict=True))
    data = robot._open.world.data
    tool = data.body("base_link").xmat.reshape(3, 3).T @ (data.site("grasp_center").xpos - data.body("base_link").xpos)
    np.testing.assert_allclose([state[f"gripper_{axis}_m"] for axis in "xyz"], tool, atol=1e-3)
    assert state["gripper_heading_rad"] == pytest.approx(-np.pi / 2, abs=1e-3)
    assert state["lift_m"] == pytest.approx(robot.measured_setpoint()[LIFT])
    assert state["goal_minus_lift_m"] == pytest.approx(-0.01, abs=1e-6)
    assert state["goal_minus_wrist_yaw_rad"] == pytest.approx(0.1, abs=1e-6)
    assert state["gripper_goal_aperture_m"] == pytest.approx(0.045)
    assert not any(name.startswith("base_translation_m") for name in state)


def test_goals_lead_by_no_more_than_the_bound_and_hold_forgets_them(robot: SimulatedStretch) -> None:
    start = robot.measured_setpoint()
    for _ in range(30):  # the world stands still, so the lead would grow without end
        goal = robot.resolve(robot.spec.action.upper_array())
    lead = goal - start
    bounds = StretchEmbodiment("s", TASK, simulated=True, with_environment=True).task.max_lead
    for name in SETPOINT_NAMES:
        expected = bounds.get(name, 0.0)
        assert lead[AXIS[name]] == pytest.approx(expected, abs=1e-9), name
    robot.hold()
    still = np.array([0, 0, 0, 0, 1], dtype=np.float32)
    np.testing.assert_allclose(robot.resolve(still), start, atol=1e-4)


def test_the_robots_own_limits_only_narrow_ours() -> None:
    embodiment = StretchEmbodiment("stretch_9", TASK, simulated=False, with_environment=False)
    ours = limits.default_limits()
    lower, upper = np.asarray(ours.lower) - 1.0, np.asarray(ours.upper) + 1.0
    upper[LIFT] = 1.05
    embodiment.narrow_positions(lower, upper)
    assert embodiment.limits.upper[LIFT] == 1.05
    assert embodiment.limits.lower == ours.lower
    assert embodiment.limits.upper[ARM] == ours.upper[ARM]
    lower[ARM], upper[ARM] = 0.6, 0.7
    with pytest.raises(RobotError, match=r"stretch_9.*arm_m.*0\.6"):
        embodiment.narrow_positions(lower, upper)
