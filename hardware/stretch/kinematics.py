"""Setpoints of the Stretch to joint positions of its model, and where that puts the gripper.

The model has its base fixed at the origin: everything is told in the base frame, whatever the base has driven.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import mujoco
from hardware.stretch.joints import (
    ARM,
    ARM_SEGMENTS,
    GRIPPER,
    HEAD_PAN,
    HEAD_TILT,
    LIFT,
    WRIST_PITCH,
    WRIST_ROLL,
    WRIST_YAW,
    aperture_of_finger,
    finger_of_aperture,
)
from hardware.stretch.model import (
    FINGER_CLOSED_RAD,
    FINGER_PER_SLIDE,
    FINGERS,
    GRASP_SITE,
    GRIPPER_SLIDE,
    StretchModel,
    build_stretch,
)
from robot_stack.core.protocols import Setpoint

FloatVector = NDArray[np.float64]

# axis of the setpoint: the model's joint that follows it one to one
DIRECT_JOINTS = {
    LIFT: "joint_lift",
    WRIST_YAW: "joint_wrist_yaw",
    WRIST_PITCH: "joint_wrist_pitch",
    WRIST_ROLL: "joint_wrist_roll",
    HEAD_PAN: "joint_head_pan",
    HEAD_TILT: "joint_head_tilt",
}


def slide_of_aperture(aperture_m: float) -> float:
    """Position of the model's gripper slide in m at an aperture in m."""
    return (finger_of_aperture(aperture_m) + FINGER_CLOSED_RAD) / FINGER_PER_SLIDE


def aperture_of_slide(slide_m: float) -> float:
    """Aperture in m at a position of the model's gripper slide in m; never below 0, where the tips are squeezed."""
    return max(0.0, aperture_of_finger(slide_m * FINGER_PER_SLIDE - FINGER_CLOSED_RAD))


class JointMap:
    """Which entries of a compiled model's `qpos` follow from a setpoint: the arm and head, not the base."""

    def __init__(self, model: mujoco.MjModel) -> None:
        def addresses(names: tuple[str, ...]) -> NDArray[np.intp]:
            return np.array([model.joint(name).qposadr[0] for name in names], dtype=np.intp)

        self._axes = np.array(list(DIRECT_JOINTS), dtype=np.intp)
        self._direct = addresses(tuple(DIRECT_JOINTS.values()))
        self._segments = addresses(ARM_SEGMENTS)
        self._slide = int(addresses((GRIPPER_SLIDE,))[0])
        self._fingers = addresses(FINGERS)

    def fill(self, setpoint: Setpoint, qpos: FloatVector) -> None:
        """Write the joints of a setpoint (10,) into `qpos` (nq,), with the couplings of arm and fingers."""
        qpos[self._direct] = setpoint[self._axes]
        qpos[self._segments] = setpoint[ARM] / len(ARM_SEGMENTS)
        slide_m = slide_of_aperture(float(setpoint[GRIPPER]))
        qpos[self._slide] = slide_m
        qpos[self._fingers] = slide_m * FINGER_PER_SLIDE


class StretchKinematics:
    """Forward kinematics in the base frame. Owns its model and state; one thread."""

    def __init__(self) -> None:
        self._model = build_stretch(StretchModel(free_base=False)).compile()
        self._data = mujoco.MjData(self._model)
        self._joints = JointMap(self._model)
        self._grasp = self._model.site(GRASP_SITE).id

    def gripper_pose(self, setpoint: Setpoint) -> tuple[FloatVector, FloatVector]:
        """Grasp point (3,) m and rotation (3, 3) of the gripper: x where it points, z up, at wrist angles 0."""
        self._joints.fill(setpoint, self._data.qpos)
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._grasp].copy(), self._data.site_xmat[self._grasp].reshape(3, 3).copy()
