"""EXPO: what is chosen, what the base learns and what it does not, and that the state is complete."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from policies.gaussian.config import GaussianConfig
from policies.generative.policy import GenerativePolicy
from policies.steering.candidates import sample_candidates
from policies.steering.improve import FirstActions
from robot_stack.buffer.replay import ReplayStep, Stratum
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Array, Observation
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import IMAGES, STATE, Feature, vector
from robot_stack.learner.algorithms.base import build_chunk_policy, build_recipe
from robot_stack.learner.algorithms.decisions import PublishedCritics, draw_decisions
from robot_stack.learner.algorithms.expo import Expo
from robot_stack.learner.algorithms.settings.critics import CriticsConfig
from robot_stack.learner.algorithms.settings.expo import ExpoConfig, ExpoSettings
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining
from robot_stack.learner.algorithms.trained_base import TrainedBase
from robot_stack.learner.algorithms.training import Units
from tests.bandit_kit import (
    ACTION,
    DISCOUNT,
    SPEC,
    base_policy,
    batches_of,
    check_twenty_and_twenty_equal_forty,
    equal,
    ingredients,
    mean_reward,
    random_steps,
    seen,
)

SETTINGS = ExpoSettings(
    critics=CriticsConfig(critics=2, hidden=(32, 32), lr=3e-3, polyak=0.05),
    base=BaseTraining(lr=1e-3, every=4),
    edit=GaussianConfig(hidden=(32, 32)),
    update=ExpoConfig(candidates=3, edit_scale=0.3, edit_lr=3e-3, edit_every=1, initial_temperature=0.01),
)


def make(settings: ExpoSettings = SETTINGS, seed: int = 0) -> Expo:
    return Expo(settings, ingredients(base_policy(), seed))


def changed(**update: float) -> ExpoSettings:
    return replace(SETTINGS, update=replace(SETTINGS.update, **update))


def policy_of(settings: ExpoSettings, tensors: Mapping[str, Array], version: int = 3) -> Policy:
    return build_chunk_policy(settings, base_policy(seed=5), version, tensors)


@pytest.fixture(scope="module")
def trained() -> dict[str, Array]:
    """Published tensors after a little learning, so that the critics prefer something."""
    algorithm, batches = make(), batches_of(random_steps(300))
    for _ in range(40):
        algorithm.update(batches)
    return algorithm.actor_tensors()


def published_base(tensors: Mapping[str, Array]) -> GenerativePolicy:
    policy, net = base_policy(seed=5), {}
    for name, value in tensors.items():
        if name.startswith("base."):
            net[name.removeprefix("base.")] = torch.from_numpy(value.copy())
    policy.sampler.denoiser.load_state_dict(net)
    return GenerativePolicy(policy.spec, policy.config, policy.sampler.denoiser)


def values(tensors: Mapping[str, Array], one: Observation, decisions: Tensor) -> Tensor:
    critics = PublishedCritics(SETTINGS.critics, 2, tensors)
    return critics.mean(torch.from_numpy(critics.standardizer.normalize(one.features[STATE]))[None], decisions)[0]


# ---- what acts ----


def test_what_acts_is_never_worse_to_the_critics_than_the_best_sample_of_the_base(trained: dict[str, Array]) -> None:
    policy, base, first = policy_of(SETTINGS, trained), published_base(trained), FirstActions(ACTION, 1)
    gains = []
    for one in seen(20):
        best = values(trained, one, first.of(sample_candidates(base, one, 3))).max()
        gains.append(float(values(trained, one, first.of(policy.predict(one).actions[None]))[0] - best))
    assert min(gains) >= -1e-6 and max(gains) > 1e-3  # some were edited


def test_without_edits_it_is_the_best_of_n(trained: dict[str, Array]) -> None:
    policy, base, first = policy_of(changed(edit_scale=0.0), trained), published_base(trained), FirstActions(ACTION, 1)
    for one in seen(10):
        chunks = sample_candidates(base, one, 3)
        best = chunks[int(values(trained, one, first.of(chunks)).argmax())]
        assert policy.predict(one).actions.tobytes() == best.tobytes()


def test_one_candidate_without_edits_is_the_base_bit_for_bit(trained: dict[str, Array]) -> None:
    settings = changed(candidates=1, edit_scale=0.0)
    untouched = Expo(settings, ingredients(base_policy())).actor_tensors()
    policies = (
        (policy_of(settings, untouched), base_policy()),
        (policy_of(settings, trained), published_base(trained)),
    )
    for policy, base in policies:
        for one in seen(5):
            assert policy.predict(one).actions.tobytes() == base.predict(one).actions.tobytes()


def test_the_policy_is_a_pure_function_of_the_observation_inside_the_bounds(trained: dict[str, Array]) -> None:
    first, second = policy_of(SETTINGS, trained), policy_of(SETTINGS, trained)
    for one in seen(10):
        chunk = first.predict(one)
        assert chunk.actions.tobytes() == second.predict(one).actions.tobytes() and chunk.weights_version == 3
        assert (chunk.actions >= ACTION.lower_array()).all() and (chunk.actions <= ACTION.upper_array()).all()
    assert first.spec == SPEC


def test_tensors_that_do_not_fit_are_refused(trained: dict[str, Array]) -> None:
    with pytest.raises(PolicyError, match="shape"):
        policy_of(replace(SETTINGS, critics=CriticsConfig(critics=3, hidden=(32, 32))), trained)
    with pytest.raises(PolicyError, match="edit"):
        policy_of(SETTINGS, {name: value for name, value in trained.items() if name != "edit"})
    with pytest.raises(PolicyError, match="NaN"):
        policy_of(SETTINGS, trained | {"critics": np.full_like(trained["critics"], np.nan)})
    with pytest.raises(PolicyError, match="missing"):
        policy_of(SETTINGS, {name: value for name, value in trained.items() if not name.startswith("base.")})


# ---- what is learned ----


def test_candidates_are_samples_and_their_edits_and_edits_are_bounded() -> None:
    algorithm = make(changed(candidates=4, edit_scale=0.25))
    raw = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 2)).astype(np.float32)
    candidates = algorithm.candidates(raw, torch.from_numpy(raw))
    assert candidates.shape == (6, 8, 2) and (candidates.abs() <= 1.0).all()
    difference = (candidates[:, 4:] - candidates[:, :4]).abs()
    assert (difference <= 0.25 + 1e-6).all() and (difference > 0.0).any()
    assert make(changed(edit_scale=0.0)).candidates(raw, torch.from_numpy(raw)).shape == (6, 3, 2)


def test_the_learner_samples_the_base_as_the_edge_does() -> None:
    base = base_policy()
    learner = TrainedBase(BaseTraining(), ingredients(base), decision_steps=1)
    raw = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 2)).astype(np.float32)
    found = learner.sample(raw, 2, torch.Generator().manual_seed(1))
    noise = torch.randn((8, 3, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = base.to_actions(base.sampler(noise, None, torch.from_numpy(raw.repeat(2, axis=0))[:, None]).numpy())
    units = Units(ACTION, ingredients().standardizer)
    assert torch.allclose(found.flatten(0, 1), units.act(wanted), atol=1e-5)


def test_the_base_imitates_the_buffer_and_no_value_reaches_it() -> None:
    """All recorded actions are one; the base goes there, though the reward is best elsewhere."""
    steps = random_steps(60)
    action = np.array([0.05, 2.0], np.float32)
    fixed = [
        ReplayStep(step.stream, 0, Stratum.ONLINE, step.observation, action, action, step.reward, True, False)
        for step in steps
    ]
    algorithm, batches = make(replace(SETTINGS, base=BaseTraining(lr=1e-2, every=1))), batches_of(fixed)
    for _ in range(60):
        algorithm.update(batches)
    base = published_base(algorithm.actor_tensors())
    before, after = (policy.predict_batch(seen(50))[:, 0] for policy in (base_policy(), base))
    errors = [np.abs((chunk - action) / (ACTION.upper_array() - action)).mean() for chunk in (before, after)]
    assert errors[1] < 0.4 * errors[0]


def test_the_runs_own_base_policy_stays_as_it_is() -> None:
    base = base_policy()
    before = {name: value.clone() for name, value in base.sampler.denoiser.state_dict().items()}
    algorithm, batches = Expo(SETTINGS, ingredients(base)), batches_of(random_steps(50))
    for _ in range(8):
        algorithm.update(batches)
    assert all(torch.equal(value, before[name]) for name, value in base.sampler.denoiser.state_dict().items())
    published = algorithm.actor_tensors()
    assert not all(np.array_equal(published[f"base.{name}"], value.numpy()) for name, value in before.items())


def test_it_finds_better_actions_than_the_base() -> None:
    settings = changed(edit_scale=0.5)
    algorithm, batches = make(settings), batches_of(random_steps(400), 64)
    for _ in range(60):
        algorithm.update(batches)
    # The base imitates uniform actions: what is better is the choice and the edits.
    assert mean_reward(base_policy()) < 0.5
    assert mean_reward(policy_of(settings, algorithm.actor_tensors())) > 0.8


def test_twenty_updates_saved_and_twenty_more_equal_forty() -> None:
    check_twenty_and_twenty_equal_forty(make(), make(), make(seed=99))


def test_decisions_of_several_steps_computed_by_hand() -> None:
    """Rewards 1, 2, 4; the episode terminates; decisions of two steps."""
    steps = [
        ReplayStep(0, i, Stratum.ONLINE, one, action, action, reward, terminated=i == 2, truncated=False)
        for i, (one, action, reward) in enumerate(
            (np.full(2, i, np.float32), np.array([0.1 * i - 0.1, 1.0], np.float32), float(2**i)) for i in range(3)
        )
    ]
    batches = batches_of(steps, 64, lookahead=2)
    drawn = draw_decisions(batches, Units(ACTION, ingredients().standardizer), 2, DISCOUNT)
    rows = {int(seen_at[0]): row for row, seen_at in enumerate(drawn.observation)}
    wanted = {0: ((-1, 0, 0, 0), 1 + DISCOUNT * 2, DISCOUNT**2, 2), 1: ((0, 0, 1, 0), 2 + DISCOUNT * 4, 0, 0)}
    wanted[2] = ((1, 0, 1, 0), 4.0, 0, 0)
    for index, (action, total, bootstrap, following) in wanted.items():
        row = rows[index]
        assert np.allclose(drawn.action[row], action, atol=1e-6)
        assert float(drawn.return_n[row]) == pytest.approx(total) and float(drawn.bootstrap[row]) == pytest.approx(
            bootstrap
        )
        assert drawn.next_observation[row].tolist() == [following] * 2


def test_decisions_of_several_steps_learn_and_act() -> None:
    settings = changed(decision_steps=2)
    algorithm, batches = make(settings), batches_of(random_steps(50))
    for _ in range(4):
        algorithm.update(batches)
    assert policy_of(settings, algorithm.actor_tensors()).predict(seen(1)[0]).actions.shape == (3, 2)


# ---- what is refused ----


def test_a_base_that_cannot_be_judged_is_refused_with_the_reason() -> None:
    camera = {IMAGES + "front": Feature(dtype="uint8", shape=(32, 32, 3))}
    cases = {
        "policy.history=1": base_policy(replace(SPEC, history=2)),
        "without pictures": base_policy(replace(SPEC, observation=SPEC.observation | camera)),
        "action is not the robot's": base_policy(replace(SPEC, action=vector(("a", "b"), (-1.0, -1.0), (1.0, 1.0)))),
    }
    for text, base in cases.items():
        with pytest.raises(ConfigError, match=text):
            Expo(SETTINGS, ingredients(base))
    with pytest.raises(ConfigError, match="train one first"):
        Expo(SETTINGS, ingredients(None))
    with pytest.raises(ConfigError, match="horizon, 3"):
        make(changed(decision_steps=4))


def test_the_preset_composes_and_tells_how_far_it_looks() -> None:
    settings = compose_config(["algorithm=expo", "policy.execute_steps=1", "algorithm.update.edit_scale=0.7"]).algorithm
    assert isinstance(settings, ExpoSettings) and settings.update.edit_scale == 0.7
    assert build_recipe(SETTINGS, ingredients(base_policy())).lookahead == 2
    for wrong in ({"candidates": 0}, {"edit_scale": 1.5}, {"edit_lr": 0.0}):
        with pytest.raises(ConfigError):
            ExpoConfig(**wrong)
    with pytest.raises(ConfigError, match="gripper"):
        ExpoSettings(edit=GaussianConfig(gripper=0))


def test_other_solver_steps_are_used_in_the_learner_and_at_the_edge() -> None:
    settings = replace(SETTINGS, base=BaseTraining(solver_steps=1))
    tensors = make(settings).actor_tensors()
    fewer = policy_of(replace(settings, update=replace(SETTINGS.update, candidates=1, edit_scale=0.0)), tensors)
    base = published_base(tensors)
    wanted = base.with_solver(replace(base.config.solver, steps=1)).predict(seen(1)[0]).actions
    assert fewer.predict(seen(1)[0]).actions.tobytes() == wanted.tobytes()
    assert equal(make(settings).state(), make(settings).state())
