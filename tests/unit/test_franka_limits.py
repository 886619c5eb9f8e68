from __future__ import annotations

import numpy as np
import pytest

from hardware.franka import limits


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
    sizes = {len(getattr(rectangle, field)) for field in rectangle.__struct_fields__}
    assert sizes == {8}
    assert (np.asarray(rectangle.lower[:7]) >= limits.FULL_LOWER_RAD).all()
    assert (np.asarray(rectangle.upper[:7]) <= limits.FULL_UPPER_RAD).all()
    assert rectangle.max_acceleration[:7] == limits.MAX_ACCELERATION_RAD_S2
