"""Residual TD3: what it learns on problems with a known answer, and that its state is complete."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from policies.common.normalization import Standardizer
from policies.residual.config import ResidualConfig
from policies.residual.runtime import ResidualRuntime
from robot_stack.buffer.batches import TransitionBatch
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.specs import PolicySpec, vector
from robot_stack.learner.algorithms.residual_td3 import ResidualTd3
from robot_stack.learner.algorithms.settings.residual_td3 import ResidualTd3Config

ACTION = vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0))
HALF_RANGE = np.array([0.1, 2.0], np.float32)
STATISTICS = Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0))
RESIDUAL = ResidualConfig(hidden=(32, 32), action_scale=0.4)
CONFIG = ResidualTd3Config(
    critics=3, critic_hidden=(32, 32), critic_lr=3e-3, actor_lr=4e-3, critic_only_updates=20, target_noise=0.05
)
SPEC = PolicySpec(name="r", task="t", horizon=1, action=ACTION, observation={"observation.state": vector(("x", "y"))})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(config: ResidualTd3Config = CONFIG, residual: ResidualConfig = RESIDUAL, seed: int = 0) -> ResidualTd3:
    return ResidualTd3(config, residual, ACTION, STATISTICS, seed)


def biased_reach(rng: np.random.Generator, offset: float, size: int = 64) -> TransitionBatch:
    """One-step episodes: the base action misses the wanted one by `offset` (normalised); reward is -distance^2."""
    observation = rng.uniform(-0.5, 0.5, (size, 2)).astype(np.float32)
    base = (observation + offset) * HALF_RANGE
    action = np.clip(base + rng.uniform(-0.6, 0.6, (size, 2)).astype(np.float32) * HALF_RANGE, -HALF_RANGE, HALF_RANGE)
    reward = 1.0 - np.square(action / HALF_RANGE - observation).sum(axis=1)
    zeros = np.zeros(size, np.float32)
    return TransitionBatch.of(
        observation=observation,
        action_base=base.astype(np.float32),
        action=action.astype(np.float32),
        return_n=reward.astype(np.float32),
        bootstrap=zeros,
        next_observation=np.zeros_like(observation),
        next_action_base=np.zeros_like(observation),
    )


def corrections(algorithm: ResidualTd3, offset: float) -> np.ndarray:
    """Normalised corrections (N, 2) that the edge would make."""
    runtime = ResidualRuntime(algorithm.actor_tensors(), RESIDUAL, SPEC, version=1)
    observations = np.random.default_rng(5).uniform(-0.4, 0.4, (50, 2)).astype(np.float32)
    return np.stack([runtime.correction(o, (o + offset) * HALF_RANGE) / HALF_RANGE for o in observations])


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("offset", [0.25, -0.25])
def test_a_bias_of_the_base_within_reach_is_recovered(offset: float) -> None:
    rng, algorithm = np.random.default_rng(0), make()
    for _ in range(500):
        algorithm.learn(biased_reach(rng, offset))
    np.testing.assert_allclose(corrections(algorithm, offset).mean(axis=0), -offset, atol=0.08)


def test_a_bias_beyond_reach_saturates_the_correction() -> None:
    rng, algorithm = np.random.default_rng(0), make()
    for _ in range(500):
        algorithm.learn(biased_reach(rng, 0.6))
    found = corrections(algorithm, 0.6).mean(axis=0)
    assert (found < -0.36).all() and (found >= -0.4001).all()


def test_the_actor_stays_exactly_zero_during_the_critic_only_updates() -> None:
    rng, algorithm = np.random.default_rng(0), make()
    for _ in range(CONFIG.critic_only_updates):
        algorithm.learn(biased_reach(rng, 0.3))
    assert (corrections(algorithm, 0.3) == 0.0).all()
    algorithm.learn(biased_reach(rng, 0.3))
    assert (corrections(algorithm, 0.3) != 0.0).any()


def test_the_actor_learns_at_its_own_interval() -> None:
    rng, algorithm = (
        np.random.default_rng(0),
        make(msgspec.structs.replace(CONFIG, critic_only_updates=0, actor_every=3)),
    )
    acted = ["actor_value" in algorithm.learn(biased_reach(rng, 0.3)) for _ in range(9)]
    assert acted == [False, False, True] * 3


def test_values_propagate_through_bootstrapping_and_stop_at_termination() -> None:
    """States 0 -> 1 -> end, reward 1 at the end, discount 0.5: values 0.5 and 1."""
    algorithm = make(msgspec.structs.replace(CONFIG, critic_only_updates=10_000, polyak=0.1))
    rng = np.random.default_rng(0)
    mean_q = 0.0
    for _ in range(500):
        second = (rng.random(64) < 0.5).astype(np.float32)
        observation = np.stack([second, 1 - second], axis=1)
        noise = rng.uniform(-1, 1, (64, 2)).astype(np.float32) * HALF_RANGE
        batch = TransitionBatch.of(
            observation=observation,
            action_base=np.zeros((64, 2), np.float32),
            action=noise,
            return_n=second,
            bootstrap=0.5 * (1 - second),
            next_observation=np.tile(np.array([1.0, 0.0], np.float32), (64, 1)),
            next_action_base=np.zeros((64, 2), np.float32),
        )
        mean_q = 0.9 * mean_q + 0.1 * algorithm.learn(batch)["q_mean"]
    assert mean_q == pytest.approx(0.75, abs=0.05)


def test_fifty_updates_saved_and_fifty_more_equal_a_hundred() -> None:
    whole, first = make(), make()
    rng = np.random.default_rng(0)
    batches = [biased_reach(rng, 0.2) for _ in range(100)]
    for batch in batches:
        whole.learn(batch)
    for batch in batches[:50]:
        first.learn(batch)
    saved = first.state()
    for batch in batches[50:]:  # the saved state is a copy
        first.learn(batch)
    second = make(seed=99)
    second.load_state(saved)
    assert second.updates == 50 and equal(second.state(), saved)
    for batch in batches[50:]:
        second.learn(batch)
    assert equal(second.state(), whole.state()) and equal(first.state(), whole.state())
    assert equal(second.actor_tensors(), whole.actor_tensors())


def test_state_can_be_taken_before_the_first_update() -> None:
    fresh, other = make(), make(seed=99)
    other.load_state(fresh.state())
    batch = biased_reach(np.random.default_rng(0), 0.2)
    for algorithm in (fresh, other):
        algorithm.learn(batch)
    assert equal(fresh.state(), other.state())


def test_seeds_differ() -> None:
    assert not equal(make(seed=0).state(), make(seed=1).state())


def test_a_state_of_another_configuration_is_refused() -> None:
    state = make().state()
    with pytest.raises(PolicyError, match="shape"):
        make(msgspec.structs.replace(CONFIG, critics=2)).load_state(state)
    del state["generator"]
    with pytest.raises(PolicyError, match="generator"):
        make().load_state(state)


def test_a_reward_that_is_not_finite_stops_the_learner() -> None:
    batch = biased_reach(np.random.default_rng(0), 0.2)
    batch.return_n[3] = np.nan
    with pytest.raises(PolicyError, match="not finite"):
        make().learn(batch)


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"critics": 1}, {"actor_every": 0}, {"polyak": 0.0}, {"actor_lr": 0.0}):
        with pytest.raises(ConfigError):
            ResidualTd3Config(**wrong)
