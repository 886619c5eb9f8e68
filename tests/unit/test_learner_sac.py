"""SAC, RLPD and HIL-SERL: targets by hand, what they learn on problems with a known answer, and a complete state."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from policies.common.ensemble_mlp import layer_shapes
from policies.common.normalization import Standardizer
from policies.gaussian.config import GaussianConfig
from policies.gaussian.runtime import GaussianRuntime
from robot_stack.apps.actors import allowed_change, step_builder
from robot_stack.buffer.batches import TransitionBatch
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Sampler
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, Observation
from robot_stack.core.specs import STATE, PolicySpec, vector
from robot_stack.learner.algorithms.base import Batches, Ingredients, Recipe, build_recipe
from robot_stack.learner.algorithms.critics import Critics, Histogram
from robot_stack.learner.algorithms.sac import Sac
from robot_stack.learner.algorithms.settings import ALGORITHM_PRESETS, AlgorithmSettings
from robot_stack.learner.algorithms.settings.gaussian import GaussianSettings
from robot_stack.learner.algorithms.settings.hil_serl import HilSerlSettings
from robot_stack.learner.algorithms.settings.sac import GraspConfig, SacConfig, SacSettings
from robot_stack.learner.curation import InterventionsTwice

ACTION = vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0))
HALF_RANGE = np.array([0.1, 2.0], np.float32)
STATISTICS = Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0))
ACTOR = GaussianConfig(hidden=(24, 24))
GRIPPING = GaussianConfig(hidden=(24, 24), gripper=1)
CONFIG = SacConfig(
    critics=2,
    critic_hidden=(24, 24),
    critic_lr=3e-3,
    actor_lr=3e-3,
    initial_temperature=0.01,
    temperature_lr=3e-3,
    target_entropy=-1.5,
)
FEATURES = {STATE: vector(("x", "y"))}
SPEC = PolicySpec(name="s", task="t", horizon=1, action=ACTION, observation=FEATURES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(config: SacConfig = CONFIG, actor: GaussianConfig = ACTOR, seed: int = 0) -> Sac:
    return Sac(config, actor, ACTION, STATISTICS, seed, GraspConfig(lr=3e-3))


def changed(**values: object) -> SacConfig:
    return msgspec.structs.replace(CONFIG, **values)


def transitions(
    observation: Array,
    action: Array,
    return_n: Array,
    bootstrap: Array,
    next_observation: Array,
) -> TransitionBatch:
    """`action`: normalised."""
    floats = (np.asarray(value, np.float32) for value in (observation, action * HALF_RANGE, return_n, bootstrap))
    first, acted, returned, kept = floats
    base = np.zeros_like(acted)
    return TransitionBatch.of(first, base, acted, returned, kept, np.asarray(next_observation, np.float32), base)


def reach(rng: np.random.Generator, size: int = 64) -> TransitionBatch:
    """One-step episodes: the reward is larger the nearer the action is to the observation."""
    observation, action = rng.uniform(-0.5, 0.5, (size, 2)), rng.uniform(-1.0, 1.0, (size, 2))
    reward = 1.0 - np.square(action - observation).sum(axis=1)
    return transitions(observation, action, reward, np.zeros(size), np.zeros((size, 2)))


def acts(algorithm: Sac, observations: Array, actor: GaussianConfig = ACTOR) -> Array:
    """Normalised actions (N, 2) that the edge would take."""
    runtime = GaussianRuntime(algorithm.actor_tensors(), actor, SPEC, version=1)
    seen = [Observation(id=0, stamp_ns=0, features={STATE: row}, age_ns={}) for row in observations.astype(np.float32)]
    return np.stack([runtime.correct(one, np.zeros(2, np.float32)) for one in seen]) / HALF_RANGE


def equal(first: dict[str, Array], second: dict[str, Array]) -> bool:
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def networks(flat: Array, members: int, inputs: int, hidden: tuple[int, ...], outputs: int) -> dict[str, Array]:
    tensors, start = {}, 0
    for name, shape in layer_shapes(members, inputs, hidden, outputs).items():
        tensors[name] = flat[start : start + math.prod(shape)].reshape(shape).astype(np.float64)
        start += math.prod(shape)
    return tensors


def through(tensors: dict[str, Array], member: int, value: Array) -> Array:
    """A network by hand, in double precision."""
    for index in range(2):
        value = value @ tensors[f"weight.{index}"][member] + tensors[f"bias.{index}"][member]
        value = (value - value.mean(axis=1, keepdims=True)) / np.sqrt(value.var(axis=1, keepdims=True) + 1e-5)
        value = np.maximum(value, 0.0)
    return value @ tensors["weight.2"][member] + tensors["bias.2"][member]


@pytest.mark.parametrize("backup_entropy", [False, True])
def test_targets_equal_those_by_hand(backup_entropy: bool) -> None:
    """One row terminated, one truncated (its time-out is bootstrapped from the state after it), one goes on."""
    algorithm = make(changed(critics=5, backup_entropy=backup_entropy, initial_temperature=0.3))
    rng = np.random.default_rng(0)
    for _ in range(5):
        algorithm.learn(reach(rng))
    state, following = algorithm.state(), np.array([[0.0, 0.0], [0.4, -0.2], [1.0, 0.3]])
    bootstrap, return_n = np.array([0.0, 0.9, 0.9**3]), np.array([1.0, 0.2, -0.5])
    batch = transitions(following, following, return_n, bootstrap, following)
    found = algorithm.target(batch).numpy()

    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state["generator"]))
    noise = torch.randn(3, 2, generator=generator).double().numpy()
    chosen = torch.randperm(5, generator=generator)[:2].tolist()
    output = through(networks(state["actor.mlp.flat"], 1, 2, (24, 24), 4), 0, following)
    log_std = -1.5 + 3.5 * np.tanh(output[:, 2:])
    action = np.tanh(output[:, :2] + np.exp(log_std) * noise)
    normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = (normal - np.log(1.0 - action**2)).sum(axis=1)
    critics = networks(state["critic_target.flat"], 5, 4, (24, 24), 1)
    inputs = np.concatenate((following, action), axis=1)
    value = np.minimum(*(through(critics, member, inputs)[:, 0] for member in chosen))
    if backup_entropy:
        value = value - math.exp(state["log_temperature"][0]) * log_prob
    np.testing.assert_allclose(found, return_n + bootstrap * value, atol=2e-5)
    assert found[0] == np.float32(1.0) and abs(found[1] - 0.2) > 1e-4


def test_the_minimum_is_over_a_random_subset_of_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    critics = Critics(4, 2, 3, (8, 8), generator)
    with torch.no_grad():
        critics.target.flat.normal_(generator=generator)
        inputs = torch.randn(6, 3, generator=generator)
        every = critics.target(inputs)[..., 0]
    pairs = {(i, j): torch.minimum(every[i], every[j]) for i in range(4) for j in range(i)}
    seen = set()
    for _ in range(60):
        lowest = critics.lowest(inputs)
        seen |= {pair for pair, value in pairs.items() if torch.allclose(value, lowest, atol=1e-6)}
    assert seen == pairs.keys()


@pytest.mark.parametrize("initial", [0.01, 0.1])
def test_the_temperature_moves_the_entropy_to_its_target(initial: float) -> None:
    config = changed(initial_temperature=initial, temperature_lr=4e-2, target_entropy=-0.5)
    algorithm, rng = make(config), np.random.default_rng(0)
    found = [algorithm.learn(reach(rng))["entropy"] for _ in range(200)]
    assert found[0] > 0.5
    assert np.mean(found[-50:]) == pytest.approx(-1.0, abs=0.25)


@pytest.mark.parametrize(("target", "rises"), [(-0.5, False), (2.0, True)])
def test_where_all_actions_are_worth_the_same_only_the_temperature_moves(target: float, rises: bool) -> None:
    """The entropy is as large as it can be, above a target of -0.5 and below one of 2, which no action can have."""
    algorithm, rng, found = make(changed(target_entropy=target)), np.random.default_rng(0), []
    for _ in range(30):
        batch = reach(rng, 32)
        batch.return_n[:] = 0.0
        algorithm.learn(batch)
        found.append(algorithm.temperature)
    assert (np.diff(found) > 0).all() if rises else (np.diff(found) < 0).all()


def test_a_temperature_without_learning_rate_stays() -> None:
    algorithm = make(changed(temperature_lr=0.0))
    algorithm.learn(reach(np.random.default_rng(0)))
    assert algorithm.temperature == pytest.approx(0.01)


@pytest.mark.parametrize("bins", [0, 40])
def test_it_learns_where_to_reach(bins: int) -> None:
    rng, algorithm = np.random.default_rng(0), make(changed(bins=bins, value_min=-5.0, value_max=1.0))
    for _ in range(250):
        algorithm.learn(reach(rng))
    wanted = np.random.default_rng(5).uniform(-0.4, 0.4, (50, 2))
    assert np.abs(acts(algorithm, wanted) - wanted).mean() < 0.1


def test_values_propagate_through_bootstrapping_and_stop_at_termination() -> None:
    """States 0 -> 1 -> end, reward 1 at the end, discount 0.5: values 0.5 and 1."""
    algorithm, rng = (
        make(changed(backup_entropy=False, polyak=0.1, critic_only_updates=10_000)),
        np.random.default_rng(0),
    )
    mean_q = 0.0
    for _ in range(200):
        second = (rng.random(64) < 0.5).astype(np.float32)
        observation = np.stack([second, 1 - second], axis=1)
        following = np.tile(np.array([1.0, 0.0]), (64, 1))
        batch = transitions(observation, rng.uniform(-1, 1, (64, 2)), second, 0.5 * (1 - second), following)
        mean_q = 0.9 * mean_q + 0.1 * algorithm.learn(batch)["q_mean"]
    assert mean_q == pytest.approx(0.75, abs=0.05)


def test_values_stay_bounded_at_twenty_updates_per_step() -> None:
    """A few steps that never terminate, learned over and over: nobody's value exceeds reward / (1 - discount)."""
    discount, rng = 0.9, np.random.default_rng(0)
    algorithm = make(changed(actor_every=20, polyak=0.02, backup_entropy=False))
    steps: list[tuple[Array, Array, Array, Array]] = []
    for _ in range(12):
        now, following = rng.uniform(-1, 1, (8, 2)), rng.uniform(-1, 1, (8, 2))
        steps.append((now, rng.uniform(-1, 1, (8, 2)), rng.uniform(0, 1, 8), following))
        observation, action, reward, after = (np.concatenate(part) for part in zip(*steps, strict=True))
        for _ in range(20):
            rows = rng.integers(len(reward), size=32)
            kept = np.full(32, discount)
            algorithm.learn(transitions(observation[rows], action[rows], reward[rows], kept, after[rows]))
    state = algorithm.state()
    critics = networks(state["critic.flat"], 2, 4, (24, 24), 1)
    anywhere = rng.uniform(-1, 1, (2000, 4))
    values = np.stack([through(critics, member, anywhere)[:, 0] for member in range(2)])
    assert values.mean() > 1.5  # it did learn that much lies ahead
    assert values.max() <= 1.0 / (1.0 - discount) * 1.1 and values.min() >= -1.0


@pytest.mark.parametrize(
    ("config", "actor"),
    [
        (CONFIG, ACTOR),
        (CONFIG, GRIPPING),
        (changed(bins=20, actor_every=3, critics=4, subset=1, critic_only_updates=7), ACTOR),
    ],
)
def test_fifty_updates_saved_and_fifty_more_equal_a_hundred(config: SacConfig, actor: GaussianConfig) -> None:
    whole, first = make(config, actor), make(config, actor)
    rng = np.random.default_rng(0)
    batches = [reach(rng, 32) for _ in range(100)]
    for batch in batches:
        whole.learn(batch)
    for batch in batches[:50]:
        first.learn(batch)
    saved = first.state()
    for batch in batches[50:]:  # the saved state is a copy
        first.learn(batch)
    second = make(config, actor, seed=99)
    second.load_state(saved)
    assert second.updates == 50 and equal(second.state(), saved)
    for batch in batches[50:]:
        second.learn(batch)
    assert equal(second.state(), whole.state()) and equal(first.state(), whole.state())
    assert equal(second.actor_tensors(), whole.actor_tensors())


def test_seeds_differ_and_a_state_of_another_configuration_is_refused() -> None:
    state = make().state()
    assert not equal(state, make(seed=1).state())
    with pytest.raises(PolicyError, match="shape"):
        make(changed(critics=3)).load_state(state)
    with pytest.raises(PolicyError, match="grasp"):
        make(actor=GRIPPING).load_state(state)


def test_the_actor_learns_at_its_own_interval_after_the_critics() -> None:
    rng, algorithm = np.random.default_rng(0), make(changed(actor_every=3, critic_only_updates=4))
    before = algorithm.actor_tensors()
    acted = ["entropy" in algorithm.learn(reach(rng)) for _ in range(5)]
    assert acted == [False] * 5 and equal(algorithm.actor_tensors(), before)
    acted = ["entropy" in algorithm.learn(reach(rng)) for _ in range(6)]
    assert acted == [True, False, False, True, False, False]


def test_a_reward_that_is_not_finite_stops_the_learner() -> None:
    batch = reach(np.random.default_rng(0))
    batch.return_n[3] = np.nan
    with pytest.raises(PolicyError, match="not finite"):
        make().learn(batch)


# ---- the gripper's own critic ----


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_the_gripper_learns_when_to_close_and_open(penalty: float) -> None:
    """Closing (the lower bound) is worth 1 where x > 0, opening 0.2 elsewhere: too little for a penalty of 0.3."""
    algorithm = Sac(CONFIG, GRIPPING, ACTION, STATISTICS, 0, GraspConfig(lr=3e-3, penalty=penalty))
    rng = np.random.default_rng(0)
    for _ in range(120):
        observation, action = rng.uniform(-1.0, 1.0, (64, 2)), rng.uniform(-1.0, 1.0, (64, 2))
        action[:, 1] = rng.integers(-1, 2, 64)
        reward = np.where(observation[:, 0] > 0, action[:, 1] < -0.5, 0.2 * (action[:, 1] > 0.5))
        algorithm.learn(transitions(observation, action, reward, np.zeros(64), np.zeros((64, 2))))
    right = acts(algorithm, np.column_stack((np.linspace(0.2, 1.0, 20), np.zeros(20))), GRIPPING)
    left = acts(algorithm, np.column_stack((np.linspace(-1.0, -0.2, 20), np.zeros(20))), GRIPPING)
    assert (right[:, 1] == -1.0).all()
    assert (left[:, 1] == (0.0 if penalty else 1.0)).all()


def test_the_grippers_values_are_those_of_the_best_next_choice() -> None:
    """States 0 -> 1 -> end: in 1 closing gives 1; discount 0.5, so closing there is worth 1 and state 0 half of it."""
    algorithm = Sac(changed(polyak=0.1), GRIPPING, ACTION, STATISTICS, 0, GraspConfig(lr=3e-3, penalty=0.0))
    rng, mean_q = np.random.default_rng(0), 0.0
    for _ in range(200):
        second = (rng.random(64) < 0.5).astype(np.float32)
        action = np.stack([rng.uniform(-1, 1, 64), np.full(64, -1.0)], axis=1)
        observation = np.stack([second, 1 - second], axis=1)
        following = np.tile(np.array([1.0, 0.0]), (64, 1))
        metrics = algorithm.learn(transitions(observation, action, second, 0.5 * (1 - second), following))
        mean_q = 0.9 * mean_q + 0.1 * metrics["grasp_q_mean"]
    assert mean_q == pytest.approx(0.75, abs=0.05)


# ---- histograms ----


def test_the_mean_of_a_projected_number_is_that_number() -> None:
    histogram = Histogram(-2.0, 3.0, 50)
    values = torch.linspace(-2.0, 3.0, 1001)
    probabilities = histogram.project(values)
    assert (probabilities >= 0).all() and torch.allclose(probabilities.sum(dim=1), torch.ones(1001))
    torch.testing.assert_close(probabilities @ histogram.centres, values, atol=5e-6, rtol=0)
    torch.testing.assert_close(histogram.mean(probabilities.log()), values, atol=5e-6, rtol=0)
    outside = histogram.project(torch.tensor([-50.0, 50.0])) @ histogram.centres
    torch.testing.assert_close(outside, torch.tensor([-2.0, 3.0]), atol=5e-6, rtol=0)


def test_the_loss_of_histograms_is_least_at_the_projection() -> None:
    histogram, target = Histogram(0.0, 1.0, 20), torch.tensor([0.3, 0.8])
    best = histogram.project(target).clamp_min(1e-12).log()[None]
    least = histogram.loss(best, target)
    torch.testing.assert_close(least, -(best.exp() * best).sum() / 2)
    moved = histogram.project(target + 0.05).clamp_min(1e-12).log()[None]
    assert histogram.loss(moved, target) > least + 0.1


# ---- settings, presets, the data they learn from ----


@pytest.mark.parametrize("preset", ["sac", "rlpd", "hil_serl"])
def test_presets_compose_and_build_what_acts_on_the_edge(preset: str) -> None:
    settings = compose_config([f"algorithm={preset}", "algorithm.actor.hidden=[16,16]"]).algorithm
    assert isinstance(settings, GaussianSettings)
    assert settings == msgspec.structs.replace(ALGORITHM_PRESETS[preset], actor=GaussianConfig(hidden=(16, 16)))
    recipe = recipe_of(settings)
    build = step_builder(settings, SPEC)
    assert build is not None and allowed_change(settings, 0.5) == math.inf
    policy = build(3, recipe.algorithm.actor_tensors())
    seen = Observation(id=0, stamp_ns=0, features={STATE: np.zeros(2, np.float32)}, age_ns={})
    assert policy.version == 3 and (np.abs(policy.correct(seen, HALF_RANGE)) < 0.2 * HALF_RANGE).all()
    assert allowed_change(ALGORITHM_PRESETS["residual_td3"], 0.5) == 0.5


def test_a_gripper_is_set_by_configuration() -> None:
    settings = compose_config(
        ["algorithm=hil_serl", "algorithm.actor.gripper=1", "algorithm.grasp.penalty=0.1"]
    ).algorithm
    assert isinstance(settings, HilSerlSettings) and settings.actor.gripper == 1 and settings.grasp.penalty == 0.1
    assert any(name.startswith("grasp.") for name in recipe_of(settings).algorithm.actor_tensors())


def recipe_of(settings: GaussianSettings) -> Recipe:
    return build_recipe(settings, Ingredients(ACTION, FEATURES, STATISTICS, base=None, seed=0))


def filled(count: int) -> Replay:
    replay, rng = Replay(ReplayConfig(100, 2, 2, lookahead=3)), np.random.default_rng(0)
    for index in range(count):
        seen, base, action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        last = index == count - 1
        replay.add(ReplayStep("stream", index, Stratum.ONLINE, seen, base, action, 0.5, last, False))
    return replay


def small(settings: AlgorithmSettings) -> SacSettings | HilSerlSettings:
    assert isinstance(settings, SacSettings | HilSerlSettings)
    update = msgspec.structs.replace(settings.update, critic_hidden=(16, 16))
    return msgspec.structs.replace(settings, update=update, actor=ACTOR, batch_size=16)


def batches_of(settings: GaussianSettings, recipe: Recipe, demonstrations: Replay, online: Replay) -> Batches:
    sampler = Sampler(recipe.mix(demonstrations, online), 0, on_empty=recipe.on_empty)
    return Batches(sampler, settings.batch_size, settings.n_step, settings.discount)


@pytest.mark.parametrize("preset", ["sac", "hil_serl"])
def test_without_demonstrations_practice_fills_the_batches(preset: str) -> None:
    settings = small(ALGORITHM_PRESETS[preset])
    recipe = recipe_of(settings)
    batches = batches_of(settings, recipe, filled(0), filled(20))
    assert batches.sampler.ready()
    for _ in range(3):
        metrics = recipe.algorithm.update(batches)
    assert recipe.algorithm.updates == 3 and math.isfinite(metrics["critic_loss"])
    assert not batches_of(settings, recipe, filled(0), filled(0)).sampler.ready()


def test_rlpd_takes_half_of_every_batch_from_demonstrations_and_waits_for_both() -> None:
    settings = small(ALGORITHM_PRESETS["rlpd"])
    recipe = recipe_of(settings)
    assert not batches_of(settings, recipe, filled(0), filled(20)).sampler.ready()
    batches = batches_of(settings, recipe, filled(20), filled(20))
    assert batches.transitions().draw.counts == (8, 8)
    assert math.isfinite(recipe.algorithm.update(batches)["critic_loss"])


def test_a_persons_steps_of_hil_serl_are_demonstrations_too() -> None:
    assert isinstance(recipe_of(small(HilSerlSettings())).curator, InterventionsTwice)


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        (SacConfig, {"subset": 3}),
        (SacConfig, {"subset": 0}),
        (SacConfig, {"actor_every": 0}),
        (SacConfig, {"polyak": 0.0}),
        (SacConfig, {"temperature_lr": -1.0}),
        (SacConfig, {"initial_temperature": 0.0}),
        (SacConfig, {"bins": 10, "value_min": 1.0}),
        (GraspConfig, {"penalty": -1.0}),
        (GraspConfig, {"lr": 0.0}),
    ],
)
def test_impossible_settings_are_refused(record: Callable[..., object], wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        record(**wrong)
