"""Episodes that begin where the robot is, through a real robot server process: in lock-step and on the wall clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning.robot import LocalRobot
from hardware.sim.experts import make_expert
from robot_stack.apps.build import build_simulated
from robot_stack.apps.connections import free_network, network_overrides, remote_robot
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.compose import compose_config
from robot_stack.core.direction import Direction
from robot_stack.core.errors import CommandRefusedError
from robot_stack.core.messages import FloatArray, RobotState, Verdict
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE
from robot_stack.edge.control_loop import KeepsScene, LoopRobot
from robot_stack.edge.remote_robot import RemoteRobot

TASK = ("robot=franka", "task=peg_cycle", "robot.view_cameras=[]")
PLACE = slice(0, 4)  # of the state: tool position and heading


def up(robot: LoopRobot) -> FloatArray:
    """Half of the largest step upwards."""
    lift: FloatArray = np.where([name == "dz_m" for name in robot.spec.action.names], 0.5, 0.0).astype(np.float32)
    return lift * robot.spec.action.upper_array()


@contextmanager
def serving(folder: Path, *, lock_step: bool) -> Iterator[RemoteRobot]:
    """A robot server in a process of its own, and an edge's armed connection to it."""
    overrides = [*TASK, f"robot.lock_step={str(lock_step).lower()}", f"runs_directory={folder}", "run=keep"]
    overrides += network_overrides(free_network())
    config = compose_config(overrides)
    keys = ensure_keys(RunLayout.of(config))
    with Supervisor(folder / "logs", lambda _: None) as supervisor:
        supervisor.start("robot-server", robot_stack_command("robot-server", *overrides))
        with remote_robot(config.network, keys) as robot:
            robot.connect(60.0)
            assert robot.info.lock_step == lock_step
            robot.arm(10.0)
            yield robot


@pytest.fixture(scope="module")
def lock_step(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteRobot]:
    with serving(tmp_path_factory.mktemp("lock_step"), lock_step=True) as robot:
        yield robot


def socket_m(state: RobotState) -> FloatArray:
    assert state.ground_truth is not None
    return np.array([*state.ground_truth["socket_position_m"], *state.ground_truth["socket_yaw_rad"]], np.float32)


def test_in_lock_step_scene_and_pose_stay_and_the_direction_is_told(lock_step: RemoteRobot) -> None:
    check_kept_scene(lock_step)


def test_on_the_wall_clock_they_stay_too(tmp_path: Path) -> None:
    with serving(tmp_path, lock_step=False) as robot:
        check_kept_scene(robot)


def check_kept_scene(served: RemoteRobot) -> None:
    begun = served.reset(3).state
    assert begun.instruction.startswith("forward:")
    for _ in range(4):
        before = served.step(up(served)).state
    after = served.begin_here(4, Direction.BACKWARD).state
    np.testing.assert_array_equal(socket_m(after), socket_m(begun))
    moved_m = np.abs(after.features[STATE][PLACE] - before.features[STATE][PLACE]).max()
    risen_m = before.features[STATE][2] - begun.features[STATE][2]
    assert risen_m > 0.004
    assert moved_m < 0.012, "it coasts to rest, and is not put anywhere"
    assert not after.moving
    assert after.episode_seed == 4
    assert after.instruction.startswith("backward:")
    assert after.features[ENVIRONMENT_STATE][-1] == -1.0
    result = served.step(up(served)).result
    assert result.verdict is Verdict.ACCEPTED, "the lease and the sequence of commands go on"
    fresh = served.reset(5).state
    assert fresh.instruction.startswith("forward:")
    assert np.abs(socket_m(fresh) - socket_m(begun)).max() > 1e-4


def test_in_lock_step_the_server_and_the_robot_in_this_process_agree(lock_step: RemoteRobot) -> None:
    with LocalRobot(build_simulated(compose_config(TASK))) as local:
        states = []
        for robot in (lock_step, local):
            assert isinstance(robot, KeepsScene)
            robot.reset(3)
            moved = [robot.step(up(robot)).state for _ in range(3)]
            here = robot.begin_here(9, Direction.BACKWARD).state
            states.append([*moved, here, *(robot.step(-up(robot)).state for _ in range(3))])
    for mine, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(mine.features[STATE], theirs.features[STATE])
        np.testing.assert_array_equal(mine.features[ENVIRONMENT_STATE], theirs.features[ENVIRONMENT_STATE])
        assert mine.task == theirs.task


def test_the_task_is_done_and_undone_without_a_reset(lock_step: RemoteRobot) -> None:
    expert = make_expert(lock_step.spec.task, lock_step.spec)
    state = lock_step.reset(11).state
    for number in range(4):
        steps = 0
        while steps == 0 or state.task is None or not state.task.terminated:
            assert state.ground_truth is not None
            state = lock_step.step(expert.act(state.features, state.ground_truth)).state
            steps += 1
            assert steps <= lock_step.spec.max_episode_steps
        state = lock_step.begin_here(number, Direction.BACKWARD if number % 2 == 0 else Direction.FORWARD).state


def test_a_task_that_goes_one_way_is_refused_and_left_alone() -> None:
    config = compose_config(("robot=franka", "task=peg_insertion", "robot.view_cameras=[]"))
    with LocalRobot(build_simulated(config)) as robot:
        robot.reset(3)
        with pytest.raises(CommandRefusedError, match="backward") as refused:
            robot.begin_here(4, Direction.BACKWARD)
        assert refused.value.reason == "one_way"
        assert robot.step(up(robot)).result.verdict is Verdict.ACCEPTED, "a refusal is no fault"
