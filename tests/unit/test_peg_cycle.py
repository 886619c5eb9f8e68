"""The peg task that can be undone: its two predicates, what a kept scene keeps, and its expert."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.franka.sim import SimulatedFranka
from hardware.sim.tasks.peg_cycle import PegCycle
from robot_stack.core.clock import ManualClock
from robot_stack.core.direction import Direction, direction_of
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import TaskStatus
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE


@pytest.fixture(scope="module")
def robot() -> SimulatedFranka:
    robot = SimulatedFranka("franka", "peg_cycle", clock=ManualClock())
    robot.connect()
    return robot


def put(robot: SimulatedFranka, offset_m: tuple[float, float, float], yaw_rad: float = 0.0) -> TaskStatus:
    """The verdict with the tip at an offset from the middle of the start region."""
    from hardware.franka.actions import tool_down
    from hardware.franka.model import READY_RAD

    world, task = robot._open.world, robot._task
    assert isinstance(task, PegCycle)
    place = task.start_m + np.asarray(offset_m)
    joints = robot.embodiment.kinematics.solve(place, tool_down(yaw_rad), np.asarray(READY_RAD), max_iterations=200)
    world.data.qpos[:7] = joints
    world.forward()
    return robot.task_status()


def test_the_directions_have_predicates_of_their_own(robot: SimulatedFranka) -> None:
    robot.reset(1)
    assert not put(robot, (0.0, 0.0, 0.0)).success, "forward is not done at the start"
    robot.begin_here(2, Direction.BACKWARD)
    assert put(robot, (0.0, 0.0, 0.0)) == TaskStatus(reward=1.0, success=True, terminated=True)
    assert put(robot, (0.024, -0.024, 0.024)).success
    assert not put(robot, (0.027, 0.0, 0.0)).success
    assert not put(robot, (0.0, 0.0, -0.03)).success
    assert not put(robot, (0.0, 0.0, 0.0), yaw_rad=0.25).success


def test_a_start_of_forward_is_a_goal_of_backward(robot: SimulatedFranka) -> None:
    for seed in range(20):
        robot.reset(seed)
        robot.begin_here(seed, Direction.BACKWARD)
        assert robot.task_status().success


def test_out_of_the_workspace_is_no_end_that_leads_back(robot: SimulatedFranka) -> None:
    robot.reset(1)
    status = put(robot, (0.0, 0.11, 0.0))
    assert status.truncated and not status.terminated
    assert not put(robot, (0.0, 0.07, 0.0)).truncated


def test_beginning_here_moves_nothing_and_looks_at_the_socket_anew(robot: SimulatedFranka) -> None:
    robot.reset(3)
    data = robot._data
    kept = (data.qpos.copy(), data.qvel.copy(), data.mocap_pos.copy(), data.mocap_quat.copy(), data.time)
    first, bias_m = robot.read().features, robot.ground_truth()["observation_bias_m"]
    robot.begin_here(77, Direction.BACKWARD)
    for before, now in zip(kept, (data.qpos, data.qvel, data.mocap_pos, data.mocap_quat, data.time), strict=True):
        np.testing.assert_array_equal(before, now)
    second = robot.read().features
    np.testing.assert_array_equal(first[STATE][:9], second[STATE][:9])
    moved_m = second[ENVIRONMENT_STATE] - first[ENVIRONMENT_STATE]
    np.testing.assert_allclose(moved_m[:2], robot.ground_truth()["observation_bias_m"] - bias_m, atol=1e-6)
    assert np.abs(moved_m[:2]).max() > 0.0
    np.testing.assert_array_equal(moved_m[2:4], 0.0)
    assert (first[ENVIRONMENT_STATE][-1], second[ENVIRONMENT_STATE][-1]) == (1.0, -1.0)
    assert direction_of(robot.instruction()) is Direction.BACKWARD
    robot.reset(3)
    assert direction_of(robot.instruction()) is Direction.FORWARD


def test_a_task_without_a_way_back_says_so() -> None:
    robot = SimulatedFranka("franka", "peg_insertion", clock=ManualClock())
    robot.connect()
    assert robot.directions == ()
    with pytest.raises(RobotError, match="cannot be undone"):
        robot.begin_here(0, Direction.BACKWARD)
