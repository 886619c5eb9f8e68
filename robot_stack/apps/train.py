"""Train the base policy by behaviour cloning of the run's demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from msgspec import structs
from tqdm import tqdm

from policies.common.features import flatten
from policies.diffusion.policy import DiffusionPolicy
from robot_stack.apps.build import base_spec
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Step
from robot_stack.core.specs import PolicySpec
from robot_stack.learner.behavior_cloning import BcProgress, DemonstrationArrays
from robot_stack.learner.behavior_cloning import train as train_behavior_cloning

logger = logging.getLogger(__name__)


def read_demonstrations(layout: RunLayout) -> list[list[Step]]:
    """The run's demonstrations as whole episodes, in order."""
    episodes: dict[tuple[str, int], list[Step]] = {}
    with StepStore(layout.demonstrations, settings=StoreSettings(seal=False)) as store:
        for _, step in store.iterate(store.first_index):
            episodes.setdefault((step.session, step.episode), []).append(step)
    return list(episodes.values())


def demonstration_arrays(episodes: list[list[Step]], spec: PolicySpec) -> DemonstrationArrays:
    """Arrays for behaviour cloning: what the expert intended, where it was."""
    steps = [step for episode in episodes for step in episode]
    return DemonstrationArrays(
        observation=np.stack([flatten(step.observation, spec.observation) for step in steps]),
        action=np.stack([step.action_base for step in steps]),
        episode_ends=np.cumsum([len(episode) for episode in episodes]).astype(np.int64),
    )


def train(config: StackConfig, keep_running: Callable[[], bool]) -> DiffusionPolicy:
    """The run's base policy: loaded if it exists, otherwise trained (an interrupted training continues) and saved.

    KeyboardInterrupt once `keep_running` says no.
    """
    layout = RunLayout.of(config)
    if layout.policy.exists():
        return DiffusionPolicy.load(layout.policy)
    use_one_torch_thread()
    settings = structs.replace(config.policy.training, seed=config.seed)
    spec = base_spec(config, layout.robot_spec())
    episodes = read_demonstrations(layout)
    if not episodes:
        raise PolicyError(f"there are no demonstrations in {layout.demonstrations}; collect some: robot-stack collect")
    data = demonstration_arrays(episodes, spec)
    with tqdm(total=settings.steps, desc="train", unit="step") as bar:

        def show(progress: BcProgress) -> None:
            bar.set_postfix(loss=f"{progress.loss:.4f}")
            bar.update(progress.step - bar.n)
            if not keep_running():
                raise KeyboardInterrupt

        policy = train_behavior_cloning(data, spec, settings, progress=show, resume_dir=layout.training)
    policy.save(layout.policy)
    return policy
