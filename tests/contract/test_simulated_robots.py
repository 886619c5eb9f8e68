"""What every simulated robot promises, whatever it is. To add one, append a `RobotCase` to `CASES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from hardware.franka.sim import SimulatedFranka
from hardware.sim.rendering import CameraConfig
from hardware.stretch.sim import SimulatedStretch
from hardware.unitree_g1.sim import SimulatedG1
from robot_stack.core.messages import Array, Features, FloatArray
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.specs import ACTION, IMAGES, Feature
from robot_stack.safety.motion import MotionFilter

FLOAT_TOLERANCE = 1e-6
STEPS = 8


@dataclass(frozen=True)
class RobotCase:
    """How to make one robot, and an action that leaves it where it is after `reset(seed)`."""

    name: str
    make: Callable[[], SimulatedRobot]
    still: Callable[[SimulatedRobot], FloatArray]
    still_tolerance: float = 1e-4


def zero_delta(robot: SimulatedRobot) -> FloatArray:
    """No motion; open grippers stay open."""
    return np.array([float(name.endswith("gripper")) for name in robot.spec.action.names], dtype=np.float32)


def measured_joints(robot: SimulatedRobot) -> FloatArray:
    setpoint = robot.measured_setpoint()
    return np.append(setpoint[:7], setpoint[7] / 0.08)[: len(robot.spec.action.names)].astype(np.float32)


CASES = [
    RobotCase("franka_peg_insertion", lambda: SimulatedFranka("franka_0", "peg_insertion"), zero_delta),
    RobotCase("franka_pick_cube", lambda: SimulatedFranka("franka_0", "pick_cube"), zero_delta),
    RobotCase("franka_touch_block", lambda: SimulatedFranka("franka_0", "touch_block"), zero_delta),
    RobotCase(
        "franka_pick_cube_joints",
        lambda: SimulatedFranka(
            "franka_0", "pick_cube", action_space="joint_position", cameras=(CameraConfig(name="wrist_rgb"),)
        ),
        measured_joints,
    ),
    RobotCase(
        "franka_peg_insertion_joint_delta",
        lambda: SimulatedFranka("franka_0", "peg_insertion", action_space="joint_delta"),
        zero_delta,
    ),
    RobotCase(
        "franka_pick_cube_joint_delta",
        lambda: SimulatedFranka("franka_0", "pick_cube", action_space="joint_delta"),
        zero_delta,
    ),
    RobotCase("g1_bimanual_lift", lambda: SimulatedG1("g1_0", "g1_bimanual_lift"), zero_delta),
    RobotCase(
        "g1_bimanual_lift_joint_delta",
        lambda: SimulatedG1("g1_0", "g1_bimanual_lift", action_space="joint_delta"),
        zero_delta,
    ),
    RobotCase(
        "g1_bimanual_lift_dex3_joint_delta",
        lambda: SimulatedG1("g1_0", "g1_bimanual_lift", hands="dex3", action_space="joint_delta"),
        zero_delta,
        still_tolerance=1e-3,
    ),
    RobotCase("stretch_reach_grasp", lambda: SimulatedStretch("stretch_0", "stretch_reach_grasp"), zero_delta),
]


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request: pytest.FixtureRequest) -> RobotCase:
    chosen: RobotCase = request.param
    return chosen


@pytest.fixture
def robot(case: RobotCase) -> Iterator[SimulatedRobot]:
    made = case.make()
    made.connect()
    yield made
    made.close()


def random_action(robot: SimulatedRobot, rng: np.random.Generator) -> FloatArray:
    lower, upper = robot.spec.action.lower_array(), robot.spec.action.upper_array()
    return np.clip(rng.uniform(lower, upper), lower, upper).astype(np.float32)


def control_step(robot: SimulatedRobot, limiter: MotionFilter, action: FloatArray) -> None:
    """One action as a robot server runs it: resolved once, filtered and sent at every tick."""
    goal = robot.resolve(action)
    tick_s = 1.0 / robot.spec.tick_rate_hz
    ticks = round(robot.spec.tick_rate_hz / robot.spec.control_rate_hz)
    for tick in range(ticks):
        robot.send(limiter.toward(goal, (ticks - tick) * tick_s))
        robot.advance(tick_s)


def rollout(robot: SimulatedRobot, seed: int, steps: int = STEPS) -> list[tuple[Features, Features, Array]]:
    """Random actions from a seeded scene: observations, ground truth and measured setpoint after each."""
    robot.reset(seed)
    limiter = MotionFilter(robot.limits, 1.0 / robot.spec.tick_rate_hz)
    limiter.start(robot.measured_setpoint())
    rng = np.random.default_rng(seed)
    history = [(robot.read().features, robot.ground_truth(), robot.measured_setpoint())]
    for _ in range(steps):
        control_step(robot, limiter, random_action(robot, rng))
        history.append((robot.read().features, robot.ground_truth(), robot.measured_setpoint()))
    return history


def assert_same_bits(
    left: list[tuple[Features, Features, Array]], right: list[tuple[Features, Features, Array]]
) -> None:
    for (features, truth, setpoint), (features_again, truth_again, setpoint_again) in zip(left, right, strict=True):
        assert setpoint.tobytes() == setpoint_again.tobytes()
        for one, other in ((features, features_again), (truth, truth_again)):
            assert one.keys() == other.keys()
            assert all(one[key].tobytes() == other[key].tobytes() for key in one)


def test_it_is_a_simulated_robot(case: RobotCase) -> None:
    made = case.make()
    assert isinstance(made, SimulatedRobot)
    assert made.spec.simulated


def test_spec_and_limits_are_known_before_connect(case: RobotCase) -> None:
    made = case.make()
    spec, limits = made.spec, made.limits
    made.connect()
    assert made.spec == spec
    assert made.limits == limits
    made.close()


def test_the_spec_is_consistent(robot: SimulatedRobot) -> None:
    spec = robot.spec
    assert ACTION not in spec.observation
    assert spec.tick_rate_hz >= spec.control_rate_hz > 0
    assert (spec.tick_rate_hz / spec.control_rate_hz) % 1 == pytest.approx(0.0)
    assert spec.command_timeout_s >= spec.control_period_s
    assert spec.max_episode_steps > 0
    for name, feature in {ACTION: spec.action, **spec.observation}.items():
        assert name == ACTION or name.startswith("observation."), name
        if name.startswith(IMAGES):
            assert feature.dtype == "uint8"
            continue
        assert feature.shape == (len(feature.names),), name
        assert len(set(feature.names)) == len(feature.names), name
        assert len(feature.lower) == len(feature.upper)
        assert len(feature.lower) in (0, len(feature.names))
    assert len(spec.action.lower) == len(spec.action.names)
    assert (spec.action.lower_array() < spec.action.upper_array()).all()
    assert {name.removeprefix(IMAGES) for name in spec.observation if name.startswith(IMAGES)} == set(robot.cameras)


def test_limits_have_one_entry_per_setpoint(robot: SimulatedRobot) -> None:
    limits = robot.limits
    size = len(robot.measured_setpoint())
    for values in (limits.names, limits.lower, limits.upper, limits.max_velocity, limits.max_acceleration):
        assert len(values) == size
    assert (np.asarray(limits.lower) <= np.asarray(limits.upper)).all()
    assert (np.asarray(limits.max_velocity) > 0).all()
    assert (np.asarray(limits.max_acceleration) > 0).all()


def test_a_reading_is_what_the_spec_says(robot: SimulatedRobot) -> None:
    for seed in range(3):
        for features, _, _ in rollout(robot, seed, steps=3):
            expected = {name: f for name, f in robot.spec.observation.items() if not name.startswith(IMAGES)}
            assert features.keys() == expected.keys()
            for name, feature in expected.items():
                assert_matches(features[name], feature)


def assert_matches(array: Array, feature: Feature) -> None:
    assert array.dtype == feature.dtype
    assert array.shape == feature.shape
    assert np.isfinite(array).all()
    if feature.lower:
        assert (array >= feature.lower_array() - FLOAT_TOLERANCE).all()
        assert (array <= feature.upper_array() + FLOAT_TOLERANCE).all()


def test_a_reading_is_the_callers_to_keep(robot: SimulatedRobot) -> None:
    kept = robot.read().features
    copies = {name: array.copy() for name, array in kept.items()}
    rollout(robot, seed=1, steps=2)
    assert all((kept[name] == copies[name]).all() for name in kept)


def test_stamps_do_not_go_back(robot: SimulatedRobot) -> None:
    stamps = []
    limiter = MotionFilter(robot.limits, 1.0 / robot.spec.tick_rate_hz)
    limiter.start(robot.measured_setpoint())
    for seed in range(3):
        control_step(robot, limiter, random_action(robot, np.random.default_rng(seed)))
        stamps.append(robot.read().stamp_ns)
    assert stamps == sorted(stamps)


def test_images_are_what_the_spec_says(robot: SimulatedRobot) -> None:
    for camera in robot.cameras:
        image = robot.render(camera)
        assert image.dtype == "uint8"
        assert image.shape == robot.spec.observation[IMAGES + camera].shape


def test_the_measured_setpoint_is_inside_the_limits(robot: SimulatedRobot) -> None:
    lower, upper = np.asarray(robot.limits.lower), np.asarray(robot.limits.upper)
    for _, _, setpoint in rollout(robot, seed=2):
        assert (setpoint >= lower).all()
        assert (setpoint <= upper).all()


def test_the_first_goal_of_a_still_action_is_where_the_robot_is(case: RobotCase, robot: SimulatedRobot) -> None:
    for seed in range(5):
        robot.reset(seed)
        measured = robot.measured_setpoint()
        np.testing.assert_allclose(robot.resolve(case.still(robot)), measured, atol=case.still_tolerance)


def test_hold_after_motion_makes_a_still_action_stay(case: RobotCase, robot: SimulatedRobot) -> None:
    rollout(robot, seed=3)
    robot.hold()
    once = robot.resolve(case.still(robot))
    again = robot.resolve(case.still(robot))
    np.testing.assert_allclose(once, again, atol=case.still_tolerance)


def test_goals_never_leave_the_limits(robot: SimulatedRobot) -> None:
    lower, upper = np.asarray(robot.limits.lower), np.asarray(robot.limits.upper)
    rng = np.random.default_rng(4)
    corners = (robot.spec.action.lower_array(), robot.spec.action.upper_array())
    for seed in range(3):
        robot.reset(seed)
        limiter = MotionFilter(robot.limits, 1.0 / robot.spec.tick_rate_hz)
        limiter.start(robot.measured_setpoint())
        for action in (*(random_action(robot, rng) for _ in range(20)), *corners * 10):
            goal = robot.resolve(action)
            assert goal.dtype == np.float64
            assert goal.shape == lower.shape
            assert (goal >= lower).all()
            assert (goal <= upper).all()
            robot.send(limiter.toward(goal, robot.spec.control_period_s))
            robot.advance(1.0 / robot.spec.tick_rate_hz)


def test_a_reset_episode_neither_succeeded_nor_ended(robot: SimulatedRobot) -> None:
    for seed in range(10):
        robot.reset(seed)
        status = robot.task_status()
        assert not status.success
        assert not status.terminated
        assert not status.truncated
        assert robot.read().fault == ""


def test_the_same_seed_and_actions_give_the_same_bits(case: RobotCase, robot: SimulatedRobot) -> None:
    first = rollout(robot, seed=7)
    rollout(robot, seed=8, steps=5)
    assert_same_bits(first, rollout(robot, seed=7))
    other = case.make()
    other.connect()
    assert_same_bits(first, rollout(other, seed=7))
    other.close()


def test_another_seed_gives_another_scene(robot: SimulatedRobot) -> None:
    scenes = []
    for seed in (0, 1, 2**31 + 5):
        robot.reset(seed)
        features = robot.read().features
        scenes.append(b"".join(features[key].tobytes() for key in sorted(features)))
    assert len(set(scenes)) == len(scenes)


def test_time_without_commands_leaves_a_still_robot_still(robot: SimulatedRobot) -> None:
    robot.reset(0)
    before = robot.measured_setpoint()
    for _ in range(20):
        robot.advance(1.0 / robot.spec.tick_rate_hz)
    np.testing.assert_allclose(robot.measured_setpoint(), before, atol=1e-3)


def test_close_is_repeatable_and_connect_opens_again(case: RobotCase) -> None:
    made = case.make()
    made.close()
    made.connect()
    made.close()
    made.close()
    made.connect()
    made.reset(0)
    assert made.read().features
    made.close()
