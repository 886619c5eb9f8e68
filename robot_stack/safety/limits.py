"""Limits as data: the narrowest of several, and the refusal of a configuration that is wider than the vendor's.

Both keep the order and the names of the first argument; limits of other axes do not fit and are an error.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap

import numpy as np
from msgspec import structs

from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import SetpointLimits, VelocityEnvelope

Values = tuple[float, ...]

# float32 configuration files and unit conversions must not count as wider
_RELATIVE_TOLERANCE = 1e-9


def intersect_limits(robot: str, vendor: SetpointLimits, *others: SetpointLimits) -> SetpointLimits:
    """Every limit as narrow as the narrowest of all; ConfigError if no position is left on an axis.

    Envelopes: the offsets and decelerations of several cannot be mixed into one formula that holds for all of them
    except by taking, axis by axis, the narrower range, the larger offset and the smaller deceleration.
    """
    result = vendor
    for other in others:
        _check_names(robot, result, other)
        result = SetpointLimits(
            names=result.names,
            lower=_each(max, result.lower, other.lower),
            upper=_each(min, result.upper, other.upper),
            max_velocity=_each(min, result.max_velocity, other.max_velocity),
            max_acceleration=_each(min, result.max_acceleration, other.max_acceleration),
            max_jerk=_each(min, _jerk(result), _jerk(other)) if result.max_jerk or other.max_jerk else (),
            envelope=_narrower(result.envelope, other.envelope),
        )
    for name, lower, upper in zip(result.names, result.lower, result.upper, strict=True):
        if lower > upper:
            raise ConfigError(
                f"robot '{robot}', axis {name}: the configured range ends at {upper:.6g} below its start {lower:.6g} "
                "once the robot's own limits are taken into account; widen the configuration"
            )
    return result


def check_not_wider(robot: str, configured: SetpointLimits, vendor: SetpointLimits) -> None:
    """ConfigError, listing every axis, where the configuration allows what the vendor does not."""
    _check_names(robot, configured, vendor)
    problems = []
    for axis, name in enumerate(configured.names):
        lowest, highest = vendor.lower[axis], vendor.upper[axis]
        span = max(abs(lowest), abs(highest)) if np.isfinite([lowest, highest]).all() else 1.0
        for field in ("lower", "upper"):
            value = getattr(configured, field)[axis]
            slack = _RELATIVE_TOLERANCE * span
            if not lowest - slack <= value <= highest + slack:
                problems.append(f"{name}: {field} = {value:.6g}, allowed [{lowest:.6g}, {highest:.6g}]")
        for field in ("max_velocity", "max_acceleration", "max_jerk"):
            value, most = _rate(configured, field)[axis], _rate(vendor, field)[axis]
            if not 0.0 < value <= most * (1.0 + _RELATIVE_TOLERANCE):
                problems.append(f"{name}: {field} = {value:.6g}, allowed (0, {most:.6g}]")
    if problems:
        raise ConfigError(
            f"robot '{robot}' does not start, its configured limits are wider than the robot's own:\n  - "
            + "\n  - ".join(problems)
            + "\nNarrow them in the robot's configuration."
        )


def _rate(limits: SetpointLimits, field: str) -> Values:
    return _jerk(limits) if field == "max_jerk" else getattr(limits, field)


def _jerk(limits: SetpointLimits) -> Values:
    return limits.max_jerk or (float("inf"),) * len(limits.names)


def _each(choose: Callable[[float, float], float], first: Values, second: Values) -> Values:
    return tuple(starmap(choose, zip(first, second, strict=True)))


def _narrower(first: VelocityEnvelope | None, second: VelocityEnvelope | None) -> VelocityEnvelope | None:
    if first is None or second is None:
        return first or second
    return structs.replace(
        first,
        lower=_each(max, first.lower, second.lower),
        upper=_each(min, first.upper, second.upper),
        offset=_each(max, first.offset, second.offset),
        deceleration=_each(min, first.deceleration, second.deceleration),
    )


def _check_names(robot: str, first: SetpointLimits, second: SetpointLimits) -> None:
    if first.names != second.names:
        raise ConfigError(
            f"robot '{robot}': limits are for the axes {', '.join(first.names)}, others for {', '.join(second.names)}; "
            "give one value per axis, in the robot's order"
        )
