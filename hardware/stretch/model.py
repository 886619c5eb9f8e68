"""MuJoCo model of the Hello Robot Stretch 3 with dexterous wrist 3 and SG3 gripper, from tables of its parameters.

Base frame: x forward, y left, z up, origin on the floor between the wheels; the arm extends towards -y. Inertials:
the vendor's CAD values (URDF), save for two cameras whose published moments are those of something far larger; there
the moments are those of their shapes. Shapes: primitives fitted to the vendor's outlines, for contact and rendering;
they are no collision guarantee. Drives: position servos that carry the weight of what they move, as the robot's do.
"""

from __future__ import annotations

from dataclasses import dataclass

from hardware.sim.mjcf import (
    IDENTITY,
    NO_CONTACT,
    ORIGIN,
    SCENE_CONTACT,
    Joint,
    Link,
    Primitive,
    Rgba,
    add_joint,
    add_links,
    add_position_actuator,
    add_primitive,
    new_spec,
)
from hardware.sim.rendering import mujoco
from hardware.stretch.joints import ARM_SEGMENTS

BASE = "base_link"
GRIPPER_BODY = "link_SG3_gripper_body"
FINGER_TIPS = ("rubber_tip_left", "rubber_tip_right")
GRASP_SITE, WRIST_SITE, ELBOW_SITE, IMU_SITE = "grasp_center", "wrist", "elbow", "base_imu"
HEAD_CAMERA, GRIPPER_CAMERA, NAVIGATION_CAMERA = "d435i_rgb_upright", "d405_rgb", "nav_rgb"
WHEELS = ("joint_left_wheel", "joint_right_wheel")
ARM_TENDON = "arm"
GRIPPER_SLIDE = "joint_gripper_slide"
FINGERS = ("joint_gripper_finger_left_open", "joint_gripper_finger_right_open")
FINGER_PER_SLIDE = 10.0  # rad per m: one slide drives both fingers
FINGER_CLOSED_RAD = -0.1  # of the finger joints, where the rubber tips meet
WHEEL_MAX_RAD_S = 6.0

# fmt: off
LINKS = (
    Link("base_link", "world", ORIGIN, IDENTITY,
         17.42, (-0.087592, -0.0014319, 0.08288), (0.60945, -0.44567, -0.51918, -0.4005),
         (0.23133, 0.2062, 0.18054)),
    Link("link_mast", "base_link", (-0.067, 0.135, 0.0284), (0.70711, 0.70711, 0, 0),
         1.764, (0.000337, 0.7222, 0.0026547), (0.30555, 0.31426, -0.63295, 0.63816),
         (0.29156, 0.29121, 0.0011662)),
    Link("link_head", "base_link", (-0.067, 0.135, 1.3584), (0.70711, 0, 0, -0.70711),
         0.68187, (0.047462, 0.04451, 0.016376), (0.70755, -0.21881, -0.66661, -0.084429),
         (0.002828, 0.0023788, 0.00072329)),
    Link("laser", "base_link", (0.004, 0, 0.1664), (0, 0, 0, 1),
         0.21601, (0.011979, -0.00052291, -0.01998), (0.019564, -0.75869, -0.0075588, 0.65112),
         (0.00021896, 0.00018399, 9.205e-05)),
    Link("link_right_wheel", "base_link", (0, -0.17035, 0.0508), (0.70711, -0.70711, 0, 0),
         0.20773, (0, 0, 0.02765), (0.70711, 0, 0, -0.70711),
         (5.4e-05, 5.4e-05, 5.1e-05)),
    Link("link_left_wheel", "base_link", (0, 0.17035, 0.0508), (0.70711, -0.70711, 0, 0),
         0.20773, (0, 0, -0.02765), (0.70711, 0, 0, -0.70711),
         (5.4e-05, 5.4e-05, 5.1e-05)),
    Link("link_lift", "base_link", (-0.10439, 0.135, 0.2), (0.70711, 0, 0, 0.70711),
         1.9872, (-0.020369, 0.03438, 0.02236), (0.32745, 0.54099, 0.38722, -0.67095),
         (0.008176, 0.0073174, 0.0035806)),
    Link("link_arm_l4", "link_lift", ORIGIN, IDENTITY,
         0.23563, (-0.12946, 0.00016706, -0.00025402), (0.67977, -0.19375, -0.68087, 0.19179),
         (0.0015196, 0.0015174, 0.00017599)),
    Link("link_arm_l3", "link_arm_l4", (-0.2677, 0, 0), (0.5, 0.5, -0.5, -0.5),
         0.14682, (0, -0.00014513, -0.11908), (0.70711, -0.00034955, 0.00034955, 0.70711),
         (0.001081, 0.001081, 7.6999e-05)),
    Link("link_arm_l2", "link_arm_l3", (0, 0, 0.013), IDENTITY,
         0.13056, (0, -7.015e-05, -0.11564), (0, -0.059672, 0.99822, 0),
         (0.000943, 0.000943, 5.7e-05)),
    Link("link_arm_l1", "link_arm_l2", (0, 0, 0.013), IDENTITY,
         0.11366, (0, -0.00012017, -0.11346), (0.99907, 0, 0, -0.043232),
         (0.0008, 0.0008, 4e-05)),
    Link("link_arm_l0", "link_arm_l1", (0, 0, -0.01375), IDENTITY,
         0.42773, (0.033681, -0.00084664, -0.031723), (0.13291, 0.6516, 0.73757, 0.11721),
         (0.0021107, 0.001865, 0.00039124)),
    Link("link_wrist_yaw", "link_arm_l0", (0.083, -0.03075, 0), (0.70711, 0.70711, 0, 0),
         0.19897, (-0.032425, -0.012005, 0.015909), (0.13912, -0.9031, -0.078536, -0.39862),
         (0.00025657, 0.00022597, 8.4626e-05)),
    Link("link_DW3_wrist_pitch", "link_wrist_yaw", (-0.01946, 0, 0.0305), (0.5, -0.5, 0.5, -0.5),
         0.11659, (-0.00071123, -0.014744, 0.019514), (0.47882, -0.51565, -0.50315, -0.50167),
         (6.3677e-05, 5.7648e-05, 3.5776e-05)),
    Link("link_SG3_gripper_body", "link_DW3_wrist_pitch", (-0.0399, -0.024, 0.0196), (0.70711, 0, -0.70711, 0),
         0.31158, (0.00025519, 0.0069318, 0.040771), (0.0055648, 0.0024872, 0.63299, 0.77413),
         (0.00053018, 0.00039075, 0.0002534)),
    Link("link_d405", "link_SG3_gripper_body", (5.3419e-05, 0.061823, 0.05999),
         (7.5532e-05, -0.00086731, 0.086759, -0.99623), 0.072, (-0.0089104, -0.00047044, -0.0037565),
         (0.0037461, 0.70806, -0.0038909, 0.70613),
         (2.0097e-05, 1.3274e-05, 1.3176e-05)),
    Link("link_gripper_slider", "link_SG3_gripper_body", ORIGIN, IDENTITY,
         0.05, ORIGIN, IDENTITY,
         (8.3333e-07, 1.5417e-05, 1.5417e-05)),
    Link("link_gripper_finger_left", "link_gripper_slider", (0.02292, 0.0020217, 0.035297), (0, 0.70711, 0, -0.70711),
         0.048444, (-0.10732, 7.8431e-05, 0.0048615), (0.51297, -0.48565, -0.47928, 0.52086),
         (6.257e-05, 6.1345e-05, 3.0521e-06)),
    Link("rubber_tip_left", "link_gripper_finger_left", (-0.17777, 0.0018452, -0.011272),
         (0.99143, 0.00067736, -0.13052, -0.0051451), 0.0038216, (0.00067273, 0, 0.0080979),
         (0.12696, 0.72476, -0.11627, 0.66715),
         (7.0844e-07, 4.1341e-07, 4.1341e-07)),
    Link("link_gripper_finger_right", "link_gripper_slider", (-0.023281, 0, 0.035287), (0.70711, 0, -0.70711, 0),
         0.048444, (0.10732, -7.843e-05, -0.0048639), (0.51298, -0.48564, -0.47928, 0.52086),
         (6.257e-05, 6.1345e-05, 3.0521e-06)),
    Link("rubber_tip_right", "link_gripper_finger_right", (0.17778, 0, 0.011272), (0.13053, 0, 0.99144, 0),
         0.0038216, (0.000673, 0, 0.0080979), (0.44241, -0.5127, 0.4807, 0.55708),
         (7.0844e-07, 4.1341e-07, 4.1341e-07)),
    Link("link_head_pan", "base_link", (0.0061, 0, 1.3552), IDENTITY,
         0.062462, (-0.00042188, 0.013934, -0.0161), (0.26206, 0.81859, -0.48541, 0.16005),
         (4.357e-05, 4.0243e-05, 1.1187e-05)),
    Link("link_head_tilt", "link_head_pan", (-0.0013, 0.027762, -0.053311), (0.70711, 0.70711, 0, 0),
         0.35555, (0.011338, -0.01821, 0.030265), (0.48809, 0.49699, -0.50011, 0.51445),
         (0.00035831, 0.0003321, 0.00017363)),
    Link("link_SE3_head_nav_cam", "link_head_tilt", (0.04, -0.0412, -0.0246), (0.70711, 0, 0.70711, 0),
         0.028346, (-0.00024248, -6.9323e-05, -0.013999), (0.5, -0.5, -0.5, -0.5),
         (5.3782e-06, 4.0382e-06, 4.0377e-06)),
)

_BASE_LINKS = frozenset({BASE, "link_mast", "link_head", "laser", "link_right_wheel", "link_left_wheel"})

# Ranges, damping and force limits as published; friction is left out, because the drives' own controllers overcome it.
JOINTS = (
    Joint("joint_lift", "link_lift", "slide", (0, 0, 1), 0.0, 1.1, 0.01, 35.0, 0.0, 70.0),
    *(Joint(name, f"link_{name.removeprefix('joint_')}", "slide", (0, 0, 1), 0.0, 0.13, 0.01, 50.0, 0.0, 56.0)
      for name in ARM_SEGMENTS),
    Joint("joint_wrist_yaw", "link_wrist_yaw", "hinge", (0, 0, -1), -1.75, 4.42, 0.01, 1.0, 0.0, 8.0),
    Joint("joint_wrist_pitch", "link_DW3_wrist_pitch", "hinge", (0, 0, -1), -1.57, 0.56, 0.01, 1.0, 0.0, 8.0),
    Joint("joint_wrist_roll", GRIPPER_BODY, "hinge", (0, 0, 1), -3.14, 3.14, 0.01, 1.0, 0.0, 4.0),
    Joint(GRIPPER_SLIDE, "link_gripper_slider", "slide", (0, 0, 1), -0.02, 0.04, 0.1, 0.0001, 0.0, 60.0),
    *(Joint(name, f"link_{name.removeprefix('joint_').removesuffix('_open')}", "hinge", (0, -1, 0),
            -0.6, 0.6, 0.01, 0.0001, 0.0, 10.0) for name in FINGERS),
    Joint("joint_head_pan", "link_head_pan", "hinge", (0, 0, 1), -4.04, 1.73, 0.01, 0.2, 0.0, 2.0),
    Joint("joint_head_tilt", "link_head_tilt", "hinge", (0, 0, 1), -1.53, 0.79, 0.01, 0.2, 0.0, 2.0),
)

# force = kp (target - q) - kv dq: critically damped for what each moves, about 50 ms behind a moving target.
GAINS = {
    "joint_lift": (8000.0, 365.0),
    ARM_TENDON: (3000.0, 130.0),
    "joint_wrist_yaw": (100.0, 4.5),
    "joint_wrist_pitch": (100.0, 3.5),
    "joint_wrist_roll": (50.0, 1.5),
    GRIPPER_SLIDE: (4000.0, 190.0),
    "joint_head_pan": (20.0, 0.8),
    "joint_head_tilt": (20.0, 0.8),
}
_ARM_MAX_FORCE_N = 56.0
_TIP_ROD_RADIUS_M, _TIP_ROD_Z_M = 0.0125, 0.0043
WHEEL_GAIN, WHEEL_DAMPING, WHEEL_FRICTION_NM = 20.0, 1.0, 0.5
_WHEEL_MAX_TORQUE_NM = 30.0


def _capsule(link: str, radius_m: float, *ends: float) -> Primitive:
    first_x, first_y, first_z, last_x, last_y, last_z = ends
    return Primitive(link, "capsule", (radius_m,), ends_m=(first_x, first_y, first_z, last_x, last_y, last_z))


PRIMITIVES = (
    Primitive("base_link", "box", (0.1625, 0.171, 0.058), (-0.114, 0, 0.103)),
    Primitive("base_link", "sphere", (0.02,), (-0.24, 0, 0.02)),
    Primitive("link_mast", "box", (0.019, 0.6425, 0.019), (0, 0.7075, 0)),
    Primitive("link_head", "box", (0.045, 0.066, 0.026), (0.01, 0.029, 0.026)),
    Primitive("link_head", "box", (0.055, 0.028, 0.025), (0.105, 0.068, 0.025)),
    Primitive("laser", "cylinder", (0.035, 0.00975), (0, 0, -0.00075)),
    Primitive("link_right_wheel", "cylinder", (0.0508, 0.0125), (0, 0, 0.0125)),
    Primitive("link_left_wheel", "cylinder", (0.0508, 0.0125), (0, 0, -0.0125)),
    Primitive("link_lift", "box", (0.047, 0.057, 0.048), (-0.011, -0.019, 0.014)),
    Primitive("link_lift", "box", (0.084, 0.06, 0.028), (-0.05, 0.09, -0.002)),
    Primitive("link_lift", "box", (0.035, 0.05, 0.03), (-0.02, 0.075, 0.055)),
    Primitive("link_arm_l4", "box", (0.112, 0.0297, 0.0297), (-0.1435, 0, 0)),
    Primitive("link_arm_l3", "box", (0.0276, 0.0276, 0.11325), (0, 0, -0.11325)),
    Primitive("link_arm_l2", "box", (0.0257, 0.0257, 0.11325), (0, 0, -0.11325)),
    Primitive("link_arm_l1", "box", (0.0237, 0.0237, 0.11325), (0, 0, -0.11325)),
    Primitive("link_arm_l0", "box", (0.015, 0.015, 0.0845), (0, 0, -0.1155)),
    Primitive("link_arm_l0", "box", (0.0615, 0.0297, 0.0282), (0.0435, -0.0003, -0.003)),
    Primitive("link_wrist_yaw", "cylinder", (0.015, 0.0215), (0, 0, -0.0165)),
    Primitive("link_wrist_yaw", "box", (0.026, 0.0362, 0.025), (-0.048, -0.0173, 0.0248)),
    Primitive("link_DW3_wrist_pitch", "box", (0.033, 0.039, 0.0227), (-0.0104, -0.0163, 0.0196)),
    Primitive("link_SG3_gripper_body", "box", (0.032, 0.04, 0.0315), (0, -0.005, 0.0315)),
    Primitive("link_SG3_gripper_body", "box", (0.031, 0.017, 0.02), (0, 0, 0.081)),
    Primitive("link_SG3_gripper_body", "box", (0.012, 0.022, 0.018), (0, 0.06, 0.042)),
    Primitive("link_d405", "box", (0.021, 0.021, 0.0117), (0, 0, -0.0113)),
    _capsule("link_gripper_finger_left", 0.008, 0, 0, 0.005, -0.09, 0, 0.003),
    _capsule("link_gripper_finger_left", 0.008, -0.09, 0, 0.003, -0.178, 0.001, -0.011),
    _capsule("link_gripper_finger_right", 0.008, 0, 0, -0.005, 0.09, 0, -0.003),
    _capsule("link_gripper_finger_right", 0.008, 0.09, 0, -0.003, 0.178, 0, 0.011),
    Primitive("rubber_tip_left", "cylinder", (0.02, 0.0084), (0, 0, 0.0084)),
    Primitive("rubber_tip_right", "cylinder", (0.02, 0.0084), (0, 0, 0.0084)),
    Primitive("link_head_pan", "cylinder", (0.0225, 0.0135), (0, 0, 0.0005)),
    Primitive("link_head_pan", "cylinder", (0.012, 0.0135), (0, 0, 0.027)),
    Primitive("link_head_pan", "box", (0.0145, 0.006, 0.026), (-0.0015, 0.0325, -0.039)),
    Primitive("link_head_tilt", "box", (0.034, 0.0605, 0.031), (0.0108, -0.0235, 0.0312)),
    Primitive("link_SE3_head_nav_cam", "cylinder", (0.026, 0.02), (0, 0, -0.015)),
)
# fmt: on

_WHITE: Rgba = (0.92, 0.92, 0.93, 1.0)
_DARK: Rgba = (0.22, 0.22, 0.24, 1.0)
_FLOOR: Rgba = (0.72, 0.72, 0.7, 1.0)
_GREY: Rgba = (0.55, 0.56, 0.58, 1.0)
_DARK_LINKS = frozenset({"link_right_wheel", "link_left_wheel", "laser", "link_d405", *FINGER_TIPS})
_WHITE_LINKS = frozenset({BASE, "link_head", "link_lift", "link_head_tilt"})


@dataclass(frozen=True, slots=True)
class StretchModel:
    """What to build.

    Attributes:
        free_base: the base stands on wheels in a world with a floor; otherwise it is fixed at the origin, no wheels.
        timestep_s: of the physics.
    """

    free_base: bool = True
    timestep_s: float = 0.0025


def build_stretch(model: StretchModel) -> mujoco.MjSpec:
    """The robot alone (and the floor, for a free base); tasks add their bodies before it is compiled."""
    spec = new_spec("stretch_3", model.timestep_s)
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    add_links(spec, [link for link in LINKS if link.name in _BASE_LINKS], 0.0)
    add_links(spec, [link for link in LINKS if link.name not in _BASE_LINKS], 1.0)
    for primitive in PRIMITIVES:
        rgba = _DARK if primitive.link in _DARK_LINKS else _WHITE if primitive.link in _WHITE_LINKS else _GREY
        add_primitive(spec.body(primitive.link), primitive, rgba)
    _set_contacts(spec)
    for joint in JOINTS:
        add_joint(spec, joint)
    _add_drives(spec)
    if model.free_base:
        _add_base(spec)
    _add_sites_and_cameras(spec)
    return spec


def _set_contacts(spec: mujoco.MjSpec) -> None:
    """Soft cups grip whatever way they are turned: upright rods inside the rigid cups do the same."""
    for tip in FINGER_TIPS:
        for cup in spec.body(tip).geoms:
            cup.contype, cup.conaffinity = NO_CONTACT
        rod = _capsule(tip, _TIP_ROD_RADIUS_M, 0, -0.012, _TIP_ROD_Z_M, 0, 0.012, _TIP_ROD_Z_M)
        geom = add_primitive(spec.body(tip), rod, _DARK)
        geom.condim = 6
        geom.friction = (2.0, 0.02, 0.001)
    for geom in spec.body(BASE).geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_SPHERE:  # the caster rolls whichever way it is pushed
            geom.condim = 1
            geom.priority = 1


def _add_drives(spec: mujoco.MjSpec) -> None:
    for joint in JOINTS:
        if joint.name in GAINS:
            add_position_actuator(spec, joint, *GAINS[joint.name])
    tendon = spec.add_tendon(name=ARM_TENDON)
    for segment in ARM_SEGMENTS:
        tendon.wrap_joint(segment, 1.0)
    arm = spec.add_actuator(
        name=ARM_TENDON,
        target=ARM_TENDON,
        trntype=mujoco.mjtTrn.mjTRN_TENDON,
        ctrllimited=True,
        ctrlrange=(0.0, 0.52),
        forcelimited=True,
        forcerange=(-_ARM_MAX_FORCE_N, _ARM_MAX_FORCE_N),
    )
    kp, kv = GAINS[ARM_TENDON]
    arm.set_to_position(kp=kp, kv=kv)
    for segment in ARM_SEGMENTS[1:]:
        _couple(spec, segment, ARM_SEGMENTS[0], 1.0)
    for finger in FINGERS:
        _couple(spec, finger, GRIPPER_SLIDE, FINGER_PER_SLIDE)


def _couple(spec: mujoco.MjSpec, follower: str, leader: str, ratio: float) -> None:
    equality = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        name1=follower,
        name2=leader,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        solref=(0.005, 1.0),
        solimp=(0.95, 0.99, 0.001, 0.5, 2.0),
    )
    equality.data[:5] = (0.0, ratio, 0.0, 0.0, 0.0)


def _add_base(spec: mujoco.MjSpec) -> None:
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(0.0, 0.0, 0.05),
        contype=SCENE_CONTACT[0],
        conaffinity=SCENE_CONTACT[1],
        rgba=_FLOOR,
    )
    spec.body(BASE).add_freejoint(name="base_free")
    for wheel in WHEELS:
        spec.body(f"link_{wheel.removeprefix('joint_')}").add_joint(
            name=wheel,
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=(0, 0, 1),
            armature=0.1,
            damping=(WHEEL_DAMPING, 0.0, 0.0),
            frictionloss=WHEEL_FRICTION_NM,
        )
        motor = spec.add_actuator(
            name=wheel,
            target=wheel,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            ctrllimited=True,
            ctrlrange=(-WHEEL_MAX_RAD_S, WHEEL_MAX_RAD_S),
            forcelimited=True,
            forcerange=(-_WHEEL_MAX_TORQUE_NM, _WHEEL_MAX_TORQUE_NM),
        )
        motor.set_to_velocity(kv=WHEEL_GAIN)


def _add_sites_and_cameras(spec: mujoco.MjSpec) -> None:
    gripper, head = spec.body(GRIPPER_BODY), spec.body("link_head_tilt")
    # x where the gripper points, z up; the vendor's frame of that point is turned otherwise
    gripper.add_site(name=GRASP_SITE, pos=(0, 0, 0.23), quat=(0.5, -0.5, -0.5, -0.5))
    spec.body("link_wrist_yaw").add_site(name=WRIST_SITE)
    spec.body("link_arm_l4").add_site(name=ELBOW_SITE, pos=(-0.2555, 0, 0))
    spec.body(BASE).add_site(name=IMU_SITE, pos=(-0.12838, 0.0031592, 0.1474), quat=(0, 0.70711, -0.70711, 0))
    # The head's camera is mounted on its side; this is the picture turned upright.
    head.add_camera(name=HEAD_CAMERA, pos=(0.0406, 0.0203, 0.0307), quat=(0.70711, 0, -0.70711, 0), fovy=69)
    gripper.add_camera(name=GRIPPER_CAMERA, pos=(0.009, 0.06294, 0.0564), quat=(0, 0, 0.99619, 0.087157), fovy=58)
    spec.body("link_SE3_head_nav_cam").add_camera(name=NAVIGATION_CAMERA, quat=(0, 0, 1, 0), fovy=74)
