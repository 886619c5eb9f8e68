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
_GAP = 10.0  # between agent and block where a push begins, and around the corners
_CLEAR = _AGENT_RADIUS + 3.0
_BOARD = (10.0, 502.0)
_BAR = np.asarray([[-60.0, 0.0], [60.0, 30.0]])
_STEM = np.asarray([[-15.0, 30.0], [15.0, 120.0]])
_OUTLINE = np.asarray([[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], np.float64)
_MASS_CENTRE = np.asarray([0.0, 45.0])
_INERTIA = 3000.0  # per unit of mass, as gym-pusht sets it
_DEPTHS = np.asarray([0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 14, 18, 24, 32, 48, 64, 90])
_CONTACTS = np.asarray(  # on the outline, and which way the block is pushed there
    [
        *[(-45, 0, 0, 1), (0, 0, 0, 1), (45, 0, 0, 1)],
        *[(60, 15, -1, 0), (-60, 15, 1, 0), (42, 30, 0, -1), (-42, 30, 0, -1)],
        *[(15, 50, -1, 0), (-15, 50, 1, 0), (15, 105, -1, 0), (-15, 105, 1, 0), (0, 120, 0, -1)],
    ],
    np.float64,
)
_CORNERS = np.asarray([[-85, -25], [85, -25], [85, 55], [40, 145], [-40, 145], [-85, 55]], np.float64)


class PushTExpert:
    """Pushes the T towards its goal, at one of twelve places of it at a time.

    The simulated contact has no friction and the block's velocity dies within a step. So a push of depth d at a
    contact with inward normal n and lever torque t = r x n moves the centre of mass by d n / (1 + t^2 / I) and
    turns the block by t / I of that length. The expert takes the contact whose best push brings the T nearest to its
    goal for its depth; it walks there around the block and pushes.

    It is made to be imitated: it remembers nothing, so its action is a function of what a policy sees. While it walks,
    the block lies still and so does its choice; at a contact it goes on there, since the contact at hand counts for
    more. There are few contacts, so that little is to be told apart; and where it walks to and pushes at are places
    fixed to the block, which depend linearly on the block's corners.

    Args:
        reach: 0 for a robot whose actions are targets; else its actions are offsets from the agent of at most this, in
            each direction (pixels), and a target further away is approached along the straight line to it.
    """

    AT_HAND = 3.0  # how much more the contact that the agent stands at counts
    START_COST = 60.0  # of a push, in pixels of depth
    PUSH_GAIN = 1.6  # how far ahead of the touch the target lies, for each pixel to push; the agent lags its target
    PUSH_AHEAD = (6.0, 22.0)
    SIDEWAYS = 8.0
    INWARDS = (-15.0, 10.0)  # at a contact is who stands no further aside of it and within these of touching

    def __init__(self, reach: float = 0.0) -> None:
        self._reach = reach
        points, self._normals = _CONTACTS[:, :2], _CONTACTS[:, 2:]
        arms = points - _MASS_CENTRE
        self._torques = arms[:, 0] * self._normals[:, 1] - arms[:, 1] * self._normals[:, 0]
        self._touches = points - self._normals * _AGENT_RADIUS
        self._stops = np.vstack([self._touches - self._normals * _GAP, _CORNERS])
        self._lengths = np.stack([_ways(stop, self._stops, _CLEAR) for stop in self._stops])

    def reset(self, seed: int) -> None:
        pass

    def act(self, features: Features, ground_truth: Features) -> FloatArray:
        """Target position of the agent (2,), or offset to it, pixels, from the true poses of agent, block and goal."""
        block = ground_truth["info.block_pose"].astype(np.float64)
        goal = ground_truth["info.goal_pose"].astype(np.float64)
        agent = (ground_truth["info.pos_agent"].astype(np.float64) - block[:2]) @ _rotation(block[2])
        at_hand = self._at_hand(agent)
        distance, before = self._walks(agent, block)
        gain, depth = self._promises(block, goal)
        score = gain / (depth + self.START_COST) * np.where(at_hand, self.AT_HAND, 1.0)
        score[~at_hand & ~np.isfinite(distance)] = -np.inf
        chosen = int(score.argmax())
        if not np.isfinite(score[chosen]):
            target = agent + 20.0 * _away(agent)
        elif at_hand[chosen]:
            ahead = np.clip(self.PUSH_GAIN * depth[chosen], *self.PUSH_AHEAD)
            target = self._touches[chosen] + self._normals[chosen] * ahead
        else:
            target = self._stops[_first_stop(before, chosen)]
        on_board = np.clip(_place(target[None], block)[0], *_BOARD)
        if not self._reach:
            return np.asarray(on_board, dtype=np.float32)
        offset = on_board - ground_truth["info.pos_agent"]
        share = min(1.0, self._reach / max(1e-6, float(np.linalg.norm(offset))))
        return np.asarray(offset * share, dtype=np.float32)

    def _promises(self, block: Points, goal: Points) -> tuple[Points, Points]:
        """For each contact the largest drop of the root mean square corner error (px), and the push for it (px)."""
        travel = _DEPTHS[:, None] / (1.0 + self._torques**2 / _INERTIA)
        turned = block[2] + self._torques * travel / _INERTIA - goal[2]
        corners = _OUTLINE - _MASS_CENTRE
        middle = corners.mean(axis=0) + _MASS_CENTRE
        spread = np.mean(np.sum((corners - corners.mean(axis=0)) ** 2, axis=1))
        centre = _place(_MASS_CENTRE[None], block)[0] + travel[..., None] * (self._normals @ _rotation(block[2]).T)
        cos, sin = np.cos(turned + goal[2]), np.sin(turned + goal[2])
        lever = middle - _MASS_CENTRE
        offset = centre - _place(middle[None], goal)[0]
        offset += np.stack([cos * lever[0] - sin * lever[1], sin * lever[0] + cos * lever[1]], axis=-1)
        errors = np.sqrt(np.sum(offset**2, axis=-1) + 2.0 * spread * (1.0 - np.cos(turned)))
        now = np.sqrt(np.sum((_place(_OUTLINE, block) - _place(_OUTLINE, goal)) ** 2, axis=1).mean())
        return now - errors.min(axis=0), _DEPTHS[errors.argmin(axis=0)]

    def _at_hand(self, agent: Points) -> NDArray[np.bool_]:
        """Which contacts the agent stands at (block frame)."""
        away = agent - self._touches
        inwards = np.sum(away * self._normals, axis=1)
        sideways = np.linalg.norm(away - inwards[:, None] * self._normals, axis=1)
        at_hand: NDArray[np.bool_] = (
            (sideways < self.SIDEWAYS) & (inwards > self.INWARDS[0]) & (inwards < self.INWARDS[1])
        )
        return at_hand

    def _walks(self, agent: Points, block: Points) -> tuple[Points, NDArray[np.int32]]:
        """Length (contacts,) of the ways to all contacts that keep clear of the block, and what is before each stop.

        Stop 0 is the agent, then come those of `_stops`; a negative stop is none.
        """
        lengths = np.zeros((1 + len(self._stops), 1 + len(self._stops)))
        # From where it stands the agent may leave along any line that comes no nearer.
        lengths[0, 1:] = _ways(agent, self._stops, min(_CLEAR, float(_distance(agent)) - 1.0))
        lengths[1:, 1:] = self._lengths
        on_board = _place(self._stops, block)
        lengths[:, 1:][:, np.any((on_board < _BOARD[0]) | (on_board > _BOARD[1]), axis=1)] = np.inf
        distance, before = shortest_path(lengths, method="D", indices=0, return_predecessors=True)
        return distance[1 : 1 + len(self._touches)], before


def _first_stop(before: NDArray[np.int32], contact: int) -> int:
    """Number of the stop that comes first on the way from the agent to a contact."""
    stop = 1 + contact
    while before[stop] > 0:
        stop = int(before[stop])
    return stop - 1


def _ways(start: Points, ends: Points, clear: float) -> Points:
    """Lengths (N,) of the straight ways from `start` to `ends` (N, 2); infinity for those that come nearer than `clear`
    to the block after they began."""
    share = np.linspace(0.0, 1.0, 30)[1:, None]
    nearest = _distance(start * (1.0 - share) + ends[:, None] * share).min(axis=1)
    return np.where(nearest >= clear, np.linalg.norm(ends - start, axis=1), np.inf)


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
