"""Tables of the G1 with 29 joints, revision 1.0, rubber hands: links, drives, shapes.

Kinematics, inertials and ranges: the vendor's published model of that revision (mode_machine 5). Drives' inertia and
friction: values in common use for this robot, the vendor states none. Shapes: primitives fitted to the outlines of its
parts, for light contact, distances and rendering; they are no collision guarantee. Right shapes mirror the left ones.
"""

from __future__ import annotations

from dataclasses import replace

from hardware.sim.mjcf import IDENTITY, ORIGIN, Link, Primitive

# fmt: off
LINKS = (
    Link("pelvis", "world", (0, 0, 0.793), IDENTITY, 3.813, (0, 0, -0.07605),
         (1, 0, -0.00039915, 0), (0.010549, 0.0093089, 0.0079184)),
    Link("left_hip_pitch_link", "pelvis", (0, 0.064452, -0.1027), IDENTITY, 1.35, (0.002741, 0.047791, -0.02606),
         (0.95486, 0.29396, 0.030256, 0.030122), (0.0018152, 0.0015342, 0.0011621)),
    Link("left_hip_roll_link", "left_hip_pitch_link", (0, 0.052, -0.030465),
         (0.99618, 0, -0.087339, 0), 1.52, (0.029812, -0.001045, -0.087934),
         (0.97781, -0.000019712, 0.20558, -0.040379), (0.0025499, 0.0024117, 0.0014876)),
    Link("left_hip_yaw_link", "left_hip_roll_link", (0.025001, 0, -0.12412), IDENTITY, 1.702,
         (-0.057709, -0.010981, -0.15078),
         (0.6006, 0.15832, 0.22348, 0.75118), (0.0077617, 0.0071757, 0.0016014)),
    Link("left_knee_link", "left_hip_yaw_link", (-0.078273, 0.0021489, -0.17734),
         (0.99618, 0, 0.087339, 0), 1.932, (0.005457, 0.003964, -0.12074),
         (0.92342, -0.03277, 0.015825, 0.38207), (0.01138, 0.011278, 0.0014646)),
    Link("left_ankle_pitch_link", "left_knee_link", (0, -0.000094445, -0.30001), IDENTITY, 0.074,
         (-0.007269, 0, 0.011137),
         (0.60305, 0.36922, 0.36922, 0.60305), (0.0000189, 0.000014081, 6.9195e-06)),
    Link("left_ankle_roll_link", "left_ankle_pitch_link", (0, 0, -0.017558), IDENTITY, 0.608,
         (0.026505, 0, -0.016425),
         (0.00048109, -0.72848, 0.00061897, -0.68506), (0.0016722, 0.0016161, 0.00021762)),
    Link("right_hip_pitch_link", "pelvis", (0, -0.064452, -0.1027), IDENTITY, 1.35, (0.002741, -0.047791, -0.02606),
         (0.95486, -0.29396, 0.030256, -0.030122), (0.0018152, 0.0015342, 0.0011621)),
    Link("right_hip_roll_link", "right_hip_pitch_link", (0, -0.052, -0.030465),
         (0.99618, 0, -0.087339, 0), 1.52, (0.029812, 0.001045, -0.087934),
         (0.97781, 0.000019712, 0.20558, 0.040379), (0.0025499, 0.0024117, 0.0014876)),
    Link("right_hip_yaw_link", "right_hip_roll_link", (0.025001, 0, -0.12412), IDENTITY, 1.702,
         (-0.057709, 0.010981, -0.15078),
         (0.75118, 0.22348, 0.15832, 0.6006), (0.0077617, 0.0071757, 0.0016014)),
    Link("right_knee_link", "right_hip_yaw_link", (-0.078273, -0.0021489, -0.17734),
         (0.99618, 0, 0.087339, 0), 1.932, (0.005457, -0.003964, -0.12074),
         (0.92344, 0.034528, 0.011633, -0.38201), (0.011374, 0.011284, 0.0014645)),
    Link("right_ankle_pitch_link", "right_knee_link", (0, 0.000094445, -0.30001), IDENTITY, 0.074,
         (-0.007269, 0, 0.011137),
         (0.60305, 0.36922, 0.36922, 0.60305), (0.0000189, 0.000014081, 6.9195e-06)),
    Link("right_ankle_roll_link", "right_ankle_pitch_link", (0, 0, -0.017558), IDENTITY, 0.608,
         (0.026505, 0, -0.016425),
         (0.00048109, 0.72848, 0.00061897, 0.68506), (0.0016722, 0.0016161, 0.00021762)),
    Link("waist_yaw_link", "pelvis", ORIGIN, IDENTITY, 0.214, (0.003494, 0.000233, 0.018034),
         (0.2897, 0.591, -0.33779, 0.67282), (0.00016353, 0.00010771, 0.00010221)),
    Link("waist_roll_link", "waist_yaw_link", (-0.0039635, 0, 0.044), IDENTITY, 0.086, (0, 0.000023, 0),
         (0.5, 0.5, -0.5, 0.5), (8.245e-06, 7.079e-06, 6.339e-06)),
    Link("torso_link", "waist_roll_link", ORIGIN, IDENTITY, 7.818, (0.0020316, 0.00033968, 0.18457),
         (0.9998, -0.000060332, 0.019826, 0.0013199), (0.12185, 0.10983, 0.027373)),
    Link("left_shoulder_pitch_link", "torso_link", (0.0039563, 0.10022, 0.24778),
         (0.99026, 0.1392, 0.000013872, -0.000098687), 0.718, (0, 0.035892, -0.011628),
         (0.65415, 0.013046, -0.32627, 0.68225), (0.00046586, 0.00043284, 0.00040639)),
    Link("left_shoulder_roll_link", "left_shoulder_pitch_link", (0, 0.038, -0.013831),
         (0.99027, -0.13917, 0, 0), 0.643, (-0.000227, 0.00727, -0.063243),
         (0.70126, -0.019622, -0.0071032, 0.7126), (0.00069131, 0.00061801, 0.00038898)),
    Link("left_shoulder_yaw_link", "left_shoulder_roll_link", (0, 0.00624, -0.1032), IDENTITY, 0.734,
         (0.010773, -0.002949, -0.072009),
         (0.71688, -0.096483, -0.067994, 0.68713), (0.0010619, 0.0010322, 0.00040066)),
    Link("left_elbow_link", "left_shoulder_yaw_link", (0.015783, 0, -0.080518), IDENTITY, 0.6,
         (0.064956, 0.004454, -0.010062),
         (0.54177, 0.63613, 0.38882, 0.38813), (0.00044303, 0.00042161, 0.00025935)),
    Link("left_wrist_roll_link", "left_elbow_link", (0.1, 0.0018879, -0.01), IDENTITY, 0.085445,
         (0.017139, 0.00053759, 4.8864e-07),
         (0.57534, 0.41167, -0.57491, 0.41109), (0.000054821, 0.000049665, 0.00003578)),
    Link("left_wrist_pitch_link", "left_wrist_roll_link", (0.038, 0, 0), IDENTITY, 0.48405,
         (0.023, -0.0011168, -0.0011166),
         (0.25, 0.66136, 0.29304, 0.64361), (0.00043035, 0.00042987, 0.00016465)),
    Link("left_wrist_yaw_link", "left_wrist_pitch_link", (0.046, 0, 0), IDENTITY, 0.25458,
         (0.070824, 0.00019175, 0.0016174),
         (0.51057, 0.52629, 0.46808, 0.49319), (0.00064611, 0.00055999, 0.00014757)),
    Link("right_shoulder_pitch_link", "torso_link", (0.0039563, -0.10021, 0.24778),
         (0.99026, -0.1392, 0.000013872, 0.000098687), 0.718, (0, -0.035892, -0.011628),
         (0.68225, -0.32627, 0.013046, 0.65415), (0.00046586, 0.00043284, 0.00040639)),
    Link("right_shoulder_roll_link", "right_shoulder_pitch_link", (0, -0.038, -0.013831),
         (0.99027, 0.13917, 0, 0), 0.643, (-0.000227, -0.00727, -0.063243),
         (0.7126, -0.0071032, -0.019622, 0.70126), (0.00069131, 0.00061801, 0.00038898)),
    Link("right_shoulder_yaw_link", "right_shoulder_roll_link", (0, -0.00624, -0.1032), IDENTITY, 0.734,
         (0.010773, 0.002949, -0.072009),
         (0.68713, -0.067994, -0.096483, 0.71688), (0.0010619, 0.0010322, 0.00040066)),
    Link("right_elbow_link", "right_shoulder_yaw_link", (0.015783, 0, -0.080518), IDENTITY, 0.6,
         (0.064956, -0.004454, -0.010062),
         (0.38813, 0.38882, 0.63613, 0.54177), (0.00044303, 0.00042161, 0.00025935)),
    Link("right_wrist_roll_link", "right_elbow_link", (0.1, -0.0018879, -0.01), IDENTITY, 0.085445,
         (0.017139, -0.00053759, 4.8864e-07),
         (0.41167, 0.57534, -0.41109, 0.57491), (0.000054821, 0.000049665, 0.00003578)),
    Link("right_wrist_pitch_link", "right_wrist_roll_link", (0.038, 0, 0), IDENTITY, 0.48405,
         (0.023, 0.0011168, -0.0011166),
         (0.64361, 0.29304, 0.66136, 0.25), (0.00043035, 0.00042987, 0.00016465)),
    Link("right_wrist_yaw_link", "right_wrist_pitch_link", (0.046, 0, 0), IDENTITY, 0.25458,
         (0.070824, -0.00019175, 0.0016174),
         (0.49319, 0.46808, 0.52629, 0.51057), (0.00064611, 0.00055999, 0.00014757)),
)

_MIDDLE_SHAPES = (
    Primitive("pelvis", "sphere", (0.07,), (0, 0, -0.08)),
    Primitive("waist_yaw_link", "cylinder", (0.042, 0.027), (0, 0, 0.027)),
    Primitive("waist_roll_link", "box", (0.017, 0.01, 0.012), ORIGIN),
    Primitive("torso_link", "box", (0.068, 0.1, 0.135), (0.007, 0, 0.15)),
    Primitive("torso_link", "capsule", (0.045,), ends_m=(0.01, -0.03, 0.31, 0.01, 0.03, 0.31)),
    Primitive("torso_link", "box", (0.036, 0.05, 0.035), (0.016, 0, 0.37)),
    Primitive("torso_link", "capsule", (0.052,), ends_m=(0, 0, 0.435, 0.018, 0, 0.435)),
)
_LEFT_SHAPES = (
    Primitive("left_hip_pitch_link", "capsule", (0.04,), ends_m=(0, 0.03, -0.02, 0, 0.06, -0.026)),
    Primitive("left_hip_roll_link", "capsule", (0.06,), ends_m=(0.02, 0, 0, 0.02, 0, -0.08)),
    Primitive("left_hip_yaw_link", "capsule", (0.055,), ends_m=(0, 0, -0.03, -0.06, 0, -0.17)),
    Primitive("left_knee_link", "capsule", (0.045,), ends_m=(0.01, 0, 0, 0.01, 0, -0.15)),
    Primitive("left_knee_link", "capsule", (0.03,), ends_m=(0.01, 0, -0.2, 0.01, 0, -0.28)),
    Primitive("left_ankle_pitch_link", "box", (0.018, 0.0065, 0.0187), (-0.0065, 0, -0.0058)),
    Primitive("left_ankle_roll_link", "box", (0.1, 0.033, 0.008), (0.04, 0, -0.027)),
    Primitive("left_ankle_roll_link", "box", (0.045, 0.025, 0.02), (0.005, 0, -0.001)),
    Primitive("left_ankle_roll_link", "sphere", (0.005,), (-0.05, 0.025, -0.03)),
    Primitive("left_ankle_roll_link", "sphere", (0.005,), (-0.05, -0.025, -0.03)),
    Primitive("left_ankle_roll_link", "sphere", (0.005,), (0.12, 0.03, -0.03)),
    Primitive("left_ankle_roll_link", "sphere", (0.005,), (0.12, -0.03, -0.03)),
    Primitive("left_shoulder_pitch_link", "capsule", (0.036,), ends_m=(0, 0.025, -0.003, 0, 0.045, -0.01)),
    Primitive("left_shoulder_roll_link", "capsule", (0.036,), ends_m=(0, 0.004, -0.005, 0, 0.006, -0.065)),
    Primitive("left_shoulder_yaw_link", "capsule", (0.035,), ends_m=(0, 0, -0.08, 0, 0, 0)),
    Primitive("left_elbow_link", "capsule", (0.035,), ends_m=(-0.01, 0, -0.01, 0.08, 0, -0.01)),
    Primitive("left_wrist_roll_link", "cylinder", (0.03, 0.028), (0.028, 0, 0), (0.70711, 0, 0.70711, 0)),
    Primitive("left_wrist_pitch_link", "capsule", (0.0285,), ends_m=(0, 0, 0, 0.046, 0, 0)),
    Primitive("left_wrist_yaw_link", "capsule", (0.028,), ends_m=(0.01, 0, 0, 0.05, 0, 0)),
    Primitive("left_wrist_yaw_link", "capsule", (0.035,), ends_m=(0.07, 0, 0, 0.15, -0.02, 0)),
)
# fmt: on


def _mirrored(shape: Primitive) -> Primitive:
    """On the other side of the plane y = 0; for shapes whose own orientation is symmetric to it."""
    x_m, y_m, z_m = shape.position_m
    ends = shape.ends_m
    return replace(
        shape,
        link=shape.link.replace("left_", "right_"),
        position_m=(x_m, -y_m, z_m),
        ends_m=None if ends is None else (ends[0], -ends[1], ends[2], ends[3], -ends[4], ends[5]),
    )


SHAPES = (*_MIDDLE_SHAPES, *_LEFT_SHAPES, *(_mirrored(shape) for shape in _LEFT_SHAPES))

AXES = {"roll": (1.0, 0.0, 0.0), "pitch": (0.0, 1.0, 0.0), "yaw": (0.0, 0.0, 1.0)}
"""Joint axis by the end of its name; knees and elbows turn about y."""

ARMATURE = {
    "hip_pitch": 0.010178,
    "hip_roll": 0.025102,
    "hip_yaw": 0.010178,
    "knee": 0.025102,
    "ankle_pitch": 0.0072194,
    "ankle_roll": 0.0072194,
    "waist_yaw": 0.010178,
    "waist_roll": 0.0072194,
    "waist_pitch": 0.0072194,
    "shoulder_pitch": 0.0036097,
    "shoulder_roll": 0.0036097,
    "shoulder_yaw": 0.0036097,
    "elbow": 0.0036097,
    "wrist_roll": 0.0036097,
    "wrist_pitch": 0.00425,
    "wrist_yaw": 0.00425,
}
"""Reflected inertia of each drive, kg m^2."""

FRICTION_NM = 0.1
