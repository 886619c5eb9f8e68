"""PA-RL: what samples become, what the base is taught, its conservative critics, and that the state is complete."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from policies.generative.policy import GenerativePolicy
from policies.steering.candidates import sample_candidates
from policies.steering.improve import FirstActions
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import STATE
from robot_stack.learner.algorithms.base import build_chunk_policy, build_recipe
from robot_stack.learner.algorithms.decisions import PublishedCritics
from robot_stack.learner.algorithms.pa_rl import PaRl, climb
from robot_stack.learner.algorithms.settings.critics import ConservativeConfig, CriticsConfig
from robot_stack.learner.algorithms.settings.pa_rl import PaRlConfig, PaRlSettings
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining
from robot_stack.learner.algorithms.trained_base import published_base
from tests.bandit_kit import (
    ACTION,
    base_policy,
    batches_of,
    check_twenty_and_twenty_equal_forty,
    equal,
    ingredients,
    mean_reward,
    random_steps,
    seen,
)

SETTINGS = PaRlSettings(
    critics=CriticsConfig(critics=2, hidden=(32, 32), lr=3e-3, polyak=0.05),
    base=BaseTraining(lr=3e-3, every=1),
    update=PaRlConfig(candidates=4, keep=2, ascent_steps=4, ascent_step_size=0.05, distil_temperature=0.05),
)


def make(settings: PaRlSettings = SETTINGS, seed: int = 0) -> PaRl:
    return PaRl(settings, ingredients(base_policy(), seed))


def policy_of(settings: PaRlSettings, tensors: Mapping[str, Array]) -> Policy:
    return build_chunk_policy(settings, base_policy(seed=5), 3, tensors)


def base_of(tensors: Mapping[str, Array]) -> GenerativePolicy:
    return published_base(base_policy(seed=5), SETTINGS.base, 3, tensors)


@pytest.fixture(scope="module")
def learned() -> dict[str, Array]:
    algorithm, batches = make(), batches_of(random_steps(400), 64)
    for _ in range(100):
        algorithm.update(batches)
    return algorithm.actor_tensors()


def test_with_a_linear_critic_the_best_samples_move_by_steps_times_step_size_times_its_slope() -> None:
    slope, config = torch.tensor([0.5, -1.0]), replace(SETTINGS.update, ascent_steps=8, ascent_step_size=1 / 32)
    samples = torch.tensor([[[0.0, 0.5], [0.5, -0.5], [0.25, 0.0], [0.0, 0.0]]])
    top, found, values = climb(config, lambda actions: actions @ slope, samples)
    assert top.tolist() == [[1, 2]]
    assert torch.equal(found, samples[:, [1, 2]] + 8 / 32 * slope) and torch.equal(values, found @ slope)


def test_improved_samples_are_worth_at_least_what_the_best_samples_were() -> None:
    algorithm, batches = make(), batches_of(random_steps(200))
    for _ in range(15):
        algorithm.update(batches)
    raw = np.random.default_rng(0).uniform(-0.5, 0.5, (32, 2)).astype(np.float32)
    standardized = torch.from_numpy(ingredients().standardizer.normalize(raw))
    found = algorithm.improved(raw, standardized)
    assert found.chunks.shape == (32, 2, 3, 2) and found.decisions.shape == (32, 2, 2)
    tensors = algorithm.actor_tensors()
    critics = PublishedCritics(SETTINGS.critics, 2, tensors)
    before = critics.mean(standardized, found.chunks[:, :, 0])
    assert (found.values >= before - 1e-6).all() and (found.values > before + 1e-3).any()
    assert torch.allclose(critics.mean(standardized, found.decisions), found.values, atol=1e-5)
    assert (found.decisions.abs() <= 1.0).all()


def test_what_acts_is_worth_more_than_any_sample_of_the_base(learned: dict[str, Array]) -> None:
    policy, base, first = policy_of(SETTINGS, learned), base_of(learned), FirstActions(ACTION, 1)
    critics = PublishedCritics(SETTINGS.critics, 2, learned)
    for one in seen(20):
        standardized = torch.from_numpy(critics.standardizer.normalize(one.features[STATE]))[None]
        best = critics.mean(standardized, first.of(sample_candidates(base, one, 4))).max()
        chunk = policy.predict(one).actions
        assert critics.mean(standardized, first.of(chunk[None])).item() >= best.item() - 1e-5
        assert chunk.tobytes() == policy.predict(one).actions.tobytes()


def test_actions_get_better_and_the_base_learns_them(learned: dict[str, Array]) -> None:
    assert mean_reward(base_policy()) < 0.3
    assert mean_reward(policy_of(SETTINGS, learned)) > 0.85
    assert mean_reward(base_of(learned)) > 0.5


def test_a_temperature_spreads_the_choice_and_the_best_is_the_best(learned: dict[str, Array]) -> None:
    hot = policy_of(replace(SETTINGS, update=replace(SETTINGS.update, temperature=np.inf)), learned)
    cold, critics = policy_of(SETTINGS, learned), PublishedCritics(SETTINGS.critics, 2, learned)
    first = FirstActions(ACTION, 1)
    worse = 0
    for one in seen(30):
        standardized = torch.from_numpy(critics.standardizer.normalize(one.features[STATE]))[None]
        worth = [critics.mean(standardized, first.of(p.predict(one).actions[None])).item() for p in (hot, cold)]
        assert worth[0] <= worth[1] + 1e-6
        worse += worth[0] < worth[1] - 1e-6
    assert 5 < worse < 25


def test_twenty_updates_saved_and_twenty_more_equal_forty() -> None:
    settings = replace(SETTINGS, update=replace(SETTINGS.update, temperature=0.1))
    check_twenty_and_twenty_equal_forty(make(settings), make(settings), make(settings, seed=99))


def test_the_conservative_weight_pushes_values_of_samples_down() -> None:
    gaps = []
    for weight in (1e-9, 5.0):
        samples = replace(SETTINGS.update, candidates=2, ascent_steps=0)
        algorithm = make(replace(SETTINGS, conservative=ConservativeConfig(weight=weight), update=samples))
        batches = batches_of(random_steps(100))
        for _ in range(25):
            metrics = algorithm.update(batches)
        gaps.append(metrics["conservative_gap"])
    assert gaps[1] < gaps[0] - 0.05


def test_without_it_and_between_distillations_no_samples_are_drawn_for_the_state_itself() -> None:
    settings = replace(SETTINGS, conservative=ConservativeConfig(weight=0.0), base=BaseTraining(every=3))
    algorithm, batches = make(settings), batches_of(random_steps(50))
    reports = [algorithm.update(batches) for _ in range(6)]
    assert ["base_loss" in report for report in reports] == [False, False, True] * 2
    assert not any("conservative_gap" in report for report in reports)


def test_decisions_of_several_steps_learn_and_act() -> None:
    settings = replace(SETTINGS, update=replace(SETTINGS.update, decision_steps=2))
    algorithm, batches = make(settings), batches_of(random_steps(50))
    for _ in range(3):
        algorithm.update(batches)
    assert policy_of(settings, algorithm.actor_tensors()).predict(seen(1)[0]).actions.shape == (3, 2)
    with pytest.raises(PolicyError, match="shape"):
        policy_of(SETTINGS, algorithm.actor_tensors())


def test_the_preset_composes_and_begins_offline() -> None:
    settings = compose_config(["algorithm=pa_rl", "policy.execute_steps=1", "algorithm.update.keep=2"]).algorithm
    assert isinstance(settings, PaRlSettings) and settings.update.keep == 2
    assert settings.warmup_updates() == 1_000 and settings.exploration.warmup_steps == 0
    recipe = build_recipe(SETTINGS, ingredients(base_policy()))
    assert (recipe.lookahead, recipe.on_empty) == (1, "redistribute")
    assert equal(recipe.algorithm.state(), make().state())
    for wrong in ({"candidates": 0}, {"keep": 0}, {"ascent_steps": -1}, {"temperature": -1.0}):
        with pytest.raises(ConfigError):
            PaRlConfig(**wrong)
    with pytest.raises(ConfigError, match="discount"):
        PaRlSettings(discount=1.0)
