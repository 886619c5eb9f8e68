"""The Gaussian actor: its density is right, the edge computes what was trained, and nothing leaves the bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from policies.common.normalization import OBSERVATION_STD, Standardizer
from policies.gaussian.actor import GRASP, GaussianActor, actor_tensors, grasp_network
from policies.gaussian.config import GaussianConfig
from policies.gaussian.runtime import GaussianRuntime
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.protocols import ExploringPolicy
from robot_stack.core.specs import PolicySpec, vector

PLAIN = GaussianConfig(hidden=(32, 16))
GRIPPING = GaussianConfig(hidden=(32, 16), gripper=1)
LOWER, UPPER = np.array([-0.01, 0.0, -2.0], np.float32), np.array([0.01, 1.0, 2.0], np.float32)
CENTRE, HALF_RANGE = (LOWER + UPPER) / 2, (UPPER - LOWER) / 2
SPEC = PolicySpec(
    name="gaussian",
    task="t",
    horizon=1,
    action=vector(("dx_m", "gripper", "turn_rad"), (-0.01, 0.0, -2.0), (0.01, 1.0, 2.0)),
    observation={"observation.state": vector(("x", "y", "z"))},
)
STATISTICS = Standardizer(mean=(1.0, 2.0, 3.0), std=(0.5, 1.0, 2.0))
BASE = np.array([0.004, 0.2, 1.0], np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_actor(config: GaussianConfig = PLAIN, last_layer: float = 0.5, action_dim: int = 3) -> GaussianActor:
    actor = GaussianActor(config, observation_dim=3, action_dim=action_dim, seed=0)
    with torch.no_grad():
        weight = actor.mlp.tensors()[f"weight.{len(config.hidden)}"]
        weight.normal_(0.0, last_layer, generator=torch.Generator().manual_seed(1))
    return actor


def tensors_of(config: GaussianConfig = PLAIN, last_layer: float = 0.5) -> dict[str, Array]:
    grasp = None
    if config.gripper is not None:
        generator = torch.Generator().manual_seed(2)
        grasp = grasp_network(config, 3, generator)
        with torch.no_grad():
            grasp.tensors()[f"weight.{len(config.hidden)}"].normal_(0.0, 1.0, generator=generator)
    return actor_tensors(make_actor(config, last_layer), STATISTICS, grasp)


def runtime(config: GaussianConfig = PLAIN, last_layer: float = 0.5) -> GaussianRuntime:
    return GaussianRuntime(tensors_of(config, last_layer), config, SPEC, version=7)


def observations(count: int = 100) -> list[Observation]:
    states = np.random.default_rng(1).normal(0.0, 3.0, (count, 3)).astype(np.float32)
    return [Observation(id=0, stamp_ns=0, features={"observation.state": state}, age_ns={}) for state in states]


def standardized(observation: Observation) -> torch.Tensor:
    value = ((observation.features["observation.state"] - STATISTICS.mean) / STATISTICS.std).clip(-10, 10)
    return torch.tensor(value, dtype=torch.float32)[None]


def test_log_densities_equal_those_of_torch() -> None:
    actor, generator = make_actor(), torch.Generator().manual_seed(0)
    observation = torch.randn(64, 3, generator=generator)
    with torch.no_grad():
        action, log_prob = actor.sample(observation, torch.randn(5, 64, 3, generator=generator))
        mean, log_std = actor(observation)
        exact = TransformedDistribution(Independent(Normal(mean.double(), log_std.double().exp()), 1), TanhTransform())
        expected = exact.log_prob(action.double())  # type: ignore[no-untyped-call]
        inside = action.abs().amax(dim=-1) < 0.999
        assert action.shape == (5, 64, 3) and log_prob.shape == (5, 64) and inside.float().mean() > 0.5
        torch.testing.assert_close(log_prob.double()[inside], expected[inside], atol=2e-3, rtol=0)
        torch.testing.assert_close(actor.log_prob(observation, action)[inside], log_prob[inside], atol=2e-3, rtol=0)


def test_the_density_integrates_to_one() -> None:
    actor = make_actor(action_dim=1)
    actions = torch.tanh(torch.linspace(-7.0, 7.0, 4001, dtype=torch.float64))
    for observation in observations(5):
        with torch.no_grad():
            row = standardized(observation).expand(len(actions), -1)
            density = actor.log_prob(row, actions[:, None].float()).double().exp()
        assert torch.trapezoid(density, actions).item() == pytest.approx(1.0, abs=5e-3)


def test_densities_and_gradients_are_finite_far_out() -> None:
    actor = make_actor(last_layer=50.0)
    action, log_prob = actor.sample(torch.full((8, 3), 5.0), torch.full((8, 3), 4.0))
    (gradient,) = torch.autograd.grad(log_prob.mean(), actor.mlp.flat)
    assert torch.isfinite(log_prob).all() and torch.isfinite(gradient).all() and (action.abs() <= 1.0).all()


def test_the_spread_is_about_one_at_first_and_stays_within_its_bounds() -> None:
    fresh = GaussianActor(PLAIN, observation_dim=3, action_dim=3, seed=0)
    wide = make_actor(GaussianConfig(hidden=(32, 16), min_log_std=-3.0, max_log_std=-1.0), last_layer=50.0)
    with torch.no_grad():
        mean, log_std = fresh(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
        assert mean.abs().max() < 0.2 and log_std.abs().max() < 0.2
        log_std = wide(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)))[1]
    assert log_std.min() == pytest.approx(-3.0, abs=1e-3) and log_std.max() == pytest.approx(-1.0, abs=1e-3)
    assert log_std.min() >= -3.0 and log_std.max() <= -1.0


@pytest.mark.parametrize("config", [PLAIN, GRIPPING])
def test_the_edge_computes_what_the_learner_trained(config: GaussianConfig) -> None:
    actor, policy = make_actor(config), runtime(config)
    continuous = list(config.continuous(3))
    assert isinstance(policy, ExploringPolicy) and policy.version == 7
    for observation in observations():
        with torch.no_grad():
            expected = torch.tanh(actor(standardized(observation))[0])[0].numpy()
        action = (policy.correct(observation, BASE) - CENTRE) / HALF_RANGE
        np.testing.assert_allclose(action[continuous], expected, atol=1e-5)
        assert policy.correct(observation, -BASE).tobytes() == policy.correct(observation, BASE).tobytes()


def test_exploring_draws_from_the_actors_distribution() -> None:
    actor, policy = make_actor(), runtime()
    observation = observations(3)[2]
    with torch.no_grad():
        mean, log_std = actor(standardized(observation))
    rng = np.random.default_rng(0)
    drawn = np.stack([policy.explore(observation, BASE, rng) for _ in range(4000)])
    unsquashed = np.arctanh(np.clip((drawn - CENTRE) / HALF_RANGE, -1 + 1e-6, 1 - 1e-6))
    spread = log_std[0].exp().numpy()
    np.testing.assert_allclose(np.median(unsquashed, axis=0), mean[0].numpy(), atol=0.08 * spread.max())
    quartiles = np.quantile(unsquashed, [0.25, 0.75], axis=0)
    np.testing.assert_allclose((quartiles[1] - quartiles[0]) / 1.349, spread, rtol=0.08)
    again = policy.explore(observation, BASE, np.random.default_rng(3))
    np.testing.assert_array_equal(again, policy.explore(observation, -BASE, np.random.default_rng(3)))


@pytest.mark.parametrize("config", [PLAIN, GRIPPING])
def test_no_action_leaves_the_bounds(config: GaussianConfig) -> None:
    policy, rng = runtime(config, last_layer=20.0), np.random.default_rng(0)
    for observation in observations():
        for action in (policy.correct(observation, BASE), policy.explore(observation, BASE, rng)):
            assert action.shape == (3,) and action.dtype == np.float32
            assert (action >= LOWER).all() and (action <= UPPER).all()


def test_the_gripper_takes_the_choice_of_the_largest_value() -> None:
    tensors, policy = tensors_of(GRIPPING), runtime(GRIPPING)
    grasp = grasp_network(GRIPPING, 3, torch.Generator())
    with torch.no_grad():
        for name, value in grasp.tensors().items():
            value.copy_(torch.from_numpy(tensors[GRASP + name]))
        choices = [int(grasp(standardized(observation))[0, 0].argmax()) for observation in observations()]
    assert set(choices) == {0, 1, 2}
    taken: list[FloatArray] = [policy.correct(observation, BASE) for observation in observations()]
    np.testing.assert_array_equal([action[1] for action in taken], np.array([0.0, 0.5, 1.0])[choices])


def test_an_untrained_gripper_stays_in_the_middle_unless_it_explores() -> None:
    curious = GaussianConfig(hidden=(32, 16), gripper=1, gripper_random=0.3)
    fresh = actor_tensors(make_actor(curious), STATISTICS, grasp_network(curious, 3, torch.Generator()))
    policy, rng = GaussianRuntime(fresh, curious, SPEC, version=1), np.random.default_rng(0)
    seen = observations()[0]
    assert all(policy.correct(observation, BASE)[1] == 0.5 for observation in observations())
    drawn = np.array([policy.explore(seen, BASE, rng)[1] for _ in range(3000)])
    assert set(drawn.tolist()) == {0.0, 0.5, 1.0}
    assert (drawn != 0.5).mean() == pytest.approx(0.2, abs=0.03)


def test_tensors_that_do_not_fit_are_refused() -> None:
    good = tensors_of()
    without = {name: value for name, value in good.items() if name != OBSERVATION_STD}
    bad_value = good | {"bias.0": np.full_like(good["bias.0"], np.nan)}
    bad_std = good | {OBSERVATION_STD: np.zeros(3, np.float32)}
    other = tensors_of(GaussianConfig(hidden=(32, 8)))
    for tensors, words in ((without, "missing"), (bad_value, "NaN"), (bad_std, "std"), (other, "shape")):
        with pytest.raises(PolicyError, match=words):
            GaussianRuntime(tensors, PLAIN, SPEC, version=1)
    with pytest.raises(PolicyError, match="missing"):
        GaussianRuntime(good, GRIPPING, SPEC, version=1)


def test_exported_tensors_do_not_change_when_training_goes_on() -> None:
    actor = make_actor()
    tensors = actor_tensors(actor, STATISTICS, None)
    before = tensors["weight.0"].copy()
    with torch.no_grad():
        actor.mlp.flat.add_(1.0)
    np.testing.assert_array_equal(tensors["weight.0"], before)


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"hidden": ()}, {"min_log_std": 2.0}, {"gripper": -1}, {"gripper_random": 1.5}, {"hidden": (0,)}):
        with pytest.raises(ConfigError):
            GaussianConfig(**wrong)
    for config, action_dim in ((GaussianConfig(gripper=3), 3), (GaussianConfig(gripper=0), 1)):
        with pytest.raises(ConfigError, match="gripper"):
            config.continuous(action_dim)
