"""Guarded points, their box, and self-distance."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.franka import limits
from hardware.franka.collision import CUTOFF_M, GUARDED_SITES, MIN_SELF_DISTANCE_M, franka_geometry
from hardware.franka.embodiment import FrankaEmbodiment, shifted_wrench
from hardware.franka.model import READY_RAD, FrankaModel, build_franka
from hardware.franka.sim import SimulatedFranka
from hardware.sim.collision import ModelGeometry, SelfDistance, round_boxes
from hardware.sim.experts import make_expert
from hardware.sim.rendering import mujoco
from hardware.sim.tasks import make_task
from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import ConfigError
from robot_stack.safety.motion import MotionFilter

READY = np.array([*READY_RAD, 0.04])
# The hand comes back to the base: folded elbow, wrist turned inwards.
FOLDED = np.array([0.0, -1.5, 0.0, -2.75, 0.0, 0.8, 0.8, 0.04])


@pytest.fixture(scope="module")
def geometry() -> ModelGeometry:
    return franka_geometry(make_task("pick_cube"))


def margin(geometry: ModelGeometry, setpoint: np.ndarray) -> float:
    """How deep inside the box the outermost guarded point lies."""
    points = geometry.look(setpoint).points_m
    return float(min((points - geometry.box_lower_m).min(), (geometry.box_upper_m - points).min()))


def test_the_ready_pose_is_clear(geometry: ModelGeometry) -> None:
    clearance = geometry.look(READY)
    assert clearance.points_m.shape == (len(GUARDED_SITES), 3)
    assert clearance.self_distance_m > MIN_SELF_DISTANCE_M
    assert margin(geometry, READY) > 0.0
    np.testing.assert_allclose(clearance.points_m[0], [0.30689, 0.0, 0.48688], atol=1e-4)


def test_looking_is_a_pure_function(geometry: ModelGeometry) -> None:
    first = geometry.look(READY)
    kept = first.points_m.copy()
    geometry.look(FOLDED)
    np.testing.assert_array_equal(first.points_m, kept)
    again = geometry.look(READY)
    np.testing.assert_array_equal(again.points_m, kept)
    assert again.self_distance_m == first.self_distance_m


def test_distances_are_those_of_every_pair_of_primitives(geometry: ModelGeometry) -> None:
    """The bounding spheres save work and change nothing."""
    distance = geometry._distance
    model, data = distance.model, distance.data
    rng = np.random.default_rng(0)
    near = 0
    for _ in range(150):
        setpoint = rng.uniform([*limits.FULL_LOWER_RAD, 0.0], [*limits.FULL_UPPER_RAD, 0.08])
        found = geometry.look(setpoint).self_distance_m
        pairs = zip(distance._first.tolist(), distance._second.tolist(), strict=True)
        every = min(mujoco.mj_geomDistance(model, data, first, second, CUTOFF_M, None) for first, second in pairs)
        assert found == pytest.approx(every, abs=1e-6)
        near += found < CUTOFF_M
    assert near > 10


def test_parts_that_overlap_have_a_negative_distance_and_neighbours_give_no_alarm(geometry: ModelGeometry) -> None:
    rng = np.random.default_rng(1)
    rectangle = limits.rectangle_limits()
    found = [geometry.look(rng.uniform(rectangle.lower, rectangle.upper)).self_distance_m for _ in range(400)]
    alarms = np.mean(np.array(found) < MIN_SELF_DISTANCE_M)
    assert 0.0 < alarms < 0.05
    assert min(found) < 0.0


def test_an_arm_that_folds_into_its_base_is_seen_before_it_touches(geometry: ModelGeometry) -> None:
    """On the way from clear to overlapping, the distance passes the threshold first."""
    rng = np.random.default_rng(2)
    rectangle = limits.rectangle_limits()
    while geometry.look(bad := rng.uniform(rectangle.lower, rectangle.upper)).self_distance_m > -0.01:
        pass
    distances = [geometry.look(READY + share * (bad - READY)).self_distance_m for share in np.linspace(0, 1, 400)]
    first_alarm = next(index for index, value in enumerate(distances) if value < MIN_SELF_DISTANCE_M)
    first_contact = next(index for index, value in enumerate(distances) if value < 0.0)
    assert 0 < first_alarm < first_contact


@pytest.mark.parametrize("task", ["pick_cube", "peg_insertion", "touch_block"])
def test_normal_work_is_never_held_back(task: str) -> None:
    robot = SimulatedFranka("franka", task, clock=ManualClock())
    assert robot.geometry is None
    robot.connect()
    geometry = robot.geometry
    assert isinstance(geometry, ModelGeometry)
    limiter, expert = MotionFilter(robot.limits, 0.01), make_expert(task, robot.spec)
    rng = np.random.default_rng(0)
    lower, upper = robot.spec.action.lower_array(), robot.spec.action.upper_array()
    straight = np.array(["rad" not in name for name in robot.spec.action.names])
    for seed in range(3):
        robot.reset(seed)
        limiter.start(robot.measured_setpoint())
        push = lower * straight  # into a corner of the workspace
        for step in range(40):
            action = push if seed else expert.act(robot.read().features, robot.ground_truth())
            if step % 10 == 9:
                push = np.where(rng.random(len(lower)) < 0.5, lower, upper) * straight
            goal = robot.resolve(action.astype(np.float32))
            for tick in range(10):
                setpoint = limiter.toward(goal, 0.1 - 0.01 * tick)
                robot.send(setpoint)
                robot.advance(0.01)
            assert margin(geometry, setpoint) > 0.0
            assert geometry.look(setpoint).self_distance_m > geometry.min_self_distance_m


def test_a_tool_below_the_floor_is_outside_the_box(geometry: ModelGeometry) -> None:
    embodiment = FrankaEmbodiment(
        "franka", "pick_cube", action_space="ee_delta", control_rate_hz=10.0, tick_rate_hz=100.0
    )
    embodiment.open()
    down = np.array([0.0, 1.0, 0.0, 0.0])
    for height_m, inside in ((0.02, True), (-0.03, False)):
        joints = embodiment.kinematics.solve(np.array([0.5, 0.0, height_m]), down, READY[:7], max_iterations=100)
        assert (margin(geometry, np.append(joints, 0.08)) > 0.0) is inside


def test_names_that_the_model_lacks_are_refused() -> None:
    model = build_franka(FrankaModel()).compile()
    with pytest.raises(ConfigError, match="tail"):
        SelfDistance(model, [("link0", "tail")], 0.1)
    distance = SelfDistance(model, [("link1", "hand")], 0.1)
    with pytest.raises(ConfigError, match="eye"):
        ModelGeometry(
            distance, lambda setpoint: setpoint, sites=("flange", "eye"), box_lower_m=(0,) * 3, box_upper_m=(1,) * 3,
            min_self_distance_m=0.0,
        )  # fmt: skip


def test_a_wrench_at_another_point_does_the_same_work() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        wrench, at, to, velocity, turn = rng.normal(size=6), *rng.normal(size=(4, 3))
        moved = shifted_wrench(wrench, at, to)
        # a rigid body: velocity at `to`, and from it that at `at`
        power = wrench[:3] @ (velocity + np.cross(turn, at - to)) + wrench[3:] @ turn
        assert moved[:3] @ velocity + moved[3:] @ turn == pytest.approx(power)


def test_two_boxes_are_refused_until_one_is_rounded() -> None:
    """MuJoCo's distances between two boxes are wrong now and then."""
    with pytest.raises(ConfigError, match="round_boxes"):
        SelfDistance(build_franka(FrankaModel()).compile(), [("link0", "hand")], 0.1)
    spec = build_franka(FrankaModel())
    round_boxes(spec, ["hand"])
    rounded = SelfDistance(spec.compile(), [("link0", "hand")], 0.1)
    assert rounded.at(np.zeros(9)) > 0.0
