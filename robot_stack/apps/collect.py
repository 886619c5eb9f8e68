"""Collect demonstrations: a scripted expert drives the robot through the robot server, and what is good is kept.

Noise is added to what the expert does, not to what is learned from it (DART, arXiv 1703.09327): the demonstrations
then also show how to come back from small errors. An interrupted collection continues where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from hardware.sim.experts import Expert
from robot_stack.apps.build import build_expert
from robot_stack.apps.cameras import observed_cameras
from robot_stack.apps.connections import remote_robot
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.seeds import demonstration_seed
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import NetworkConfig, StackConfig
from robot_stack.config.task import TaskConfig
from robot_stack.core.direction import Direction
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import FloatArray, Observation, RobotState, Source, Step
from robot_stack.core.specs import Feature
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, EpisodeSummary
from robot_stack.edge.outbox import pack_step
from robot_stack.edge.recorder import Recorder, RecordingId

logger = logging.getLogger(__name__)


class ExpertProposer:
    """A scripted expert as the control loop's proposer: a new action every step."""

    source = Source.EXPERT
    version = 0

    def __init__(self, expert: Expert) -> None:
        self._expert = expert

    def begin(self, seed: int) -> None:
        self._expert.reset(seed)

    def at_boundary(self, index: int) -> bool:
        return False

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        if state.ground_truth is None:
            raise RobotError("scripted experts need a simulated robot: this one gives no ground truth")
        return self._expert.act(state.features, state.ground_truth)


class ActionNoise:
    """Adds Gaussian noise to every action; a pure function of the episode's seed and the step."""

    version = 0

    def __init__(self, action: Feature, share_of_range: float) -> None:
        self._lower, self._upper = action.lower_array(), action.upper_array()
        self._sigma = share_of_range * (self._upper - self._lower)

    def refresh(self) -> None:
        """There are no weights to exchange."""

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        rng = np.random.default_rng((observation.episode_seed, observation.index))
        noise = (self._sigma * rng.standard_normal(len(self._sigma))).astype(np.float32)
        return np.clip(action_base + noise, self._lower, self._upper)


@dataclass(frozen=True, slots=True)
class Collected:
    """How many episodes were tried and kept so far."""

    attempts: int
    kept: int


def collect(config: StackConfig, network: NetworkConfig, keep_running: Callable[[], bool]) -> Collected:
    """Collect until the task's number of demonstrations lies in the run's demonstration store.

    With `practice.mode=reset_free` each forward demonstration is followed by a backward one, from where it ended.
    """
    layout = RunLayout.of(config)
    keys = ensure_keys(layout)
    task = config.task
    patience_s, codec = config.edge.patience_s, ImageCodec(config.edge.image_codec)
    with ExitStack() as opened:
        log = opened.enter_context(StepStore(layout.demonstrations))
        robot = opened.enter_context(remote_robot(network, keys))
        attempts, kept = _already(log)
        if kept >= task.demonstrations:
            return Collected(attempts, kept)
        robot.connect(patience_s)
        cameras = opened.enter_context(observed_cameras(config, robot.spec, keys, patience_s))
        proposer = ExpertProposer(build_expert(config, robot.spec))
        layout.remember_robot(cameras.spec)
        robot.arm(patience_s)
        noise = ActionNoise(robot.spec.action, task.demonstration_noise)
        undoes, here = config.practice.mode == "reset_free", None
        bar = opened.enter_context(tqdm(total=task.demonstrations, initial=kept, desc="collect", unit="episode"))
        while kept < task.demonstrations and attempts < task.max_attempts and keep_running():
            pending: list[Step] = []
            recorder = Recorder(RecordingId(config.run, robot.spec.name, task.name), pending.append)
            loop = ControlLoop(
                robot,
                proposer,
                noise,
                [recorder],
                config.edge.max_state_age_s,
                cameras.spec,
                cameras.feeds,
                state_latency_s=config.edge.state_latency_s,
                instruction=config.policy.instruction,
            )
            episode = EpisodeId(attempts, demonstration_seed(config.seed, attempts), here)
            attempts += 1
            is_kept = _is_kept(task, loop.run_episode(episode))
            here = Direction.BACKWARD if undoes and is_kept and here is None else None
            if is_kept:
                log.append([pack_step(step, codec) for step in pending])
                kept += 1
                bar.update()
    if kept < task.demonstrations and keep_running():
        raise RobotError(
            f"only {kept} of {task.demonstrations} demonstrations after {attempts} attempts of task '{task.name}'; "
            "raise task.max_attempts or lower task.demonstration_noise"
        )
    return Collected(attempts, kept)


def _is_kept(task: TaskConfig, summary: EpisodeSummary) -> bool:
    if task.keep == "success":
        return summary.success
    return summary.return_ >= task.keep_return


def _already(log: StepStore) -> tuple[int, int]:
    """(attempts, kept) so far, from the log: attempts continue after the last kept one."""
    episodes = {step.episode for _, step in log.iterate(0)}
    return (max(episodes) + 1, len(episodes)) if episodes else (0, 0)
