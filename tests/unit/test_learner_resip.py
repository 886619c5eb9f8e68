"""ResiP: advantages and likelihoods by hand, what it learns where the answer is known, its part in the fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import norm

from policies.common.normalization import Standardizer
from policies.residual.config import ExplorationConfig, ResidualConfig
from policies.residual.explore import add_noise, warm_up_action
from policies.residual.runtime import ResidualRuntime
from robot_stack.buffer.replay import Replay, ReplayConfig
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.core.codec import pack
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import Observation, Refusal, Source, Step, Verdict
from robot_stack.core.specs import STATE, PolicySpec, vector
from robot_stack.learner.algorithms.base import Batches, Ingredients, OnPolicy, build_recipe
from robot_stack.learner.algorithms.resip import PpoNumbers, Resip
from robot_stack.learner.algorithms.rollout import RewardScale, Rollout, advantages
from robot_stack.learner.algorithms.settings.resip import ResipConfig, ResipSettings
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.curation import Place
from robot_stack.learner.trainer import Trainer, TrainerSettings, replay_step

ACTION = vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0))
HALF_RANGE = np.array([0.1, 2.0], np.float32)
FEATURES = {STATE: vector(("x", "y"))}
SPEC = PolicySpec(name="r", task="t", horizon=1, action=ACTION, observation=FEATURES)
STATISTICS = Standardizer(mean=(0.0, 0.0), std=(1.0, 1.0))
RESIDUAL = ResidualConfig(hidden=(32, 32), action_scale=0.4)
EXPLORATION = ExplorationConfig(warmup_steps=200, warmup_noise=0.17, sigma=0.1)
NUMBERS = PpoNumbers(sigma=0.1, discount=0.5, minibatch=64, warmup_steps=200)
CONFIG = ResipConfig(rollout_steps=200, epochs=8, actor_lr=3e-3, critic_lr=3e-3, critic_hidden=(32, 32))
EPISODE_STEPS = 10
Act = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
NO_BATCHES = Batches(Sampler([Part(Replay(ReplayConfig(1, 2, 2)))], 0), 1, 1, 0.5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(config: ResipConfig = CONFIG, numbers: PpoNumbers = NUMBERS, seed: int = 0) -> Resip:
    return Resip(config, RESIDUAL, numbers, ACTION, STATISTICS, seed)


def runtime(algorithm: Resip) -> ResidualRuntime:
    return ResidualRuntime(algorithm.actor_tensors(), RESIDUAL, SPEC, version=1)


def observed(state: np.ndarray) -> Observation:
    return Observation(id=0, stamp_ns=0, features={STATE: state}, age_ns={})


def make_step(index: int, state: np.ndarray, base: np.ndarray, asked: np.ndarray, **changes: object) -> Step:
    step = Step(
        run="run",
        robot="robot",
        task="task",
        session="session",
        seq=index,
        episode=0,
        episode_seed=0,
        segment=0,
        index=index,
        stamp_ns=0,
        observation={STATE: state.astype(np.float32)},
        action_base=base.astype(np.float32),
        action_asked=asked.astype(np.float32),
        action_sent=np.zeros(2, np.float32),  # no matter: what was sent is the world's business
        verdict=Verdict.ACCEPTED,
        refusal=None,
        source=Source.POLICY,
        weights_version=0,
        reward=0.0,
        success=False,
        terminated=False,
        truncated=False,
    )
    return msgspec.structs.replace(step, **changes)


def plain(index: int, value: float = 0.0, **changes: object) -> Step:
    return make_step(index, np.full(2, value), np.zeros(2), np.zeros(2), **changes)


def observe(algorithm: Resip, step: Step) -> None:
    algorithm.observe(step, replay_step(step, 0, FEATURES))


def added(steps: list[Step]) -> Rollout:
    rollout = Rollout(2, 2)
    for step in steps:
        assert rollout.add(step, replay_step(step, 0, FEATURES))
    return rollout


FINAL = {"final_observation": {STATE: np.full(2, 9.0, np.float32)}, "final_action_base": np.full(2, 0.05, np.float32)}


class Reach:
    """A point has to get to the origin; the base policy misses the wanted step by `offset` (normalised). Reward is
    minus the squared distance; episodes end with the time."""

    def __init__(self, offset: float, seed: int = 0) -> None:
        self._offset, self._rng, self.episode = offset, np.random.default_rng(seed), 0

    def base(self, state: np.ndarray) -> np.ndarray:
        return ((self._offset - state) * HALF_RANGE).astype(np.float32)

    def run(self, version: int, act: Act) -> list[Step]:
        state, steps = self._rng.uniform(-0.3, 0.3, 2).astype(np.float32), []
        for index in range(EPISODE_STEPS):
            base = self.base(state)
            asked = act(state, base, self._rng)
            following = (state + asked / HALF_RANGE).astype(np.float32)
            step = make_step(
                index,
                state,
                base,
                asked,
                seq=EPISODE_STEPS * self.episode + index,
                episode=self.episode,
                weights_version=version,
                reward=-float(np.square(following).sum()),
                truncated=index == EPISODE_STEPS - 1,
            )
            if step.truncated:
                step = msgspec.structs.replace(
                    step, final_observation={STATE: following}, final_action_base=self.base(following)
                )
            steps.append(step)
            state = following
        self.episode += 1
        return steps


def behaviour(acting: ResidualRuntime, version: int) -> Act:
    """What the edge does with weights of a version."""

    def act(state: np.ndarray, base: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if version == 0:
            return warm_up_action(base, rng, EXPLORATION, ACTION)
        return add_noise(acting.correct(observed(state), base), rng, EXPLORATION, ACTION)

    return act


def practise(algorithm: Resip, world: Reach, updates: int) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for _ in range(updates):
        act = behaviour(runtime(algorithm), algorithm.updates)
        while not algorithm.due:
            for step in world.run(algorithm.updates, act):
                observe(algorithm, step)
        metrics = algorithm.update(NO_BATCHES)
    return metrics


def corrections(algorithm: Resip, world: Reach) -> np.ndarray:
    """Normalised corrections (N, 2) that the edge would make."""
    states = np.random.default_rng(5).uniform(-0.3, 0.3, (50, 2)).astype(np.float32)
    acting = runtime(algorithm)
    return np.stack([acting.correction(state, world.base(state)) / HALF_RANGE for state in states])


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


# ---- advantages ----


def test_advantages_by_hand_after_a_termination() -> None:
    reward, value = np.array([1.0, 0.0, 2.0]), np.array([0.5, 0.25, 1.0, 100.0])
    found = advantages(reward, value, terminated=True, discount=0.5, trace=0.5)
    errors = [1.0 + 0.5 * 0.25 - 0.5, 0.0 + 0.5 * 1.0 - 0.25, 2.0 - 1.0]
    expected = [errors[0] + 0.25 * errors[1] + 0.0625 * errors[2], errors[1] + 0.25 * errors[2], errors[2]]
    np.testing.assert_allclose(found, expected)


def test_advantages_by_hand_after_a_time_out() -> None:
    reward, value = np.array([1.0, 0.0]), np.array([0.5, 0.25, 4.0])
    found = advantages(reward, value, terminated=False, discount=0.5, trace=0.5)
    last = 0.0 + 0.5 * 4.0 - 0.25
    np.testing.assert_allclose(found, [1.0 + 0.5 * 0.25 - 0.5 + 0.25 * last, last])


@pytest.mark.parametrize("trace", [0.0, 1.0])
def test_the_extremes_of_the_trace_are_one_step_errors_and_whole_returns(trace: float) -> None:
    rng = np.random.default_rng(0)
    reward, value = rng.standard_normal(7), rng.standard_normal(8)
    found = advantages(reward, value, terminated=False, discount=0.9, trace=trace)
    if trace == 0.0:
        np.testing.assert_allclose(found, reward + 0.9 * value[1:] - value[:-1])
    else:
        whole = [sum(0.9 ** (i - t) * reward[i] for i in range(t, 7)) + 0.9 ** (7 - t) * value[7] for t in range(7)]
        np.testing.assert_allclose(found, whole - value[:-1])


# ---- trajectories ----


def test_a_termination_keeps_all_its_steps_and_a_time_out_its_final_state() -> None:
    over = added([plain(0, 1.0), plain(1, 2.0, terminated=True, reward=3.0)]).trajectories()
    timed_out = added([plain(0, 1.0), plain(1, 2.0, truncated=True, **FINAL)]).trajectories()
    assert [len(one) for one in over + timed_out] == [2, 2]
    assert over[0].terminated and not timed_out[0].terminated
    assert over[0].reward.tolist() == [0.0, 3.0]
    assert timed_out[0].observation[:, 0].tolist() == [1.0, 2.0, 9.0]
    assert timed_out[0].action_base[-1].tolist() == FINAL["final_action_base"].tolist()


@pytest.mark.parametrize("ending", [{}, {"truncated": True}], ids=["goes on", "no final state"])
def test_a_step_of_unknown_outcome_is_only_the_state_after_the_one_before(ending: dict[str, object]) -> None:
    (found,) = added([plain(0, 1.0), plain(1, 2.0), plain(2, 3.0, **ending)]).trajectories()
    assert len(found) == 2 and not found.terminated
    assert found.observation[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_missing_step_and_another_episode_are_spanned_by_no_trajectory() -> None:
    steps = [plain(0, 1.0), plain(1, 2.0), plain(3, 4.0), plain(4, 5.0), plain(0, 6.0, episode=1)]
    found = added(steps).trajectories()
    assert [one.observation[:, 0].tolist() for one in found] == [[1.0, 2.0], [4.0, 5.0]]


def test_robots_that_take_turns_have_their_own_trajectories() -> None:
    steps = [plain(i, 10.0 * (robot == "b") + i, robot=robot) for i in range(3) for robot in ("a", "b")]
    found = added(steps).trajectories()
    assert [one.observation[:, 0].tolist() for one in found] == [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]


def test_rewards_are_divided_by_the_deviation_of_returns_and_clipped() -> None:
    rewards = [np.array([1.0, 0.0, 2.0]), np.array([4.0])]
    scale = RewardScale(discount=0.5, clip=1.5)
    scale.see(rewards[:1])
    scale.see(rewards[1:])
    deviation = np.std([1.0, 0.5, 2.25, 4.0])
    assert scale(np.array([1.0]))[0] == pytest.approx(1.0 / deviation, rel=1e-3)
    assert scale(np.array([-100.0]))[0] == -1.5


# ---- likelihood ----


def test_the_likelihood_is_that_of_what_the_edge_does() -> None:
    """Noise inside the bounds has a density, what was cut off at them the probability of the whole tail."""
    algorithm, world = make(), Reach(0.2)
    practise(algorithm, world, 4)
    acting, rng = runtime(algorithm), np.random.default_rng(3)
    state, base = np.array([0.1, -0.2], np.float32), np.array([0.09, -1.5], np.float32)
    mean = acting.correct(observed(state), base) / HALF_RANGE
    asked = np.stack(
        [add_noise(mean * HALF_RANGE, rng, EXPLORATION, ACTION) for _ in range(200)] + [np.array([0.1, -2.0])]
    ).astype(np.float32)
    for index, action in enumerate(asked):
        observe(
            algorithm,
            make_step(index, state, base, action, weights_version=algorithm.updates, truncated=index == 200, **FINAL),
        )
    samples = algorithm._samples(algorithm._rollout.trajectories())
    with torch.no_grad():
        found = algorithm.log_probability(samples, algorithm._actor).numpy()
    density = norm.logpdf(asked / HALF_RANGE, mean, 0.1)
    density = np.where(asked <= -HALF_RANGE, norm.logcdf((-1 - mean) / 0.1), density)
    density = np.where(asked >= HALF_RANGE, norm.logsf((1 - mean) / 0.1), density)
    assert (np.abs(asked) >= HALF_RANGE).any(axis=0).all() and np.abs(mean).max() < 1.0
    np.testing.assert_allclose(found, density.sum(axis=1), atol=2e-3)


def test_before_the_first_step_of_the_actor_the_ratio_is_one() -> None:
    algorithm, world = make(), Reach(0.2)
    for update in range(4):
        metrics = practise(algorithm, world, 1)
        if update > 0:
            assert metrics["first_ratio_error"] <= 1e-6
    assert metrics["kl"] > 0.0


def test_an_actor_that_has_moved_too_far_stays_for_the_rest_of_the_update() -> None:
    """With a tiny allowance the first of eight steps is all there is, while the critic goes on."""
    whole = PpoNumbers(sigma=0.1, discount=0.5, minibatch=10_000, warmup_steps=200)
    begun, world = make(numbers=whole), Reach(0.2)
    practise(begun, world, 2)
    for step in world.run(begun.updates, behaviour(runtime(begun), begun.updates)):
        observe(begun, step)
    held = make(msgspec.structs.replace(CONFIG, target_kl=1e-12), whole)
    once = make(msgspec.structs.replace(CONFIG, epochs=1), whole)
    for algorithm in (held, once):
        algorithm.load_state(begun.state())
        algorithm.update(NO_BATCHES)
    found, expected, before = held.state(), once.state(), begun.state()
    assert found["actor.mlp.flat"].tobytes() == expected["actor.mlp.flat"].tobytes()
    assert found["actor.mlp.flat"].tobytes() != before["actor.mlp.flat"].tobytes()
    assert found["critic.flat"].tobytes() != expected["critic.flat"].tobytes()


# ---- what it learns ----


@pytest.mark.parametrize("offset", [0.25, -0.25])
def test_a_bias_of_the_base_within_reach_is_recovered(offset: float) -> None:
    algorithm, world = make(), Reach(offset)
    practise(algorithm, world, 14)
    np.testing.assert_allclose(corrections(algorithm, world).mean(axis=0), -offset, atol=0.08)


def test_a_bias_beyond_reach_saturates_the_correction() -> None:
    algorithm, world = make(), Reach(0.65)
    practise(algorithm, world, 14)
    found = corrections(algorithm, world).mean(axis=0)
    assert (found < -0.34).all() and (found >= -0.4001).all()


def test_the_warm_up_trains_the_critic_alone_and_the_first_weights_are_the_base_policy() -> None:
    algorithm, world = make(), Reach(0.3)
    before = algorithm.state()
    practise(algorithm, world, 1)
    after = algorithm.state()
    assert algorithm.updates == 1
    assert before["actor.mlp.flat"].tobytes() == after["actor.mlp.flat"].tobytes()
    assert before["critic.flat"].tobytes() != after["critic.flat"].tobytes()
    state = np.array([0.1, -0.2], np.float32)
    base = world.base(state)
    assert runtime(algorithm).correct(observed(state), base).tobytes() == base.tobytes()
    practise(algorithm, world, 1)
    assert (corrections(algorithm, world) != 0.0).any()


# ---- which steps count ----


def test_an_update_is_due_at_the_end_of_an_episode_with_enough_steps() -> None:
    algorithm = make(numbers=PpoNumbers(sigma=0.1, discount=0.5, minibatch=8, warmup_steps=5))
    dues = []
    for index in range(8):
        observe(algorithm, plain(index % 4, episode=index // 4, terminated=index % 4 == 3))
        dues.append(algorithm.due)
    assert dues == [False] * 7 + [True]
    assert isinstance(algorithm, OnPolicy)
    algorithm.update(NO_BATCHES)
    assert not algorithm.due


def test_steps_of_other_weights_of_people_and_with_bad_numbers_are_left_out_and_counted() -> None:
    clean, mixed = (make(numbers=PpoNumbers(0.1, 0.5, 8, warmup_steps=3)) for _ in range(2))
    own = [plain(0, 0.1, reward=1.0), plain(1, 0.2), plain(2, 0.3, terminated=True)]
    others = [
        plain(0, episode=1, weights_version=4),
        plain(1, episode=1, source=Source.HUMAN_CORRECTION),
        plain(2, episode=1, source=Source.HUMAN_RECOVERY),
        plain(3, episode=1, reward=float("nan")),
    ]
    for step in own:
        observe(clean, step)
    for step in [*others, *own]:
        observe(mixed, step)
    of_clean, of_mixed = clean.update(NO_BATCHES), mixed.update(NO_BATCHES)
    assert of_clean["rollout_steps"] == of_mixed["rollout_steps"] == 3
    assert (of_mixed["stale_steps"], of_mixed["left_out_steps"]) == (1, 3)
    assert clean.state()["critic.flat"].tobytes() == mixed.state()["critic.flat"].tobytes()


def test_steps_without_a_known_outcome_teach_nothing_and_break_nothing() -> None:
    algorithm = make(numbers=PpoNumbers(0.1, 0.5, 8, warmup_steps=1))
    before = algorithm.state()["critic.flat"]
    observe(algorithm, plain(0, truncated=True))
    assert algorithm.due and "rollout_steps" not in algorithm.update(NO_BATCHES)
    assert algorithm.state()["critic.flat"].tobytes() == before.tobytes()


# ---- state ----


def test_saved_at_any_step_and_continued_equals_never_saved() -> None:
    whole, part = make(), make()
    world = Reach(0.2)
    recorded: list[Step] = []
    for version in range(4):
        act = behaviour(runtime(whole), version)
        while not whole.due:
            steps = world.run(version, act)
            recorded += steps
            for step in steps:
                observe(whole, step)
        whole.update(NO_BATCHES)
    for number, step in enumerate(recorded):
        if number % 37 == 0:
            saved, part = part.state(), make(seed=99)
            part.load_state(saved)
            assert equal(part.state(), saved)
        observe(part, step)
        if part.due:
            again = make(seed=98)
            again.load_state(part.state())
            part = again
            assert part.due
            part.update(NO_BATCHES)
    assert part.updates == 4 and equal(part.state(), whole.state())


def test_a_state_of_another_configuration_is_refused() -> None:
    algorithm = make()
    for step in (plain(0), plain(1)):
        observe(algorithm, step)
    state = algorithm.state()
    with pytest.raises(PolicyError, match="shape"):
        make(msgspec.structs.replace(CONFIG, critic_hidden=(16,))).load_state(state)
    with pytest.raises(PolicyError, match="rollout"):
        make().load_state({name: value for name, value in state.items() if name != "rollout.action"})
    with pytest.raises(PolicyError, match="streams"):
        make().load_state(state | {"rollout.streams": np.zeros(3, np.uint8)})
    with pytest.raises(PolicyError, match="generator"):
        make().load_state({name: value for name, value in state.items() if name != "generator"})


# ---- in the trainer's fold ----

TRAINING = TrainerSettings(
    target_steps=120,
    start_after_steps=0,
    warmup_updates=0,
    updates_per_step=1.0,
    publish_every_steps=10,
    batch_size=16,
    n_step=3,
    discount=0.9,
)
SETTINGS = ResipSettings(
    residual=ResidualConfig(hidden=(16, 16)),
    exploration=ExplorationConfig(warmup_steps=20, warmup_noise=0.17, sigma=0.1),
    update=ResipConfig(rollout_steps=25, epochs=3, critic_hidden=(16, 16)),
    batch_size=16,
)


def made_trainer(log: StepStore) -> Trainer:
    recipe = build_recipe(SETTINGS, Ingredients(ACTION, FEATURES, STATISTICS, base=None, seed=3))
    replays = {place: Replay(ReplayConfig(100, 2, 2, lookahead=recipe.lookahead)) for place in Place}
    return Trainer(TRAINING, recipe, log, replays, FEATURES, seed=3)


def practice(trainer: Trainer, log: StepStore, episodes: int) -> None:
    """The edge and the learner in turn: every episode is acted by the newest published weights."""
    world = Reach(0.2)
    for _ in range(episodes):
        weights = ResidualRuntime(trainer.published, SETTINGS.residual, SPEC, trainer.version)
        steps = world.run(trainer.version, behaviour(weights, trainer.version))
        if world.episode == 6:  # one action was refused, and one step is a person's
            steps[4] = msgspec.structs.replace(steps[4], verdict=Verdict.REFUSED, refusal=Refusal.STALE)
            steps[7] = msgspec.structs.replace(steps[7], source=Source.HUMAN_CORRECTION)
        log.append([pack(step) for step in steps])
        while trainer.advance():
            pass


def fingerprint(trainer: Trainer) -> dict[str, bytes]:
    tensors, meta = trainer.state()
    return {name: value.tobytes() for name, value in tensors.items()} | {"meta": meta}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StepStore]:
    with StepStore(tmp_path / "log", durability="process") as opened:
        yield opened


def test_weights_are_published_as_soon_as_they_are_learned_and_no_episode_is_wasted(log: StepStore) -> None:
    trainer = made_trainer(log)
    practice(trainer, log, 12)
    # 20 steps of warm-up, then whole episodes of 10 until there are 25: updates after 20, 50, 80 and 110 steps.
    assert trainer.updates == trainer.version == 4
    assert trainer.metrics["stale_steps"] == 0.0 and trainer.metrics["left_out_steps"] == 1.0
    assert trainer.finished


@pytest.mark.parametrize("kill_after", [0, 7, 19, 20, 33, 50, 57, 95])
def test_killed_and_restored_equals_never_killed(log: StepStore, tmp_path: Path, kill_after: int) -> None:
    uninterrupted = made_trainer(log)
    practice(uninterrupted, log, 12)
    killed = made_trainer(log)
    for _ in range(kill_after):
        killed.advance()
    checkpoints = CheckpointStore(tmp_path / "checkpoints")
    checkpoints.open()
    checkpoints.save(1, *killed.state())
    restored, checkpoint = made_trainer(log), checkpoints.latest()
    assert checkpoint is not None
    restored.restore(checkpoint.tensors, checkpoint.meta)
    assert fingerprint(restored) == fingerprint(killed)
    while restored.advance():
        pass
    assert fingerprint(restored) == fingerprint(uninterrupted)


# ---- settings ----


def test_settings_compose() -> None:
    algorithm = compose_config(["algorithm=resip", "algorithm.update.rollout_steps=700"]).algorithm
    assert isinstance(algorithm, ResipSettings) and algorithm.update.rollout_steps == 700
    noise = algorithm.exploration
    assert noise.warmup_noise / math.sqrt(3.0) == pytest.approx(noise.sigma)


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"rollout_steps": 0}, {"epochs": 0}, {"trace": 1.5}, {"clip": 0.0}, {"target_kl": 0.0}):
        with pytest.raises(ConfigError):
            ResipConfig(**wrong)
    for wrong_noise in (ExplorationConfig(sigma=0.0), ExplorationConfig(warmup="uniform")):
        with pytest.raises(ConfigError, match="exploration"):
            ResipSettings(exploration=wrong_noise)
