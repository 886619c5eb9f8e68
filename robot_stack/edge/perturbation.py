"""When a robot is stuck, and what shakes it loose: noise for some steps until it sees something new.

R3L (arXiv 2004.12570) practises without resets with a second policy that looks for novel states. Here the novelty of a
position is its distance to those that the episode has been at, and what looks for more of it is noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.specs import STATE, Feature, RobotSpec
from robot_stack.edge.control_loop import Corrector
from robot_stack.edge.reset_free_config import PracticeConfig

_NOISE = 1  # beside the exploration's own stream of random numbers


class Novelty:
    """Counts the steps since the last novel position of an episode."""

    def __init__(self, config: PracticeConfig, spec: RobotSpec) -> None:
        names = spec.observation[STATE].names if STATE in spec.observation else ()
        radius_of = {"_m": config.novel_m, "_rad": config.novel_rad}
        chosen = [
            (index, radius)
            for index, name in enumerate(names)
            for ending, radius in radius_of.items()
            if name.startswith(config.stuck_prefixes) and name.endswith(ending)
        ]
        if not chosen:
            raise ConfigError(
                f"practice.stuck_prefixes {config.stuck_prefixes} fit none of the positions of {spec.name}, which are "
                f"{', '.join(name for name in names if name.endswith(('_m', '_rad'))) or 'none'}"
            )
        self._indices = np.array([index for index, _ in chosen])
        self._radius = np.array([radius for _, radius in chosen])
        self._seen: list[NDArray[np.float64]] = []
        self.stale_steps = 0

    def begin(self) -> None:
        self._seen.clear()
        self.stale_steps = 0

    def see(self, observation: Observation) -> None:
        """One more position (in the order of the steps)."""
        place = observation.features[STATE][self._indices] / self._radius
        is_novel = all(np.abs(place - seen).max() > 1.0 for seen in self._seen)
        self._seen.append(place)
        self.stale_steps = 0 if is_novel else self.stale_steps + 1


class Perturbing:
    """A corrector whose actions get strong noise while the robot is stuck; a `Corrector`.

    The noise is a pure function of run seed, episode seed and step. `perturbations`: how often it began.
    """

    def __init__(self, corrector: Corrector, config: PracticeConfig, spec: RobotSpec, seed: int) -> None:
        self._corrector = corrector
        self._config = config
        self._novelty = Novelty(config, spec)
        self._bounds: Feature = spec.action
        self._seed = seed
        self._left = 0
        self.perturbations = 0

    @property
    def version(self) -> int:
        return self._corrector.version

    def refresh(self) -> None:
        self._corrector.refresh()

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        action = self._corrector.correct(observation, action_base)
        if observation.index == 0:
            self._novelty.begin()
            self._left = 0
        self._novelty.see(observation)
        if self._left == 0 and self._novelty.stale_steps >= self._config.stuck_steps:
            self._left = self._config.perturb_steps
            self._novelty.stale_steps = 0
            self.perturbations += 1
        if self._left == 0:
            return action
        self._left -= 1
        return self._disturbed(observation, action)

    def _disturbed(self, observation: Observation, action: FloatArray) -> FloatArray:
        rng = np.random.default_rng((self._seed, observation.episode_seed, observation.index, _NOISE))
        lower, upper = self._bounds.lower_array(), self._bounds.upper_array()
        noise = (self._config.perturb_sigma * rng.standard_normal(len(lower))).astype(np.float32)
        disturbed: FloatArray = np.clip(action + (upper - lower) / 2 * noise, lower, upper)
        return disturbed
