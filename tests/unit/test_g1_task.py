"""The G1's bimanual lift: what counts as success, that the expert achieves it, and what is observed of it."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.sim.world import wrap_angle
from hardware.unitree_g1.experts import G1BimanualLiftExpert
from hardware.unitree_g1.sim import SimulatedG1
from hardware.unitree_g1.tasks import BimanualLiftConfig, G1BimanualLift, make_task
from robot_stack.core.errors import ConfigError
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.safety.motion import MotionFilter

TASK = "g1_bimanual_lift"
SEEDS = 12


@pytest.fixture(scope="module")
def robot() -> SimulatedG1:
    made = SimulatedG1("g1_0", TASK)
    made.connect()
    return made


def episode(robot: SimulatedG1, seed: int, noise: float = 0.0) -> tuple[bool, list[np.ndarray]]:
    """Whether the expert succeeds, and every setpoint that was sent."""
    robot.reset(seed)
    expert = G1BimanualLiftExpert(robot.spec)
    expert.reset(seed)
    rng = np.random.default_rng(seed)
    tick_s = 1.0 / robot.spec.tick_rate_hz
    motion = MotionFilter(robot.limits, tick_s)
    motion.start(robot.measured_setpoint())
    lower, upper = robot.spec.action.lower_array(), robot.spec.action.upper_array()
    sent = []
    for _ in range(robot.spec.max_episode_steps):
        action = expert.act(robot.read().features, robot.ground_truth())
        assert (action >= lower).all()
        assert (action <= upper).all()
        action = np.clip(action + rng.normal(0, noise, len(lower)) * (upper - lower), lower, upper)
        goal = robot.resolve(action.astype(np.float32))
        for tick in range(10):
            sent.append(motion.toward(goal, (10 - tick) * tick_s))
            robot.send(sent[-1])
            robot.advance(tick_s)
        if robot.task_status().terminated:
            return robot.task_status().success, sent
    return False, sent


@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.9), (0.05, 0.7)])
def test_the_expert_lifts_the_box(robot: SimulatedG1, noise: float, least: float) -> None:
    assert np.mean([episode(robot, seed, noise)[0] for seed in range(SEEDS)]) >= least
    assert robot.read().fault == ""


def test_the_way_there_raises_no_false_alarm(robot: SimulatedG1) -> None:
    geometry = robot.geometry
    assert geometry is not None
    for seed in range(4):
        done, sent = episode(robot, seed, noise=0.05)
        assert done
        for setpoint in sent[::3]:
            clearance = geometry.look(setpoint)
            assert clearance.self_distance_m > geometry.min_self_distance_m
            assert (clearance.points_m > geometry.box_lower_m).all()
            assert (clearance.points_m < geometry.box_upper_m).all()


def test_the_expert_with_hands_lifts_the_box() -> None:
    robot = SimulatedG1("g1_0", TASK, hands="dex3")
    robot.connect()
    assert np.mean([episode(robot, seed)[0] for seed in range(5)]) >= 0.8
    robot.close()


def test_the_expert_is_refused_where_actions_move_joints() -> None:
    robot = SimulatedG1("g1_0", TASK, action_space="joint_delta")
    with pytest.raises(ConfigError, match=r"robot\.action_space=palm_delta, or collect by hand with device=page"):
        G1BimanualLiftExpert(robot.spec)


def test_the_observed_position_is_biased_and_the_truth_is_not(robot: SimulatedG1) -> None:
    biases = []
    for seed in range(6):
        robot.reset(seed)
        features, truth = robot.read().features, robot.ground_truth()
        state = dict(zip(robot.spec.observation[STATE].names, features[STATE], strict=True))
        observed = dict(zip(robot.spec.observation[ENVIRONMENT_STATE].names, features[ENVIRONMENT_STATE], strict=True))
        middle = [(state[f"left_palm_{axis}_m"] + state[f"right_palm_{axis}_m"]) / 2 for axis in "xyz"]
        seen = [observed[f"box_minus_palms_{axis}_m"] for axis in "xyz"]
        error = np.asarray(middle) + seen - truth["box_position_m"]
        np.testing.assert_allclose(error, [*truth["observation_bias_m"], 0.0], atol=1e-5)
        assert observed["box_yaw_rad"] == pytest.approx(float(truth["box_yaw_rad"][0]), abs=1e-5)
        biases.append(truth["observation_bias_m"])
        robot.advance(0.3)
        np.testing.assert_array_equal(robot.ground_truth()["observation_bias_m"], biases[-1])
    assert np.abs(biases).max() <= BimanualLiftConfig().observation_bias_range_m
    assert len({tuple(bias) for bias in biases}) == len(biases)


def test_scenes_are_drawn_from_the_whole_range(robot: SimulatedG1) -> None:
    config = BimanualLiftConfig()
    truths = []
    for seed in range(40):
        robot.reset(seed)
        truths.append(robot.ground_truth())
    shifts = np.array([truth["box_position_m"][:2] for truth in truths]) - config.centre_m
    yaws = [wrap_angle(float(truth["box_yaw_rad"][0])) for truth in truths]
    assert config.xy_range_m * 0.8 < np.abs(shifts).max() <= config.xy_range_m + 1e-9
    assert config.yaw_range_rad * 0.8 < np.abs(yaws).max() <= config.yaw_range_rad + 1e-9


def put_box(robot: SimulatedG1, height_m: float, tilt_rad: float = 0.0, speed_m_s: float = 0.0) -> bool:
    """Put the box between the palms, so high over the table, and ask whether that is success."""
    config = BimanualLiftConfig()
    robot.reset(0)
    palms = np.array([0.27, 0.19 + 0.062, config.table_height_m + config.box_half_m[2] + height_m])
    joints = robot._embodiment.kinematics.solve(
        np.array([palms, palms * (1, -1, 1)]),
        np.array([[1.0, 0, 0, 0]] * 2),
        robot.measured_setpoint(),
        max_iterations=200,
    )
    data = robot._open.world.data
    for axis, motor in enumerate((*range(15, 29), 12, 13, 14)):
        data.qpos[robot._open.qpos[motor]] = joints[axis]
    box = data.joint("box_joint")
    box.qpos[:3] = 0.28, 0.0, 0.793 + palms[2]
    box.qpos[3:] = np.cos(tilt_rad / 2), np.sin(tilt_rad / 2), 0.0, 0.0
    box.qvel[2] = speed_m_s
    robot._open.world.forward()
    return robot.task_status().success


def test_success_is_high_level_still_and_held(robot: SimulatedG1) -> None:
    assert put_box(robot, 0.11)
    assert not put_box(robot, 0.09)
    assert not put_box(robot, 0.11, tilt_rad=0.2)
    assert not put_box(robot, 0.11, speed_m_s=0.5)
    assert put_box(robot, 0.11)
    robot._open.world.data.joint("box_joint").qpos[1] += 0.05  # beside one palm
    robot._open.world.forward()
    assert not robot.task_status().success


def test_tasks_are_found_by_name() -> None:
    assert isinstance(make_task(TASK), G1BimanualLift)
    with pytest.raises(ConfigError, match=TASK):
        make_task("juggling")
