"""Demonstrations of a scripted expert on a simulated robot, without processes.

As `robot-stack collect` does it: noise is added to what is executed, not to what is learned (DART, arXiv 1703.09327),
and only episodes that succeeded are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.inference.lane import Lane
from benchmarks.inference.rollouts import MakeRobot
from hardware.sim.experts import Expert
from policies.common.features import flatten
from robot_stack.apps.seeds import demonstration_seed
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import Features, FloatArray
from robot_stack.core.specs import Feature, RobotSpec
from robot_stack.learner.imitation_data import DemonstrationArrays

MakeExpert = Callable[[RobotSpec], Expert]
MOST_ATTEMPTS_PER_EPISODE = 20


class ExpertEpisode:
    """What an expert saw and meant to do; `success` is the task's verdict."""

    def __init__(self, lane: Lane, expert: Expert, noise: float, seed: int) -> None:
        self.features: list[Features] = []
        self.actions: list[FloatArray] = []
        action = lane.guard.spec.action
        lower, upper = action.lower_array(), action.upper_array()
        lane.reset(seed)
        expert.reset(seed)
        while not lane.ended:
            if lane.state.ground_truth is None:
                raise RobotError(
                    f"{lane.guard.spec.name} tells no ground truth: scripted experts need a simulated robot"
                )
            wanted = expert.act(lane.state.features, lane.state.ground_truth)
            self.features.append(lane.state.features)
            self.actions.append(wanted)
            drawn = np.random.default_rng((seed, lane.index)).standard_normal(len(lower))
            disturbed = wanted + (noise * (upper - lower) * drawn).astype(np.float32)
            lane.step(np.clip(disturbed, lower, upper))
        self.success = lane.success


def collect(
    make_robot: MakeRobot,
    make_expert: MakeExpert,
    features: Mapping[str, Feature],
    episodes: int,
    noise: float,
    seed: int,
    on_episode: Callable[[bool], None] = lambda success: None,
) -> DemonstrationArrays:
    """So many successful episodes, with the vector features listed; RobotError if the expert hardly ever succeeds."""
    lane = Lane(make_robot())
    expert = make_expert(lane.guard.spec)
    kept: list[ExpertEpisode] = []
    attempts = 0
    try:
        while len(kept) < episodes:
            if attempts >= MOST_ATTEMPTS_PER_EPISODE * episodes:
                raise RobotError(f"{len(kept)} of {episodes} demonstrations after {attempts} attempts: too much noise")
            episode = ExpertEpisode(lane, expert, noise, demonstration_seed(seed, attempts))
            attempts += 1
            on_episode(episode.success)
            if episode.success:
                kept.append(episode)
    finally:
        lane.close()
    return DemonstrationArrays(
        vector=np.stack([flatten(one, features) for episode in kept for one in episode.features]),
        action=np.stack([action for episode in kept for action in episode.actions]),
        episode_ends=np.cumsum([len(episode.actions) for episode in kept], dtype=np.int64),
    )


def save(path: Path, data: DemonstrationArrays) -> None:
    """Keep demonstrations without images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, vector=data.vector, action=data.action, episode_ends=data.episode_ends)
    partial.replace(path)


def load(path: Path) -> DemonstrationArrays:
    """What `save` kept."""
    with np.load(path, allow_pickle=False) as arrays:
        return DemonstrationArrays(
            vector=arrays["vector"], action=arrays["action"], episode_ends=arrays["episode_ends"]
        )
