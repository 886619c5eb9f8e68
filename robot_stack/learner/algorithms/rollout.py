"""What on-policy algorithms learn from: the steps of one version of the weights, as trajectories, and their advantages.

A trajectory is a stretch of consecutive steps of one stream. It ends where the episode does, or where somebody else
acted, a step is missing, or the rollout is over: then its last step, whose outcome is not known, is given up, and the
value of the state before that step stands for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from policies.common.store import check_shapes
from robot_stack.buffer.replay import ReplayStep
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Array, FloatArray, Step

Floats = NDArray[np.float64]
_Stream = tuple[str, str, str, int, int]

_GOES_ON, _TERMINATED, _TRUNCATED = 0, 1, 2
_FIRST_COUNT = 1e-4  # of the running variance, as in Gymnasium's NormalizeReward


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """T steps and the state after them; `observation` (T + 1, D) and `action_base` (T + 1, A) float32 with that state.

    `action` (T, A) float32: what was asked for. `reward` (T,) float64. After a termination the last state is zero.
    """

    observation: FloatArray
    action_base: FloatArray
    action: FloatArray
    reward: Floats
    terminated: bool

    def __len__(self) -> int:
        return len(self.reward)


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    stream: int
    index: int
    end: int
    observation: FloatArray
    action_base: FloatArray
    action: FloatArray
    reward: float
    final_observation: FloatArray
    final_action_base: FloatArray


class Rollout:
    """Steps in the order of recording, of any number of robots; D and A: sizes of observation and action."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        self._dims = observation_dim, action_dim
        self._streams: list[_Stream] = []
        self._steps: list[_Taken] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Step, replayed: ReplayStep) -> bool:
        """Take a step; False, and it is left out, if it holds a number that is not finite."""
        observation_dim, action_dim = self._dims
        end = _TERMINATED if step.terminated else _GOES_ON
        final_observation, final_base = np.zeros(observation_dim, np.float32), np.zeros(action_dim, np.float32)
        final = (replayed.final_observation, replayed.final_action_base)
        if end == _GOES_ON and step.truncated and final[0] is not None and final[1] is not None:
            end = _TRUNCATED  # with one of them missing, the state after the time-out has no value
            final_observation, final_base = final[0], final[1]
        vectors = (replayed.observation, step.action_base, step.action_asked, final_observation, final_base)
        if not (math.isfinite(step.reward) and all(np.isfinite(vector).all() for vector in vectors)):
            return False
        observation, action_base, action, final_observation, final_base = (np.array(v, np.float32) for v in vectors)
        stream = (step.run, step.robot, step.session, step.episode, step.segment)
        if stream not in self._streams:
            self._streams.append(stream)
        number = self._streams.index(stream)
        self._steps.append(
            _Taken(
                number, step.index, end, observation, action_base, action, step.reward, final_observation, final_base
            )
        )
        return True

    def clear(self) -> None:
        self._streams, self._steps = [], []

    def trajectories(self) -> list[Trajectory]:
        """All there are, in the order of their streams' first steps; those of no known outcome are left out."""
        made = [_trajectory(stretch) for stretch in self._stretches()]
        return [one for one in made if len(one) > 0]

    def _stretches(self) -> list[list[_Taken]]:
        stretches: list[list[_Taken]] = []
        for number in range(len(self._streams)):
            before: _Taken | None = None
            for taken in (one for one in self._steps if one.stream == number):
                if before is None or before.end != _GOES_ON or taken.index != before.index + 1:
                    stretches.append([])
                stretches[-1].append(taken)
                before = taken
        return stretches

    # ---- state ----

    def state(self) -> dict[str, Array]:
        """Everything that was taken, as named arrays."""
        steps, (observation_dim, action_dim) = self._steps, self._dims
        return {
            "streams": np.frombuffer(msgspec.json.encode(self._streams), np.uint8).copy(),
            "numbers": np.array([(one.stream, one.index, one.end) for one in steps], np.int64).reshape(-1, 3),
            "reward": np.array([one.reward for one in steps], np.float64),
            "observation": _stacked([one.observation for one in steps], observation_dim),
            "action_base": _stacked([one.action_base for one in steps], action_dim),
            "action": _stacked([one.action for one in steps], action_dim),
            "final_observation": _stacked([one.final_observation for one in steps], observation_dim),
            "final_action_base": _stacked([one.final_action_base for one in steps], action_dim),
        }

    def load_state(self, tensors: Mapping[str, Array]) -> None:
        """Go on from `state`; PolicyError if it is none, or of another robot."""
        count = len(tensors.get("reward", ()))
        observation, action = (count, self._dims[0]), (count, self._dims[1])
        shapes: dict[str, tuple[int, ...]] = {
            "streams": tensors["streams"].shape if "streams" in tensors else (0,),
            "numbers": (count, 3),
            "reward": (count,),
            "observation": observation,
            "action_base": action,
            "action": action,
            "final_observation": observation,
            "final_action_base": action,
        }
        check_shapes(tensors, shapes, "rollout of the learner's state")
        try:
            self._streams = msgspec.json.decode(tensors["streams"].tobytes(), type=list[_Stream])
        except msgspec.DecodeError as error:
            raise PolicyError(f"rollout of the learner's state: its streams cannot be read: {error}") from error
        rows = {name: np.array(tensors[name], np.float32) for name, shape in shapes.items() if len(shape) == 2}
        self._steps = [
            _Taken(
                int(tensors["numbers"][row, 0]),
                int(tensors["numbers"][row, 1]),
                int(tensors["numbers"][row, 2]),
                rows["observation"][row],
                rows["action_base"][row],
                rows["action"][row],
                float(tensors["reward"][row]),
                rows["final_observation"][row],
                rows["final_action_base"][row],
            )
            for row in range(count)
        ]


def _trajectory(steps: list[_Taken]) -> Trajectory:
    last = steps[-1]
    open_ended = last.end == _GOES_ON
    kept = steps[:-1] if open_ended else steps
    observation = last.observation if open_ended else last.final_observation
    action_base = last.action_base if open_ended else last.final_action_base
    return Trajectory(
        observation=np.stack([*(one.observation for one in kept), observation]),
        action_base=np.stack([*(one.action_base for one in kept), action_base]),
        action=_stacked([one.action for one in kept], len(last.action)),
        reward=np.array([one.reward for one in kept], np.float64),
        terminated=last.end == _TERMINATED,
    )


def _stacked(vectors: list[FloatArray], width: int) -> FloatArray:
    return np.array(vectors, np.float32).reshape(len(vectors), width)


def advantages(reward: Floats, value: Floats, *, terminated: bool, discount: float, trace: float) -> Floats:
    """Generalised advantages (T,) of T steps (J. Schulman et al., arXiv 1506.02438; `trace` is its lambda).

    `value` (T + 1,): of every state and of the one after the last step, which counts for nothing after a termination.
    """
    following = value[1:].copy()
    if terminated:
        following[-1] = 0.0
    errors = reward + discount * following - value[:-1]
    found: Floats = np.empty_like(errors)
    later = 0.0
    for t in range(len(errors) - 1, -1, -1):
        later = errors[t] + discount * trace * later
        found[t] = later
    return found


class RewardScale:
    """Divides rewards by the running standard deviation of discounted returns, and clips what is left.

    So values and learning rates fit tasks whatever the size of their rewards. As Gymnasium's NormalizeReward.
    """

    def __init__(self, discount: float, clip: float) -> None:
        self._discount, self._clip = discount, clip
        self._mean, self._variance, self._count = 0.0, 1.0, _FIRST_COUNT

    def see(self, rewards: list[Floats]) -> None:
        """Take the rewards of trajectories into account."""
        returns: list[float] = []
        for trajectory in rewards:
            total = 0.0
            for reward in trajectory:
                total = self._discount * total + float(reward)
                returns.append(total)
        count, mean, variance = len(returns), float(np.mean(returns)), float(np.var(returns))
        all_of_them, apart = self._count + count, mean - self._mean
        squares = self._variance * self._count + variance * count + apart**2 * self._count * count / all_of_them
        self._mean += apart * count / all_of_them
        self._variance, self._count = squares / all_of_them, all_of_them

    def __call__(self, reward: Floats) -> Floats:
        scaled: Floats = np.clip(reward / math.sqrt(self._variance + 1e-8), -self._clip, self._clip)
        return scaled

    def state(self) -> Floats:
        return np.array([self._mean, self._variance, self._count])

    def load_state(self, state: Array) -> None:
        self._mean, self._variance, self._count = (float(value) for value in state)
