"""What all variants of one seed begin with: demonstrations of both directions, a base policy, and classifiers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.learning.robot import LocalRobot
from robot_stack.apps.build import build_expert, build_simulated
from robot_stack.apps.collect import ActionNoise, ExpertProposer
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.seeds import demonstration_seed
from robot_stack.apps.train import read_demonstrations, train
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import StackConfig
from robot_stack.core.direction import Direction, direction_of
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import FloatArray, Observation, RobotState, Source, Step
from robot_stack.core.specs import ENVIRONMENT_STATE, STATE, Feature
from robot_stack.edge.control_loop import ControlLoop, EpisodeId
from robot_stack.edge.outbox import pack_step
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.learner.rewards.classifier import RewardClassifier, train_classifier
from robot_stack.learner.rewards.outcomes import Labelled, outcomes_of
from robot_stack.learner.rewards.settings import ClassifierTraining

WANDERING_STEPS = 14


def make_base(config: StackConfig) -> None:
    """Demonstrations, policy and classifiers in the folder of the run; what is there already stays."""
    layout = RunLayout.of(config)
    if not layout.policy.exists():
        collect(config)
        train(config, lambda: True)
    demonstrations = read_demonstrations(layout)
    for direction in Direction:
        folder = classifier_folder(config, direction)
        if not folder.exists():
            train_judge(config, demonstrations, direction).save(folder)


def classifier_folder(config: StackConfig, direction: Direction) -> Path:
    return RunLayout.of(config).root / f"classifier-{direction.value}"


def collect(config: StackConfig) -> None:
    """Half of the demonstrations go forward, each from a fresh scene, and half backward: from the end of a forward one,
    or, every second one, from a place that the hand wandered to, because failed attempts of a policy do not end where
    demonstrations do. RobotError if `task.max_attempts` do not give as many as the task wants."""
    task, layout = config.task, RunLayout.of(config)
    with (
        StepStore(layout.demonstrations, "process", config.learner.store) as log,
        LocalRobot(build_simulated(config)) as robot,
        tqdm(total=task.demonstrations, desc=f"demonstrations {task.name}", file=sys.stderr) as bar,
    ):
        layout.remember_robot(robot.spec)
        pending: list[Step] = []
        recorder = Recorder(RecordingId(config.run, robot.spec.name, task.name), pending.append)
        noise = ActionNoise(robot.spec.action, task.demonstration_noise)
        expert = ExpertProposer(build_expert(config, robot.spec))
        shows = ControlLoop(robot, expert, noise, [recorder], config.edge.max_state_age_s)
        wanders = ControlLoop(robot, Wandering(robot.spec.action), noise, [], config.edge.max_state_age_s)
        kept, attempts = len({step.episode for _, step in log.iterate(0)}), 0
        bar.update(kept)
        while kept < task.demonstrations:
            if attempts >= task.max_attempts:
                raise RobotError(f"only {kept} of {task.demonstrations} demonstrations after {attempts} attempts")
            number, turn = kept + attempts, kept % 4
            attempts += 1
            pending.clear()
            seed = demonstration_seed(config.seed, number)
            if turn == 3:
                wanders.run_episode(EpisodeId(number, seed, limit=WANDERING_STEPS))
            elif turn == 1 and not shows.run_episode(EpisodeId(number, seed)).success:
                continue
            pending.clear()
            if shows.run_episode(EpisodeId(number, seed, Direction.BACKWARD if turn % 2 else None)).success:
                log.append([pack_step(step, ImageCodec.RAW) for step in pending])
                kept += 1
                bar.update()


class Wandering:
    """Goes in one direction that is drawn for each episode; a `Proposer`."""

    source, version = Source.EXPERT, 0

    def __init__(self, action: Feature) -> None:
        self._lower, self._upper = action.lower_array(), action.upper_array()
        self._action = np.zeros_like(self._lower)

    def begin(self, seed: int) -> None:
        self._action = np.random.default_rng(seed).uniform(self._lower, self._upper).astype(np.float32)

    def at_boundary(self, index: int) -> bool:
        return False

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        return self._action


def train_judge(config: StackConfig, demonstrations: list[list[Step]], direction: Direction) -> RewardClassifier:
    """A classifier of success in one direction, from its demonstrations alone: their last states are successes, all
    others are not."""
    steps = [step for one in demonstrations for step in one if direction_of(step.instruction) is direction]
    spec = RunLayout.of(config).robot_spec()
    observation = {name: spec.observation[name] for name in (STATE, ENVIRONMENT_STATE)}
    settings = ClassifierTraining(seed=config.seed, hidden_dim=64, steps=400)
    labelled = Labelled.of(outcomes_of(steps), [step.success for step in steps])
    return train_classifier(labelled, observation, settings, name=direction.value, task=config.task.name)
