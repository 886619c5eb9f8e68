"""Scripted operators: they watch a policy, see failure coming in the true scene, and take over as a person would.

They stand in for people where human corrections are measured in simulation: same moments, same kinds of motion, and the
same answers in every repetition. Like the experts that they correct with, they drive the action space `ee_delta`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from hardware.sim.experts import Expert, make_expert
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Features, FloatArray, Source
from robot_stack.core.specs import STATE, RobotSpec

FloatVector = NDArray[np.float64]

Mode = Literal["rac", "hg_dagger", "full_demonstrations"]

_PEG_DEPTH_M = 0.020
_LIFTED_CUBE_M = 0.120
_SAME_WIDTH_M = 0.005
_REACHED_M = 0.004
_LIFT_STEPS = 3


class OperatorConfig(Struct, frozen=True, kw_only=True):
    """How a scripted operator behaves. "Distance" is the task's own measure of what is left to do, in metres.

    Attributes:
        mode: `rac` rewinds to before the failure and then corrects to the end of the episode (arXiv 2509.07953);
            `hg_dagger` corrects at once and hands back when there is progress again (arXiv 1810.02890);
            `full_demonstrations` drives from the first step.
        patience_steps: takes over after so many steps in a row without progress; its own correction begins again,
            higher up, after as many.
        progress_m: a smallest distance so far that is smaller by this much is progress.
        reserve_steps: takes over when less time is left than the way and so many steps need.
        back_off_m: rewinds to where the distance was larger by so much than the smallest one that was reached.
        max_rewind_steps: corrects from where it is after so many steps of rewinding.
        hand_back_m: (`hg_dagger`) hands back when the distance is smaller by so much than before.
        noise: standard deviation of noise on every action of its own, as a share of the action's range.
        budget_steps: takes over no more once it has driven for so many steps; -1 for no limit. An intervention that
            is under way goes on to its end.
    """

    mode: Mode = "rac"
    patience_steps: int = 8
    progress_m: float = 0.001
    reserve_steps: int = 14
    back_off_m: float = 0.02
    max_rewind_steps: int = 15
    hand_back_m: float = 0.008
    noise: float = 0.0
    budget_steps: int = -1

    def __post_init__(self) -> None:
        if self.patience_steps < 1 or self.reserve_steps < 0 or self.max_rewind_steps < 1:
            raise ConfigError("an operator's patience_steps and max_rewind_steps must be 1 or more, reserve_steps >= 0")
        if min(self.progress_m, self.back_off_m, self.hand_back_m) <= 0.0 or self.noise < 0.0:
            raise ConfigError("an operator's progress_m, back_off_m and hand_back_m must be above 0, noise 0 or more")


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the operator does instead of the policy: an action (A,) inside its bounds, and what it is for."""

    action: FloatArray
    source: Source


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the robot was: tool position (3,) m, heading rad, wanted gripper width m (0 without one), distance left."""

    position_m: FloatVector
    yaw_rad: float
    gripper_m: float
    distance_m: float


class _Watch:
    """The way of the present episode, and whether it still leads anywhere."""

    def __init__(self, config: OperatorConfig) -> None:
        self._config = config
        self.path: list[_Place] = []
        self._best = 0
        self._stalled_steps = 0

    @property
    def stalled(self) -> bool:
        return self._stalled_steps >= self._config.patience_steps

    @property
    def best_m(self) -> float:
        return self.path[self._best].distance_m

    def saw(self, place: _Place) -> None:
        self.path.append(place)
        if len(self.path) == 1:
            return
        if place.distance_m < self.best_m - self._config.progress_m:
            self._best, self._stalled_steps = len(self.path) - 1, 0
        else:
            self._stalled_steps += 1

    def be_patient(self) -> None:
        """The operator's own steps changed the scene: progress counts from here."""
        self._best, self._stalled_steps = len(self.path) - 1, 0

    def way_back(self) -> list[_Place]:
        """The path from the place to rewind to, up to here. That place was reached on the way to the best one, with the
        hand as it was when the episode began."""
        start, wanted_m = self.path[0], self.best_m + self._config.back_off_m
        for index in range(self._best, 0, -1):
            place = self.path[index]
            if place.distance_m >= wanted_m and abs(place.gripper_m - start.gripper_m) < _SAME_WIDTH_M:
                return self.path[index:]
        return list(self.path)


class ScriptedOperator:
    """Takes over a task's robot when its policy is about to fail; a pure function of the episode it is shown.

    `act` at every step, then `lets_go` after each step of its own. `steps` counts these over all episodes. A correction
    that gets stuck itself goes straight up for some steps and begins again.
    """

    def __init__(
        self,
        spec: RobotSpec,
        expert: Expert,
        distance_m: Callable[[FloatVector, Features], float],
        config: OperatorConfig,
    ) -> None:
        self._spec, self._expert, self._distance_m, self._config = spec, expert, distance_m, config
        self._lower, self._upper = spec.action.lower_array(), spec.action.upper_array()
        self._step_m = float(self._upper[0])
        self._watch = _Watch(config)
        self._doing: Source | None = None
        self._back: list[_Place] = []
        self._rewound = self._lifting = 0
        self._index = self._seed = 0
        self._taken_over_m = 0.0
        self.steps = 0

    def begin(self, seed: int) -> None:
        """An episode begins; `seed` draws its noise."""
        self._expert.reset(seed)
        self._watch = _Watch(self._config)
        self._doing, self._back = None, []
        self._rewound = self._lifting = 0
        self._index, self._seed = 0, seed

    def act(self, features: Features, ground_truth: Features) -> Takeover | None:
        """What it does at this step; None to let the policy act."""
        place = self._place(features, ground_truth)
        self._watch.saw(place)
        if self._doing is None and self._wants_to(place):
            self._take_over(place)
        elif self._doing is Source.HUMAN_RECOVERY and self._is_back(place):
            self._correct()
        self._index += 1
        if self._doing is None:
            return None
        self.steps += 1
        if self._doing is Source.HUMAN_RECOVERY:
            return Takeover(self._noisy(self._rewind(features)), self._doing)
        if self._is_stuck():
            return Takeover(self._noisy(self._action(np.array([0.0, 0.0, self._step_m]), 0.0)), self._doing)
        return Takeover(self._noisy(self._expert.act(features, ground_truth)), self._doing)

    def lets_go(self, features: Features, ground_truth: Features, *, success: bool) -> bool:
        """Whether its intervention is over with the step that led here."""
        if success:
            return True
        place = self._place(features, ground_truth)
        regained = place.distance_m < self._taken_over_m - self._config.hand_back_m
        if self._config.mode != "hg_dagger" or not regained or self._late(place):
            return False
        self._doing = None
        self._watch.be_patient()
        return True

    # ---- when -------------------------------------------------------------------------------------------------

    def _wants_to(self, place: _Place) -> bool:
        if 0 <= self._config.budget_steps <= self.steps:
            return False
        if self._config.mode == "full_demonstrations":
            return self._index == 0
        return self._watch.stalled or self._late(place)

    def _late(self, place: _Place) -> bool:
        rewind_m = 2 * self._config.back_off_m if self._config.mode == "rac" else 0.0
        needed = (place.distance_m + rewind_m) / self._step_m + self._config.reserve_steps
        return self._spec.max_episode_steps - self._index < needed

    def _take_over(self, place: _Place) -> None:
        self._taken_over_m = min(place.distance_m, self._watch.best_m)
        if self._config.mode == "rac":
            self._doing, self._back, self._rewound = Source.HUMAN_RECOVERY, self._watch.way_back(), 0
        else:
            self._correct()

    def _correct(self) -> None:
        self._doing, self._lifting = Source.HUMAN_CORRECTION, 0
        self._watch.be_patient()

    def _is_stuck(self) -> bool:
        """Its correction came to nothing a moment ago."""
        if self._lifting == 0 and self._watch.stalled:
            self._lifting = _LIFT_STEPS
        elif self._lifting > 0:
            self._lifting -= 1
            if self._lifting == 0:
                self._watch.be_patient()
        return self._lifting > 0

    # ---- where ------------------------------------------------------------------------------------------------

    def _is_back(self, place: _Place) -> bool:
        """At least one step has been rewound, and the way back is done or takes too long."""
        target = self._back[0]
        there = float(np.linalg.norm(place.position_m - target.position_m)) < _REACHED_M
        return self._rewound > 0 and (there or self._rewound >= self._config.max_rewind_steps)

    def _rewind(self, features: Features) -> FloatArray:
        """One step back along the path: to the earliest place that one action reaches from the commanded one."""
        self._rewound += 1
        state = self._state(features)
        goal_m = np.array([state[f"tool_{axis}_m"] + state[f"goal_minus_tool_{axis}_m"] for axis in "xyz"])
        while len(self._back) > 1 and self._is_passed(goal_m):
            self._back.pop()
        target = self._back[-1]
        turn_rad = target.yaw_rad - state["tool_yaw_rad"] - state["goal_minus_tool_yaw_rad"]
        return self._action(target.position_m - goal_m, turn_rad)

    def _action(self, move_m: FloatVector, turn_rad: float) -> FloatArray:
        """Move the commanded tool, with an open hand: what it held it failed to hold."""
        parts = dict(zip(("dx_m", "dy_m", "dz_m"), move_m, strict=True)) | {"dyaw_rad": turn_rad, "gripper": 1.0}
        action = np.array([parts.get(name, 0.0) for name in self._spec.action.names])
        return np.clip(action, self._lower, self._upper).astype(np.float32)

    def _is_passed(self, goal_m: FloatVector) -> bool:
        """The robot is at the newest place of the way back, or the one before it is within reach of one action."""
        here, before = (np.abs(place.position_m - goal_m).max() for place in (self._back[-1], self._back[-2]))
        return bool(here < _REACHED_M or before <= self._step_m)

    def _noisy(self, action: FloatArray) -> FloatArray:
        if self._config.noise == 0.0:
            return action
        rng = np.random.default_rng((self._seed, self._index))
        noise = self._config.noise * (self._upper - self._lower) * rng.standard_normal(len(action))
        return np.clip(action + noise, self._lower, self._upper).astype(np.float32)

    def _place(self, features: Features, ground_truth: Features) -> _Place:
        state = self._state(features)
        position_m = np.array([state[f"tool_{axis}_m"] for axis in "xyz"])
        gripper_m = state.get("gripper_goal_width_m", 0.0)
        return _Place(position_m, state["tool_yaw_rad"], gripper_m, self._distance_m(position_m, ground_truth))

    def _state(self, features: Features) -> dict[str, float]:
        return dict(zip(self._spec.observation[STATE].names, map(float, features[STATE]), strict=True))


def _to_inserted_m(tool_m: FloatVector, ground_truth: Features) -> float:
    """From the peg's tip to where the task calls it inserted."""
    return float(np.linalg.norm(ground_truth["tip_in_socket_m"] + np.array([0.0, 0.0, _PEG_DEPTH_M])))


def _to_lifted_m(tool_m: FloatVector, ground_truth: Features) -> float:
    """From the tool to the cube, and from there up to where the task calls it lifted."""
    cube = ground_truth["cube_position_m"]
    return float(np.linalg.norm(cube - tool_m)) + max(0.0, _LIFTED_CUBE_M - float(cube[2]))


_DISTANCES: dict[str, Callable[[FloatVector, Features], float]] = {
    "peg_insertion": _to_inserted_m,
    "pick_cube": _to_lifted_m,
}


def make_operator(task: str, spec: RobotSpec, config: OperatorConfig | None = None) -> ScriptedOperator:
    """The scripted operator of a task, for a robot with that spec; ConfigError if there is none."""
    if task not in _DISTANCES:
        raise ConfigError(
            f"there is no scripted operator for task '{task}'; operators exist for {', '.join(_DISTANCES)}"
        )
    return ScriptedOperator(spec, make_expert(task, spec), _DISTANCES[task], config or OperatorConfig())
