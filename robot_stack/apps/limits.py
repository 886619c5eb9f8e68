"""The limits and the energy budget that a configuration sets for a robot."""

from __future__ import annotations

import numpy as np
from msgspec import structs

from robot_stack.config.robots import AxisLimits, RobotConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import SetpointLimits
from robot_stack.safety.limits import check_not_wider
from robot_stack.safety.passivity import EnergyTankConfig


def narrowed(robot: str, limits: SetpointLimits, wanted: AxisLimits) -> SetpointLimits:
    """The robot's limits with what the configuration sets; ConfigError where that is wider, or names no axis."""
    speed = tuple(wanted.speed * velocity for velocity in limits.max_velocity)
    configured = structs.replace(limits, max_velocity=speed)
    for field in ("lower", "upper", "max_velocity", "max_acceleration"):
        values = dict(zip(limits.names, getattr(configured, field), strict=True))
        own: dict[str, float] = getattr(wanted, field)
        unknown = sorted(set(own) - set(values))
        if unknown:
            raise ConfigError(
                f"robot.limits.{field} names '{unknown[0]}', and {robot} has no such axis; its axes: "
                + ", ".join(limits.names)
            )
        configured = structs.replace(configured, **{field: tuple((values | own).values())})
    check_not_wider(robot, configured, limits)
    empty = np.flatnonzero(np.asarray(configured.lower) > np.asarray(configured.upper))
    if empty.size:
        raise ConfigError(f"robot.limits of {robot}: lower is above upper for {limits.names[empty[0]]}")
    return configured


def tank_of(config: RobotConfig) -> EnergyTankConfig | None:
    """The energy tank that the configuration asks for; None for none."""
    wanted = config.contact_energy
    if not wanted.limited:
        return None
    return EnergyTankConfig(
        capacity_j=wanted.capacity_j,
        initial_j=wanted.initial_j,
        floor_j=wanted.floor_j,
        refill_w=wanted.refill_w,
        stiffness=wanted.stiffness,
    )
