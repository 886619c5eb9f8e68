"""From the newest sample of every device to one Observation: a reference time, and an age for every field.

Alignment policy: the robot state's capture time is the reference time; a field that was captured earlier has a
positive age. A robot state older than `max_age_s` at the moment of use is refused, never used silently.
"""

from __future__ import annotations

from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Observation, RobotState
from robot_stack.core.specs import RobotSpec


class Aligner:
    """Builds observations of one robot; ids count up over the life of the edge."""

    def __init__(self, spec: RobotSpec, max_age_s: float) -> None:
        self._robot = spec.name
        self._keys = tuple(spec.observation)
        self._max_age_s = max_age_s
        self._next_id = 0

    def observe(self, state: RobotState, age_ns: int, episode_seed: int, index: int) -> Observation:
        """The observation of step `index`; RobotError if the state is stale or lacks a feature of the spec."""
        if age_ns > self._max_age_s * 1e9:
            raise RobotError(
                f"the newest state of {self._robot} is {age_ns / 1e6:.0f} ms old (allowed: {self._max_age_s * 1e3:.0f} "
                "ms); the policy pauses. Check the robot server and the network"
            )
        missing = [key for key in self._keys if key not in state.features]
        if missing:
            raise RobotError(
                f"{self._robot} sent no {', '.join(missing)}" + (f": {state.fault}" if state.fault else "")
            )
        self._next_id += 1
        return Observation(
            id=self._next_id,
            stamp_ns=state.stamp_ns,
            features={key: state.features[key] for key in self._keys},
            age_ns=dict.fromkeys(self._keys, age_ns),
            episode_seed=episode_seed,
            index=index,
        )
