"""Robot tables (links, joints, primitives) to a MuJoCo model specification.

Lengths in metres, angles in radians, quaternions w x y z. A link's frame is given in its parent's frame, everything
else in the link's own frame. Geometry carries no mass: the inertials are explicit.

Collision policy: robot geoms touch the scene and the scene touches itself, a robot never touches itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hardware.sim.rendering import mujoco

Vector3 = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
Rgba = tuple[float, float, float, float]

IDENTITY: Quaternion = (1.0, 0.0, 0.0, 0.0)
ORIGIN: Vector3 = (0.0, 0.0, 0.0)

ROBOT_CONTACT = (1, 0)
SCENE_CONTACT = (2, 3)
NO_CONTACT = (0, 0)


@dataclass(frozen=True, slots=True)
class Link:
    name: str
    parent: str
    position_m: Vector3
    quat_wxyz: Quaternion
    mass_kg: float
    com_m: Vector3
    inertia_quat_wxyz: Quaternion
    inertia_kg_m2: Vector3


@dataclass(frozen=True, slots=True)
class Joint:
    """A hinge or slide joint at its link's origin, with the dynamics of its drive."""

    name: str
    link: str
    kind: Literal["hinge", "slide"]
    axis: Vector3
    lower: float
    upper: float
    armature: float
    damping: float
    friction: float
    max_effort: float


@dataclass(frozen=True, slots=True)
class Primitive:
    """A box (half lengths), cylinder (radius, half length), sphere (radius) or, with `ends_m`, a capsule (radius)."""

    link: str
    kind: Literal["box", "cylinder", "sphere", "capsule"]
    size_m: tuple[float, ...]
    position_m: Vector3 = ORIGIN
    quat_wxyz: Quaternion = IDENTITY
    ends_m: tuple[float, float, float, float, float, float] | None = None


def new_spec(name: str, timestep_s: float) -> mujoco.MjSpec:
    """An empty world with gravity, the solver settings all our worlds share, and cheap rendering."""
    spec = mujoco.MjSpec()
    spec.modelname = name
    spec.compiler.degree = False
    spec.option.timestep = timestep_s
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.visual.quality.offsamples = 0
    spec.visual.quality.numslices = 12
    spec.visual.quality.numstacks = 6
    spec.visual.headlight.ambient = (0.45, 0.45, 0.45)
    spec.visual.headlight.diffuse = (0.55, 0.55, 0.55)
    spec.visual.headlight.specular = (0.0, 0.0, 0.0)
    spec.visual.map.znear = 0.01
    return spec


def add_links(spec: mujoco.MjSpec, links: Iterable[Link], gravity_compensation: float) -> None:
    """Add the links, parents first. `gravity_compensation` 1.0: the drives carry the robot's weight."""
    for link in links:
        parent = spec.worldbody if link.parent == "world" else spec.body(link.parent)
        parent.add_body(
            name=link.name,
            pos=link.position_m,
            quat=link.quat_wxyz,
            mass=link.mass_kg,
            ipos=link.com_m,
            iquat=link.inertia_quat_wxyz,
            inertia=link.inertia_kg_m2,
            explicitinertial=True,
            gravcomp=gravity_compensation,
        )


def add_joint(spec: mujoco.MjSpec, joint: Joint, friction_scale: float = 1.0) -> None:
    kind = mujoco.mjtJoint.mjJNT_HINGE if joint.kind == "hinge" else mujoco.mjtJoint.mjJNT_SLIDE
    spec.body(joint.link).add_joint(
        name=joint.name,
        type=kind,
        axis=joint.axis,
        limited=True,
        range=(joint.lower, joint.upper),
        armature=joint.armature,
        damping=(joint.damping, 0.0, 0.0),
        frictionloss=joint.friction * friction_scale,
    )


def add_position_actuator(spec: mujoco.MjSpec, joint: Joint, kp: float, kv: float) -> None:
    """force = kp (ctrl - q) - kv dq, within the joint's largest effort. Named after its joint."""
    actuator = spec.add_actuator(
        name=joint.name,
        target=joint.name,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        ctrllimited=True,
        ctrlrange=(joint.lower, joint.upper),
        forcelimited=True,
        forcerange=(-joint.max_effort, joint.max_effort),
    )
    actuator.set_to_position(kp=kp, kv=kv)


_GEOM_TYPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}


def add_primitive(
    body: mujoco.MjsBody, primitive: Primitive, rgba: Rgba, contact: tuple[int, int] = ROBOT_CONTACT, name: str = ""
) -> mujoco.MjsGeom:
    """Add one massless geom to the body; `contact` is (contype, conaffinity)."""
    geom = body.add_geom(
        name=name,
        type=_GEOM_TYPES[primitive.kind],
        size=(*primitive.size_m, 0.0, 0.0)[:3],
        mass=0.0,
        contype=contact[0],
        conaffinity=contact[1],
        rgba=rgba,
    )
    if primitive.ends_m is None:
        geom.pos, geom.quat = primitive.position_m, primitive.quat_wxyz
    else:
        geom.fromto = primitive.ends_m
    return geom
