"""Limits of the Franka Research 3 and the Franka Hand, as the vendor's control interface states them (May 2026).

Joints 1 to 7 in order; rad, rad/s, rad/s^2, N m. The fastest allowed velocity shrinks towards the position limits;
`max_velocity` is that formula. The *rectangle* is the vendor's simpler alternative, constant velocities within
narrower positions; it is our default envelope. A robot's own description may narrow either (`read_urdf`, `narrowed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from robot_stack.core.errors import ConfigError, RobotError
from robot_stack.core.protocols import SetpointLimits, VelocityEnvelope

FloatVector = NDArray[np.float64]

JOINT_NAMES = tuple(f"fr3_joint{number}" for number in range(1, 8))

FULL_LOWER_RAD = (-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508)
FULL_UPPER_RAD = (2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508)
FULL_VELOCITY_RAD_S = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)
MAX_ACCELERATION_RAD_S2 = (10.0,) * 7
MAX_JERK_RAD_S3 = (5000.0,) * 7
MAX_TORQUE_NM = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
MAX_TORQUE_RATE_NM_S = (1000.0,) * 7

RECTANGLE_LOWER_RAD = (-2.3476, -1.5454, -2.4937, -2.7714, -2.5100, 0.7773, -2.7045)
RECTANGLE_UPPER_RAD = (2.3476, 1.5454, 2.4937, -0.4226, 2.5100, 4.2841, 2.7045)
RECTANGLE_VELOCITY_RAD_S = (2.0, 1.0, 1.5, 1.25, 3.0, 1.5, 3.0)

VELOCITY_OFFSET_RAD_S = (0.6599, 0.2517, 0.2000, 0.3533, 0.5757, 0.4878, 0.4628)
DECELERATION_RAD_S2 = (6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0)

HAND_MAX_WIDTH_M = 0.08
HAND_SPEED_M_S = 0.2  # of the width: each finger moves at 0.1 m/s, half of what it can
HAND_ACCELERATION_M_S2 = 2.0
HAND_JERK_M_S3 = 200.0
HAND_MAX_FORCE_N = 70.0


def max_velocity(q_rad: FloatVector) -> tuple[FloatVector, FloatVector]:
    """(lowest, highest) allowed joint velocity (7,) in rad/s at joint positions (7,) in rad, by the vendor's formula.

    highest = min(dq_max, max(0, -offset + sqrt(2 deceleration (q_max - q)))), and mirrored towards q_min.
    """
    limit = np.asarray(FULL_VELOCITY_RAD_S)
    offset = np.asarray(VELOCITY_OFFSET_RAD_S)
    twice_deceleration = 2.0 * np.asarray(DECELERATION_RAD_S2)
    to_upper = np.maximum(0.0, np.asarray(FULL_UPPER_RAD) - q_rad)
    to_lower = np.maximum(0.0, q_rad - np.asarray(FULL_LOWER_RAD))
    highest = np.minimum(limit, np.maximum(0.0, np.sqrt(twice_deceleration * to_upper) - offset))
    lowest = -np.minimum(limit, np.maximum(0.0, np.sqrt(twice_deceleration * to_lower) - offset))
    return lowest, highest


def rectangle_limits() -> SetpointLimits:
    """Our default limits of the setpoint: seven joints (rad) and the gripper's width (m).

    At its own edges the vendor's rectangle exceeds the vendor's formula by up to 4 %; the smaller of both is taken.
    """
    lowest, _ = max_velocity(np.asarray(RECTANGLE_LOWER_RAD))
    _, highest = max_velocity(np.asarray(RECTANGLE_UPPER_RAD))
    velocity = np.minimum(RECTANGLE_VELOCITY_RAD_S, np.minimum(-lowest, highest))
    return _limits(RECTANGLE_LOWER_RAD, RECTANGLE_UPPER_RAD, tuple(velocity.tolist()), None)


def full_limits() -> SetpointLimits:
    """The whole range of every joint, with the vendor's velocity limit that depends on the position."""
    envelope = VelocityEnvelope(
        lower=(*FULL_LOWER_RAD, 0.0),
        upper=(*FULL_UPPER_RAD, HAND_MAX_WIDTH_M),
        offset=(*VELOCITY_OFFSET_RAD_S, 0.0),
        deceleration=(*DECELERATION_RAD_S2, np.inf),
    )
    return _limits(FULL_LOWER_RAD, FULL_UPPER_RAD, FULL_VELOCITY_RAD_S, envelope)


LIMITS = {"rectangle": rectangle_limits, "full": full_limits}


def make_limits(kind: str) -> SetpointLimits:
    """`rectangle` or `full`; ConfigError for another word."""
    if kind not in LIMITS:
        raise ConfigError(f"the Franka has no limits '{kind}'; choose one of {', '.join(LIMITS)}")
    return LIMITS[kind]()


def _limits(
    lower: tuple[float, ...], upper: tuple[float, ...], velocity: tuple[float, ...], envelope: VelocityEnvelope | None
) -> SetpointLimits:
    return SetpointLimits(
        names=(*(f"{name}_rad" for name in JOINT_NAMES), "gripper_width_m"),
        lower=(*lower, 0.0),
        upper=(*upper, HAND_MAX_WIDTH_M),
        max_velocity=(*velocity, HAND_SPEED_M_S),
        max_acceleration=(*MAX_ACCELERATION_RAD_S2, HAND_ACCELERATION_M_S2),
        max_jerk=(*MAX_JERK_RAD_S3, HAND_JERK_M_S3),
        envelope=envelope,
    )


# ---- the robot's own description --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JointFacts:
    """Limits of seven joints as a robot describes itself: rad, rad/s, (7,) each."""

    lower_rad: FloatVector
    upper_rad: FloatVector
    max_velocity_rad_s: FloatVector


def read_urdf(text: str, robot: str) -> JointFacts:
    """The `<limit>` of every arm joint of a URDF; RobotError if it is no URDF, or joints are missing."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise RobotError(
            f"{robot}: the robot description is no URDF ({error}); check its robot_state_publisher"
        ) from None
    found: dict[str, dict[str, str]] = {}
    for joint in root.iter("joint"):
        limit = joint.find("limit")
        if limit is not None:
            found[joint.get("name", "")] = limit.attrib
    missing = [name for name in JOINT_NAMES if name not in found]
    if missing:
        raise RobotError(
            f"{robot}: the robot description has no limits of {', '.join(missing)}; is it that of another robot?"
        )
    try:
        rows = [[float(found[name][key]) for key in ("lower", "upper", "velocity")] for name in JOINT_NAMES]
    except (KeyError, ValueError) as error:
        raise RobotError(f"{robot}: a joint limit of the robot description is missing or no number: {error}") from None
    lower, upper, velocity = np.asarray(rows).T
    return JointFacts(lower, upper, velocity)


def narrowed(limits: SetpointLimits, facts: JointFacts, robot: str) -> SetpointLimits:
    """Our limits intersected with the robot's own: never wider than either. RobotError if nothing is left."""
    lower = np.maximum(limits.lower[:7], facts.lower_rad)
    upper = np.minimum(limits.upper[:7], facts.upper_rad)
    velocity = np.minimum(limits.max_velocity[:7], facts.max_velocity_rad_s)
    # a comparison with nan is false: it counts as empty
    empty = ~((lower < upper) & (velocity > 0.0))
    if empty.any():
        axis = int(np.flatnonzero(empty)[0])
        raise RobotError(
            f"{robot}: nothing is left of the limits of {JOINT_NAMES[axis]}: ours are [{limits.lower[axis]:.4f}, "
            f"{limits.upper[axis]:.4f}] rad, the robot says [{facts.lower_rad[axis]:.4f}, {facts.upper_rad[axis]:.4f}] "
            f"rad and {facts.max_velocity_rad_s[axis]:.3f} rad/s; check its robot description"
        )
    envelope = limits.envelope
    if envelope is not None:
        envelope = structs.replace(
            envelope,
            lower=(*np.maximum(envelope.lower[:7], lower).tolist(), *envelope.lower[7:]),
            upper=(*np.minimum(envelope.upper[:7], upper).tolist(), *envelope.upper[7:]),
        )
    return structs.replace(
        limits,
        lower=(*lower.tolist(), *limits.lower[7:]),
        upper=(*upper.tolist(), *limits.upper[7:]),
        max_velocity=(*velocity.tolist(), *limits.max_velocity[7:]),
        envelope=envelope,
    )
