"""Random numbers of steering: like a policy's own, a pure function of (episode_seed, index) of the observation."""

from __future__ import annotations

import numpy as np

from robot_stack.core.messages import Observation

CANDIDATES = 1
CHOICE = 2


def generator(observation: Observation, stream: int, number: int = 0) -> np.random.Generator:
    """Independent for every stream and number, and of the noise that the policy itself draws."""
    # SeedSequence takes no negative numbers; a real robot's episode has seed -1.
    entropy = [part & 0xFFFF_FFFF_FFFF_FFFF for part in (observation.episode_seed, observation.index)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy, spawn_key=(stream, number))))
