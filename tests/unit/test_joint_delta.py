"""Driving joints by changes: the same for every back-end of a robot, and no other action space is touched by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.franka import actions as franka
from hardware.franka import limits as franka_limits
from hardware.franka.model import READY_RAD
from hardware.franka.sim import SimulatedFranka
from hardware.unitree_g1 import actions as g1
from hardware.unitree_g1 import limits as g1_limits
from hardware.unitree_g1.embodiment import REST_ARMS_RAD
from hardware.unitree_g1.kinematics import Palms
from hardware.unitree_g1.sim import SimulatedG1
from robot_stack.apps.build import build_expert, build_robot, build_simulated
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError
from robot_stack.core.handling import Handling
from robot_stack.core.specs import ENVIRONMENT_STATE, IMAGES, STATE

JOINT_COUNT = {"franka": 7, "g1": 14}
BACKENDS = [("franka", "ros2"), ("franka", "fci"), ("g1", "dds"), ("g1", "ros2")]


@pytest.mark.parametrize(("robot", "backend"), BACKENDS)
def test_every_back_end_offers_the_same(robot: str, backend: str) -> None:
    overrides = [f"robot={robot}", "robot.action_space=joint_delta"]
    simulated = build_simulated(compose_config(overrides)).spec
    hardware = build_robot(compose_config([*overrides, f"backend={backend}", "vendor=hardware"])).spec
    assert hardware.action == simulated.action and Handling(hardware).rewinds
    names = [name for name in simulated.action.names if name.endswith("_delta_rad")]
    assert len(names) == JOINT_COUNT[robot] == len(Handling(hardware).axes)
    unseen = {ENVIRONMENT_STATE, *(name for name in simulated.observation if name.startswith(IMAGES))}
    assert hardware.observation == {key: part for key, part in simulated.observation.items() if key not in unseen}


def test_joints_cannot_be_driven_through_poses_of_the_hand() -> None:
    overrides = ["robot=franka", "backend=ros2", "vendor=hardware", "robot.ros2.stream=target_pose"]
    with pytest.raises(ConfigError, match=r"choose robot\.ros2\.stream=target_joint or joint_trajectory"):
        build_robot(compose_config([*overrides, "robot.action_space=joint_delta"]))


@pytest.mark.parametrize("task", ["peg_insertion", "pick_cube"])
def test_the_state_of_other_spaces_of_the_franka_is_what_it_was(task: str) -> None:
    def state(space: str) -> tuple[str, ...]:
        return SimulatedFranka("franka_0", task, action_space=space).spec.observation[STATE].names

    present = state("ee_delta")
    assert present[-2:] == ("gripper_width_m", "gripper_goal_width_m") if task == "pick_cube" else len(present) == 13
    assert state("ee_pose") == state("joint_position") == present and not any("joint" in name for name in present)
    added = state("joint_delta")
    assert added[: len(present)] == present and len(added) == len(present) + 2 * JOINT_COUNT["franka"]


@pytest.mark.parametrize(("hands", "size"), [("none", 24), ("dex3", 28)])
def test_the_state_of_moving_palms_is_what_it_was(hands: str, size: int) -> None:
    present = SimulatedG1("g1_0", "g1_bimanual_lift", hands=hands).spec.observation[STATE].names
    assert len(present) == size and not any("elbow" in name for name in present)
    by_joints = SimulatedG1("g1_0", "g1_bimanual_lift", hands=hands, action_space="joint_delta").spec
    added = by_joints.observation[STATE].names
    assert added[:size] == present and len(added) == size + 2 * JOINT_COUNT["g1"]


@pytest.mark.parametrize("robot", JOINT_COUNT)
def test_scripted_experts_are_refused_and_people_are_not(robot: str) -> None:
    config = compose_config([f"robot={robot}", "robot.action_space=joint_delta"])
    spec = build_simulated(config).spec
    assert Handling(spec).drivable == spec.action.names
    with pytest.raises(ConfigError, match="collect by hand with device=page"):
        build_expert(config, spec)


@pytest.mark.parametrize(("robot", "known"), [("franka", franka.ACTION_SPACES), ("g1", g1.ACTION_SPACES)])
def test_a_wrong_name_is_refused_with_the_names_that_there_are(robot: str, known: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"'joint_torque'.* choose one of {', '.join(known)}"):
        build_simulated(compose_config([f"robot={robot}", "robot.action_space=joint_torque"]))


def arm_of_franka(action: np.ndarray, actual: np.ndarray, space: franka.JointDelta) -> np.ndarray:
    return space.resolve(action, franka.ArmPose(actual, 0.04, np.zeros(3), np.eye(3)))[:7]


def arms_of_g1(action: np.ndarray, actual: np.ndarray, space: g1.JointDelta) -> np.ndarray:
    palms = Palms(np.zeros((2, 3)), np.zeros((2, 3, 3)), np.zeros((2, 3)))
    waist = np.array([0.1, -0.2, 0.3])
    goal = space.resolve(action, np.concatenate([actual, waist]), palms)
    np.testing.assert_array_equal(goal[14:], waist)
    return goal[:14]


@pytest.mark.parametrize("robot", JOINT_COUNT)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_goals_stay_near_the_joints_and_inside_the_limits_wherever_these_are(robot: str, seed: int) -> None:
    """Joints that follow badly, jump, or stand at a limit."""
    rng, count = np.random.default_rng(seed), JOINT_COUNT[robot]
    limits = franka_limits.rectangle_limits() if robot == "franka" else g1_limits.default_limits()
    lower, upper = np.array(limits.lower[:count]), np.array(limits.upper[:count])
    own = franka if robot == "franka" else g1
    bound, lead = np.float32(own.MAX_JOINT_STEP_RAD), own.MAX_JOINT_LEAD_RAD
    space, actual = own.JointDelta(limits), np.array(READY_RAD if robot == "franka" else REST_ARMS_RAD)
    goal = actual
    for _ in range(60):
        action = rng.choice([-bound, np.float32(0.0), bound], count).astype(np.float32)
        before = goal
        if isinstance(space, franka.JointDelta):
            goal = arm_of_franka(np.append(action, np.float32(1.0)), actual, space)
        else:
            goal = arms_of_g1(action, actual, space)
        assert (np.abs(goal - actual) <= lead + 1e-12).all()
        assert (goal >= lower).all() and (goal <= upper).all()
        free = (np.abs(goal - actual) < lead - 1e-9) & (goal > lower) & (goal < upper)
        np.testing.assert_allclose((goal - before)[free], action[free], atol=1e-12)
        follows = rng.choice([0.0, 0.3, 1.0], count)
        actual = np.clip(actual + follows * (goal - actual) + rng.normal(0.0, 1e-3, count), lower, upper)
