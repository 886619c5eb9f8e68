"""Driving robots by hand through their action spaces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from hardware.franka.sim import SimulatedFranka
from hardware.stretch.sim import SimulatedStretch
from hardware.unitree_g1.actions import ARM_JOINTS
from hardware.unitree_g1.sim import SimulatedG1
from robot_stack.core.handling import Handling
from robot_stack.core.specs import RobotSpec, vector
from robot_stack.edge.familiarity import Familiarity
from tests.seat_kit import SPEC

SPECS = {
    "peg_insertion": SimulatedFranka("franka_0", "peg_insertion").spec,
    "pick_cube": SimulatedFranka("franka_0", "pick_cube").spec,
    "peg_joints": SimulatedFranka("franka_0", "peg_insertion", action_space="joint_delta").spec,
    "pick_joints": SimulatedFranka("franka_0", "pick_cube", action_space="joint_delta").spec,
    "g1": SimulatedG1("g1_0", "g1_bimanual_lift").spec,
    "g1_joints": SimulatedG1("g1_0", "g1_bimanual_lift", action_space="joint_delta").spec,
    "g1_joints_hands": SimulatedG1("g1_0", "g1_bimanual_lift", hands="dex3", action_space="joint_delta").spec,
    "stretch": SimulatedStretch("stretch_0", "stretch_reach_grasp").spec,
}
MEASURED = {
    "peg_insertion": ("tool_x_m", "tool_y_m", "tool_z_m", "tool_yaw_rad"),
    "pick_cube": ("tool_x_m", "tool_y_m", "tool_z_m", "tool_yaw_rad"),
    "peg_joints": tuple(f"fr3_joint{number}_rad" for number in range(1, 8)),
    "pick_joints": tuple(f"fr3_joint{number}_rad" for number in range(1, 8)),
    "g1": tuple(f"{side}_palm_{axis}_m" for side in ("left", "right") for axis in "xyz"),
    "g1_joints": tuple(f"{joint}_rad" for joint in ARM_JOINTS),
    "g1_joints_hands": tuple(f"{joint}_rad" for joint in ARM_JOINTS),
    "stretch": ("base_translation_m", "lift_m", "arm_m", "wrist_yaw_rad"),
}


def name_of(spec: RobotSpec, place: tuple[str, int]) -> str:
    return spec.observation[place[0]].names[place[1]]


@pytest.mark.parametrize("name", SPECS)
def test_every_simulated_robot_can_be_driven_and_rewound(name: str) -> None:
    spec = SPECS[name]
    handling = Handling(spec)
    assert handling.drivable == spec.action.names and handling.rewinds
    assert tuple(name_of(spec, axis.measured) for axis in handling.axes) == MEASURED[name]
    assert all(
        name_of(spec, axis.lead) == f"goal_minus_{measured}"
        for axis, measured in zip(handling.axes, MEASURED[name], strict=True)
    )
    assert [axis.turns for axis in handling.axes] == [measured.endswith("_rad") for measured in MEASURED[name]]
    hands = [element for element in spec.action.names if "gripper" in element]
    assert [element for element, moves in zip(spec.action.names, handling.relative, strict=True) if not moves] == hands


@pytest.mark.parametrize("name", SPECS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_parts_of_a_step_add_up_to_the_whole_and_never_leave_the_bounds(name: str, data: st.DataObject) -> None:
    spec = SPECS[name]
    handling, count = Handling(spec), data.draw(st.integers(1, 20))
    moves = data.draw(st.dictionaries(st.sampled_from(spec.action.names), st.floats(-1.0, 1.0)))
    last = np.array(
        [data.draw(st.floats(low, high)) for low, high in zip(spec.action.lower, spec.action.upper, strict=True)],
        np.float32,
    )
    lower, upper = spec.action.lower_array(), spec.action.upper_array()
    whole = handling.moved(last, moves, 1.0)
    parts: list[np.ndarray] = []
    for _ in range(count):
        parts.append(handling.moved(parts[-1] if parts else last, moves, 1.0 / count))
    for action in (whole, *parts, handling.summed(parts), handling.still(last)):
        assert action.dtype == np.float32 and (lower <= action).all() and (action <= upper).all()
    np.testing.assert_allclose(handling.summed(parts), whole, atol=1e-6)
    np.testing.assert_allclose(handling.summed([handling.part_of(whole, 1.0 / count)] * count), whole, atol=1e-6)
    unnamed = [index for index, element in enumerate(spec.action.names) if element not in moves]
    np.testing.assert_array_equal(whole[unnamed], handling.still(last)[unnamed])


def test_all_the_way_is_a_bound_and_a_hand_goes_where_it_is_told() -> None:
    handling, last = Handling(SPEC), np.array([0.0, 0.0, 0.0, 0.25], np.float32)
    moved = handling.moved(last, {"dx_m": 1.0, "dyaw_rad": -1.0, "gripper": 0.0}, 1.0)
    np.testing.assert_allclose(moved, [0.01, 0.0, -0.1, 0.5])
    assert handling.moved(last, {}, 1.0)[3] == 0.25 and handling.moved(last, {"gripper": -1.0}, 0.1)[3] == 0.0


@pytest.mark.parametrize("space", ["joint_position", "ee_pose"])
def test_a_pose_or_an_angle_that_is_named_outright_is_not_driven_by_hand(space: str) -> None:
    handling = Handling(SimulatedFranka("franka_0", "pick_cube", action_space=space).spec)
    assert handling.drivable == ("gripper",) and not handling.rewinds
    spec = SimulatedFranka("franka_0", "pick_cube", action_space=space).spec
    assert "would be a jump" in handling.unknown({spec.action.names[0]: 0.1})
    last = np.linspace(0.1, 0.9, len(spec.action.names)).astype(np.float32)
    np.testing.assert_array_equal(handling.still(last), last)


def test_turning_about_any_axis_is_relative() -> None:
    names = ("dx_m", "droll_rad", "dpitch_rad", "dyaw_rad")
    spec = replace(SPEC, action=vector(names, (-0.1,) * 4, (0.1,) * 4))
    handling = Handling(spec)
    assert handling.relative.all() and handling.drivable == names
    assert not handling.rewinds, "the state does not tell roll and pitch"


def test_angles_go_the_short_way_round() -> None:
    handling = Handling(SPEC)
    off = handling.difference(np.array([0.0, 0.0, 3.1]), np.array([0.0, 0.0, -3.1]))
    assert off[2] == pytest.approx(6.2 - 2 * np.pi)


def test_axes_keep_together_on_the_way_to_a_place() -> None:
    handling, last = Handling(SPEC), np.ones(4, np.float32)
    action = handling.towards(np.array([0.05, 0.01, 0.1]), last, 0.5)
    np.testing.assert_allclose(action, [0.005, 0.001, 0.01, 1.0], atol=1e-8)
    np.testing.assert_allclose(handling.towards(np.array([0.002, 0.0, 0.0]), last, 0.5)[0], 0.002)


def demonstrations(rng: np.random.Generator, episodes: int = 12) -> list[np.ndarray]:
    """Noisy ways from scattered places to the origin, and a feature that never changes."""
    made = []
    for _ in range(episodes):
        start, time = rng.normal(0.3, 0.05, 3), np.linspace(1.0, 0.0, 40)[:, None]
        states = start * time + rng.normal(0.0, 0.004, (40, 3))
        made.append(np.concatenate([states, np.full((40, 1), 0.25)], axis=1).astype(np.float32))
    return made


def test_familiarity_tells_demonstrated_states_from_strange_ones() -> None:
    rng = np.random.default_rng(0)
    familiarity = Familiarity(demonstrations(rng))
    known = [familiarity.of(state) for states in demonstrations(rng, 6) for state in states]
    assert np.mean(np.array(known) < 1.0) > 0.85
    strange = np.concatenate([rng.normal(0.3, 0.05, (200, 3)) * (-1, 1, 1), np.full((200, 1), 0.25)], axis=1)
    assert np.mean([familiarity.of(state) > 1.5 for state in strange.astype(np.float32)]) > 0.95
    assert familiarity.of(demonstrations(np.random.default_rng(0))[3][7]) == pytest.approx(0.0, abs=0.02)


def test_familiarity_grows_with_the_distance() -> None:
    familiarity = Familiarity(demonstrations(np.random.default_rng(1)))
    away = [familiarity.of(np.array([0.0, 0.0, -distance, 0.25], np.float32)) for distance in (0.0, 0.05, 0.1, 0.3)]
    assert away == sorted(away) and away[0] < 1.0 < away[2] and away[-1] > 5.0


def test_a_hair_off_in_what_never_varied_is_not_strange() -> None:
    familiarity = Familiarity(demonstrations(np.random.default_rng(2)))
    state = np.array([0.15, 0.15, 0.15, 0.2503], np.float32)
    assert familiarity.of(state) < 1.0 < familiarity.of(state + np.array([0.0, 0.0, 0.0, 0.05], np.float32))


def test_many_states_are_thinned_and_one_episode_has_no_neighbours() -> None:
    rng = np.random.default_rng(3)
    many = Familiarity(demonstrations(rng, 300))
    assert many.of(np.array([0.15, 0.15, 0.15, 0.25], np.float32)) < 1.0
    assert Familiarity(demonstrations(rng, 1)).of(np.array([0.15, 0.15, 0.15, 0.25], np.float32)) >= 0.0
    with pytest.raises(ValueError, match="no demonstrated state"):
        Familiarity([])
