"""MuJoCo model of the Unitree G1 with 29 joints, written from the tables of `hardware.unitree_g1.tables`.

Every motor is what the real one is: torque = tau + kp (q* - q) + kd (dq* - dq), evaluated at the physics rate and
clipped to the motor's limit. Its control input is `tau + kp q* + kd dq*`; kp and kd stand in the actuator's bias.
Nothing compensates gravity unless `gravity_compensation` says so: the real motors do not.

The world's origin lies on the floor under the pelvis; x points forward, y left, z up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hardware.sim.mjcf import (
    NO_CONTACT,
    Joint,
    Primitive,
    Rgba,
    add_joint,
    add_links,
    add_position_actuator,
    add_primitive,
    new_spec,
)
from hardware.sim.rendering import mujoco
from hardware.unitree_g1.joints import JOINT_NAMES, LEG_MOTORS, MOTOR_NAMES, SIDES, WAIST_MOTORS, WRIST_MOTORS
from hardware.unitree_g1.limits import motor_limits
from hardware.unitree_g1.tables import ARMATURE, AXES, FRICTION_NM, LINKS, SHAPES

PELVIS = "pelvis"
PELVIS_HEIGHT_M = 0.793
PALM_SITES = ("left_palm", "right_palm")
PALM_X_M = 0.08
IMU_SITE = "imu_in_pelvis"
HEAD_CAMERA = "head_d435"
FRONT_CAMERA = "front"
FINGER_JOINTS = tuple(f"{side}_{finger}_joint" for side in SIDES for finger in ("fingers", "thumb"))
FINGER_TRAVEL_M = 0.04

PAD_FACE_M = 0.062
"""How far the pad of a palm reaches from the hand's middle plane, towards the other hand."""

_PAD_SIZE_M = (0.020, 0.008, 0.020)
PAD_X_M = 0.10
_PAD_FRICTION = (1.0, 0.008, 0.0001)  # soft: it touches with an area, so it resists turning a little

_WHITE: Rgba = (0.86, 0.87, 0.89, 1.0)
_DARK: Rgba = (0.16, 0.17, 0.19, 1.0)
_RUBBER: Rgba = (0.30, 0.31, 0.33, 1.0)
_FLOOR: Rgba = (0.72, 0.73, 0.75, 1.0)
_DARK_PARTS = ("pelvis", "hip_pitch", "knee", "ankle", "waist", "shoulder_pitch", "wrist_roll", "wrist_yaw")


@dataclass(frozen=True, slots=True)
class MotorGains:
    """kp in N m/rad and kd in N m s/rad of 29 motors."""

    kp: tuple[float, ...]
    kd: tuple[float, ...]


def body_gains(kp: float, kd: float, waist_scale: float) -> MotorGains:
    """Of arms and waist as `arm_sdk` is given them; the legs stand stiff, as the robot's own balance keeps them."""
    scale = dict.fromkeys(WAIST_MOTORS, waist_scale)
    legs = dict.fromkeys(LEG_MOTORS, (300.0, 5.0))
    pairs = [legs.get(index, (kp * scale.get(index, 1.0), kd * scale.get(index, 1.0))) for index in range(29)]
    return MotorGains(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


ARM_SDK_GAINS = body_gains(80.0, 3.0, 4.0)
"""What the arms are held with here: with less, they swing for seconds. The official example has 60 and 1.5."""


def _soft_gains() -> MotorGains:
    weak = (*WRIST_MOTORS, *(index for index, name in enumerate(MOTOR_NAMES) if "ankle" in name))
    return MotorGains(tuple(20.0 if index in weak else 75.0 for index in range(29)), (2.0,) * 29)


SOFT_GAINS = _soft_gains()
"""Gains of a common simulation model of this robot; our tables' check values belong to them."""


@dataclass(frozen=True, slots=True)
class G1Model:
    """How to build the robot.

    Attributes:
        pelvis: `fixed` at its standing height, for manipulation (the robot's own balance is not simulated), or `free`.
        pelvis_height_m: of the pelvis frame over the floor. 0 makes the world's frame the pelvis frame.
        hands: `none` for rubber hands or `dex3` for a gripper per hand that stands for the vendor's three fingers.
        gains: of the motors.
        rigid: motors that are welded at zero: neither joint nor actuator.
        gravity_compensation: 0.0 as the real robot, 1.0 for none to feel.
        friction_scale: part of the drives' friction.
        timestep_s: of the physics.
    """

    pelvis: Literal["fixed", "free"] = "fixed"
    pelvis_height_m: float = PELVIS_HEIGHT_M
    hands: str = "none"
    gains: MotorGains = SOFT_GAINS
    rigid: tuple[int, ...] = ()
    gravity_compensation: float = 0.0
    friction_scale: float = 1.0
    timestep_s: float = 0.002


def build_g1(model: G1Model) -> mujoco.MjSpec:
    """The robot alone. The first 29 actuators are the motors, in order; then, with hands, left and right gripper (m).

    The compiler sorts joints by their place in the tree: find them by name.
    """
    spec = new_spec("unitree_g1", model.timestep_s)
    add_links(spec, LINKS, model.gravity_compensation)
    pelvis = spec.body(PELVIS)
    pelvis.pos = (0, 0, model.pelvis_height_m)
    if model.pelvis == "free":
        pelvis.add_freejoint(name="floating_base_joint")
    for shape in SHAPES:
        dark = any(part in shape.link for part in _DARK_PARTS)
        add_primitive(spec.body(shape.link), shape, _DARK if dark else _WHITE)
    for index, joint in enumerate(_joints()):
        if index not in model.rigid:
            add_joint(spec, joint, model.friction_scale)
            _add_motor(spec, joint, model.gains.kp[index], model.gains.kd[index])
    for side in SIDES:
        _add_hand(spec, side, model)
    _add_sites_and_cameras(spec)
    return spec


def _joints() -> list[Joint]:
    limits = motor_limits(5)
    joints = []
    for index, motor in enumerate(MOTOR_NAMES):
        part = motor.removeprefix("left_").removeprefix("right_")
        link = "torso_link" if motor == "waist_pitch" else f"{motor}_link"
        axis = AXES.get(part.split("_")[-1], AXES["pitch"])
        lower, upper = float(limits.lower_rad[index]), float(limits.upper_rad[index])
        torque = float(limits.max_torque_nm[index])
        name = JOINT_NAMES[index]
        joints.append(Joint(name, link, "hinge", axis, lower, upper, ARMATURE[part], 0.0, FRICTION_NM, torque))
    return joints


def _add_motor(spec: mujoco.MjSpec, joint: Joint, kp: float, kd: float) -> None:
    spec.add_actuator(
        name=joint.name,
        target=joint.name,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        gainprm=(1.0, *(0.0,) * 9),
        biasprm=(0.0, -kp, -kd, *(0.0,) * 7),
        forcelimited=True,
        forcerange=(-joint.max_effort, joint.max_effort),
    )


def _add_hand(spec: mujoco.MjSpec, side: str, model: G1Model) -> None:
    """The palm: its site, a rubber pad on its inner side, which things are pressed with; and the gripper."""
    hand = spec.body(f"{side}_wrist_yaw_link")
    inward = -1.0 if side == "left" else 1.0
    hand.add_site(name=f"{side}_palm", pos=(PALM_X_M, 0, 0))
    centre_m = inward * (PAD_FACE_M - _PAD_SIZE_M[1])
    pad = add_primitive(hand, Primitive(hand.name, "box", _PAD_SIZE_M, (PAD_X_M, centre_m, 0)), _RUBBER)
    pad.name = f"{side}_pad"
    pad.friction, pad.condim = _PAD_FRICTION, 4
    if model.hands != "none":
        _add_gripper(spec, hand, side)


def _add_gripper(spec: mujoco.MjSpec, hand: mujoco.MjsBody, side: str) -> None:
    """Two plates in front of the palm that slide apart along y: `fingers` is driven, `thumb` follows."""
    names = [f"{side}_{finger}" for finger in ("fingers", "thumb")]
    joints = []
    for name, outward in zip(names, (1.0, -1.0), strict=True):
        plate = hand.add_body(
            name=name,
            pos=(0.185, outward * 0.008, 0),
            ipos=(0, 0, 0),
            mass=0.05,
            inertia=(2e-5, 2e-5, 2e-5),
            explicitinertial=True,
        )
        add_primitive(plate, Primitive(name, "box", (0.03, 0.007, 0.02)), _RUBBER)
        axis = (0.0, outward, 0.0)
        joint = Joint(f"{name}_joint", name, "slide", axis, 0.0, FINGER_TRAVEL_M, 0.05, 2.0, 0.0, 30.0)
        add_joint(spec, joint)
        joints.append(joint)
    add_position_actuator(spec, joints[0], kp=600.0, kv=20.0)
    equality = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        name1=joints[1].name,
        name2=joints[0].name,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        solref=(0.005, 1.0),
    )
    equality.data[:5] = (0.0, 1.0, 0.0, 0.0, 0.0)


def _add_sites_and_cameras(spec: mujoco.MjSpec) -> None:
    spec.body(PELVIS).add_site(name=IMU_SITE, pos=(0.04525, 0, -0.08339))
    head_quat = (0.65925, 0.25571, -0.25571, -0.65925)
    spec.body("torso_link").add_camera(name=HEAD_CAMERA, pos=(0.057624, 0.01753, 0.42987), quat=head_quat, fovy=42)


def add_surroundings(spec: mujoco.MjSpec) -> None:
    """A floor, which nothing but a free robot's feet would touch, and the camera in front of the robot."""
    floor = Primitive("world", "box", (1.5, 1.5, 0.01), (0, 0, -0.0105))
    add_primitive(spec.worldbody, floor, _FLOOR, NO_CONTACT, name="floor")
    spec.worldbody.add_camera(
        name=FRONT_CAMERA, pos=(1.75, 0.85, 1.35), quat=(0.41715, 0.31146, 0.51082, 0.68414), fovy=40
    )
