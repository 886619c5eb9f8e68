"""The Franka's geometry for the safety filter: its guarded points, their box, and which parts may meet.

Distances are between the primitives of `hardware.franka.model`. Neighbours and near neighbours of the chain can not
reach each other and are left out; what is left is the wrist and the hand coming back to the base and the upper arm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hardware.franka.model import FLANGE_SITE, HAND, READY_RAD, TCP_Z_IN_HAND_M, FrankaModel, build_franka
from hardware.sim.collision import ModelGeometry, SelfDistance, round_boxes
from hardware.sim.rendering import mujoco
from hardware.sim.task import TOOL_SITE, Task
from robot_stack.core.protocols import Setpoint

FloatVector = NDArray[np.float64]

NEAR_BASE = ("link0", "link1", "link2")
FAR_FROM_BASE = ("link5", "link6", "link7")  # and the hand with everything it holds
MIN_SELF_DISTANCE_M = 0.02
CUTOFF_M = 0.10

# The corners of the hand's body at the side of the fingers, hand frame.
HAND_CORNERS_M = tuple((x, y, 0.066) for x in (-0.0316, 0.0316) for y in (-0.104, 0.100))
_CORNER_SITES = tuple(f"hand_corner_{number}" for number in range(len(HAND_CORNERS_M)))
GUARDED_SITES = (TOOL_SITE, FLANGE_SITE, *_CORNER_SITES)

# The hand reaches this far from the tool, whatever its attitude; and the arm comes to its work from above.
_AROUND_WORKSPACE_M = 0.25
_AROUND_READY_M = 0.05
# Calibration of the table: a setpoint may lie so much below the task's lowest point.
_BELOW_FLOOR_M = 0.01


def franka_geometry(task: Task) -> ModelGeometry:
    """The geometry of the arm with a task's tool. Points: tool, flange, four corners of the hand.

    The box holds every attitude of the hand in the task's workspace, and the ready pose; its floor lies
    `_BELOW_FLOOR_M` below the workspace's or, where the workspace begins higher, below the table at z = 0.
    """
    spec = build_franka(FrankaModel())
    hand = spec.body(HAND)
    task.add_tool(hand, TCP_Z_IN_HAND_M)
    for site, corner in zip(_CORNER_SITES, HAND_CORNERS_M, strict=True):
        hand.add_site(name=site, pos=corner)
    carried = tuple(_carried(spec.compile()))
    round_boxes(spec, carried)
    model = spec.compile()
    pairs = [(near, far) for near in NEAR_BASE for far in (*FAR_FROM_BASE, *carried)]
    distance = SelfDistance(model, pairs, CUTOFF_M)
    distance.place(_to_qpos(np.array([*READY_RAD, 0.0])))
    ready = np.array([distance.data.site(site).xpos for site in GUARDED_SITES])
    workspace_lower, workspace_upper = np.array([task.motion.workspace_lower_m, task.motion.workspace_upper_m])
    lower = np.minimum(workspace_lower - _AROUND_WORKSPACE_M, ready.min(axis=0) - _AROUND_READY_M)
    lower[2] = min(0.0, workspace_lower[2]) - _BELOW_FLOOR_M
    return ModelGeometry(
        distance,
        _to_qpos,
        sites=GUARDED_SITES,
        box_lower_m=lower,
        box_upper_m=np.maximum(workspace_upper + _AROUND_WORKSPACE_M, ready.max(axis=0) + _AROUND_READY_M),
        min_self_distance_m=MIN_SELF_DISTANCE_M,
    )


def _carried(model: mujoco.MjModel) -> Iterator[str]:
    """The hand and every body that it carries."""
    hand = model.body(HAND).id
    for index in range(model.nbody):
        ancestor = index
        while ancestor not in (0, hand):
            ancestor = int(model.body_parentid[ancestor])
        if ancestor == hand:
            yield model.body(index).name


def _to_qpos(setpoint: Setpoint) -> FloatVector:
    """Seven joints and the width between the fingers -> the model's nine joints."""
    return np.append(setpoint, setpoint[7]) * _QPOS_SCALE


_QPOS_SCALE = np.array([1.0] * 7 + [0.5] * 2)
