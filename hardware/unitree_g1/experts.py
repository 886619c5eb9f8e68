"""Scripted experts of the G1's tasks: they see the true scene and act by where things are, never by a clock."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.unitree_g1.joints import GRIPPER_NAMES, SIDES
from hardware.unitree_g1.tasks import PAD_IN_HAND_M, BimanualLiftConfig
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.specs import STATE, RobotSpec

FloatVector = NDArray[np.float64]

_BOX_HALF_WIDTH_M = BimanualLiftConfig().box_half_m[1]


class G1BimanualLiftExpert:
    """Brings the palms beside the true box, squeezes it, and lifts it once both palms press.

    How hard a palm presses shows in how far its goal leads it. If the grip slips, it lowers and grips anew. ConfigError
    for a robot whose actions do not move palms.
    """

    _BESIDE_M = 0.04
    _ALIGNED_M = 0.008
    _ABOVE_CENTRE_M = 0.015
    _SQUEEZE_M = 0.045
    _PRESSED_M = 0.030
    _TOUCHING_M = 0.015
    _LIFTED_M = 0.23  # of the box's centre, pelvis frame
    _CENTRING = 0.2
    _SIDES = np.array([1.0, -1.0])

    def __init__(self, spec: RobotSpec) -> None:
        if "left_dx_m" not in spec.action.names:
            raise ConfigError(
                f"the expert for '{spec.task}' drives the action space palm_delta; robot '{spec.name}' takes "
                f"{', '.join(spec.action.names)}; start it with robot.action_space=palm_delta, or collect by hand with "
                "device=page"
            )
        self._names = spec.observation[STATE].names
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._grippers = len(GRIPPER_NAMES) if GRIPPER_NAMES[0] in spec.action.names else 0

    def reset(self, seed: int) -> None:
        pass

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        state = dict(zip(self._names, features[STATE].astype(np.float64), strict=True))
        palms = np.array([[state[f"{side}_palm_{axis}_m"] for axis in "xyz"] for side in SIDES])
        lead = np.array([[state[f"goal_minus_{side}_palm_{axis}_m"] for axis in "xyz"] for side in SIDES])
        step = self._target(palms, lead, ground_truth) - (palms + lead)
        action = np.concatenate([step.reshape(-1), np.ones(self._grippers)])
        return np.clip(action, self._lower, self._upper).astype(np.float32)

    def _target(self, palms: FloatVector, lead: FloatVector, ground_truth: Features) -> FloatVector:
        """Where to command the palms (2, 3)."""
        box, yaw = ground_truth["box_position_m"], float(ground_truth["box_yaw_rad"][0])
        pads = ground_truth["pads_in_box_m"]
        across = np.array([-np.sin(yaw), np.cos(yaw), 0.0]) * _BOX_HALF_WIDTH_M
        grip = box + np.array([0.0, 0.0, self._ABOVE_CENTRE_M])
        beside = grip + self._SIDES[:, None] * across - PAD_IN_HAND_M
        touching = np.abs(pads[:, 1] * self._SIDES - _BOX_HALF_WIDTH_M) < self._TOUCHING_M
        pressing = -lead[:, 1] * self._SIDES > self._PRESSED_M
        aligned = np.abs((palms - beside)[:, [0, 2]]).max() < self._ALIGNED_M
        squeezed = palms[:, 1] - self._SIDES * self._SQUEEZE_M - self._CENTRING * palms[:, 1].mean()
        if touching.all() and pressing.all():
            goal = palms + lead
            return np.column_stack([goal[:, 0], squeezed, goal[:, 2] + self._LIFTED_M - box[2]])
        if touching.any() or aligned:
            return np.column_stack([beside[:, 0], squeezed, beside[:, 2]])
        beside[:, 1] += self._SIDES * self._BESIDE_M
        return beside
