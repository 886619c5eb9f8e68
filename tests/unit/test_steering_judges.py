"""Networks that judge chunks: counts follow 1/n, values follow the returns, and both are kept with their policy."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.steering.config import CountConfig, CriticConfig
from policies.steering.counts import CountScore
from policies.steering.features import HiddenFeatures, LastBlock, VectorFeatures
from policies.steering.rerank import Reranked
from policies.steering.training import flip_coins, success_returns, train_counts, train_value
from policies.steering.value import ValueScore
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import FloatArray
from tests.unit.test_steering_rerank import make_policy, observe, one_thread

__all__ = ["one_thread"]

COUNTS = CountConfig(width=64, blocks=1, flips=32)
CRITIC = CriticConfig(hidden=(32, 32))


def drawn(count: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4, 2)).astype(np.float32)


def test_pseudo_counts_are_the_numbers_of_repetitions() -> None:
    repetitions = np.repeat((1, 4, 16), (24, 12, 8))
    items = np.random.default_rng(1).normal(size=(len(repetitions), 6)).astype(np.float32)
    data = np.repeat(items, repetitions, axis=0)
    score = train_counts(data, VectorFeatures(make_policy()), COUNTS, steps=500, batch=512)
    counts = score.pseudo_count(items)
    for n in (1, 4, 16):
        assert 1.0 / np.mean(1.0 / counts[repetitions == n]) == pytest.approx(n, rel=0.25)
    far = 3.0 * np.random.default_rng(2).normal(size=(200, 6)).astype(np.float32)
    assert np.median(score.pseudo_count(far)) < 2.0


def test_coins_are_fair_and_fixed() -> None:
    coins = flip_coins(500, 20, seed=3)
    np.testing.assert_array_equal(np.unique(coins), [-1.0, 1.0])
    assert abs(coins.mean()) < 0.05
    assert np.abs(np.corrcoef(coins.T) - np.eye(20)).max() < 0.2
    np.testing.assert_array_equal(coins, flip_coins(500, 20, seed=3))
    assert not np.array_equal(coins, flip_coins(500, 20, seed=4))


def test_the_most_familiar_chunk_is_executed() -> None:
    policy = make_policy()
    features = VectorFeatures(policy)
    familiar = drawn(8)[5]
    seen = np.repeat(familiar[None], 60, axis=0) + np.random.default_rng(0).normal(0, 0.01, (60, 4, 2))
    data = features([observe()], np.concatenate((seen, drawn(4, seed=9))).astype(np.float32))
    score = train_counts(data, features, COUNTS, steps=300)
    assert score.score(observe(), drawn(8)).argmax() == 5


def test_returns_of_a_success_are_discounted_from_its_end() -> None:
    won, lost = success_returns(np.array([3, 2]), np.array([True, False]), 0.5)
    np.testing.assert_allclose(won, [0.25, 0.5, 1.0])
    np.testing.assert_array_equal(lost, [0.0, 0.0])


def test_a_critic_learns_the_returns_and_steers_towards_them() -> None:
    policy = make_policy()
    features = VectorFeatures(policy)
    chunks = drawn(400)
    returns = 0.5 + 0.5 * chunks[:, 0, 0]
    score = train_value(features([observe()], chunks), returns, features, CRITIC, steps=300)
    fresh = drawn(300, seed=5)
    assert np.corrcoef(score.score(observe(), fresh), fresh[:, 0, 0])[0, 1] > 0.95
    chosen = Reranked(policy, score, temperature=0.0, count=16)
    plain = [policy.predict(observe(index=index)).actions[0, 0] for index in range(10)]
    steered = [chosen.predict(observe(index=index)).actions[0, 0] for index in range(10)]
    assert np.mean(steered) > np.mean(plain) + 0.04


def test_hidden_features_tell_chunks_and_observations_apart_and_read_the_last_block() -> None:
    policy = make_policy()
    features = HiddenFeatures(policy)
    chunks = drawn(3)
    found = features([observe()], chunks)
    assert found.shape == (3, 4 * 16) and np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(features([observe()] * 3, chunks), found, atol=1e-5)
    moved = observe()
    moved.features["observation.state"][0] = -0.5
    assert np.abs(features([moved], chunks) - found).max() > 1e-3

    last = LastBlock(1)
    for block in range(3):
        last.run(block, partial(torch.full, (1,), float(block)))
    assert last.output.item() == 1.0


@pytest.mark.parametrize("kind", ["vector", "hidden"])
def test_judges_come_back_from_the_disk_as_they_were(kind: str, tmp_path: Path) -> None:
    policy = make_policy()
    features = VectorFeatures(policy) if kind == "vector" else HiddenFeatures(policy)
    chunks = drawn(40)
    data = features([observe()], chunks)
    value = train_value(data, chunks[:, 0, 0], features, CRITIC, steps=5)
    counts = train_counts(data, features, COUNTS, steps=5)
    value.save(tmp_path / "value", policy)
    counts.save(tmp_path / "counts", policy)
    np.testing.assert_array_equal(
        ValueScore.load(tmp_path / "value", policy).score(observe(), chunks), value.score(observe(), chunks)
    )
    np.testing.assert_array_equal(
        CountScore.load(tmp_path / "counts", policy).score(observe(), chunks), counts.score(observe(), chunks)
    )
    with pytest.raises(PolicyError, match="kind"):
        CountScore.load(tmp_path / "value", policy)
    other = make_policy(seed=1)
    if kind == "hidden":
        with pytest.raises(PolicyError, match="train it anew"):
            ValueScore.load(tmp_path / "value", other)
    else:
        ValueScore.load(tmp_path / "value", other)


def test_data_that_cannot_be_learned_from_are_refused() -> None:
    features = VectorFeatures(make_policy())
    data = np.random.default_rng(0).normal(size=(8, 11)).astype(np.float32)
    with pytest.raises(PolicyError, match="targets"):
        train_value(data, np.zeros(7, np.float32), features, CRITIC)
    with pytest.raises(PolicyError, match="finite"):
        train_value(data, np.full(8, np.nan, np.float32), features, CRITIC)
    data[3, 2] = np.nan
    with pytest.raises(PolicyError, match="finite"):
        train_counts(data, features, COUNTS)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError):
        CriticConfig(hidden=())
    with pytest.raises(ConfigError):
        CriticConfig(discount=0.0)
    with pytest.raises(ConfigError):
        CountConfig(flips=0)
    with pytest.raises(ConfigError):
        CountConfig(gain=0.0)
