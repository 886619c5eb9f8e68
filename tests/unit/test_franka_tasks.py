"""The two tasks with their experts, what is felt and seen, and faults."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.franka.sim import EXTERNAL_WRENCH, JOINT_POSITION, SimulatedFranka
from hardware.sim.experts import make_expert
from hardware.sim.rendering import CameraConfig
from hardware.sim.tasks.peg_insertion import PegInsertion, PegInsertionConfig
from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.messages import FloatArray, TaskStatus
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.safety.motion import MotionFilter

TICKS = 10


def control_step(robot: SimulatedFranka, limiter: MotionFilter, action: FloatArray) -> None:
    """One control step as the robot server makes it."""
    goal = robot.resolve(action)
    for tick in range(TICKS):
        robot.send(limiter.toward(goal, 0.1 - 0.01 * tick))
        robot.advance(0.01)


def run_expert(robot: SimulatedFranka, seed: int, noise: float) -> TaskStatus:
    expert = make_expert(robot.spec.task, robot.spec)
    rng = np.random.default_rng(seed)
    lower, upper = robot.spec.action.lower_array(), robot.spec.action.upper_array()
    limiter = MotionFilter(robot.limits, 0.01)
    robot.reset(seed)
    expert.reset(seed)
    limiter.start(robot.measured_setpoint())
    for _ in range(robot.spec.max_episode_steps):
        action = expert.act(robot.read().features, robot.ground_truth())
        noisy = action + rng.normal(0.0, noise, action.shape) * (upper - lower) / 2
        control_step(robot, limiter, np.clip(noisy, lower, upper).astype(np.float32))
        if robot.task_status().terminated:
            break
    return robot.task_status()


def connected(task: str | PegInsertion) -> SimulatedFranka:
    robot = SimulatedFranka("franka", task, clock=ManualClock())
    robot.connect()
    return robot


@pytest.mark.parametrize(("task", "least"), [("peg_insertion", 10), ("pick_cube", 11)])
def test_the_expert_solves_the_task_despite_noise(task: str, least: int) -> None:
    robot = connected(task)
    outcomes = [run_expert(robot, seed, noise=0.2) for seed in range(12)]
    assert sum(outcome.success for outcome in outcomes) >= least
    assert all(outcome.reward == float(outcome.success) == float(outcome.terminated) for outcome in outcomes)


def test_a_cube_is_held_by_friction_and_weighs_on_the_arm() -> None:
    robot = connected("pick_cube")
    assert run_expert(robot, seed=1, noise=0.0).success
    limiter = MotionFilter(robot.limits, 0.01)
    limiter.start(robot.measured_setpoint())
    for _ in range(5):
        control_step(robot, limiter, np.zeros(5, dtype=np.float32))
    features = robot.read().features
    assert features[EXTERNAL_WRENCH][2] == pytest.approx(-0.1 * 9.81, abs=0.1)
    assert features[STATE][13] == pytest.approx(0.04, abs=2e-3)
    for _ in range(5):
        control_step(robot, limiter, np.array([0, 0, 0, 0, 1], dtype=np.float32))
    assert not robot.task_status().success
    assert robot.ground_truth()["cube_position_m"][2] == pytest.approx(0.02, abs=2e-3)


def test_the_peg_feels_the_rim_it_is_pressed_on() -> None:
    robot = connected(PegInsertion(PegInsertionConfig(start_range_m=0.0, socket_xy_range_m=0.0)))
    limiter = MotionFilter(robot.limits, 0.01)
    limiter.start(robot.measured_setpoint())
    np.testing.assert_array_equal(robot.read().features[EXTERNAL_WRENCH], 0.0)
    for _ in range(2):  # beside the hole, above the wall
        control_step(robot, limiter, np.array([0.01, 0.0, 0.0, 0.0], dtype=np.float32))
    for _ in range(7):
        control_step(robot, limiter, np.array([0.0, 0.0, -0.01, 0.0], dtype=np.float32))
    force = robot.read().features[EXTERNAL_WRENCH][:3]
    assert force[2] > 10.0
    assert force[2] > 2.0 * np.abs(force[:2]).max()
    assert robot.ground_truth()["tip_in_socket_m"][2] > -0.002


def test_the_observed_socket_is_off_by_the_bias_and_nothing_else() -> None:
    robot = connected("peg_insertion")
    biases = []
    for seed in range(20):
        robot.reset(seed)
        truth, features = robot.ground_truth(), robot.read().features
        observed = features[STATE][:3].astype(np.float64) + features[ENVIRONMENT_STATE][:3]
        error = observed - truth["socket_position_m"]
        np.testing.assert_allclose(error[:2], truth["observation_bias_m"], atol=1e-6)
        assert error[2] == pytest.approx(0.0, abs=1e-6)
        assert features[ENVIRONMENT_STATE][3] == pytest.approx(truth["socket_yaw_rad"][0], abs=1e-4)
        biases.append(truth["observation_bias_m"])
    spread = np.abs(biases)
    assert spread.max() <= PegInsertionConfig().observation_bias_range_m
    assert spread.max() > 0.002


def test_the_peg_does_not_fit_beside_the_hole_or_turned() -> None:
    """The clearance is real: pressing down with 2 mm offset beyond the lead-in, or turned, does not succeed."""
    for turn, offset_m in ((0.0, 0.005), (0.3, 0.0)):
        config = PegInsertionConfig(
            start_range_m=0.0, socket_xy_range_m=0.0, socket_yaw_range_rad=0.0, start_height_m=0.01
        )
        robot = connected(PegInsertion(config))
        limiter = MotionFilter(robot.limits, 0.01)
        limiter.start(robot.measured_setpoint())
        for _ in range(4):
            control_step(robot, limiter, np.array([offset_m / 4, 0, 0, turn / 4], dtype=np.float32))
        for _ in range(15):
            control_step(robot, limiter, np.array([0, 0, -0.01, 0], dtype=np.float32))
        assert not robot.task_status().success


def test_cameras_see_the_scene_and_not_the_markers() -> None:
    cameras = (CameraConfig(name="wrist_rgb"), CameraConfig(name="front", width=96, height=64))
    robot = SimulatedFranka("franka", "pick_cube", cameras=cameras)
    robot.connect()
    try:
        first = robot.render("front").copy()
        assert first.shape == (64, 96, 3)
        assert robot.render("wrist_rgb").shape == (128, 128, 3)
        green = (first[..., 1] > 1.5 * first[..., 0]) & (first[..., 1] > 60)
        assert green.sum() > 10
        np.testing.assert_array_equal(first, robot.render("front"))
        robot.reset(5)
        assert (robot.render("front") != first).any()
        with pytest.raises(ConfigError, match="wrist_rgb, front"):
            robot.render("ceiling")
    finally:
        robot.close()


def test_a_camera_the_model_lacks_is_refused_at_connect() -> None:
    robot = SimulatedFranka("franka", "pick_cube", cameras=(CameraConfig(name="ceiling"),))
    with pytest.raises(ConfigError, match=r"it has (wrist_rgb|front)"):
        robot.connect()


def test_a_diverged_world_is_a_fault_until_reset() -> None:
    robot = connected("peg_insertion")
    assert robot.read().fault == ""
    robot.send(np.full(8, np.nan))
    robot.advance(0.01)
    assert "diverged" in robot.read().fault
    robot.reset(0)
    assert robot.read().fault == ""


def test_using_it_before_connect_says_so() -> None:
    robot = SimulatedFranka("franka_7", "peg_insertion")
    for call in (robot.read, robot.hold, robot.measured_setpoint, lambda: robot.reset(0)):
        with pytest.raises(RobotError, match="franka_7"):
            call()


@pytest.mark.parametrize("space", ["ee_pose", "joint_position", "joint_delta"])
def test_an_expert_for_another_action_space_is_refused(space: str) -> None:
    robot = SimulatedFranka("franka", "pick_cube", action_space=space)
    with pytest.raises(ConfigError, match=r"robot\.action_space=ee_delta, or collect by hand with device=page"):
        make_expert("pick_cube", robot.spec)
    with pytest.raises(ConfigError, match="peg_insertion, pick_cube"):
        make_expert("juggle", robot.spec)


def test_simulated_time_stamps_the_readings() -> None:
    clock = ManualClock(start_ns=5)
    robot = SimulatedFranka("franka", "peg_insertion", clock=clock)
    robot.connect()
    clock.advance_ns(7)
    assert robot.read().stamp_ns == 12


def test_the_state_names_point_at_the_right_values() -> None:
    robot = connected("peg_insertion")
    names = robot.spec.observation[JOINT_POSITION].names
    assert names[3] == "fr3_joint4_rad"
    np.testing.assert_allclose(robot.read().features[JOINT_POSITION], robot.measured_setpoint()[:7], atol=1e-6)
