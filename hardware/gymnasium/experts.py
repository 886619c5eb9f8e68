"""Scripted demonstrators for two public Gymnasium tasks. Both are deterministic: the scene's seed is all variety.

They read the features that `GymnasiumRobot` gives for `gym_hil/PandaPickCube-v0` (`observation.state` <- agent_pos,
`observation.environment_state` <- environment_state) and the info of `gym_pusht/PushT-v0`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path

from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE

Points = NDArray[np.float64]

# ---- gym_hil/PandaPickCube-v0 -----------------------------------------------------------------------------------

_STEP_M = 0.025  # how far a full action moves the hand's target in one control step
_OPEN, _CLOSE = 0.0, 2.0


class PandaPickCubeExpert:
    """Goes above the cube, descends on it, closes the gripper and lifts.

    Actions are (dx, dy, dz) in [-1, 1] of 2.5 cm and the gripper in [0, 2], as gym-hil defines them.
    """

    HOVER_M = 0.06
    ALIGNED_M = 0.015
    GRASP_M = 0.012
    CLOSING_STEPS = 4
    GAIN = 0.5  # the hand lags its target by some steps; more gain overshoots

    def __init__(self) -> None:
        self._closed_for = 0

    def reset(self, seed: int) -> None:
        self._closed_for = 0

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        """Action (4,) from the hand's position (last three elements of the state) and the cube's, metres."""
        hand_m = features[STATE][-3:].astype(np.float64)
        cube_m = features[ENVIRONMENT_STATE].astype(np.float64)
        if self._closed_for == 0 and np.linalg.norm(cube_m - hand_m) < self.GRASP_M:
            self._closed_for = 1
        if self._closed_for > 0:
            self._closed_for += 1
            lift = 1.0 if self._closed_for > self.CLOSING_STEPS else 0.0
            return np.asarray([0.0, 0.0, lift, _CLOSE], dtype=np.float32)
        target = cube_m.copy()
        if np.linalg.norm(cube_m[:2] - hand_m[:2]) > self.ALIGNED_M:
            target[2] = max(hand_m[2], self.HOVER_M)
        motion = np.clip(self.GAIN * (target - hand_m) / _STEP_M, -1.0, 1.0)
        return np.asarray([*motion, _OPEN], dtype=np.float32)


# ---- gym_pusht/PushT-v0, in pixels and radians; block frame: origin in the middle of the bar's top ---------------

_AGENT_RADIUS = 15.0
_CLEARANCE = 8.0
_BOARD = (20.0, 492.0)
_BAR = np.asarray([[-60.0, 0.0], [60.0, 30.0]])
_STEM = np.asarray([[-15.0, 30.0], [15.0, 120.0]])
_OUTLINE = np.asarray([[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], np.float64)
_MASS_CENTRE = np.asarray([0.0, 45.0])
_INERTIA = 3000.0  # per unit of mass, as gym-pusht sets it
_PUSHES = np.asarray([2.0, 4.0, 8.0, 16.0, 32.0, 64.0])


class PushTExpert:
    """Pushes the T towards its goal by greedy choice of the contact.

    The simulated contact has no friction and the block's velocity dies within a step. So a push of depth d at a
    contact with inward normal n and lever torque t = r x n moves the centre of mass by d n / (1 + t^2 / I) and
    turns the block by t / I of that length. Of all contacts around the outline the expert takes the one whose best
    push brings the T's corners nearest to the goal's per distance travelled; it walks there around the block and
    pushes.
    """

    APPROACH_COST = 40.0
    REST_OF_BEST = 0.3  # go on at a contact while it promises this share of the best contact's gain
    WORTHWHILE = 0.02  # and this share of the remaining error
    PUSH_STEP = 14.0
    PUSH_LEAD = 1.6  # the agent lags its target
    ON_CONTACT = (4.0, 14.0)  # sideways and inwards distance at which pushing begins

    def __init__(self) -> None:
        self._points, self._normals = _contacts()
        arms = self._points - _MASS_CENTRE
        self._torques = arms[:, 0] * self._normals[:, 1] - arms[:, 1] * self._normals[:, 0]
        margin = _AGENT_RADIUS + _CLEARANCE
        outwards = np.asarray([[-1, -1], [1, -1], [1, 1], [1, 1], [1, 1], [-1, 1], [-1, 1], [-1, 1]], np.float64)
        self._waypoints = _OUTLINE + margin * outwards
        self._chosen: int | None = None

    def reset(self, seed: int) -> None:
        self._chosen = None

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        """Target position of the agent (2,), pixels, from the true poses of agent, block and goal."""
        block = ground_truth["info.block_pose"].astype(np.float64)
        goal = ground_truth["info.goal_pose"].astype(np.float64)
        R_block = _rotation(block[2])
        agent = (ground_truth["info.pos_agent"].astype(np.float64) - block[:2]) @ R_block
        gain, depth = self._promises(block, goal)
        error = float(np.sum((_place(_OUTLINE, block) - _place(_OUTLINE, goal)) ** 2, axis=1).mean())
        chosen = self._choose(agent, block, gain, depth, error)
        point, normal = self._points[chosen], self._normals[chosen]
        touch = point - normal * _AGENT_RADIUS
        inwards = float((agent - touch) @ normal)
        sideways = float(np.linalg.norm(agent - touch - inwards * normal))
        if sideways < self.ON_CONTACT[0] and inwards > -self.ON_CONTACT[1]:
            target = touch + normal * min(depth[chosen], self.PUSH_STEP) * self.PUSH_LEAD
        else:
            target = self._next_waypoint(agent, touch - normal * _CLEARANCE)
        on_board = np.clip(_place(target[None], block)[0], 16.0, 496.0)
        return np.asarray(on_board, dtype=np.float32)

    def _promises(self, block: Points, goal: Points) -> tuple[Points, Points]:
        """For each contact the largest drop of the mean squared corner error (px^2), and the push for it (px)."""
        travel = _PUSHES[:, None] / (1.0 + self._torques**2 / _INERTIA)
        angle = block[2] + self._torques * travel / _INERTIA
        centre = _place(_MASS_CENTRE[None], block)[0] + travel[..., None] * (self._normals @ _rotation(block[2]).T)
        corners = _OUTLINE - _MASS_CENTRE
        cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
        goal_corners = _place(_OUTLINE, goal)
        x_error = centre[..., :1] + cos * corners[:, 0] - sin * corners[:, 1] - goal_corners[:, 0]
        y_error = centre[..., 1:] + sin * corners[:, 0] + cos * corners[:, 1] - goal_corners[:, 1]
        errors = np.mean(x_error**2 + y_error**2, axis=2)
        now = np.sum((_place(_OUTLINE, block) - goal_corners) ** 2, axis=1).mean()
        return now - errors.min(axis=0), _PUSHES[errors.argmin(axis=0)]

    def _choose(self, agent: Points, block: Points, gain: Points, depth: Points, error: float) -> int:
        if self._chosen is not None and gain[self._chosen] > max(
            self.WORTHWHILE * error, self.REST_OF_BEST * float(gain.max())
        ):
            return self._chosen
        approaches = self._points - self._normals * (_AGENT_RADIUS + _CLEARANCE)
        distance = np.linalg.norm(approaches - agent, axis=1)
        score = gain / (distance + depth + self.APPROACH_COST)
        on_board = _place(approaches, block)
        score[np.any((on_board < _BOARD[0]) | (on_board > _BOARD[1]), axis=1)] = -np.inf
        self._chosen = int(score.argmax())
        return self._chosen

    def _next_waypoint(self, start: Points, end: Points) -> Points:
        """The first stop of the shortest way from start to end that keeps clear of the block (block frame)."""
        nodes = np.vstack([start, end, self._waypoints])
        share = np.linspace(0.0, 1.0, 30)[:, None]
        clear = _AGENT_RADIUS + 3.0
        lines = nodes[:, None, None] * (1.0 - share) + nodes[None, :, None] * share
        nearest = _distance(lines).min(axis=2)
        free = nearest > clear
        # From where it stands the agent may leave along any line that comes no nearer.
        free[0] = _distance(lines[0])[:, 1:].min(axis=1) >= min(clear, float(_distance(start)) - 1.0)
        lengths = np.where(free, np.linalg.norm(nodes[:, None] - nodes[None], axis=2), np.inf)
        _, before = shortest_path(lengths, indices=0, return_predecessors=True)
        if before[1] < 0:
            return start + 20.0 * _away(start)
        node = 1
        while before[node] != 0:
            node = int(before[node])
        stop: Points = nodes[node]
        return stop


def _contacts() -> tuple[Points, Points]:
    """Points on the outline that the agent can touch, and their inward normals (N, 2), block frame."""
    points, normals = [], []
    for start, end in zip(_OUTLINE, np.roll(_OUTLINE, -1, axis=0), strict=True):
        length = float(np.linalg.norm(end - start))
        along = (end - start) / length
        normal = np.asarray([-along[1], along[0]])
        for offset in np.linspace(4.0, length - 4.0, int(length // 8)):
            point = start + along * offset
            if _distance(point - normal * (_AGENT_RADIUS + 1.0)) >= _AGENT_RADIUS - 0.5:
                points.append(point)
                normals.append(normal)
    return np.asarray(points), np.asarray(normals)


def _distance(points: Points) -> Points:
    """Distance (...) of points (..., 2) in the block frame from the block; 0 inside."""

    def from_box(box: Points) -> Points:
        outside = np.maximum(0.0, np.maximum(box[0] - points, points - box[1]))
        return np.asarray(np.linalg.norm(outside, axis=-1))

    return np.minimum(from_box(_BAR), from_box(_STEM))


def _away(point: Points) -> Points:
    """Unit direction (2,) in which the distance from the block grows fastest, estimated over two pixels."""
    slope = np.asarray([_distance(point + step) - _distance(point - step) for step in np.eye(2)])
    return np.asarray(slope / (np.linalg.norm(slope) + 1e-9))


def _rotation(angle: float) -> Points:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray([[cos, -sin], [sin, cos]])


def _place(points: Points, pose: Points) -> Points:
    """Points (N, 2) of the block frame on the board, for a block at pose (x, y, angle)."""
    return points @ _rotation(pose[2]).T + pose[:2]
