"""How near a robot's parts come to each other, and where its guarded points are: the safety filter's look ahead.

Works on any compiled MuJoCo model of the robot alone. Distances are those of the model's primitives, which are fitted
to the vendor's outlines and carry no guarantee: the minimum distance has to allow for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hardware.sim.rendering import mujoco
from robot_stack.core.compiled import compiled
from robot_stack.core.errors import ConfigError
from robot_stack.core.protocols import Clearance, RobotGeometry, Setpoint

FloatVector = NDArray[np.float64]


def round_boxes(spec: mujoco.MjSpec, bodies: Iterable[str]) -> None:
    """Make every box of these bodies a capsule of its length and its middle width, before the model is compiled.

    MuJoCo 3.8 tells a wrong distance, often 0, for one pair of parallel boxes in twenty; a capsule's is right.
    """
    for body in bodies:
        for geom in spec.body(body).geoms:
            if geom.type == mujoco.mjtGeom.mjGEOM_BOX:
                _round(geom)


def _round(box: mujoco.MjsGeom) -> None:
    half = np.asarray(box.size, dtype=np.float64)
    _, middle, longest = np.argsort(half, kind="stable")
    along = np.zeros(3)
    along[longest] = 1.0
    turn, quat = np.empty(4), np.empty(4)
    mujoco.mju_quatZ2Vec(turn, along)
    mujoco.mju_mulQuat(quat, np.asarray(box.quat, dtype=np.float64), turn)
    box.size = (half[middle], max(half[longest] - half[middle] / 2, 0.001), 0.0)
    box.type = mujoco.mjtGeom.mjGEOM_CAPSULE
    box.quat = quat


@compiled
def _nearest_first(
    centres: FloatVector,
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    reach_m: FloatVector,
    cutoff_m: float,
    bounds_m: FloatVector,
    order: NDArray[np.intp],
) -> int:
    """Pairs of bounding spheres nearer than the cutoff, the nearest first: their distances and numbers; how many."""
    count = 0
    for pair in range(len(first)):
        x = centres[first[pair], 0] - centres[second[pair], 0]
        y = centres[first[pair], 1] - centres[second[pair], 1]
        z = centres[first[pair], 2] - centres[second[pair], 2]
        bound = np.sqrt(x * x + y * y + z * z) - reach_m[pair]
        if bound < cutoff_m:
            place = count
            while place > 0 and bounds_m[place - 1] > bound:
                bounds_m[place], order[place] = bounds_m[place - 1], order[place - 1]
                place -= 1
            bounds_m[place], order[place] = bound, pair
            count += 1
    return count


class SelfDistance:
    """Smallest distance between the bodies of chosen pairs; no pair may be of two boxes (`round_boxes`).

    Args:
        model: of the robot alone, its base at the origin.
        pairs: names of two bodies that may meet. Neighbours touch all the time, so leave them out.
        cutoff_m: distances above it are not told apart, which saves most of the work.
    """

    def __init__(self, model: mujoco.MjModel, pairs: Sequence[tuple[str, str]], cutoff_m: float) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.cutoff_m = cutoff_m
        geoms = [pair for first, second in pairs for pair in product(_geoms(model, first), _geoms(model, second))]
        self._first, self._second = np.asarray(geoms, dtype=np.intp).reshape(-1, 2).T.copy()
        boxes = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
        if (boxes[self._first] & boxes[self._second]).any():
            raise ConfigError("distances between two boxes are not reliable: use round_boxes on one of the bodies")
        self._reach_m = model.geom_rbound[self._first] + model.geom_rbound[self._second]
        self._pairs = list(zip(self._first.tolist(), self._second.tolist(), strict=True))
        self._bounds_m, self._order = np.zeros(len(self._pairs)), np.zeros(len(self._pairs), dtype=np.intp)
        self.at(self.data.qpos.copy())  # compiles before the first tick

    def at(self, qpos: FloatVector) -> float:
        """Distance in m at joint positions (nq,), negative if parts overlap, `cutoff_m` if it is that or more."""
        self.place(qpos)
        count = _nearest_first(
            self.data.geom_xpos, self._first, self._second, self._reach_m, self.cutoff_m, self._bounds_m, self._order
        )
        nearest_m = self.cutoff_m
        for bound_m, pair in zip(self._bounds_m[:count].tolist(), self._order[:count].tolist(), strict=True):
            if bound_m >= nearest_m:  # no pair is nearer than its bounding spheres
                break
            distance_m = mujoco.mj_geomDistance(self.model, self.data, *self._pairs[pair], nearest_m, None)
            nearest_m = min(nearest_m, distance_m)
        return float(nearest_m)

    def place(self, qpos: FloatVector) -> None:
        """Put the model, `data` with it, to joint positions (nq,): frames of bodies, geoms and sites."""
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)


def _geoms(model: mujoco.MjModel, body: str) -> range:
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body)
    if index < 0:
        raise ConfigError(f"the model has no body '{body}'")
    first = int(model.body_geomadr[index])
    return range(first, first + int(model.body_geomnum[index]))


class ModelGeometry(RobotGeometry):
    """A `RobotGeometry` from a model: guarded points are sites of it, and self-distances those of `SelfDistance`.

    Args:
        to_qpos: joint positions (nq,) of the model at a setpoint (S,).
        sites: names of the guarded points, in the order of `Clearance.points_m`.
        box_lower_m, box_upper_m: the box that guarded points stay in, base frame.
    """

    def __init__(
        self,
        distance: SelfDistance,
        to_qpos: Callable[[Setpoint], FloatVector],
        *,
        sites: Sequence[str],
        box_lower_m: Sequence[float],
        box_upper_m: Sequence[float],
        min_self_distance_m: float,
    ) -> None:
        missing = [site for site in sites if mujoco.mj_name2id(distance.model, mujoco.mjtObj.mjOBJ_SITE, site) < 0]
        if missing:
            raise ConfigError(f"the model has no site {', '.join(missing)}")
        self._distance = distance
        self._to_qpos = to_qpos
        self._sites = np.array([distance.model.site(site).id for site in sites], dtype=np.intp)
        self._box_lower_m = np.asarray(box_lower_m, dtype=np.float64)
        self._box_upper_m = np.asarray(box_upper_m, dtype=np.float64)
        self._min_self_distance_m = min_self_distance_m

    @property
    def box_lower_m(self) -> FloatVector:
        return self._box_lower_m

    @property
    def box_upper_m(self) -> FloatVector:
        return self._box_upper_m

    @property
    def min_self_distance_m(self) -> float:
        return self._min_self_distance_m

    def look(self, setpoint: Setpoint) -> Clearance:
        nearest_m = self._distance.at(self._to_qpos(setpoint))
        return Clearance(points_m=self._distance.data.site_xpos[self._sites], self_distance_m=nearest_m)
