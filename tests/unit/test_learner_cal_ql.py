"""Cal-QL: the conservative term by hand, what its floor does, both stages, and that its state is complete."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from policies.gaussian.config import GaussianConfig
from policies.gaussian.runtime import GaussianRuntime
from policies.residual.config import ExplorationConfig
from robot_stack.buffer.batches import TransitionBatch
from robot_stack.buffer.replay import Replay, ReplayConfig, Stratum
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import FloatArray
from robot_stack.core.specs import STATE
from robot_stack.learner.algorithms.base import build_recipe
from robot_stack.learner.algorithms.cal_ql import CalQl
from robot_stack.learner.algorithms.conservative import conservative_gap, filled_returns
from robot_stack.learner.algorithms.settings.cal_ql import CalQlConfig, CalQlSettings
from robot_stack.learner.algorithms.settings.critics import ConservativeConfig, CriticsConfig
from robot_stack.learner.curation import Place
from robot_stack.learner.trainer import Trainer, TrainerSettings
from tests.bandit_kit import (
    DISCOUNT,
    SPEC,
    batches_of,
    check_twenty_and_twenty_equal_forty,
    equal,
    ingredients,
    random_steps,
    reward_of,
    seen,
)

ACTOR = GaussianConfig(hidden=(32, 32))
SETTINGS = CalQlSettings(
    actor=ACTOR,
    critics=CriticsConfig(critics=2, hidden=(32, 32), lr=3e-3, polyak=0.05),
    conservative=ConservativeConfig(weight=0.5, action_samples=3),
    update=CalQlConfig(actor_lr=3e-3, temperature_lr=3e-3, initial_temperature=0.1, offline_updates=7),
    discount=DISCOUNT,
)


def make(settings: CalQlSettings = SETTINGS, seed: int = 0) -> CalQl:
    return CalQl(settings, ingredients(seed=seed))


def batch_of(count: int = 16, returns: FloatArray | None = None, seed: int = 0) -> TransitionBatch:
    rng = np.random.default_rng(seed)
    rows = [rng.uniform(-0.5, 0.5, (count, 2)).astype(np.float32) for _ in range(4)]
    reward, bootstrap = rng.uniform(0, 1, count).astype(np.float32), np.full(count, DISCOUNT, np.float32)
    return TransitionBatch.of(rows[0], rows[1], rows[1], reward, bootstrap, rows[2], rows[3], return_to_go=returns)


# ---- the conservative term ----


def test_the_gap_of_one_state_computed_by_hand() -> None:
    """Two critics; one random action of density 1/2, two of the policy with densities 1 and 2; returns of 3."""
    values = torch.tensor([[[1.0, 2.0, 4.0]], [[0.0, 5.0, -1.0]]])
    density = torch.log(torch.tensor([[0.5, 1.0, 2.0]]))
    gap = conservative_gap(torch.tensor([[1.5], [2.5]]), values, density, torch.tensor([3.0]), blind=1)
    first = math.log(math.exp(1.0) / 0.5 + math.exp(3.0) + math.exp(4.0) / 2.0) - 1.5
    second = math.log(math.exp(0.0) / 0.5 + math.exp(5.0) + math.exp(3.0) / 2.0) - 2.5
    assert gap.tolist() == pytest.approx([first, second], rel=1e-6)


def test_without_a_floor_the_update_is_that_of_cql_bit_for_bit() -> None:
    plain = msgspec.structs.replace(SETTINGS, conservative=ConservativeConfig(weight=0.5, calibrated=False))
    calibrated = msgspec.structs.replace(SETTINGS, conservative=ConservativeConfig(weight=0.5))
    first, second, floored = make(plain), make(calibrated), make(calibrated)
    for seed in range(5):
        first.learn(batch_of(returns=np.full(16, 3.0, np.float32), seed=seed))
        second.learn(batch_of(seed=seed))
        floored.learn(batch_of(returns=np.full(16, 3.0, np.float32), seed=seed))
    assert equal(first.state(), second.state()) and not equal(first.state(), floored.state())


def test_a_floor_above_everything_takes_all_gradient_from_values_of_the_policy() -> None:
    values = torch.randn((2, 4, 6), generator=torch.Generator().manual_seed(0)).requires_grad_()
    recorded = torch.zeros((2, 4), requires_grad=True)
    gap = conservative_gap(recorded, values, torch.zeros(4, 6), torch.full((4,), 1e6), blind=2)
    of_values, of_recorded = torch.autograd.grad(gap.sum(), (values, recorded))
    assert bool((of_values == 0.0).all())
    assert torch.allclose(of_recorded, torch.full((2, 4), -0.25))
    gap = conservative_gap(recorded, values, torch.zeros(4, 6), torch.full((4,), -math.inf), blind=2)
    (unfloored,) = torch.autograd.grad(gap.sum(), values)
    assert bool((unfloored > 0.0).all())


def test_values_of_actions_outside_the_data_are_pushed_down() -> None:
    """Recorded actions are all at the upper bound: with the weight, values of others fall below theirs."""
    rows, ones = np.zeros((64, 2), np.float32), np.ones(64, np.float32)
    recorded = np.tile(np.array([0.1, 4.0], np.float32), (64, 1))
    batch = TransitionBatch.of(rows, recorded, recorded, ones, 0 * ones, rows, rows, return_to_go=ones)
    gaps = []
    for weight in (0.0, 5.0):
        algorithm = make(msgspec.structs.replace(SETTINGS, conservative=ConservativeConfig(weight=weight)))
        for _ in range(40):
            metrics = algorithm.learn(batch)
        gaps.append(metrics["conservative_gap"])
    assert gaps[1] < gaps[0] - 0.5


def test_an_episode_that_failed_throughout_counts_as_if_it_went_on_for_ever() -> None:
    """-1 at every step: 1, 2 and 50 steps before the end; then one whose last step brought 0, and two unknown ones."""
    lengths = np.array([1, 2, 50, 3, 0, 0], np.int32)
    whole = -(1 - 0.99 ** np.array([1, 2, 50])) / (1 - 0.99)
    returns = np.array([*whole, -1 - 0.99, -np.inf, -np.inf], np.float32)
    filled = filled_returns(returns, lengths, -1.0, 0.99)
    assert filled[:3].tolist() == pytest.approx([-100.0] * 3)
    assert filled[3:].tolist() == returns[3:].tolist() and filled.dtype == np.float32


# ---- learning ----


def test_offline_data_alone_make_an_actor_that_is_better_than_the_data() -> None:
    algorithm, steps = make(), random_steps(400)
    batches = batches_of(steps, 64)
    for _ in range(120):
        algorithm.update(batches)
    runtime = GaussianRuntime(algorithm.actor_tensors(), ACTOR, SPEC, version=1)
    observations = seen(100)
    actions = [runtime.correct(one, np.zeros(2, np.float32)) for one in observations]
    rewards = [reward_of(one.features[STATE], action) for one, action in zip(observations, actions, strict=True)]
    assert np.mean([step.reward for step in steps]) < 0.4
    assert np.mean(rewards) > 0.85


def test_imitation_pulls_the_actor_to_what_was_shown_and_to_nothing_else() -> None:
    def learned(weight: float, stratum: Stratum) -> CalQl:
        update = msgspec.structs.replace(SETTINGS.update, imitation_weight=weight)
        algorithm = make(msgspec.structs.replace(SETTINGS, update=update))
        rows, ones = np.zeros((32, 2), np.float32), np.ones(32, np.float32)
        shown = np.tile(np.array([0.05, -0.5], np.float32), (32, 1))
        batch = TransitionBatch.of(rows, shown, shown, ones, 0 * ones, rows, rows)
        batch.stratum[:] = stratum
        for _ in range(40):
            algorithm.learn(batch)
        return algorithm

    runtime = GaussianRuntime(learned(50.0, Stratum.DEMONSTRATION).actor_tensors(), ACTOR, SPEC, version=1)
    still = msgspec.structs.replace(seen(1)[0], features={STATE: np.zeros(2, np.float32)})
    assert np.allclose(runtime.correct(still, np.zeros(2, np.float32)), [0.05, -0.5], atol=[0.01, 0.3])
    unshown = learned(0.0, Stratum.ONLINE).state()
    for stratum in (Stratum.ONLINE, Stratum.PRE_INTERVENTION):
        assert equal(learned(50.0, stratum).state(), unshown)


def test_twenty_updates_saved_and_twenty_more_equal_forty() -> None:
    check_twenty_and_twenty_equal_forty(make(), make(), make(seed=99))


def test_a_state_of_another_configuration_is_refused() -> None:
    with pytest.raises(PolicyError, match="shape"):
        make(msgspec.structs.replace(SETTINGS, critics=CriticsConfig(critics=3, hidden=(32, 32)))).load_state(
            make().state()
        )


def test_a_reward_that_is_not_finite_stops_the_learner() -> None:
    batch = batch_of()
    batch.return_n[0] = np.inf
    with pytest.raises(PolicyError, match="not finite"):
        make().learn(batch)


# ---- both stages, in the learner ----


def test_the_offline_updates_are_made_before_the_first_step_of_practice(tmp_path: Path) -> None:
    recipe = build_recipe(SETTINGS, ingredients())
    config = ReplayConfig(500, 2, 2, lookahead=recipe.lookahead, return_discount=SETTINGS.discount)
    replays = {Place.DEMONSTRATIONS: Replay(config), Place.ONLINE: Replay(config)}
    for step in random_steps(50):
        replays[Place.DEMONSTRATIONS].add(step)
    settings = TrainerSettings(
        target_steps=10,
        start_after_steps=SETTINGS.exploration.warmup_steps,
        warmup_updates=SETTINGS.warmup_updates(),
        updates_per_step=1.0,
        publish_every_steps=5,
        batch_size=16,
        n_step=SETTINGS.n_step,
        discount=SETTINGS.discount,
    )
    with StepStore(tmp_path / "log", durability="process") as log:
        trainer = Trainer(settings, recipe, log, replays, SPEC.observation, seed=0)
        while trainer.advance():
            pass
    assert (trainer.updates, trainer.trained_steps) == (7, 0)


def test_the_presets_compose_and_can_be_changed() -> None:
    algorithm = compose_config(["algorithm=cal_ql", "algorithm.conservative.weight=1.0"]).algorithm
    assert isinstance(algorithm, CalQlSettings) and algorithm.conservative == ConservativeConfig(weight=1.0)
    assert algorithm.warmup_updates() == algorithm.update.offline_updates
    plain = compose_config(["algorithm=cql"]).algorithm
    assert isinstance(plain, CalQlSettings) and not plain.conservative.calibrated


def test_impossible_settings_are_refused() -> None:
    for config in ({"offline_updates": -1}, {"imitation_weight": -0.1}, {"actor_lr": 0.0}):
        with pytest.raises(ConfigError):
            CalQlConfig(**config)
    for wrong in ({"weight": -1.0}, {"action_samples": 0}):
        with pytest.raises(ConfigError):
            ConservativeConfig(**wrong)
    with pytest.raises(ConfigError, match="discount"):
        CalQlSettings(discount=1.0)
    with pytest.raises(ConfigError, match="gripper"):
        CalQlSettings(actor=GaussianConfig(gripper=1))
    assert CalQlSettings().exploration == ExplorationConfig(warmup_steps=0)
