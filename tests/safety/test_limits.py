"""Limits only become narrower, and a configuration that is wider does not start."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import SetpointLimits, VelocityEnvelope
from robot_stack.safety.limits import check_not_wider, intersect_limits

VENDOR = SetpointLimits(
    names=("a_rad", "b_m"),
    lower=(-1.0, 0.0),
    upper=(2.0, 0.08),
    max_velocity=(1.5, 0.2),
    max_acceleration=(10.0, 2.0),
    max_jerk=(1000.0, 50.0),
)
ENVELOPE = VelocityEnvelope(lower=(-1.0, 0.0), upper=(2.0, 0.08), offset=(0.1, 0.0), deceleration=(5.0, np.inf))
WHEELS = SetpointLimits(
    names=("wheel_m",), lower=(-np.inf,), upper=(np.inf,), max_velocity=(1.0,), max_acceleration=(np.inf,)
)


def test_the_narrowest_of_each_is_taken() -> None:
    other = SetpointLimits(
        names=("a_rad", "b_m"),
        lower=(-2.0, 0.01),
        upper=(1.0, 0.09),
        max_velocity=(1.0, 0.3),
        max_acceleration=(20.0, 1.0),
    )
    third = structs.replace(VENDOR, max_velocity=(9.0, 0.1), max_jerk=(2000.0, 20.0))
    assert intersect_limits("robot_0", VENDOR, other, third) == SetpointLimits(
        names=("a_rad", "b_m"),
        lower=(-1.0, 0.01),
        upper=(1.0, 0.08),
        max_velocity=(1.0, 0.1),
        max_acceleration=(10.0, 1.0),
        max_jerk=(1000.0, 20.0),
    )


def test_alone_they_are_what_they_are() -> None:
    assert intersect_limits("robot_0", VENDOR) == VENDOR
    assert intersect_limits("robot_0", WHEELS, WHEELS) == WHEELS
    assert intersect_limits("robot_0", WHEELS, structs.replace(WHEELS, max_jerk=(3.0,))).max_jerk == (3.0,)


def test_the_narrower_envelope_is_taken() -> None:
    with_one = structs.replace(VENDOR, envelope=ENVELOPE)
    assert intersect_limits("robot_0", VENDOR, with_one).envelope == ENVELOPE
    assert intersect_limits("robot_0", with_one, VENDOR).envelope == ENVELOPE
    other = VelocityEnvelope(lower=(-2.0, 0.01), upper=(1.0, 0.09), offset=(0.0, 0.1), deceleration=(9.0, 1.0))
    both = intersect_limits("robot_0", with_one, structs.replace(VENDOR, envelope=other)).envelope
    assert both == VelocityEnvelope(lower=(-1.0, 0.01), upper=(1.0, 0.08), offset=(0.1, 0.1), deceleration=(5.0, 1.0))


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"robot 'robot_0', axis b_m: .* ends at 0.08 below its start 0.1"):
        intersect_limits("robot_0", VENDOR, structs.replace(VENDOR, lower=(-1.0, 0.1), upper=(2.0, 0.2)))
    same = structs.replace(VENDOR, lower=(-1.0, 0.08), upper=(2.0, 0.2))
    assert intersect_limits("robot_0", VENDOR, same).lower == (-1.0, 0.08)


def test_other_axes_are_refused() -> None:
    for check in (lambda: intersect_limits("robot_0", VENDOR, WHEELS), lambda: check_not_wider("r", WHEELS, VENDOR)):
        with pytest.raises(ConfigError, match="wheel_m"):
            check()


@pytest.mark.parametrize("limits", [VENDOR, WHEELS, structs.replace(VENDOR, envelope=ENVELOPE)])
def test_as_wide_as_the_vendor_is_allowed(limits: SetpointLimits) -> None:
    check_not_wider("robot_0", limits, limits)


def test_narrower_is_allowed() -> None:
    narrower = structs.replace(VENDOR, lower=(-0.5, 0.0), max_velocity=(1.0, 0.1), max_jerk=(1.0, 1.0))
    check_not_wider("robot_0", narrower, VENDOR)
    check_not_wider("robot_0", structs.replace(WHEELS, lower=(-1.0,), upper=(1.0,)), WHEELS)


@pytest.mark.parametrize(
    ("field", "values", "text"),
    [
        ("lower", (-1.1, 0.0), r"a_rad: lower = -1.1, allowed \[-1, 2\]"),
        ("lower", (3.0, 0.0), r"a_rad: lower = 3, allowed \[-1, 2\]"),
        ("upper", (2.0, 0.0801), r"b_m: upper = 0.0801, allowed \[0, 0.08\]"),
        ("upper", (-1.5, 0.08), r"a_rad: upper = -1.5, allowed \[-1, 2\]"),
        ("upper", (np.nan, 0.08), r"a_rad: upper = nan"),
        ("max_velocity", (1.51, 0.2), r"a_rad: max_velocity = 1.51, allowed \(0, 1.5\]"),
        ("max_velocity", (1.5, 0.0), r"b_m: max_velocity = 0, allowed \(0, 0.2\]"),
        ("max_acceleration", (10.0, 2.1), r"b_m: max_acceleration = 2.1"),
        ("max_acceleration", (np.inf, 2.0), r"a_rad: max_acceleration = inf"),
        ("max_jerk", (), r"a_rad: max_jerk = inf, allowed \(0, 1000\]"),
        ("max_jerk", (np.nan, 50.0), r"a_rad: max_jerk = nan"),
    ],
)
def test_wider_is_refused_and_says_what_and_how_much(field: str, values: tuple[float, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        check_not_wider("robot_0", structs.replace(VENDOR, **{field: values}), VENDOR)
    assert "robot 'robot_0' does not start" in str(caught.value)


def test_every_wider_axis_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        check_not_wider("robot_0", structs.replace(VENDOR, max_velocity=(9.0, 9.0), upper=(9.0, 0.08)), VENDOR)
    assert str(caught.value).count("\n  - ") == 3


def test_rounding_is_no_widening_and_more_than_rounding_is() -> None:
    huge = structs.replace(VENDOR, lower=(-1.0, 0.0), upper=(2000.0, 0.08))
    check_not_wider("robot_0", structs.replace(huge, upper=(2000.000001, 0.08)), huge)
    with pytest.raises(ConfigError):
        check_not_wider("robot_0", structs.replace(huge, upper=(2000.00001, 0.08)), huge)
    with pytest.raises(ConfigError):
        check_not_wider("robot_0", structs.replace(VENDOR, upper=(2.0, 0.08 + 1e-9)), VENDOR)
    check_not_wider("robot_0", structs.replace(VENDOR, max_velocity=(1.5 + 1e-10, 0.2)), VENDOR)
    half = structs.replace(WHEELS, lower=(-5.0,))
    check_not_wider("robot_0", structs.replace(half, lower=(-5.0 - 1e-10,)), half)
    with pytest.raises(ConfigError):
        check_not_wider("robot_0", structs.replace(half, lower=(-5.0 - 1.5e-9,)), half)


def test_the_robot_is_named_where_the_axes_differ() -> None:
    with pytest.raises(ConfigError, match="robot 'stretch_0'"):
        check_not_wider("stretch_0", WHEELS, VENDOR)
    with pytest.raises(ConfigError, match="robot 'stretch_0'"):
        intersect_limits("stretch_0", WHEELS, VENDOR)
