"""Gymnasium environments as robots, with two public tasks and one built-in, and their scripted experts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from hardware.gymnasium.experts import PandaPickCubeExpert, PushTExpert
from hardware.gymnasium.robot import GymnasiumRobot
from robot_stack.core.errors import ConfigError, MissingDependencyError, RobotError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.protocols import SimulatedRobot

PERIOD_S = 0.1
POSITION = ("agent_x_px", "agent_y_px")
PANDA = "gym_hil/PandaPickCube-v0"
PANDA_KEYS = (("observation.state", "agent_pos"), ("observation.environment_state", "environment_state"))


def push_t(max_episode_steps: int = 300) -> GymnasiumRobot:
    return GymnasiumRobot(
        "pusht_0",
        "gym_pusht/PushT-v0",
        task="push_t",
        observation_keys=PANDA_KEYS,
        control_rate_hz=10.0,
        max_episode_steps=max_episode_steps,
        env_kwargs={"obs_type": "environment_state_agent_pos"},
        names={"action": ("target_x_px", "target_y_px"), "observation.state": POSITION},
    )


def pendulum(max_episode_steps: int = 5, **changes: object) -> GymnasiumRobot:
    settings: dict[str, object] = {
        "task": "swing_up",
        "observation_keys": (("observation.state", ""),),
        "control_rate_hz": 20.0,
        "max_episode_steps": max_episode_steps,
        "success_key": "",
        "cameras": (),
        **changes,
    }
    return GymnasiumRobot("pendulum_0", "Pendulum-v1", **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def panda() -> Iterator[GymnasiumRobot]:
    robot = GymnasiumRobot(
        "panda_0",
        PANDA,
        task="pick_cube",
        observation_keys=PANDA_KEYS,
        control_rate_hz=10.0,
        max_episode_steps=100,
        env_kwargs={"random_block_position": True, "reset_delay_seconds": 0.0},
        success_key="succeed",
        cameras=("front", "wrist"),
    )
    robot.connect()
    yield robot
    robot.close()


def act(robot: GymnasiumRobot, action: FloatArray, period_s: float = PERIOD_S) -> None:
    robot.send(robot.resolve(action))
    robot.advance(period_s)


def observed(robot: GymnasiumRobot) -> Features:
    return robot.read().features


def same(left: Features, right: Features) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def demonstrate(robot: GymnasiumRobot, expert: PandaPickCubeExpert | PushTExpert, seed: int) -> int:
    """Steps until the episode ended."""
    robot.reset(seed)
    expert.reset(seed)
    for step in range(robot.spec.max_episode_steps):
        action = expert.act(observed(robot), robot.ground_truth())
        assert np.all(action >= robot.spec.action.lower_array())
        assert np.all(action <= robot.spec.action.upper_array())
        act(robot, action)
        if robot.task_status().terminated:
            return step + 1
    return robot.spec.max_episode_steps


# ---- spec and life ------------------------------------------------------------------------------------------------


def test_spec_and_limits_are_readable_before_connect() -> None:
    robot = push_t()
    assert isinstance(robot, SimulatedRobot)
    spec = robot.spec
    assert spec.model == "gymnasium:gym_pusht/PushT-v0"
    assert spec.simulated
    assert spec.tick_rate_hz == spec.control_rate_hz == 10.0
    assert spec.action.names == ("target_x_px", "target_y_px")
    assert (spec.action.lower, spec.action.upper) == ((0.0, 0.0), (512.0, 512.0))
    assert spec.observation["observation.environment_state"].shape == (16,)
    assert robot.limits.lower == spec.action.lower
    assert np.all(np.isinf([robot.limits.max_velocity, robot.limits.max_acceleration]))
    with pytest.raises(RobotError, match="not connected"):
        robot.read()


def test_readings_have_the_dtype_and_shape_of_the_spec() -> None:
    robot = push_t()
    robot.connect()
    features = observed(robot)
    assert features.keys() == robot.spec.observation.keys()
    for key, feature in robot.spec.observation.items():
        assert (features[key].dtype.name, features[key].shape) == (feature.dtype, feature.shape)
    robot.close()


def test_close_and_connect_again() -> None:
    robot = pendulum()
    robot.connect()
    first = observed(robot)
    robot.close()
    robot.close()
    robot.connect()
    assert same(observed(robot), first)


# ---- time -----------------------------------------------------------------------------------------------------------


def test_one_action_is_one_environment_step_at_the_end_of_its_period() -> None:
    robot = pendulum(max_episode_steps=100)
    robot.connect()
    start = observed(robot)
    robot.send(robot.resolve(np.asarray([2.0], np.float32)))
    robot.advance(0.025)
    assert same(observed(robot), start)
    robot.advance(0.025)
    after_one = observed(robot)
    assert not same(after_one, start)
    robot.advance(0.05)
    robot.send(np.asarray([2.0]))  # what the server's filter repeats while no new command was accepted
    robot.advance(0.05)
    assert same(observed(robot), after_one)
    act(robot, np.asarray([2.0], np.float32), 0.05)
    assert not same(observed(robot), after_one)


def test_ticks_that_do_not_add_up_exactly_still_give_one_step_per_period() -> None:
    robot = pendulum(max_episode_steps=200, control_rate_hz=30.0)
    robot.connect()
    for _ in range(100):
        before = observed(robot)
        act(robot, np.asarray([1.0], np.float32), 1.0 / 30.0)
        assert not same(observed(robot), before)


def test_a_held_action_is_never_executed() -> None:
    robot = pendulum()
    robot.connect()
    start = observed(robot)
    robot.send(robot.resolve(np.asarray([2.0], np.float32)))
    robot.hold()
    robot.send(robot.measured_setpoint())
    robot.advance(0.05)
    assert same(observed(robot), start)


def test_what_the_filter_repeats_between_commands_moves_nothing() -> None:
    robot = push_t()
    robot.connect()
    act(robot, np.asarray([100.0, 400.0], np.float32))
    after_command = observed(robot)
    for setpoint in (np.asarray([100.0, 400.0]), robot.measured_setpoint()):
        robot.send(setpoint)
        robot.advance(PERIOD_S)
    assert same(observed(robot), after_command)


# ---- outcome --------------------------------------------------------------------------------------------------------


def test_a_time_out_truncates_and_does_not_terminate() -> None:
    robot = pendulum(max_episode_steps=5)
    robot.connect()
    for index in range(5):
        act(robot, np.asarray([0.0], np.float32), 0.05)
        assert robot.task_status().truncated == (index == 4)
    assert not robot.task_status().terminated
    assert robot.task_status().reward < 0.0
    ended = observed(robot)
    act(robot, np.asarray([2.0], np.float32), 0.05)
    assert same(observed(robot), ended)
    robot.reset(1)
    assert not robot.task_status().truncated
    act(robot, np.asarray([2.0], np.float32), 0.05)
    assert not robot.task_status().truncated


def test_success_on_the_last_allowed_step_terminates_and_does_not_truncate() -> None:
    robot = push_t()
    robot.connect()
    steps = demonstrate(robot, PushTExpert(), seed=5)
    robot = push_t(max_episode_steps=steps)
    robot.connect()
    assert demonstrate(robot, PushTExpert(), seed=5) == steps
    status = robot.task_status()
    assert (status.success, status.terminated, status.truncated, status.reward) == (True, True, False, 1.0)


def test_a_missing_success_key_names_what_there_is() -> None:
    robot = push_t()
    robot._success_key = "succeed"
    robot.connect()
    with pytest.raises(RobotError, match="is_success"):
        act(robot, np.asarray([1.0, 1.0], np.float32))


# ---- seeds ----------------------------------------------------------------------------------------------------------


def test_the_seed_decides_where_gym_hil_puts_its_cube(panda: GymnasiumRobot) -> None:
    def cube(seed: int) -> bytes:
        panda.reset(seed)
        return observed(panda)["observation.environment_state"].tobytes()

    positions = [cube(seed) for seed in (1, 2, 3, 1)]
    assert positions[0] == positions[3]
    assert len(set(positions)) == 3


def test_the_same_seed_and_actions_repeat_an_episode_bit_for_bit(panda: GymnasiumRobot) -> None:
    def episode() -> list[bytes]:
        panda.reset(11)
        trace = []
        for index in range(6):
            act(panda, np.asarray([0.5, -0.5, -1.0, index % 3], np.float32))
            trace.append(b"".join(value.tobytes() for value in observed(panda).values()))
        return trace

    assert episode() == episode()


def test_reset_leaves_the_process_wide_generators_alone(panda: GymnasiumRobot) -> None:
    np.random.seed(123)
    expected = np.random.uniform(size=3)
    np.random.seed(123)
    panda.reset(5)
    act(panda, np.asarray([0.0, 0.0, 0.0, 1.0], np.float32))
    assert np.array_equal(np.random.uniform(size=3), expected)


# ---- images, truth, experts ----------------------------------------------------------------------------------------


def test_push_t_renders_and_other_cameras_are_refused() -> None:
    robot = push_t()
    robot.connect()
    image = robot.render("render")
    assert (image.shape, image.dtype) == ((680, 680, 3), np.uint8)
    assert image.std() > 1.0
    with pytest.raises(RobotError, match="no camera 'front'"):
        robot.render("front")


def test_ground_truth_holds_numbers_of_the_info_and_copies() -> None:
    robot = push_t()
    robot.connect()
    truth = robot.ground_truth()
    assert truth["info.block_pose"].shape == (3,)
    truth["observation.state"][:] = -1.0
    assert observed(robot)["observation.state"].min() >= 0.0


def successes(robot: GymnasiumRobot, expert: PandaPickCubeExpert | PushTExpert, seeds: range) -> int:
    count = 0
    for seed in seeds:
        demonstrate(robot, expert, seed)
        count += robot.task_status().success
    return count


def test_the_push_t_expert_reaches_the_goal() -> None:
    robot = push_t()
    robot.connect()
    assert successes(robot, PushTExpert(), range(100, 106)) >= 5


def test_what_the_push_t_expert_does_depends_on_nothing_but_the_scene() -> None:
    """What it did before must not matter: a policy that is trained on it sees the scene alone."""
    robot = push_t()
    robot.connect()
    robot.reset(3)
    acting, compared = PushTExpert(), 0
    while not robot.task_status().terminated:
        truth = robot.ground_truth()
        action = acting.act({}, truth)
        np.testing.assert_array_equal(PushTExpert().act({}, truth), action)
        compared += 1
        act(robot, action)
    assert 20 < compared < 250


def test_offsets_of_the_push_t_expert_lead_to_its_targets() -> None:
    robot = push_t()
    robot.connect()
    for seed in range(8):
        robot.reset(seed)
        truth = robot.ground_truth()
        agent = truth["info.pos_agent"]
        target, offset = PushTExpert().act({}, truth), PushTExpert(reach=40.0).act({}, truth)
        np.testing.assert_allclose(PushTExpert(reach=1000.0).act({}, truth) + agent, target, atol=1e-2)
        assert np.linalg.norm(offset) <= 40.001
        away = (target - agent) / np.linalg.norm(target - agent)
        np.testing.assert_allclose(offset / np.linalg.norm(offset), away, atol=1e-3)


def test_the_push_t_expert_needs_few_pushes() -> None:
    """Each new contact is one more thing to imitate; walking to one must not end in front of another."""
    robot = push_t()
    robot.connect()
    robot.reset(7)
    expert, still = PushTExpert(), 0
    pose = robot.ground_truth()["info.block_pose"]
    pushes = 0
    while not robot.task_status().terminated:
        act(robot, expert.act({}, robot.ground_truth()))
        after = robot.ground_truth()["info.block_pose"]
        lies_still = bool(np.abs(after - pose).max() < 1e-3)
        pushes += not lies_still and (still > 0 or pushes == 0)
        still, pose = (still + 1 if lies_still else 0), after
    assert 1 <= pushes <= 14


def test_relative_actions_go_where_the_absolute_ones_go() -> None:
    absolute, relative = push_t(), push_t()
    relative._relative_to, relative._reach = "observation.state", 600.0
    for robot in (absolute, relative):
        robot.connect()
        robot.reset(4)
    assert relative.spec.action.upper == (600.0, 600.0)
    assert relative.limits.upper == absolute.limits.upper == (512.0, 512.0)
    expert, offsets = PushTExpert(), PushTExpert(reach=600.0)
    for _ in range(30):
        act(relative, offsets.act({}, relative.ground_truth()))
        act(absolute, expert.act({}, absolute.ground_truth()))
        for key, value in observed(absolute).items():
            np.testing.assert_allclose(observed(relative)[key], value, atol=0.05)


def test_the_panda_expert_lifts_the_cube(panda: GymnasiumRobot) -> None:
    assert successes(panda, PandaPickCubeExpert(), range(100, 104)) == 4


# ---- wrong configurations -----------------------------------------------------------------------------------------


def test_wrong_configurations_are_named() -> None:
    with pytest.raises(ConfigError, match="no 'pixels'"):
        _ = pendulum(observation_keys=(("observation.state", "pixels"),)).spec
    with pytest.raises(ConfigError, match="2 names for 3 elements"):
        _ = pendulum(names={"observation.state": ("cos", "sin")}).spec
    with pytest.raises(ConfigError, match="Box of shape"):
        _ = GymnasiumRobot(
            "cart_0",
            "CartPole-v1",
            task="balance",
            observation_keys=(("observation.state", ""),),
            control_rate_hz=50.0,
            max_episode_steps=10,
            cameras=(),
        ).spec


def test_an_absent_package_is_named_with_the_extra_that_brings_it() -> None:
    robot = GymnasiumRobot(
        "x",
        "no_such_package/Env-v0",
        task="t",
        observation_keys=(),
        control_rate_hz=1.0,
        max_episode_steps=1,
    )
    with pytest.raises(MissingDependencyError, match=r"no_such_package.*robot-stack\[gymnasium\]"):
        _ = robot.spec


def test_a_wrong_setpoint_shape_is_refused() -> None:
    robot = pendulum()
    robot.connect()
    with pytest.raises(RobotError, match="shape"):
        robot.send(np.zeros(3))
