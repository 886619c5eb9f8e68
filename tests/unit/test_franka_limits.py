from __future__ import annotations

import numpy as np
import pytest

from hardware.franka import limits
from robot_stack.core.errors import ConfigError, RobotError


def test_velocity_limit_in_the_middle_of_the_range_is_the_full_one() -> None:
    middle = (np.asarray(limits.FULL_LOWER_RAD) + np.asarray(limits.FULL_UPPER_RAD)) / 2
    lowest, highest = limits.max_velocity(middle)
    # joint 4's range is too short for the square root to reach dq_max
    expected = np.minimum(limits.FULL_VELOCITY_RAD_S, np.sqrt(2 * 4.0 * (3.0770 - 0.1169) / 2) - 0.3533)
    assert highest[3] == pytest.approx(expected[3])
    np.testing.assert_allclose(highest[[0, 2, 4, 5, 6]], np.asarray(limits.FULL_VELOCITY_RAD_S)[[0, 2, 4, 5, 6]])
    np.testing.assert_allclose(lowest, -highest)


def test_velocity_limit_reaches_zero_at_the_position_limits() -> None:
    _, highest = limits.max_velocity(np.asarray(limits.FULL_UPPER_RAD))
    lowest, _ = limits.max_velocity(np.asarray(limits.FULL_LOWER_RAD))
    assert (highest == 0.0).all()
    assert (lowest == 0.0).all()


def test_velocity_limit_by_hand() -> None:
    joints = np.asarray(limits.FULL_UPPER_RAD) - 0.1
    _, highest = limits.max_velocity(joints)
    assert highest[0] == pytest.approx(np.sqrt(2 * 6.0 * 0.1) - 0.6599)
    assert highest[5] == pytest.approx(np.sqrt(2 * 5.5 * 0.1) - 0.4878)


@pytest.mark.parametrize("share", np.linspace(0.0, 1.0, 11).tolist())
def test_our_rectangle_keeps_the_velocity_formula_everywhere(share: float) -> None:
    rectangle = limits.rectangle_limits()
    lower, upper = np.asarray(rectangle.lower[:7]), np.asarray(rectangle.upper[:7])
    lowest, highest = limits.max_velocity(lower + share * (upper - lower))
    allowed = np.asarray(rectangle.max_velocity[:7])
    assert (highest >= allowed).all()
    assert (lowest <= -allowed).all()


def test_our_rectangle_is_the_vendors_within_five_percent() -> None:
    rectangle = limits.rectangle_limits()
    assert rectangle.lower[:7] == limits.RECTANGLE_LOWER_RAD
    assert rectangle.upper[:7] == limits.RECTANGLE_UPPER_RAD
    ratio = np.asarray(rectangle.max_velocity[:7]) / limits.RECTANGLE_VELOCITY_RAD_S
    assert (ratio > 0.95).all()
    assert (ratio <= 1.0).all()


def test_rectangle_limits_describe_eight_setpoints_inside_the_full_range() -> None:
    rectangle = limits.rectangle_limits()
    sizes = {len(getattr(rectangle, field)) for field in rectangle.__struct_fields__ if field != "envelope"}
    assert sizes == {8}
    assert (np.asarray(rectangle.lower[:7]) >= limits.FULL_LOWER_RAD).all()
    assert (np.asarray(rectangle.upper[:7]) <= limits.FULL_UPPER_RAD).all()
    assert rectangle.max_acceleration[:7] == limits.MAX_ACCELERATION_RAD_S2


# ---- the whole range, and the robot's own description -------------------------------------------------------------

# An older description of the same arm: narrower positions, the same velocities.
OLDER_LOWER_RAD = (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)
OLDER_UPPER_RAD = (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)


def urdf(lower: tuple[float, ...], upper: tuple[float, ...], names: tuple[str, ...] = limits.JOINT_NAMES) -> str:
    joints = "".join(
        f'<joint name="{name}" type="revolute">'
        f'<limit effort="87" lower="{low}" upper="{high}" velocity="{speed}"/></joint>'
        for name, low, high, speed in zip(names, lower, upper, limits.FULL_VELOCITY_RAD_S, strict=False)
    )
    return f'<robot name="fr3"><joint name="fr3_joint8" type="fixed"/>{joints}</robot>'


def test_the_full_limits_carry_the_vendors_velocity_formula() -> None:
    full = limits.full_limits()
    assert full.envelope is not None
    assert full.lower[:7] == limits.FULL_LOWER_RAD
    assert full.envelope.offset[:7] == limits.VELOCITY_OFFSET_RAD_S
    joints = np.asarray(limits.FULL_UPPER_RAD) - 0.1
    _, highest = limits.max_velocity(joints)
    room = np.asarray(full.envelope.upper[:7]) - joints
    formula = np.sqrt(2 * np.asarray(full.envelope.deceleration[:7]) * room) - full.envelope.offset[:7]
    np.testing.assert_allclose(np.minimum(full.max_velocity[:7], np.maximum(0.0, formula)), highest)
    assert {len(getattr(full.envelope, name)) for name in full.envelope.__struct_fields__} == {8}
    assert limits.make_limits("full") == full


def test_every_kind_of_limits_has_a_jerk() -> None:
    for kind in limits.LIMITS:
        assert limits.make_limits(kind).max_jerk[:7] == limits.MAX_JERK_RAD_S3
    with pytest.raises(ConfigError, match="rectangle, full"):
        limits.make_limits("none")


def test_a_narrower_description_narrows_the_full_limits() -> None:
    facts = limits.read_urdf(urdf(OLDER_LOWER_RAD, OLDER_UPPER_RAD), "franka_0")
    narrow = limits.narrowed(limits.full_limits(), facts, "franka_0")
    assert narrow.lower[:7] == OLDER_LOWER_RAD
    assert narrow.upper[:7] == OLDER_UPPER_RAD
    assert narrow.envelope is not None
    assert narrow.envelope.upper[:7] == OLDER_UPPER_RAD
    assert narrow.lower[7:] == limits.full_limits().lower[7:]
    assert narrow.max_velocity == limits.full_limits().max_velocity


def test_a_slower_description_narrows_the_velocities() -> None:
    text = urdf(OLDER_LOWER_RAD, OLDER_UPPER_RAD).replace('velocity="4.18"', 'velocity="0.5"')
    narrow = limits.narrowed(limits.rectangle_limits(), limits.read_urdf(text, "franka_0"), "franka_0")
    ours = limits.rectangle_limits().max_velocity
    assert narrow.max_velocity == (*ours[:5], 0.5, *ours[6:])


def test_a_wider_description_changes_nothing() -> None:
    facts = limits.read_urdf(urdf(OLDER_LOWER_RAD, OLDER_UPPER_RAD), "franka_0")
    assert limits.narrowed(limits.rectangle_limits(), facts, "franka_0") == limits.rectangle_limits()


def test_a_description_that_leaves_nothing_is_refused() -> None:
    upper = (*limits.FULL_UPPER_RAD[:3], -3.0, *limits.FULL_UPPER_RAD[4:])
    facts = limits.read_urdf(urdf(limits.FULL_LOWER_RAD, upper), "franka_0")
    with pytest.raises(RobotError, match=r"franka_0: nothing is left of the limits of fr3_joint4.*-3\.0"):
        limits.narrowed(limits.rectangle_limits(), facts, "franka_0")
    facts = limits.read_urdf(urdf((float("nan"),) * 7, limits.FULL_UPPER_RAD), "franka_0")
    with pytest.raises(RobotError, match="fr3_joint1"):
        limits.narrowed(limits.rectangle_limits(), facts, "franka_0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no URDF"),
        ("<robot><joint", "no URDF"),
        (urdf(OLDER_LOWER_RAD[:5], OLDER_UPPER_RAD), "fr3_joint6, fr3_joint7"),
        (urdf(OLDER_LOWER_RAD, OLDER_UPPER_RAD, tuple(f"panda_joint{n}" for n in range(1, 8))), "fr3_joint1"),
        (urdf(OLDER_LOWER_RAD, OLDER_UPPER_RAD).replace('"2.7437"', '"wide"'), "no number"),
        (urdf(OLDER_LOWER_RAD, OLDER_UPPER_RAD).replace("velocity", "speed"), "missing or no number"),
    ],
)
def test_a_description_that_is_not_that_of_this_robot_is_refused(text: str, words: str) -> None:
    with pytest.raises(RobotError, match=words):
        limits.read_urdf(text, "franka_0")
