"""The learner process: log, replay, algorithm, checkpoints and the server, wired together."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from policies.common.features import flatten
from policies.common.normalization import fit_standardizer
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.build import step_spec
from robot_stack.apps.connections import LEARNER_REQUEST
from robot_stack.apps.keys import LEARNER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.recorded import observation_at
from robot_stack.apps.replays import build_replays, demonstrated
from robot_stack.apps.train import read_demonstrations
from robot_stack.buffer.frames import ImageSource
from robot_stack.buffer.replay import Replay, ReplayStep, Stratum
from robot_stack.buffer.store import StepStore
from robot_stack.config.schema import StackConfig
from robot_stack.core.messages import Features, FloatArray, LearnerRequest, Step
from robot_stack.core.specs import Feature, PolicySpec
from robot_stack.learner.algorithms.base import Ingredients, Recipe, build_recipe
from robot_stack.learner.algorithms.settings.imitation import ImitationSettings
from robot_stack.learner.algorithms.training import Sharing
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.curation import Place
from robot_stack.learner.feeds import Feeds, Fits
from robot_stack.learner.imitation_log import tensorboard_log
from robot_stack.learner.loop import LearnerLoop
from robot_stack.learner.rewards.build import rewarded
from robot_stack.learner.trainer import Trainer, TrainerSettings
from robot_stack.transport.server import RequestServer

if TYPE_CHECKING:
    from robot_stack.learner.cluster.leader import Leader

logger = logging.getLogger(__name__)


def run_learner(config: StackConfig, keep_running: Callable[[], bool], leader: Leader | None = None) -> None:
    """Serve and train until told to end. Continues from what the run's folder holds.

    `leader`: of the ranks that make every update together with this learner, if there are any.
    """
    use_one_torch_thread()
    layout = RunLayout.of(config)
    keys = ensure_keys(layout)
    base = load_base_policy(config, RuntimeConfig())
    episodes = read_demonstrations(layout)
    layout.learner.mkdir(parents=True, exist_ok=True)
    checkpoints = CheckpointStore(layout.checkpoints)
    checkpoints.open()
    requests: RequestServer[LearnerRequest] = RequestServer(
        LEARNER_REQUEST, config.network.learner_address, keys, LEARNER_KEY, LearnerRequest
    )
    with StepStore(layout.steps, config.learner.durability, config.learner.store) as store, requests:
        loop = LearnerLoop(
            requests,
            store,
            build_trainer(config, base, episodes, store, leader),
            checkpoints,
            layout.learner,
            kind=config.algorithm.module,
            target_steps=config.learner.target_steps,
            checkpoint_every_s=config.learner.checkpoint_every_s,
            feeds=Feeds(Fits(config.run, layout.robot_spec(), config.task.features)),
            scalars=tensorboard_log(layout.tensorboard / "learner") if config.learner.tensorboard else None,
        )
        loop.resume()
        logger.info("learner serves at %s with %d durable steps", requests.address, len(store))
        loop.run(keep_running)


def build_trainer(
    config: StackConfig,
    base: GenerativePolicy,
    episodes: list[list[Step]],
    store: StepStore,
    leader: Leader | None = None,
) -> Trainer:
    """The trainer with its demonstrations loaded and relabelled with the base policy's actions."""
    parts = build_parts(config, base, episodes, leader, store)
    recipe = parts.recipe
    if leader is not None:
        recipe = leader.joined(recipe, store, sum(replay.config.capacity for replay in parts.replays.values()))
    return Trainer(trainer_settings(config), recipe, store, parts.replays, parts.observation, config.seed)


@dataclass(frozen=True, slots=True)
class LearnerParts:
    """What a learner is made of beside its log; the demonstrations are in their replay. `observation`: what is read."""

    recipe: Recipe
    replays: dict[Place, Replay]
    observation: Mapping[str, Feature]


def build_parts(
    config: StackConfig,
    base: GenerativePolicy,
    episodes: list[list[Step]],
    sharing: Sharing | None = None,
    log: ImageSource | None = None,
) -> LearnerParts:
    """The run's algorithm and its replays. `sharing`: the ranks that make every update together. `log`: where the
    pictures of older steps are; algorithms that read pictures need one."""
    settings, spec = config.algorithm, step_spec(config, RunLayout.of(config).robot_spec())
    seen = [flatten(step.observation, spec.observation) for episode in episodes for step in episode]
    recipe = build_recipe(
        settings,
        Ingredients(
            action=spec.action,
            observation=spec.observation,
            standardizer=fit_standardizer(np.stack(seen)),
            base=base,
            seed=config.seed,
            sharing=sharing,
        ),
    )

    recipe = replace(recipe, curator=rewarded(recipe.curator, config.reward, episodes, spec.observation))
    replays = build_replays(settings, spec, recipe.lookahead, episodes, log)
    numbers, intended = itertools.count(), isinstance(settings, ImitationSettings)
    for episode in episodes:
        for step in relabelled(
            episode, base, config.policy.execute_steps, spec, config.policy.instruction, intended=intended
        ):
            replays[Place.DEMONSTRATIONS].add(demonstrated(step, next(numbers)))
    return LearnerParts(recipe, replays, spec.observation)


def trainer_settings(config: StackConfig) -> TrainerSettings:
    """The numbers that shape the run's training."""
    settings = config.algorithm
    return TrainerSettings(
        target_steps=config.learner.target_steps,
        start_after_steps=settings.exploration.warmup_steps,
        warmup_updates=settings.warmup_updates(),
        updates_per_step=settings.updates_per_step,
        publish_every_steps=config.learner.publish_every_steps,
        batch_size=settings.batch_size,
        n_step=settings.n_step,
        discount=settings.discount,
    )


def relabelled(
    episode: list[Step],
    base: GenerativePolicy,
    execute_steps: int,
    spec: PolicySpec,
    instruction: str = "",
    *,
    intended: bool = False,
) -> list[ReplayStep]:
    """One demonstration as the algorithm sees it: what was executed, beside what the base policy would have done.

    The base policy runs open loop in chunks over the demonstrated observations, as it does on the robot. `spec` tells
    the observations that the algorithm reads. `instruction`: of steps that were recorded without one. `intended`: the
    actions are those that the expert meant, before noise was added, as imitation learns them.
    """
    last = episode[-1]
    frames = [step.observation for step in episode]
    if last.final_observation is not None:
        frames.append(last.final_observation)
    actions = _open_loop(frames, episode, base, execute_steps, instruction)
    seen = [flatten(frame, spec.observation) for frame in frames]
    has_final = len(frames) > len(episode)
    return [
        ReplayStep(
            stream=(step.session, step.episode),
            index=step.index,
            stratum=Stratum.DEMONSTRATION,
            observation=seen[i],
            action_base=actions[i],
            action=step.action_base if intended else step.action_sent,
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            final_observation=seen[-1] if step is last and has_final else None,
            final_action_base=actions[-1] if step is last and has_final else None,
        )
        for i, step in enumerate(episode)
    ]


def _open_loop(
    frames: Sequence[Features], episode: Sequence[Step], base: GenerativePolicy, execute_steps: int, instruction: str
) -> list[FloatArray]:
    starts = range(0, len(frames), execute_steps)
    chunks = base.predict_batch([observation_at(frames, start, episode, base.spec, instruction) for start in starts])
    return [chunks[i // execute_steps][i % execute_steps] for i in range(len(frames))]
