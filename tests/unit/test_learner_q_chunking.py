"""Q-chunking: targets and masks by hand, chains whose values are known, and what acts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.common.normalization import MinMaxNormalizer, Standardizer
from policies.common.sizes import Sizes
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net
from policies.generative.config import FlowPath, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.buffer.batches import SequenceBatch
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Observation, Source, Step, Verdict
from robot_stack.core.specs import STATE, PolicySpec, vector
from robot_stack.learner.algorithms.base import Batches, Ingredients, Recipe, build_chunk_policy, build_recipe
from robot_stack.learner.algorithms.q_chunking import QChunking, chunk_returns
from robot_stack.learner.algorithms.settings.critics import CriticsConfig
from robot_stack.learner.algorithms.settings.q_chunking import QChunkingConfig, QChunkingSettings
from robot_stack.learner.algorithms.settings.trained_base import BaseTraining
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.curation import Place
from robot_stack.learner.trainer import Trainer, TrainerSettings
from tests.replay_kit import GAMMA, every_row, make_replay, make_step, truncated

STATES = 20  # of the chain: a step goes on by one, and the last one ends the episode with reward 1
HORIZON = 6
NEVER = 10**9
ACTION = vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0))
HALF_RANGE = np.array([0.1, 2.0], np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def spec_of(states: int, history: int = 1) -> PolicySpec:
    observation = {STATE: vector(tuple(f"s{number}" for number in range(states)))}
    return PolicySpec(name="p", task="t", horizon=HORIZON, action=ACTION, observation=observation, history=history)


def make_base(states: int = STATES, history: int = 1, seed: int = 0) -> GenerativePolicy:
    """A flow whose velocity is about zero: its chunks are about as random as the noise that they are made of."""
    torch.manual_seed(seed)
    spec = spec_of(states, history)
    config = GenerativeConfig(
        net=ExpertConfig(embed_dim=8, layers=1, heads=2),
        process=FlowPath(),
        solver=SolverConfig(kind="euler", steps=2),
        observation=MinMaxNormalizer(centre=(0.0,) * states, half_range=(1.0,) * states),
        action=MinMaxNormalizer(centre=(0.0, 0.0), half_range=(0.1, 2.0)),
    )
    return GenerativePolicy(spec, config, build_net(config.net, Sizes.of(spec)))


def settings_of(
    decision_steps: int = 3, candidates: int = 2, every: int = NEVER, **critics: object
) -> QChunkingSettings:
    chosen = {"critics": 2, "hidden": (32, 32), "lr": 3e-3, "polyak": 0.05} | critics
    return QChunkingSettings(
        batch_size=16,
        discount=GAMMA,
        critics=CriticsConfig(**chosen),  # type: ignore[arg-type]
        base=BaseTraining(lr=1e-3, every=every),
        update=QChunkingConfig(decision_steps=decision_steps, candidates=candidates, warmup_updates=5),
    )


def ingredients_of(base: GenerativePolicy, seed: int = 0) -> Ingredients:
    size = base.sizes.vector_dim
    statistics = Standardizer(mean=(0.0,) * size, std=(1.0,) * size)
    return Ingredients(base.spec.action, base.spec.observation, statistics, base, seed)


def make(settings: QChunkingSettings, base: GenerativePolicy | None = None, seed: int = 0) -> QChunking:
    return QChunking(settings, ingredients_of(base or make_base(), seed))


def at(state: int, states: int = STATES) -> np.ndarray:
    return np.eye(states, dtype=np.float32)[state]


def chain(episodes: int = 8, lookahead: int = HORIZON) -> Replay:
    """Episodes from the first state to the end, with actions that do not matter."""
    rng = np.random.default_rng(0)
    replay = Replay(ReplayConfig(1000, STATES, 2, lookahead=lookahead))
    for episode in range(episodes):
        for state in range(STATES):
            last = state == STATES - 1
            action = (rng.uniform(-1, 1, 2) * HALF_RANGE).astype(np.float32)
            replay.add(
                ReplayStep(
                    stream=episode,
                    index=state,
                    stratum=Stratum.ONLINE,
                    observation=at(state),
                    action_base=action,
                    action=action,
                    reward=float(last),
                    terminated=last,
                    truncated=False,
                )
            )
    return replay


def drawn_from(replay: Replay, size: int = 32, seed: int = 0) -> Batches:
    return Batches(Sampler([Part(replay)], seed), size, 1, GAMMA)


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


# ---- returns and masks ----


def returns_of(steps: Sequence[ReplayStep], length: int) -> list[tuple[float, float, float]]:
    sampler, draw = every_row(make_replay(steps, lookahead=length))
    found = chunk_returns(sampler.sequences(draw, length), GAMMA)
    rows = zip(found.return_h, found.bootstrap, found.weight, strict=True)
    return [tuple(float(value) for value in row) for row in rows]  # type: ignore[misc]


def test_whole_chunks_bootstrap_and_those_that_end_the_episode_do_not() -> None:
    rewards = [1.0, 2.0, 4.0, 8.0]
    steps = [make_step(0, i, rewards[i], terminated=i == 3) for i in range(4)]
    expected = [
        (1 + 0.9 * 2 + 0.81 * 4, 0.9**3, 1.0),
        (2 + 0.9 * 4 + 0.81 * 8, 0.0, 1.0),  # the third step terminates
        (4 + 0.9 * 8, 0.0, 1.0),  # shorter, yet nothing can follow
        (8.0, 0.0, 1.0),
    ]
    np.testing.assert_allclose(returns_of(steps, 3), expected, rtol=1e-6)


def test_chunks_that_a_time_out_cuts_short_have_no_weight() -> None:
    steps = [make_step(0, 0, 1.0), make_step(0, 1, 2.0), truncated(0, 2, 4.0)]
    found = returns_of(steps, 2)
    assert [weight for _, _, weight in found] == [1.0, 1.0, 0.0]
    np.testing.assert_allclose(found[1][:2], (2 + 0.9 * 4, 0.9**2), rtol=1e-6)  # the state after the time-out counts


def test_chunks_that_a_lost_step_cuts_short_have_no_weight() -> None:
    steps = [make_step(0, i, 1.0) for i in (0, 1, 2)] + [make_step(0, i, 1.0, terminated=i == 5) for i in (4, 5)]
    # Step 2 has no next state, and is no start; from 1 only one step is known.
    assert [weight for _, _, weight in returns_of(steps, 2)] == [1.0, 0.0, 1.0, 1.0]


def sequences(replay: Replay, length: int) -> SequenceBatch:
    sampler, draw = every_row(replay)
    return sampler.sequences(draw, length)


def test_chunks_without_weight_and_actions_that_never_ran_change_nothing() -> None:
    replay = make_chain_with_a_time_out()
    batch = sequences(replay, 3)
    weight = chunk_returns(batch, GAMMA).weight == 1.0
    assert not weight.all() and not batch.valid[weight].all()
    changed_actions = np.where(batch.valid[..., None], batch.action, np.float32(0.03))
    changed_rewards = np.where(weight[:, None], batch.reward, np.float32(99.0))
    first, second = make(settings_of(3)), make(settings_of(3))
    first.learn(batch)
    second.learn(replaced(batch, action=changed_actions, reward=changed_rewards))
    assert equal(first.state(), second.state())


def make_chain_with_a_time_out() -> Replay:
    replay = chain(episodes=1)
    for state in range(4):
        zero = np.zeros(2, np.float32)
        final = {"final_observation": at(4), "final_action_base": zero} if state == 3 else {}
        replay.add(
            ReplayStep("t", state, Stratum.ONLINE, at(state), zero, zero, 0.0, False, state == 3, **final)  # type: ignore[arg-type]
        )
    return replay


def replaced(batch: SequenceBatch, **changes: np.ndarray) -> SequenceBatch:
    values = {name: getattr(batch, name) for name in SequenceBatch.__slots__}
    return SequenceBatch(**(values | changes))


def test_one_step_is_the_one_step_target_by_hand() -> None:
    settings, replay = settings_of(1, candidates=3), chain(episodes=2)
    algorithm, twin = make(settings), make(settings)
    for one in (algorithm, twin):
        for _ in range(20):
            one.update(drawn_from(replay))
    sampler, draw = every_row(replay)
    plain, batch = sampler.transitions(draw, 1, GAMMA), sampler.sequences(draw, 1)
    following = torch.from_numpy(plain.next_observation)
    with torch.no_grad():
        candidates = twin._base.decisions(plain.next_observation, 3, twin._generator)
        said = torch.stack([twin.values(following, candidates[:, [n]])[..., 0].mean(dim=0) for n in range(3)], dim=1)
        best = candidates[torch.arange(len(plain)), said.argmax(dim=1)]
        after = twin._critics._critics.target(torch.cat((following, best), dim=-1))[..., 0].mean(dim=0)
        target = torch.from_numpy(plain.return_n) + torch.from_numpy(plain.bootstrap) * after
        action = torch.from_numpy(plain.action / HALF_RANGE)
        now = twin.values(torch.from_numpy(plain.observation), action[:, None])[..., 0]
    expected = (now - target).square().mean(dim=1).sum().item()
    assert algorithm.learn(batch)["critic_loss"] == pytest.approx(expected, rel=1e-5)
    assert (plain.bootstrap == 0.0).sum() == 2 and (said.argmax(dim=1) > 0).any()


# ---- chains ----


@pytest.mark.parametrize(("length", "sweeps"), [(1, 20), (5, 4)])
def test_exact_sweeps_through_the_chain_go_h_states_at_a_time(length: int, sweeps: int) -> None:
    batch = sequences(chain(episodes=1), length)
    returns = chunk_returns(batch, GAMMA)
    state, following = batch.observation[:, 0].argmax(axis=1), batch.next_observation.argmax(axis=1)
    value, wanted, needed = np.zeros(STATES), GAMMA ** np.arange(STATES - 1, -1, -1.0), 0
    while not np.allclose(value, wanted, atol=1e-6):
        value[state] = np.where(
            returns.weight == 1.0, returns.return_h + returns.bootstrap * value[following], value[state]
        )
        needed += 1
        assert needed <= STATES
    assert needed == sweeps


def updates_until_known(length: int) -> int:
    """Updates until the value of every state, over random chunks, is discount^distance."""
    algorithm = make(settings_of(length, candidates=1))
    batches = drawn_from(chain(episodes=60), 32)
    wanted = torch.from_numpy(GAMMA ** np.arange(STATES - 1, -1, -1.0)).float()
    chunks = torch.rand((STATES, 4, length * 2), generator=torch.Generator().manual_seed(9)) * 2.0 - 1.0
    for update in range(25, 2_000, 25):
        for _ in range(25):
            algorithm.update(batches)
        with torch.no_grad():
            said = algorithm.values(torch.eye(STATES), chunks).mean(dim=(0, 2))
        if (said - wanted).abs().max() < 0.1:
            return update
    raise AssertionError("the values did not converge")


def test_longer_chunks_bring_the_values_home_sooner() -> None:
    """Beside the sweeps, which are five times fewer, the networks have to learn: about 350 updates against 150."""
    assert updates_until_known(1) >= 1.5 * updates_until_known(5)


# ---- what acts ----


def observed(state: np.ndarray, index: int = 0) -> Observation:
    return Observation(id=7, stamp_ns=0, features={STATE: state}, age_ns={}, episode_seed=3, index=index)


def test_the_best_of_one_is_the_base_policy_bit_for_bit() -> None:
    base, settings = make_base(), settings_of(candidates=1)
    policy = build_chunk_policy(settings, base, 4, make(settings, base).actor_tensors())
    for index in range(5):
        found, expected = policy.predict(observed(at(index), index)), base.predict(observed(at(index), index))
        assert found.actions.tobytes() == expected.actions.tobytes()
        assert found.weights_version == 4
    assert policy.spec == base.spec


def rewarding(base: GenerativePolicy, settings: QChunkingSettings, updates: int) -> QChunking:
    """Episodes of one chunk of two actions: the reward is what the first elements of both add up to."""
    rng, replay = np.random.default_rng(0), Replay(ReplayConfig(4000, STATES, 2, lookahead=HORIZON))
    for episode in range(300):
        actions = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
        for index in range(2):
            replay.add(
                ReplayStep(
                    stream=episode,
                    index=index,
                    stratum=Stratum.ONLINE,
                    observation=at(index),
                    action_base=actions[index],
                    action=actions[index] * HALF_RANGE,
                    reward=float(actions[index, 0]),
                    terminated=index == 1,
                    truncated=False,
                )
            )
    algorithm, batches = make(settings, base), drawn_from(replay, 32)
    for _ in range(updates):
        algorithm.update(batches)
    return algorithm


def test_what_acts_are_better_chunks_than_the_base_policys_own() -> None:
    base, settings = make_base(), settings_of(2, candidates=8)
    algorithm = rewarding(base, settings_of(2, candidates=1), 200)
    policy = build_chunk_policy(settings, base, 1, algorithm.actor_tensors())

    def worth(chosen: GenerativePolicy | object) -> float:
        chunks = [chosen.predict(observed(at(0), index)).actions for index in range(24)]  # type: ignore[attr-defined]
        return float(np.mean([(chunk[:2, 0] / HALF_RANGE[0]).sum() for chunk in chunks]))

    assert worth(policy) > worth(base) + 0.6
    again = build_chunk_policy(settings, base, 1, algorithm.actor_tensors())
    first, second = (one.predict(observed(at(0), 5)).actions for one in (policy, again))
    assert first.tobytes() == second.tobytes() and first.shape == (HORIZON, 2)


def test_the_base_policy_learns_to_imitate_the_buffer_and_the_runs_own_stays_as_it_is() -> None:
    base, settings = make_base(), settings_of(2, every=1)
    before = {name: value.clone() for name, value in base.sampler.denoiser.state_dict().items()}
    replay = Replay(ReplayConfig(1000, STATES, 2, lookahead=HORIZON))
    for index in range(200):
        action = np.array([0.08, -1.0], np.float32)
        replay.add(ReplayStep("s", index, Stratum.ONLINE, at(index % STATES), action, action, 0.0, False, False))
    algorithm, batches = make(settings, base), drawn_from(replay)
    losses = [algorithm.update(batches)["base_loss"] for _ in range(120)]
    assert np.mean(losses[-30:]) < 0.8 * np.mean(losses[:30])
    assert all(torch.equal(value, before[name]) for name, value in base.sampler.denoiser.state_dict().items())
    policy = build_chunk_policy(settings, base, 1, algorithm.actor_tensors())
    wanted = np.array([0.08, -1.0])
    distances = [
        np.abs((one.predict(observed(at(index), index)).actions - wanted) / HALF_RANGE).mean()
        for one in (base, policy)
        for index in range(20)
    ]
    assert np.mean(distances[20:]) < 0.8 * np.mean(distances[:20])


def test_tensors_that_do_not_fit_are_refused() -> None:
    base, settings = make_base(), settings_of()
    tensors = make(settings, base).actor_tensors()
    with pytest.raises(PolicyError, match="critics"):
        build_chunk_policy(settings_of(2), base, 1, tensors)
    with pytest.raises(PolicyError, match="missing"):
        build_chunk_policy(settings, base, 1, {name: tensors[name] for name in tensors if name != "observation_mean"})
    broken = tensors | {"critics": np.full_like(tensors["critics"], np.nan)}
    with pytest.raises(PolicyError, match="NaN"):
        build_chunk_policy(settings, base, 1, broken)


# ---- state ----


def test_twenty_updates_saved_and_twenty_more_equal_forty() -> None:
    settings, replay = settings_of(every=2), chain()
    whole, first = make(settings), make(settings)
    of_whole, of_first = drawn_from(replay), drawn_from(replay)
    for _ in range(40):
        whole.update(of_whole)
    for _ in range(20):
        first.update(of_first)
    saved = first.state()
    second = make(settings, seed=9)
    second.load_state(saved)
    assert second.updates == 20 and equal(second.state(), saved)
    for _ in range(20):
        second.update(of_first)
    assert equal(second.state(), whole.state())
    assert equal(second.actor_tensors(), whole.actor_tensors())


def test_a_state_of_another_configuration_is_refused() -> None:
    with pytest.raises(PolicyError, match="shape"):
        make(settings_of(2)).load_state(make(settings_of(3)).state())


# ---- in the trainer's fold ----

TRAINING = TrainerSettings(
    target_steps=60,
    start_after_steps=20,
    warmup_updates=5,
    updates_per_step=0.5,
    publish_every_steps=15,
    batch_size=16,
    n_step=1,
    discount=GAMMA,
)


def recorded(count: int) -> Iterator[Step]:
    rng = np.random.default_rng(2)
    for seq in range(count):
        index = seq % 10
        yield Step(
            run="run",
            robot="robot",
            task="task",
            session="session",
            seq=seq,
            episode=seq // 10,
            episode_seed=0,
            segment=0,
            index=index,
            stamp_ns=0,
            observation={STATE: at(index)},
            action_base=np.zeros(2, np.float32),
            action_asked=np.zeros(2, np.float32),
            action_sent=(rng.uniform(-1, 1, 2) * HALF_RANGE).astype(np.float32),
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=Source.POLICY,
            weights_version=0,
            reward=float(index == 9),
            success=index == 9,
            terminated=index == 9,
            truncated=False,
        )


def made_trainer(log: StepStore) -> Trainer:
    base = make_base()
    recipe: Recipe = build_recipe(settings_of(every=2), ingredients_of(base, seed=3))
    online = Replay(ReplayConfig(1000, STATES, 2, lookahead=recipe.lookahead))
    replays = {Place.DEMONSTRATIONS: chain(2, recipe.lookahead), Place.ONLINE: online}
    return Trainer(TRAINING, recipe, log, replays, base.spec.observation, seed=3)


def test_killed_and_restored_equals_never_killed(tmp_path: Path) -> None:
    with StepStore(tmp_path / "log", durability="process") as log:
        log.append([pack(step) for step in recorded(70)])
        whole, killed, restored = (made_trainer(log) for _ in range(3))
        while whole.advance():
            pass
        for _ in range(47):
            killed.advance()
        checkpoints = CheckpointStore(tmp_path / "checkpoints")
        checkpoints.open()
        checkpoints.save(1, *killed.state())
        checkpoint = checkpoints.latest()
        assert checkpoint is not None
        restored.restore(checkpoint.tensors, checkpoint.meta)
        while restored.advance():
            pass
        assert whole.finished and whole.updates == 25 and 0 < killed.updates < 25
        assert equal(restored.state()[0], whole.state()[0]) and restored.state()[1] == whole.state()[1]


# ---- settings ----


def test_settings_compose() -> None:
    overrides = ["algorithm=q_chunking", "algorithm.update.candidates=32", "algorithm.critics.critics=3"]
    config = compose_config(overrides)
    assert isinstance(config.algorithm, QChunkingSettings)
    assert config.algorithm.update.candidates == 32 and config.algorithm.critics.critics == 3
    assert config.algorithm.update.decision_steps == config.policy.execute_steps
    assert config.algorithm.warmup_updates() == 1_000


def test_what_cannot_be_valued_is_refused() -> None:
    for wrong in ({"decision_steps": 0}, {"candidates": 0}, {"warmup_updates": -1}):
        with pytest.raises(ConfigError):
            QChunkingConfig(**wrong)
    with pytest.raises(ConfigError, match=r"policy\.history=1"):
        make(settings_of(), make_base(history=2))
    with pytest.raises(ConfigError, match="horizon, 6"):
        make(settings_of(HORIZON + 1))
    base = make_base()
    with pytest.raises(ConfigError, match="horizon, 6"):
        build_chunk_policy(settings_of(HORIZON + 1), base, 1, {})
    with pytest.raises(ConfigError, match="base policy"):
        QChunking(settings_of(), replace(ingredients_of(base), base=None))
