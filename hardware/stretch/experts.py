"""Scripted experts for the Stretch: they see the true scene and act by where things are, never by a clock."""

from __future__ import annotations

import numpy as np

from hardware.stretch.tasks import ReachGraspConfig
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.specs import STATE, RobotSpec


class StretchReachGraspExpert:
    """Lines up before the cube, reaches around it, closes, and lifts once the fingers hold it.

    The gripper points along -y at wrist yaw 0: the base moves it sideways (x), the arm to and fro (-y), the lift up.
    """

    _STANDOFF_M = 0.09
    _PAST_CENTRE_M = 0.010  # the tips close behind the grasp point
    _ABOVE_CENTRE_M = 0.008  # so that the tips stay clear of the stand
    _ALIGNED_M = 0.010
    _ALIGNED_RAD = 0.08
    _AROUND_M = 0.045
    _DEEP_M = 0.008
    _LIFT_M = 0.13
    _HELD_SLACK_M = 0.006

    def __init__(self, spec: RobotSpec) -> None:
        self._names = spec.observation[STATE].names
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._object_width_m = ReachGraspConfig().object_width_m

    def reset(self, seed: int) -> None:
        pass

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        """An action (A,) inside the action's bounds."""
        state = dict(zip(self._names, features[STATE].astype(np.float64), strict=True))
        away, turn = ground_truth["object_minus_gripper_m"], float(ground_truth["object_turn_rad"][0])
        height_m = float(ground_truth["object_height_m"][0])
        wanted = away + np.array([0.0, -self._PAST_CENTRE_M, self._ABOVE_CENTRE_M])
        beside_m, above_m, short_m = abs(wanted[0]), abs(wanted[2]), -wanted[1]
        around = abs(short_m) < self._AROUND_M and beside_m < self._AROUND_M / 2
        aligned = beside_m < self._ALIGNED_M and above_m < self._ALIGNED_M and abs(turn) < self._ALIGNED_RAD
        closed = state["gripper_aperture_m"] < self._object_width_m + self._HELD_SLACK_M
        closing = state["gripper_goal_aperture_m"] < self._object_width_m / 2
        gripper = 1.0
        if around and closing and closed:
            wanted, turn, gripper = np.array([0.0, 0.0, self._LIFT_M - height_m]), 0.0, 0.0
        elif around and (closing or short_m < self._DEEP_M):
            wanted, turn, gripper = np.zeros(3), 0.0, 0.0
        elif not aligned and not around:
            wanted[1] += self._STANDOFF_M
        leads = (
            wanted[0] - state["goal_minus_base_translation_m"],
            wanted[2] - state["goal_minus_lift_m"],
            -wanted[1] - state["goal_minus_arm_m"],
            turn - state["goal_minus_wrist_yaw_rad"],
        )
        return np.clip(np.array([*leads, gripper]), self._lower, self._upper).astype(np.float32)
