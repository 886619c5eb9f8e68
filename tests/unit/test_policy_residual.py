"""The residual on the edge: it equals the trained network, its bounds hold, and zero means exactly the base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.common.normalization import OBSERVATION_STD, Standardizer
from policies.residual.actor import ResidualActor, actor_tensors
from policies.residual.config import ExplorationConfig, ResidualConfig
from policies.residual.explore import add_noise, warm_up_action
from policies.residual.runtime import ResidualRuntime
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.specs import PolicySpec, vector

CONFIG = ResidualConfig(hidden=(32, 16), action_scale=0.3)
LOWER, UPPER = np.array([-0.01, 0.0], np.float32), np.array([0.01, 1.0], np.float32)
HALF_RANGE = (UPPER - LOWER) / 2
SPEC = PolicySpec(
    name="residual",
    task="t",
    horizon=1,
    action=vector(("dx_m", "gripper"), (-0.01, 0.0), (0.01, 1.0)),
    observation={"observation.state": vector(("x", "y", "z"))},
)
STATISTICS = Standardizer(mean=(1.0, 2.0, 3.0), std=(0.5, 1.0, 2.0))


def make_actor(config: ResidualConfig = CONFIG, last_layer: float = 0.5) -> ResidualActor:
    actor = ResidualActor(config, observation_dim=3, action_dim=2, seed=0)
    with torch.no_grad():
        actor.mlp.tensors()[f"weight.{len(config.hidden)}"].normal_(0.0, last_layer)
    return actor


def runtime(actor: ResidualActor, config: ResidualConfig = CONFIG) -> ResidualRuntime:
    return ResidualRuntime(actor_tensors(actor, STATISTICS), config, SPEC, version=7)


def cases(count: int = 200) -> list[tuple[Observation, FloatArray]]:
    rng = np.random.default_rng(1)
    bases = rng.uniform(LOWER, UPPER, (count, 2)).astype(np.float32)
    bases[:4] = np.array([LOWER, UPPER, np.array([-0.0, 0.0]), np.array([0.0, 1.0])])
    states = rng.normal(0.0, 3.0, (count, 3)).astype(np.float32)
    return [
        (Observation(id=0, stamp_ns=0, features={"observation.state": state}, age_ns={}), base)
        for state, base in zip(states, bases, strict=True)
    ]


def test_an_untrained_residual_returns_the_base_action_bit_for_bit() -> None:
    residual = runtime(ResidualActor(CONFIG, observation_dim=3, action_dim=2, seed=0))
    for observation, base in cases():
        assert residual.correct(observation, base).tobytes() == base.tobytes()
    assert residual.version == 7


def test_scale_zero_returns_the_base_action_bit_for_bit() -> None:
    off = ResidualConfig(hidden=(32, 16), action_scale=0.0)
    residual = runtime(make_actor(off), off)
    for observation, base in cases():
        assert residual.correct(observation, base).tobytes() == base.tobytes()


def test_the_edge_computes_what_the_learner_trained() -> None:
    actor = make_actor()
    residual = runtime(actor)
    centre = (LOWER + UPPER) / 2
    for observation, base in cases():
        standardized = ((observation.features["observation.state"] - STATISTICS.mean) / STATISTICS.std).clip(-10, 10)
        with torch.no_grad():
            expected = actor(
                torch.tensor(standardized, dtype=torch.float32)[None],
                torch.from_numpy((base - centre) / HALF_RANGE)[None],
            )[0].numpy()
        action = np.clip(base + expected * HALF_RANGE, LOWER, UPPER)
        np.testing.assert_allclose(residual.correct(observation, base) / HALF_RANGE, action / HALF_RANGE, atol=2e-5)


def test_the_correction_is_bounded_and_the_action_stays_inside() -> None:
    residual = runtime(make_actor(last_layer=20.0))
    for observation, base in cases():
        action = residual.correct(observation, base)
        assert action.dtype == np.float32
        assert (action >= LOWER).all() and (action <= UPPER).all()
        assert (np.abs(action - base) <= 0.3 * HALF_RANGE * (1 + 1e-5)).all()


def test_tensors_that_do_not_fit_are_refused() -> None:
    good = actor_tensors(make_actor(), STATISTICS)
    without = {name: value for name, value in good.items() if name != OBSERVATION_STD}
    bad_value = good | {"bias.0": np.full_like(good["bias.0"], np.nan)}
    bad_std = good | {OBSERVATION_STD: np.zeros(3, np.float32)}
    other = actor_tensors(make_actor(ResidualConfig(hidden=(32, 8))), STATISTICS)
    for tensors, words in ((without, "missing"), (bad_value, "NaN"), (bad_std, "std"), (other, "shape")):
        with pytest.raises(PolicyError, match=words):
            ResidualRuntime(tensors, CONFIG, SPEC, version=1)


def test_exported_tensors_do_not_change_when_training_goes_on() -> None:
    actor = make_actor()
    tensors = actor_tensors(actor, STATISTICS)
    before = tensors["weight.0"].copy()
    with torch.no_grad():
        actor.mlp.flat.add_(1.0)
    np.testing.assert_array_equal(tensors["weight.0"], before)


def test_the_warm_up_is_uniform_around_the_base_or_over_the_range_and_noise_is_gaussian_around_the_action() -> None:
    config = ExplorationConfig(warmup_noise=0.2, sigma=0.05)
    base, action = np.array([0.001, 0.5], np.float32), np.array([-0.004, 0.3], np.float32)
    rng = np.random.default_rng(0)

    def share_of(actions: list[FloatArray], centre: FloatArray) -> Array:
        return (np.stack(actions) - centre) / HALF_RANGE

    early = share_of([warm_up_action(base, rng, config, SPEC.action) for _ in range(2000)], base)
    assert 0.19 < np.abs(early).max() <= 0.2 + 1e-6
    np.testing.assert_allclose(early.std(axis=0), 0.2 / np.sqrt(3), rtol=0.1)
    anywhere = ExplorationConfig(warmup="uniform")
    wide = share_of(
        [warm_up_action(base, rng, anywhere, SPEC.action) for _ in range(2000)],
        np.asarray((UPPER + LOWER) / 2, np.float32),
    )
    assert 0.99 < np.abs(wide).max() <= 1.0 + 1e-6
    np.testing.assert_allclose(wide.std(axis=0), 1.0 / np.sqrt(3), rtol=0.1)
    late = share_of([add_noise(action, rng, config, SPEC.action) for _ in range(2000)], action)
    np.testing.assert_allclose(late.std(axis=0), 0.05, rtol=0.1)
    np.testing.assert_allclose(late.mean(axis=0), 0.0, atol=0.01)


def test_exploration_stays_inside_the_bounds_and_is_off_at_sigma_zero() -> None:
    rng = np.random.default_rng(0)
    loud, off = ExplorationConfig(warmup_noise=5.0, sigma=5.0), ExplorationConfig(warmup_noise=0.0, sigma=0.0)
    for explored in (add_noise, warm_up_action):
        for _ in range(100):
            action = explored(UPPER, rng, loud, SPEC.action)
            assert (action >= LOWER).all() and (action <= UPPER).all() and action.dtype == np.float32
        np.testing.assert_array_equal(explored(UPPER, rng, off, SPEC.action), UPPER)


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"action_scale": 1.5}, {"hidden": ()}, {"hidden": (0,)}):
        with pytest.raises(ConfigError):
            ResidualConfig(**wrong)
    with pytest.raises(ConfigError):
        ExplorationConfig(sigma=-1.0)


def test_no_correction_is_larger_than_what_the_warm_up_tried() -> None:
    """Where the critics have seen nothing yet, an actor that follows them ruins a working base policy."""
    assert ResidualConfig().action_scale <= ExplorationConfig().warmup_noise
