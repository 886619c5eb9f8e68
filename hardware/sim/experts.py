"""Scripted experts: they see the true scene and act by where things are, never by a clock.

They drive the `ee_delta` action space and are meant to be disturbed: noise may be added to every action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.specs import STATE, RobotSpec

FloatVector = NDArray[np.float64]


class Expert(Protocol):
    def reset(self, seed: int) -> None:
        """Begin an episode."""

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        """An action (A,) inside the action's bounds."""


class _State:
    """Reads `observation.state` by name."""

    def __init__(self, spec: RobotSpec, features: Features) -> None:
        self._values = dict(zip(spec.observation[STATE].names, features[STATE].astype(np.float64), strict=True))

    def __getitem__(self, name: str) -> float:
        return float(self._values[name])

    def tool_m(self) -> FloatVector:
        return np.array([self[f"tool_{axis}_m"] for axis in "xyz"])

    def goal_m(self) -> FloatVector:
        """The commanded tool position."""
        return self.tool_m() + np.array([self[f"goal_minus_tool_{axis}_m"] for axis in "xyz"])

    def goal_yaw_rad(self) -> float:
        return self["tool_yaw_rad"] + self["goal_minus_tool_yaw_rad"]


class PegInsertionExpert:
    """Hovers over the true socket until aligned, then pushes down; goes back up if it stands on the rim off centre."""

    _HOVER_M = 0.004
    _PUSH_M = 0.030
    _ALIGNED_M = 0.002
    _ALIGNED_RAD = 0.05

    def __init__(self, spec: RobotSpec) -> None:
        self._spec = spec
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()

    def reset(self, seed: int) -> None:
        pass

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        state = _State(self._spec, features)
        socket, socket_yaw = ground_truth["socket_position_m"], float(ground_truth["socket_yaw_rad"][0])
        offset = ground_truth["tip_in_socket_m"]
        yaw_error = socket_yaw - state["tool_yaw_rad"]
        aligned = np.abs(offset[:2]).max() < self._ALIGNED_M and abs(yaw_error) < self._ALIGNED_RAD
        inserted = offset[2] < -0.002
        height = -self._PUSH_M if aligned or inserted else self._HOVER_M
        target = socket + np.array([0.0, 0.0, height])
        step = np.array([*(target - state.goal_m()), socket_yaw - state.goal_yaw_rad()])
        return np.clip(step, self._lower, self._upper).astype(np.float32)


class PegCycleExpert(PegInsertionExpert):
    """Forward as `PegInsertionExpert`; backward straight up out of the socket, and then to the middle of the start
    region."""

    _CLEAR_M = 0.010

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        if ground_truth["is_forward"][0]:
            return super().act(features, ground_truth)
        state = _State(self._spec, features)
        goal, start = state.goal_m(), ground_truth["start_m"]
        is_clear = ground_truth["tip_in_socket_m"][2] > self._CLEAR_M
        target = start if is_clear else np.array([*state.tool_m()[:2], start[2]])
        turn = -state.goal_yaw_rad() if is_clear else 0.0
        return np.clip(np.array([*(target - goal), turn]), self._lower, self._upper).astype(np.float32)


class PickCubeExpert:
    """Hovers over the cube until aligned, goes down, closes, and lifts once the fingers hold it."""

    _HOVER_M = 0.06
    _LIFT_M = 0.13
    _ALIGNED_M = 0.006
    _ALIGNED_RAD = 0.1
    _LEVEL_M = 0.006
    _HELD_M = 0.015
    _CUBE_WIDTH_M = 0.04

    def __init__(self, spec: RobotSpec) -> None:
        self._spec = spec
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()

    def reset(self, seed: int) -> None:
        pass

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        state = _State(self._spec, features)
        cube, turn = ground_truth["cube_position_m"], float(ground_truth["cube_turn_rad"][0])
        away = cube - state.tool_m()
        aside_m = float(np.linalg.norm(away[:2]))
        aligned = aside_m < self._ALIGNED_M and abs(turn) < self._ALIGNED_RAD
        around = aside_m < self._HELD_M and abs(away[2]) < self._HELD_M
        closed = state["gripper_width_m"] < self._CUBE_WIDTH_M + 0.004 and state["gripper_goal_width_m"] < 0.03
        if around and closed:
            target, gripper = np.array([*state.goal_m()[:2], self._LIFT_M]), 0.0
        elif aligned and abs(away[2]) < self._LEVEL_M:
            target, gripper = cube, 0.0
        else:
            hover = np.array([0.0, 0.0, 0.0 if aligned else self._HOVER_M])
            target, gripper = cube + hover, 1.0
        yaw_step = turn - state["goal_minus_tool_yaw_rad"]
        step = np.array([*(target - state.goal_m()), yaw_step, gripper])
        return np.clip(step, self._lower, self._upper).astype(np.float32)


class TouchBlockExpert:
    """Goes to a place above the named block, then down on it."""

    _HOVER_M = 0.04
    _BELOW_TOP_M = 0.005
    _ALIGNED_M = 0.015

    def __init__(self, spec: RobotSpec) -> None:
        self._spec = spec
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()

    def reset(self, seed: int) -> None:
        pass

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        state = _State(self._spec, features)
        block = ground_truth["block_positions_m"][int(ground_truth["target_block"][0])]
        top_m = 2.0 * block[2]
        aligned = np.linalg.norm(block[:2] - state.tool_m()[:2]) < self._ALIGNED_M
        height_m = top_m - self._BELOW_TOP_M if aligned else top_m + self._HOVER_M
        step = np.array([*block[:2], height_m]) - state.goal_m()
        return np.clip(step, self._lower, self._upper).astype(np.float32)


_EXPERTS: dict[str, Callable[[RobotSpec], Expert]] = {
    "peg_cycle": PegCycleExpert,
    "peg_insertion": PegInsertionExpert,
    "pick_cube": PickCubeExpert,
    "touch_block": TouchBlockExpert,
}


def make_expert(task: str, spec: RobotSpec) -> Expert:
    """The expert of a task, for a robot with that spec; ConfigError if there is none."""
    if task not in _EXPERTS:
        raise ConfigError(f"there is no scripted expert for task '{task}'; experts exist for {', '.join(_EXPERTS)}")
    if "dx_m" not in spec.action.names:
        raise ConfigError(
            f"the expert for '{task}' drives the action space ee_delta; robot '{spec.name}' takes "
            f"{', '.join(spec.action.names)}; start it with robot.action_space=ee_delta, or collect by hand with "
            "device=page"
        )
    return _EXPERTS[task](spec)
