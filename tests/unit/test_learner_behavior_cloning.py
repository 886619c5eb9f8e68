"""Behaviour cloning: chunks, what is learned, and resuming."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from policies.diffusion.config import DiffusionConfig
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.specs import PolicySpec, vector
from robot_stack.learner.bc_config import BcConfig
from robot_stack.learner.behavior_cloning import BcProgress, DemonstrationArrays, action_chunks, train

NET = DiffusionConfig(horizon=2, embed_dim=16, layers=1, heads=2, train_steps=10, inference_steps=5)
CONFIG = BcConfig(net=NET, steps=20, batch_size=32, warmup_steps=5, checkpoint_every=5)
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=2,
    action=vector(("a",), (-1.0,), (1.0,)),
    observation={"observation.state": vector(("x", "y"))},
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def two_modes(count: int = 400) -> DemonstrationArrays:
    """Go left or right by 0.6, by chance: the mean, 0, is never demonstrated."""
    rng = np.random.default_rng(0)
    side = rng.choice([-0.6, 0.6], count // 2).repeat(2)
    return DemonstrationArrays(
        observation=rng.normal(0, 1, (count, 2)).astype(np.float32),
        action=side[:, None].astype(np.float32),
        episode_ends=np.arange(2, count + 1, 2),
    )


def test_chunks_never_cross_the_end_of_an_episode() -> None:
    action = np.arange(7, dtype=np.float32)[:, None]
    chunks = action_chunks(action, np.array([3, 4, 7]), horizon=3)[..., 0]
    assert chunks.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 3, 3], [4, 5, 6], [5, 6, 6], [6, 6, 6]]


def test_both_modes_are_learned_and_not_their_mean() -> None:
    config = msgspec.structs.replace(CONFIG, steps=500, batch_size=64, lr=5e-3)
    policy = train(two_modes(), SPEC, config)
    observations = np.random.default_rng(1).normal(0, 1, (200, 2)).astype(np.float32)
    actions = policy.predict_batch(observations, [(7, index) for index in range(200)])[:, 0, 0]
    near_left, near_right = np.abs(actions + 0.6) < 0.2, np.abs(actions - 0.6) < 0.2
    assert near_left.mean() > 0.25 and near_right.mean() > 0.25
    assert (near_left | near_right).mean() > 0.75


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train(two_modes(), SPEC, CONFIG)

    def interrupt(report: BcProgress) -> None:
        if report.step >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(two_modes(), SPEC, CONFIG, progress=interrupt, resume_dir=tmp_path)
    seen: list[int] = []
    resumed = train(two_modes(), SPEC, CONFIG, progress=lambda report: seen.append(report.step), resume_dir=tmp_path)
    assert seen == [15, 20]
    whole.save(tmp_path / "whole")
    resumed.save(tmp_path / "resumed")
    for name in ("weights.safetensors", "policy.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_a_checkpoint_of_other_data_or_settings_is_refused(tmp_path: Path) -> None:
    train(two_modes(), SPEC, CONFIG, resume_dir=tmp_path)
    with pytest.raises(PolicyError, match="other demonstrations or settings"):
        train(two_modes(200), SPEC, CONFIG, resume_dir=tmp_path)
    with pytest.raises(PolicyError, match="other demonstrations or settings"):
        train(two_modes(), SPEC, msgspec.structs.replace(CONFIG, lr=1e-4), resume_dir=tmp_path)


def test_demonstrations_that_do_not_add_up_are_refused() -> None:
    data = two_modes(4)
    with pytest.raises(PolicyError, match="do not add up"):
        train(DemonstrationArrays(data.observation, data.action, np.array([2])), SPEC, CONFIG)
    with pytest.raises(PolicyError, match="do not add up"):
        train(DemonstrationArrays(data.observation, data.action, np.array([2, 2, 4])), SPEC, CONFIG)
    with pytest.raises(PolicyError, match="horizon"):
        train(data, msgspec.structs.replace(SPEC, horizon=3), CONFIG)
    with pytest.raises(ConfigError):
        BcConfig(steps=0)
