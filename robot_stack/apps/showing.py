"""Rollouts to look at, and a short run on the wall clock: what the report shows beside the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from robot_stack.apps.actors import load_improved
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.evaluate import (
    BASE,
    IMPROVED,
    evaluation_seeds,
    runner_of,
    trials,
)
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.rollouts import RemoteRunner, rollout_robot
from robot_stack.config.robots.gymnasium import GymnasiumConfig
from robot_stack.config.schema import StackConfig
from robot_stack.core.files import write_atomically
from robot_stack.core.messages import Array
from robot_stack.edge.control_loop import LoopStep
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.evaluation.results import EvaluationResult
from robot_stack.evaluation.video import Frames, side_by_side, write_gif

HOLD_FRAMES = 8


class WallClockRecord(Struct, frozen=True, kw_only=True):
    """Measured periods of the edge's control loop on the wall clock."""

    target_s: float
    periods_s: list[float]
    overruns: int
    ticks: int
    successes: int
    episodes: int


class _Film:
    """Takes one frame after every step."""

    def __init__(self, robot: RemoteRobot, camera: str) -> None:
        self._robot = robot
        self._camera = camera
        self.frames: list[Array] = []

    def on_step(self, step: LoopStep) -> None:
        self.frames.append(self._robot.image(self._camera))


def film_rollouts(
    config: StackConfig, overrides: Sequence[str], before: EvaluationResult, after: EvaluationResult
) -> list[Path]:
    """Side-by-side GIFs, base beside improved policy, of episodes where they differ; none without a camera."""
    layout = RunLayout.of(config)
    use_one_torch_thread()
    base = load_base_policy(config)
    improved = load_improved(config, base)
    planned = trials(config, improved)
    by_policy = {trial.subject.policy: trial for trial in reversed(planned)}
    if improved is None or config.evaluation.camera == "":
        return []
    seeds = _interesting_seeds(before, after)[: config.evaluation.videos]
    paths = [layout.evaluation / f"rollout-{seed}-v{improved.version}.gif" for seed in seeds]
    missing = [(seed, path) for seed, path in zip(seeds, paths, strict=True) if not path.exists()]
    if missing:
        with rollout_robot(config, overrides, "robot-server-film", base.spec) as robot:
            for seed, path in missing:
                clips = []
                for label in (BASE, IMPROVED):
                    runner = runner_of(config, robot, base, improved, by_policy[label])
                    clips.append(_film(robot, runner, config.evaluation.camera, seed))
                write_gif(path, side_by_side(*clips), config.robot.control_rate_hz)
    return paths


def _film(robot: RemoteRobot, runner: RemoteRunner, camera: str, seed: int) -> Frames:
    film = _Film(robot, camera)
    runner.observers.append(film)
    runner.run(seed)
    return np.stack(film.frames + [film.frames[-1]] * HOLD_FRAMES)


def _interesting_seeds(before: EvaluationResult, after: EvaluationResult) -> list[int]:
    """Failures of the improved policy last, what it newly solved first: one of those failures is shown too."""
    failed_before = {episode.seed for episode in before.episodes if not episode.success}
    solved = [episode.seed for episode in after.episodes if episode.success and episode.seed in failed_before]
    failed = [episode.seed for episode in after.episodes if not episode.success]
    return solved[:2] + failed[:1] + solved[2:] + [episode.seed for episode in after.episodes if episode.success]


def run_on_wall_clock(config: StackConfig, overrides: Sequence[str]) -> WallClockRecord | None:
    """A few episodes of the improved policy in real time; measured once and kept. None if none are wanted."""
    episodes = config.evaluation.wall_clock_episodes
    if episodes < 1 or isinstance(config.robot, GymnasiumConfig):
        return None
    layout = RunLayout.of(config)
    path = layout.evaluation / "wall_clock.json"
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=WallClockRecord)
    base = load_base_policy(config)
    improved = load_improved(config, base)
    trial = trials(config, improved)[1 if improved else 0]
    real_time = [*overrides, "robot.lock_step=false"]
    periods: list[float] = []
    overruns = ticks = successes = 0
    with rollout_robot(config, real_time, "robot-server-wall-clock", base.spec) as robot:
        for seed in evaluation_seeds(config, episodes):
            runner = runner_of(config, robot, base, improved, trial)
            successes += runner.run(seed).success
            if robot.pacer is not None:
                periods += robot.pacer.periods_s()
                overruns += robot.pacer.overruns
                ticks += robot.pacer.ticks
    record = WallClockRecord(
        target_s=1.0 / config.robot.control_rate_hz,
        periods_s=periods,
        overruns=overruns,
        ticks=ticks,
        successes=successes,
        episodes=episodes,
    )
    write_atomically(path, msgspec.json.encode(record))
    return record
