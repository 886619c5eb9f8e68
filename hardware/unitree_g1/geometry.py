"""The G1's geometry for the safety filter: its guarded points, their box, and which parts may meet.

Distances are between the primitives of `hardware.unitree_g1.tables`, the legs standing at zero: the safety filter knows
arms and waist only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.sim.collision import ModelGeometry, SelfDistance, round_boxes
from hardware.unitree_g1.joints import ARM_SDK_MOTORS, JOINT_NAMES, LEG_MOTORS, SIDES
from hardware.unitree_g1.model import FINGER_JOINTS, FINGER_TRAVEL_M, PALM_SITES, G1Model, build_g1
from hardware.unitree_g1.tasks import PalmTask
from robot_stack.core.protocols import Setpoint

FloatVector = NDArray[np.float64]

MIN_SELF_DISTANCE_M = 0.015
CUTOFF_M = 0.15

MOVING_PARTS = ("elbow_link", "wrist_roll_link", "wrist_pitch_link", "wrist_yaw_link")
BODY_PARTS = (
    *("pelvis", "waist_yaw_link", "torso_link"),
    *(f"{side}_hip_{axis}_link" for side in SIDES for axis in ("pitch", "roll", "yaw")),
)
"""What forearms and hands may meet; upper arms can reach none of it, and forearms not the shoulder they hang on."""

_WRIST_SITES = tuple(f"{side}_wrist" for side in SIDES)
_FINGERTIP_SITES = tuple(f"{side}_fingertip" for side in SIDES)
GUARDED_SITES = (*PALM_SITES, *_WRIST_SITES, *_FINGERTIP_SITES)
FINGERTIP_X_M = 0.185

_BELOW_WORKSPACE_M = (0.30, 0.15, 0.10)
_ABOVE_WORKSPACE_M = (0.20, 0.15, 0.20)


def self_collision_pairs() -> list[tuple[str, str]]:
    """Forearms and hands against torso, pelvis and thighs, and left against right."""
    left, right = ([f"{side}_{part}" for part in MOVING_PARTS] for side in SIDES)
    return [
        *((arm, body) for arm in (*left, *right) for body in BODY_PARTS),
        *((one, other) for one in left for other in right),
    ]


def g1_geometry(task: PalmTask, hands: str) -> ModelGeometry:
    """The geometry of the robot before a task's table, pelvis frame."""
    spec = build_g1(G1Model(pelvis_height_m=0.0, hands=hands, rigid=LEG_MOTORS))
    for side, wrist, tip in zip(SIDES, _WRIST_SITES, _FINGERTIP_SITES, strict=True):
        hand = spec.body(f"{side}_wrist_yaw_link")
        hand.add_site(name=wrist, pos=(0, 0, 0))
        hand.add_site(name=tip, pos=(FINGERTIP_X_M, 0, 0))
    round_boxes(spec, (f"{side}_{part}" for side in SIDES for part in MOVING_PARTS))
    model = spec.compile()
    joints = np.array([model.joint(JOINT_NAMES[motor]).qposadr[0] for motor in ARM_SDK_MOTORS])
    finger_joints = FINGER_JOINTS if hands != "none" else ()
    fingers = np.array([model.joint(name).qposadr[0] for name in finger_joints], dtype=np.intp)
    qpos = np.zeros(model.nq)

    def to_qpos(setpoint: Setpoint) -> FloatVector:
        qpos[joints] = setpoint[:17]
        qpos[fingers] = np.repeat(setpoint[17:], 2) * FINGER_TRAVEL_M
        return qpos

    distance = SelfDistance(model, self_collision_pairs(), CUTOFF_M)
    lower, upper = _box(task)
    return ModelGeometry(
        distance,
        to_qpos,
        sites=GUARDED_SITES,
        box_lower_m=lower.tolist(),
        box_upper_m=upper.tolist(),
        min_self_distance_m=MIN_SELF_DISTANCE_M,
    )


def _box(task: PalmTask) -> tuple[FloatVector, FloatVector]:
    """Both palms' workspace with room for the rest of the hands; its floor lies little below the table."""
    lower, upper = np.array(task.motion.lower_m), np.array(task.motion.upper_m)
    lower[1] = -upper[1]
    return lower - _BELOW_WORKSPACE_M, upper + _ABOVE_WORKSPACE_M
