"""MuJoCo model of the Franka Research 3 with the Franka Hand, written from tables of its published parameters.

Kinematics: modified DH d1 .333, d3 .316, a4 .0825, a5 -.0825, d5 .384, a7 .088, flange .107 m. Inertials: the
vendor's identified values, principal axes. Shapes: primitives fitted to the vendor's outlines, for light contact and
rendering; they are no collision guarantee. The base (link0) is the world's origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hardware.franka import limits
from hardware.sim.mjcf import (
    IDENTITY,
    ORIGIN,
    Joint,
    Link,
    Primitive,
    Quaternion,
    Rgba,
    add_joint,
    add_links,
    add_position_actuator,
    add_primitive,
    new_spec,
)
from hardware.sim.rendering import mujoco

HAND = "hand"
FLANGE_SITE = "flange"
TCP_SITE = "tcp"
TCP_Z_IN_HAND_M = 0.1034
WRIST_CAMERA = "wrist_rgb"
FRONT_CAMERA = "front"
ARM_JOINTS = limits.JOINT_NAMES
FINGER_JOINTS = ("fr3_finger_joint1", "fr3_finger_joint2")

READY_RAD = (0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, math.pi / 2, math.pi / 4)

_TURN_BACK = (0.70711, -0.70711, 0.0, 0.0)
_TURN = (0.70711, 0.70711, 0.0, 0.0)
_FINGER_INERTIA = (8.6923e-06, 8.49e-06, 1.6077e-06)
_FINGER_AXES = (0.70507, -0.05367, -0.05367, -0.70507)
_FINGER_COM = (0.0, 0.015285, 0.021968)

# fmt: off
LINKS = (
    Link("link0", "world", ORIGIN, IDENTITY, 2.3966, (-0.0172, 0.0004, 0.0745),
         (0.25016, -0.66138, 0.66138, -0.25016), (0.0115, 0.010766, 0.0067344)),
    Link("link1", "link0", (0, 0, 0.333), IDENTITY, 2.9275, (4.128e-07, -0.018125, -0.038604),
         (0.9981, -0.060536, 0.003805, 0.011011), (0.023929, 0.022725, 0.0061063)),
    Link("link2", "link1", ORIGIN, _TURN_BACK, 2.9355, (0.0031829, -0.074322, 0.0088146),
         (0.5026, 0.58444, -0.466, 0.43437), (0.062957, 0.041192, 0.024637)),
    Link("link3", "link2", (0, -0.316, 0), _TURN, 2.2449, (0.040702, -0.0048201, -0.028973),
         (0.92103, -0.24416, 0.15527, 0.26075), (0.026741, 0.018987, 0.017159)),
    Link("link4", "link3", (0.0825, 0, 0), _TURN, 2.6156, (-0.04591, 0.063049, -0.0085188),
         (0.43802, 0.80331, 0.0093781, 0.40341), (0.05139, 0.037272, 0.016005)),
    Link("link5", "link4", (-0.0825, 0.384, 0), _TURN_BACK, 2.3271, (-0.001604, 0.029254, -0.097297),
         (0.91903, 0.1256, 0.075153, -0.366), (0.057933, 0.044914, 0.013063)),
    Link("link6", "link5", ORIGIN, _TURN, 1.817, (0.059713, -0.04103, -0.010169),
         (0.6213, 0.55266, 0.51001, 0.22008), (0.017504, 0.016112, 0.0019353)),
    Link("link7", "link6", (0.088, 0, 0), _TURN, 0.62714, (0.0045226, 0.0086262, -0.016163),
         (0.72758, 0.097869, -0.24906, 0.63168), (0.00022384, 0.00022364, 5.6413e-07)),
    Link(HAND, "link7", (0, 0, 0.107), (0.92388, 0, 0, -0.38268), 0.6544, (-0.0000376, 0.011913, 0.020726),
         (0.70218, 0.712, 0, 0), (0.00186, 0.0017403, 0.00029972)),
    Link("left_finger", HAND, (0, 0, 0.0584), IDENTITY, 0.0291, _FINGER_COM, _FINGER_AXES, _FINGER_INERTIA),
    Link("right_finger", HAND, (0, 0, 0.0584), (0, 0, 0, 1), 0.0291, _FINGER_COM, _FINGER_AXES, _FINGER_INERTIA),
)

_ARMATURE = (0.195,) * 4 + (0.074,) * 3
_FRICTION_NM = (1.137, 1.137, 1.137, 1.137, 0.763, 0.44, 0.248)
_DAMPING = 0.21

ARM_TABLE = tuple(
    Joint(name, f"link{index + 1}", "hinge", (0, 0, 1), limits.FULL_LOWER_RAD[index], limits.FULL_UPPER_RAD[index],
          _ARMATURE[index], _DAMPING, _FRICTION_NM[index], limits.MAX_TORQUE_NM[index])
    for index, name in enumerate(ARM_JOINTS)
)
FINGER_TABLE = tuple(
    Joint(name, link, "slide", (0, 1, 0), 0.0, limits.HAND_MAX_WIDTH_M / 2, 0.1, 1.0, 0.0, limits.HAND_MAX_FORCE_N)
    for name, link in zip(FINGER_JOINTS, ("left_finger", "right_finger"), strict=True)
)


def _capsule(link: str, radius_m: float, *ends: float) -> Primitive:
    first_x, first_y, first_z, last_x, last_y, last_z = ends
    return Primitive(link, "capsule", (radius_m,), ends_m=(first_x, first_y, first_z, last_x, last_y, last_z))


PRIMITIVES = (
    Primitive("link0", "cylinder", (0.088, 0.07), (-0.005, 0, 0.07)),
    Primitive("link0", "box", (0.065, 0.072, 0.045), (-0.088, 0, 0.045)),
    _capsule("link1", 0.056, 0, 0, -0.137, 0, -0.02, -0.085),
    _capsule("link1", 0.056, 0, -0.05, -0.02, 0, -0.074, 0),
    _capsule("link2", 0.056, 0, 0, 0.073, 0, -0.02, 0.058),
    _capsule("link2", 0.056, 0, -0.085, 0.02, 0, -0.139, 0),
    _capsule("link2", 0.056, 0, -0.02, 0.058, 0, -0.085, 0.02),
    _capsule("link3", 0.055, 0, 0, -0.068, 0.03, 0.03, -0.066),
    _capsule("link3", 0.055, 0.03, 0.04, -0.055, 0.0825, 0.056, 0),
    _capsule("link4", 0.055, 0, 0, 0.055, -0.04, 0.03, 0.045),
    _capsule("link4", 0.055, -0.05, 0.05, 0.03, -0.0825, 0.069, 0),
    _capsule("link5", 0.055, 0, 0, -0.204, 0, 0.03, -0.19),
    _capsule("link5", 0.034, 0, 0.06, -0.17, 0, 0.085, -0.05),
    Primitive("link5", "cylinder", (0.05, 0.057), (0, 0.075, 0), _TURN_BACK),
    _capsule("link6", 0.046, 0, 0, 0.01, 0.04, 0.015, 0.01),
    _capsule("link6", 0.046, 0.088, -0.005, 0, 0.088, 0.035, 0),
    Primitive("link7", "cylinder", (0.044, 0.0285), (0, 0, 0.0785)),
    _capsule("link7", 0.024, 0.03, 0.03, 0.08, 0.052, 0.052, 0.082),
    Primitive(HAND, "box", (0.0316, 0.102, 0.033), (0, -0.002, 0.033)),
)
_FINGER_SHAPES: tuple[tuple[tuple[float, float, float], tuple[float, float, float], Quaternion], ...] = (
    ((0.011, 0.0075, 0.01), (0, 0.0185, 0.011), IDENTITY),
    ((0.011, 0.0044, 0.0019), (0, 0.0068, 0.0022), IDENTITY),
    ((0.00875, 0.0035, 0.01175), (0, 0.0159, 0.02835), (0.96593, 0.25882, 0, 0)),
    ((0.00875, 0.0076, 0.00925), (0, 0.00758, 0.04525), IDENTITY),
)
# fmt: on

_WHITE: Rgba = (0.92, 0.92, 0.93, 1.0)
_DARK: Rgba = (0.25, 0.25, 0.27, 1.0)


@dataclass(frozen=True, slots=True)
class ArmGains:
    """Joint impedance: torque = kp (setpoint - q) - kv dq. N m/rad and N m s/rad, joints 1 to 7."""

    kp: tuple[float, ...]
    kv: tuple[float, ...]


STIFF_GAINS = ArmGains(kp=(4500, 4500, 3500, 3500, 2000, 2000, 2000), kv=(450, 450, 350, 350, 200, 200, 200))
IMPEDANCE_GAINS = ArmGains(kp=(900, 900, 900, 900, 300, 200, 100), kv=(54, 54, 54, 54, 18, 12, 6))


@dataclass(frozen=True, slots=True)
class FrankaModel:
    """What to build.

    Attributes:
        gains: joint impedance of the arm.
        finger_width_m: the width at which the fingers are fixed, or None for fingers that move.
        finger_kp, finger_kv: position gains of the driven finger (N/m, N s/m).
        gravity_compensation: 1.0 as the real arm does it, 0.0 for none.
        friction_scale: part of the joint friction left. The vendor's controller compensates it, so 0.0.
        timestep_s: of the physics.
    """

    gains: ArmGains = IMPEDANCE_GAINS
    finger_width_m: float | None = None
    finger_kp: float = 1500.0
    finger_kv: float = 50.0
    gravity_compensation: float = 1.0
    friction_scale: float = 0.0
    timestep_s: float = 0.0025


def build_franka(model: FrankaModel) -> mujoco.MjSpec:
    """The arm and hand alone, base at the origin; tasks add their bodies before it is compiled."""
    spec = new_spec("franka_fr3", model.timestep_s)
    add_links(spec, LINKS, model.gravity_compensation)
    for primitive in PRIMITIVES:
        rgba = _DARK if primitive.link == HAND else _WHITE
        add_primitive(spec.body(primitive.link), primitive, rgba)
    for index, joint in enumerate(ARM_TABLE):
        add_joint(spec, joint, model.friction_scale)
        add_position_actuator(spec, joint, model.gains.kp[index], model.gains.kv[index])
    _add_fingers(spec, model)
    spec.body("link7").add_site(name=FLANGE_SITE, pos=(0, 0, 0.107))
    hand = spec.body(HAND)
    hand.add_site(name=TCP_SITE, pos=(0, 0, TCP_Z_IN_HAND_M))
    # Looks along the hand's z, image up = hand x; wide enough for a square picture to show what is grasped.
    hand.add_camera(name=WRIST_CAMERA, pos=(0.0465, -0.02, 0.036), quat=(0, 0.70711, 0.70711, 0), fovy=69)
    # A tripod in front of the table, looking back and down at its middle; image up = world up.
    spec.worldbody.add_camera(name=FRONT_CAMERA, pos=(1.05, 0, 0.5), quat=(0.63011, 0.32087, 0.32087, 0.63011), fovy=38)
    return spec


def _add_fingers(spec: mujoco.MjSpec, model: FrankaModel) -> None:
    for joint in FINGER_TABLE:
        finger = spec.body(joint.link)
        for size, position, quat in _FINGER_SHAPES:
            add_primitive(finger, Primitive(joint.link, "box", size, position, quat), _DARK)
        finger.add_site(name=f"{joint.link}_pad", pos=(0, 0, 0.045))
        if model.finger_width_m is None:
            add_joint(spec, joint)
        else:
            side = 1.0 if joint is FINGER_TABLE[0] else -1.0
            finger.pos = (0, side * model.finger_width_m / 2, 0.0584)
    if model.finger_width_m is None:
        driven, follower = FINGER_TABLE
        add_position_actuator(spec, driven, model.finger_kp, model.finger_kv)
        equality = spec.add_equality(
            type=mujoco.mjtEq.mjEQ_JOINT,
            name1=follower.name,
            name2=driven.name,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            solref=(0.005, 1.0),
            solimp=(0.95, 0.99, 0.001, 0.5, 2.0),
        )
        equality.data[:5] = (0.0, 1.0, 0.0, 0.0, 0.0)
