"""What a configuration may make of a robot's limits."""

from __future__ import annotations

import pytest

from hardware.franka.limits import rectangle_limits
from robot_stack.apps.limits import narrowed, tank_of
from robot_stack.config.compose import compose_config
from robot_stack.config.robots import AxisLimits
from robot_stack.core.errors import ConfigError


def test_nothing_configured_is_the_robots_own() -> None:
    limits = rectangle_limits()
    assert narrowed("franka_0", limits, AxisLimits()) == limits


def test_speed_and_single_axes_are_narrowed() -> None:
    config = compose_config(["robot.limits.speed=0.5", "robot.limits.upper.fr3_joint4_rad=-1.0"])
    limits = rectangle_limits()
    found = narrowed("franka_0", limits, config.robot.limits)
    assert found.max_velocity == tuple(0.5 * velocity for velocity in limits.max_velocity)
    assert found.upper[3] == -1.0
    assert found.upper[:3] + found.upper[4:] == limits.upper[:3] + limits.upper[4:]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (AxisLimits(upper={"fr3_joint1_rad": 9.0}), "fr3_joint1_rad: upper = 9"),
        (AxisLimits(max_velocity={"fr3_joint2_rad": 50.0}), "fr3_joint2_rad: max_velocity = 50"),
        (AxisLimits(upper={"fr3_joint9_rad": 0.0}), "has no such axis"),
        (AxisLimits(lower={"fr3_joint1_rad": 1.0}, upper={"fr3_joint1_rad": 0.5}), "lower is above upper"),
    ],
)
def test_wider_or_wrong_limits_do_not_start(wanted: AxisLimits, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        narrowed("franka_0", rectangle_limits(), wanted)


def test_the_energy_tank_is_off_unless_asked_for() -> None:
    assert tank_of(compose_config([]).robot) is None
    tank = tank_of(compose_config(["robot.contact_energy.limited=true", "robot.contact_energy.initial_j=1.5"]).robot)
    assert tank is not None
    assert tank.initial_j == 1.5
