"""Train the base policy by imitation of the run's demonstrations."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from msgspec import structs
from tqdm import tqdm

from policies.common.features import flatten, image_features
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.build import base_spec
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.rollouts import training_rollout
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import DataInUseError, PolicyError
from robot_stack.core.messages import Step
from robot_stack.core.specs import PolicySpec
from robot_stack.learner.imitation import ImitationProgress
from robot_stack.learner.imitation import train as train_by_imitation
from robot_stack.learner.imitation_data import DemonstrationArrays, image_rows
from robot_stack.learner.imitation_log import TrainingLog, both, jsonl_log, tensorboard_log

logger = logging.getLogger(__name__)

IN_USE_PATIENCE_S, IN_USE_POLL_S = 20.0, 0.2


def read_demonstrations(layout: RunLayout) -> list[list[Step]]:
    """The run's demonstrations as whole episodes, in order; pictures as they were stored.

    Edge and learner of a run begin at the same time and both read them: one waits for the other.
    """
    until_s = time.monotonic() + IN_USE_PATIENCE_S
    while True:
        try:
            return _read_demonstrations(layout)
        except DataInUseError:
            if time.monotonic() > until_s:
                raise
        time.sleep(IN_USE_POLL_S)


def _read_demonstrations(layout: RunLayout) -> list[list[Step]]:
    episodes: dict[tuple[str, int], list[Step]] = {}
    with StepStore(layout.demonstrations, settings=StoreSettings(seal=False)) as store:
        for _, step in store.iterate(store.first_index):
            episodes.setdefault((step.session, step.episode), []).append(step)
    return list(episodes.values())


def demonstration_arrays(episodes: list[list[Step]], spec: PolicySpec, instruction: str = "") -> DemonstrationArrays:
    """Arrays for imitation: what the expert intended, where it was, and what it was asked to do.

    `instruction` stands in where none was recorded.
    """
    steps = [step for episode in episodes for step in episode]
    asked = [step.instruction or instruction for step in steps]
    instructions = tuple(sorted({words for words in asked if words}))
    cameras = image_features(spec.observation)
    missing = [name for name in cameras if any(name not in step.observation for step in steps)]
    if missing:
        raise PolicyError(
            f"the demonstrations have no {', '.join(missing)}; collect them with that camera (robot.cameras=[NAME]), "
            "or leave it out of task.features"
        )
    return DemonstrationArrays(
        vector=np.stack([flatten(step.observation, spec.observation) for step in steps]),
        action=np.stack([step.action_base for step in steps]),
        episode_ends=np.cumsum([len(episode) for episode in episodes]).astype(np.int64),
        images=tuple(
            image_rows([step.observation[name] for step in steps]) for name in image_features(spec.observation)
        ),
        instruction=np.asarray([instructions.index(words) for words in asked], np.int64) if all(asked) else None,
        instructions=instructions if all(asked) else (),
    )


def train(config: StackConfig, keep_running: Callable[[], bool], overrides: Sequence[str] = ()) -> GenerativePolicy:
    """The run's base policy: loaded if it exists, otherwise trained (an interrupted training continues) and saved.

    KeyboardInterrupt once `keep_running` says no. `overrides` are what `config` was composed from; they are needed if
    the training is to measure itself in simulation.
    """
    layout = RunLayout.of(config)
    if layout.policy.exists():
        return GenerativePolicy.load(layout.policy)
    use_one_torch_thread()
    settings = structs.replace(config.policy.training, seed=config.seed)
    spec = base_spec(config, layout.robot_spec())
    episodes = read_demonstrations(layout)
    if not episodes:
        raise PolicyError(f"there are no demonstrations in {layout.demonstrations}; collect some: robot-stack collect")
    data = demonstration_arrays(episodes, spec, config.policy.instruction)
    with ExitStack() as opened:
        rollout = opened.enter_context(training_rollout(config, overrides, spec)) if settings.rollout_every else None
        policy = train_by_imitation(
            data,
            spec,
            settings,
            progress=opened.enter_context(_progress_bar(settings.steps, keep_running)),
            resume_dir=layout.training,
            log=_training_log(config, layout),
            rollout=rollout,
            teacher=_teacher(config),
        )
    policy.save(layout.policy)
    return policy


def _teacher(config: StackConfig) -> GenerativePolicy | None:
    """The policy of the run that is distilled, if one is."""
    if not config.policy.teacher:
        return None
    return GenerativePolicy.load(RunLayout.of(structs.replace(config, run=config.policy.teacher)).policy)


def _training_log(config: StackConfig, layout: RunLayout) -> TrainingLog:
    lines = jsonl_log(layout.training_metrics)
    return both(lines, tensorboard_log(layout.tensorboard)) if config.policy.tensorboard else lines


@contextmanager
def _progress_bar(steps: int, keep_running: Callable[[], bool]) -> Iterator[Callable[[ImitationProgress], None]]:
    with tqdm(total=steps, desc="train", unit="step") as bar:

        def show(progress: ImitationProgress) -> None:
            numbers = {"loss": f"{progress.loss:.4f}"}
            if progress.validation_error is not None:
                numbers["held_out"] = f"{progress.validation_error:.4f}"
            bar.set_postfix(numbers)
            bar.update(progress.step - bar.n)
            if not keep_running():
                raise KeyboardInterrupt

        yield show
