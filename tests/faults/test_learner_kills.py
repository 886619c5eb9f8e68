"""kill -9 of the learner in the middle of its work, for every algorithm: it goes on as if nothing had been.

What it published, and everything else that it knows, then equals an uninterrupted fold over the same steps bit for bit.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.generative.runtime_config import RuntimeConfig
from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.connections import free_network, learner_client
from robot_stack.apps.keys import EDGE_KEY, VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.learner import build_trainer
from robot_stack.apps.train import read_demonstrations
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.errors import TransportError
from robot_stack.core.messages import GetProgress, GetWeights, LearnerProgress, WeightChunk
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS, AlgorithmSettings
from robot_stack.learner.algorithms.settings.cal_ql import CalQlSettings
from robot_stack.learner.algorithms.settings.gaussian import GaussianSettings
from robot_stack.learner.algorithms.settings.pa_rl import PaRlSettings
from robot_stack.learner.algorithms.settings.q_chunking import QChunkingSettings
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Settings
from robot_stack.learner.algorithms.settings.resip import ResipSettings
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.metrics import read_metrics
from robot_stack.learner.publication import WeightPublisher
from robot_stack.learner.trainer import Trainer
from tests.learner_kit import EPISODE_STEPS, FedEdge, ForkedLearner, LearnerRun
from tests.transport_kit import eventually

TARGET_STEPS = 20 * EPISODE_STEPS
LEAD_STEPS = 2 * EPISODE_STEPS
WITHIN_S = 600.0


def small(settings: AlgorithmSettings) -> list[str]:
    """Overrides that leave the algorithm as it is, only smaller. The replay holds less than there is: old steps go."""
    found = ["algorithm.batch_size=8", "algorithm.updates_per_step=0.5", "algorithm.replay_capacity=100"]
    if settings.exploration.warmup_steps > 30:
        found.append("algorithm.exploration.warmup_steps=30")
    if isinstance(settings, ResidualTd3Settings):
        found.append("algorithm.update.critic_only_updates=10")
    if isinstance(settings, GaussianSettings):
        found.append("algorithm.actor.hidden=[16]")
    if isinstance(settings, (CalQlSettings, PaRlSettings)):
        found.append("algorithm.update.offline_updates=20")
    if isinstance(settings, QChunkingSettings):
        found += ["algorithm.update.warmup_updates=10", "algorithm.update.decision_steps=2", "policy.execute_steps=2"]
    elif isinstance(settings, PaRlSettings) or settings.module == "expo":
        found.append("policy.execute_steps=1")
    if isinstance(settings, ResipSettings):
        found += ["algorithm.update.rollout_steps=24", "algorithm.update.epochs=2"]
    return found


class Killer:
    """Kills the learner once, at a moment drawn with the algorithm's name as the seed; never before it has saved."""

    def __init__(self, preset: str, learner: ForkedLearner, checkpoints: Path) -> None:
        rng = np.random.default_rng(zlib.crc32(preset.encode()))
        self._at_step = int(rng.integers(TARGET_STEPS // 5, 4 * TARGET_STEPS // 5))
        self._pause_s = float(rng.uniform(0.0, 0.03))
        self._learner = learner
        self._checkpoints = checkpoints
        self.killed_at: LearnerProgress | None = None

    def look(self, progress: LearnerProgress) -> None:
        saved = any(self._checkpoints.glob("step-*"))
        if self.killed_at is None and saved and progress.trained_steps >= self._at_step:
            time.sleep(self._pause_s)
            os.kill(self._learner.pid, signal.SIGKILL)
            self.killed_at = progress


@contextmanager
def watched(run: LearnerRun, killer: Killer) -> Iterator[None]:
    """A thread beside the feeding that asks the learner how far it is, and lets the killer look."""
    stop = threading.Event()
    keys = ensure_keys(RunLayout.of(run.config()))

    def watch() -> None:
        with learner_client(run.network, keys, VIEWER_KEY) as client:
            while killer.killed_at is None and not stop.wait(0.005):
                try:
                    progress = client.request(GetProgress(), timeout_s=0.5)
                except TransportError:
                    continue
                assert isinstance(progress, LearnerProgress)
                killer.look(progress)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def uninterrupted(run: LearnerRun) -> Trainer:
    """The fold over the steps that the learner stored, in this process, from their first to their last."""
    config = run.config()
    layout = RunLayout.of(config)
    torch.set_num_threads(1)
    with StepStore(layout.steps, "process", StoreSettings(background=False)) as store:
        base, episodes = load_base_policy(config, RuntimeConfig()), read_demonstrations(layout)
        trainer = build_trainer(config, base, episodes, store)
        while trainer.advance():
            pass
    assert trainer.finished
    trainer.conclude()
    return trainer


@pytest.mark.parametrize("preset", sorted(ALGORITHM_PRESETS))
def test_a_killed_learner_goes_on_bit_for_bit(tmp_path: Path, preset: str) -> None:
    settings = (
        f"algorithm={preset}",
        "policy.horizon=4",
        "policy.execute_steps=4",
        f"learner.target_steps={TARGET_STEPS}",
        f"learner.publish_every_steps={EPISODE_STEPS}",
        "learner.checkpoint_every_s=0.15",
        *small(ALGORITHM_PRESETS[preset]),
    )
    run = LearnerRun(tmp_path, free_network(), settings)
    run.prepare()
    config = run.config()
    layout = RunLayout.of(config)
    edge, until_s = FedEdge(run, tmp_path / "spool"), time.monotonic() + WITHIN_S

    def keep_going() -> bool:
        learner.watch()
        return time.monotonic() < until_s

    with ForkedLearner(run, layout.logs / "learner.log") as learner:
        killer = Killer(preset, learner, layout.checkpoints)
        with watched(run, killer):
            news = list(edge.feed(TARGET_STEPS, LEAD_STEPS, keep_going))
        weights = ask_weights(run)
        end = news[-1].trained_steps + news[-1].updates + news[-1].weights_version
        last = layout.checkpoints / f"step-{end:012d}"
        assert eventually(last.exists, WITHIN_S), f"the learner's end was not saved; see {layout.logs}"

    assert news[-1].finished, f"the learner did not finish; see {layout.logs}"
    assert killer.killed_at is not None and not killer.killed_at.finished and learner.restarts == 1
    assert "resumed at step" in (layout.logs / "learner.log").read_text()
    check_nothing_lost(layout)
    check_the_curve_goes_on(layout, killer.killed_at)
    check_same_fold(run, weights)


def ask_weights(run: LearnerRun) -> WeightChunk:
    keys = ensure_keys(RunLayout.of(run.config()))
    with learner_client(run.network, keys, EDGE_KEY) as client:
        chunk = client.request(GetWeights(), timeout_s=WITHIN_S)
    assert isinstance(chunk, WeightChunk)
    return chunk


def check_nothing_lost(layout: RunLayout) -> None:
    """Everything was acknowledged, so everything is there, once, in the order in which it was fed."""
    with StepStore(layout.steps, "process", StoreSettings(background=False)) as store:
        assert [step.seq for _, step in store.iterate(0)] == list(range(TARGET_STEPS))


def check_the_curve_goes_on(layout: RunLayout, killed_at: LearnerProgress) -> None:
    lines = read_metrics(layout.metrics)
    assert [line.weights_version for line in lines] == list(range(len(lines)))
    assert all(before.trained_steps <= after.trained_steps for before, after in itertools.pairwise(lines))
    assert lines[-1].weights_version > killed_at.weights_version
    assert lines[-1].trained_steps == TARGET_STEPS and lines[-1].metrics


def check_same_fold(run: LearnerRun, weights: WeightChunk) -> None:
    trainer = uninterrupted(run)
    snapshot = WeightPublisher(kind=run.config().algorithm.module).publish(
        trainer.version, trainer.published, trainer.trained_steps
    )
    assert trainer.updates > 0
    assert (weights.snapshot.version, weights.snapshot.sha256) == (snapshot.version, snapshot.sha256)
    store = CheckpointStore(RunLayout.of(run.config()).checkpoints)
    store.open()
    checkpoint = store.latest()
    assert checkpoint is not None
    tensors, meta = trainer.state()
    assert checkpoint.meta == meta
    assert checkpoint.tensors.keys() == tensors.keys()
    differing = [name for name, value in tensors.items() if value.tobytes() != checkpoint.tensors[name].tobytes()]
    assert not differing
