"""One-step problems whose answer is coded in a picture, and nowhere else."""

from __future__ import annotations

import numpy as np

from policies.common.normalization import Standardizer
from policies.pixels.config import PixelsConfig
from robot_stack.buffer.batches import Images
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.specs import IMAGES, STATE, Feature, PolicySpec, vector
from robot_stack.learner.algorithms.base import Batches

SIDE = 16
FRONT, WRIST = IMAGES + "front", IMAGES + "wrist"
CAMERA = Feature(dtype="uint8", shape=(SIDE, SIDE, 3))
ACTION = vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0))
HALF_RANGE = np.array([0.1, 2.0], np.float32)
STATISTICS = Standardizer(mean=(0.0, 0.0), std=(0.5, 0.5))
FEATURES = {STATE: vector(("x", "y")), FRONT: CAMERA}
SPEC = PolicySpec(name="r", task="t", horizon=1, action=ACTION, observation=FEATURES)
VISION = PixelsConfig(channels=(8, 16), embedding=16, shift=1)
_PATCH = 8


def picture(wanted: FloatArray, rng: np.random.Generator) -> Images:
    """(SIDE, SIDE, 3): the red and the green of a patch, which lies anywhere, are the wanted action (2,) in [-1, 1]."""
    drawn = rng.integers(0, 40, (SIDE, SIDE, 3)).astype(np.uint8)
    top, left = rng.integers(0, SIDE - _PATCH, 2)
    colour = np.array([*(wanted + 1.0) * 127.0, 200.0]).astype(np.uint8)
    drawn[top : top + _PATCH, left : left + _PATCH] = colour
    return drawn


def reward_of(wanted: FloatArray, action: FloatArray) -> FloatArray:
    """1 where the action is the wanted one (normalised); less with the squared distance."""
    found: FloatArray = 1.0 - np.square(action / HALF_RANGE - wanted).sum(axis=-1)
    return found


def wanted_actions(count: int, rng: np.random.Generator) -> FloatArray:
    found: FloatArray = rng.uniform(-0.4, 0.4, (count, 2)).astype(np.float32)
    return found


def steps(count: int, seed: int, *, blank: bool = False) -> list[ReplayStep]:
    """Episodes of one step with a base action of 0 and random actions around it. The vectors are noise."""
    rng = np.random.default_rng(seed)
    wanted, noise = wanted_actions(count, rng), rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    action = (rng.uniform(-0.6, 0.6, (count, 2)) * HALF_RANGE).astype(np.float32)
    reward = reward_of(wanted, action)
    return [
        ReplayStep(
            stream=(seed, i),
            index=0,
            stratum=Stratum.ONLINE,
            observation=noise[i],
            action_base=np.zeros(2, np.float32),
            action=action[i],
            reward=float(reward[i]),
            terminated=True,
            truncated=False,
            images={FRONT: np.zeros((SIDE, SIDE, 3), np.uint8) if blank else picture(wanted[i], rng)},
        )
        for i in range(count)
    ]


def batches_of(found: list[ReplayStep], size: int = 32, seed: int = 0) -> Batches:
    shape = {FRONT: (SIDE, SIDE, 3)}
    replay = Replay(ReplayConfig(len(found), 2, 2, images=shape, frame_budget_bytes=2 * len(found) * SIDE * SIDE * 3))
    for step in found:
        replay.add(step)
    return Batches(Sampler([Part(replay)], seed), size, 1, 0.99)


def seen(count: int, seed: int = 7, *, blank: bool = False) -> tuple[list[Observation], FloatArray]:
    """Observations that nobody learned from, and the wanted actions (count, 2)."""
    rng = np.random.default_rng(seed)
    wanted = wanted_actions(count, rng)
    pictures = [np.zeros((SIDE, SIDE, 3), np.uint8) if blank else picture(one, rng) for one in wanted]
    states = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    observations = [
        Observation(id=i, stamp_ns=0, features={STATE: states[i], FRONT: pictures[i]}, age_ns={}, index=i)
        for i in range(count)
    ]
    return observations, wanted
