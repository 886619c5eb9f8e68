"""Best of several chunks: the first candidate is the policy's own, and the choice follows the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from policies.acceleration.schedule import CacheSchedule
from policies.common.denoiser import Tensors
from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, FlowPath, GenerativeConfig, NetConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.steering.candidates import candidate_noise, sample_candidates
from policies.steering.rerank import Reranked, choose
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.specs import PolicySpec, vector

SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=4,
    action=vector(("a", "b"), (-1.0, -1.0), (1.0, 1.0)),
    observation={"observation.state": vector(("x", "y", "z"))},
)
TRANSFORMER = TransformerConfig(embed_dim=16, layers=2, heads=2)
CONFIG = GenerativeConfig(
    net=TRANSFORMER,
    process=DiffusionChain(train_steps=20, prediction="sample"),
    solver=SolverConfig(kind="ddim", steps=5),
    observation=MinMaxNormalizer(centre=(0.0, 0.0, 0.0), half_range=(1.0, 1.0, 1.0)),
    action=MinMaxNormalizer(centre=(0.0, 0.0), half_range=(1.0, 1.0)),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_policy(config: GenerativeConfig = CONFIG, seed: int = 0) -> GenerativePolicy:
    torch.manual_seed(seed)
    net = build_net(config.net, sizes_of(SPEC, config))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # an untrained output is near zero; make it matter
    return GenerativePolicy(SPEC, config, net)


def observe(seed: int = 3, index: int = 8) -> Observation:
    features = {"observation.state": np.array([0.5, -0.2, 0.1], np.float32)}
    return Observation(id=5, stamp_ns=0, features=features, age_ns={}, episode_seed=seed, index=index)


class Rule:
    """A score that a test chooses; it remembers the chunks."""

    def __init__(self, rule: Callable[[FloatArray], FloatArray]) -> None:
        self.rule, self.seen = rule, np.zeros((0, 4, 2), np.float32)

    def score(self, observation: Observation, chunks: FloatArray) -> FloatArray:
        self.seen = chunks
        return self.rule(chunks)


def first_action(chunks: FloatArray) -> FloatArray:
    return chunks[:, 0, 0]


CHAIN = DiffusionChain(train_steps=20, prediction="sample")
NETS = [
    (TRANSFORMER, CHAIN, SolverConfig(kind="ddim", steps=5)),
    (TRANSFORMER, DiffusionChain(train_steps=8, prediction="sample"), SolverConfig(kind="ddpm", steps=8)),
    (UNetConfig(channels=(8, 16), groups=4, time_dim=16), CHAIN, SolverConfig(steps=5)),
    (ExpertConfig(embed_dim=16, layers=2, heads=2), FlowPath(), SolverConfig(kind="heun", steps=3)),
]


@pytest.mark.parametrize(("net", "process", "solver"), NETS)
def test_the_first_candidate_is_the_policys_own_chunk(
    net: NetConfig, process: DiffusionChain | FlowPath, solver: SolverConfig
) -> None:
    policy = make_policy(replace(CONFIG, net=net, process=process, solver=solver))
    own = policy.predict(observe()).actions
    np.testing.assert_array_equal(sample_candidates(policy, observe(), 1)[0], own)
    assert (np.abs(own) < 0.999).mean() > 0.25  # not all at the bounds, where everything is equal
    many = sample_candidates(policy, observe(), 6)
    assert many.shape == (6, 4, 2) and many.dtype == np.float32
    np.testing.assert_allclose(many[0], own, atol=2e-4)
    assert len(np.unique(many.reshape(6, -1).round(4), axis=0)) == 6


def test_candidates_are_those_of_separate_predictions_with_their_noise() -> None:
    policy = make_policy()
    noise, _ = candidate_noise(policy, observe(), 3)
    condition = policy.condition([observe()])
    expected = [policy.to_actions(policy.backend.sample(row[None], None, condition))[0] for row in noise]
    np.testing.assert_allclose(sample_candidates(policy, observe(), 3), np.stack(expected), atol=1e-4)


def test_the_condition_is_encoded_once_for_all_candidates() -> None:
    policy = make_policy()
    net, rows = policy.sampler.denoiser, []
    encode = net.context

    def counted(condition: Tensors) -> Tensors:
        rows.append(len(condition[0]))
        return encode(condition)

    net.context = counted  # type: ignore[method-assign]
    sample_candidates(policy, observe(), 5)
    assert rows == [1]


def test_candidates_follow_the_cache_schedule_of_the_policy() -> None:
    plain = make_policy()
    blocks = plain.sampler.denoiser.block_names
    schedule = CacheSchedule(
        method="uniform",
        calls=5,
        blocks=blocks,
        updates=((0, 2),) * len(blocks),
        belongs_to=plain.fingerprint,
    )
    cached = plain.with_solver(CONFIG.solver, schedule)
    chunk = Reranked(cached, Rule(first_action), temperature=0.0, count=1).predict(observe()).actions
    np.testing.assert_array_equal(sample_candidates(cached, observe(), 1)[0], chunk)
    assert np.abs(chunk - plain.predict(observe()).actions).max() > 1e-4


def test_noise_of_a_candidate_does_not_depend_on_how_many_there_are() -> None:
    policy = make_policy(
        replace(CONFIG, process=DiffusionChain(train_steps=5), solver=SolverConfig(kind="ddpm", steps=5))
    )
    few, few_fresh = candidate_noise(policy, observe(), 2)
    many, many_fresh = candidate_noise(policy, observe(), 4)
    np.testing.assert_array_equal(few, many[:2])
    assert few_fresh is not None and many_fresh is not None and many_fresh.shape == (5, 4, 4, 2)
    np.testing.assert_array_equal(few_fresh, many_fresh[:, :2])
    other, _ = candidate_noise(policy, observe(index=9), 4)
    assert not np.isin(other, many).any()
    with pytest.raises(PolicyError, match="0 candidates"):
        candidate_noise(policy, observe(), 0)


def test_one_candidate_is_the_base_bit_for_bit() -> None:
    policy = make_policy()
    policy.version = 7
    steered = Reranked(policy, Rule(first_action), temperature=1.0, count=1)
    chunk, own = steered.predict(observe()), policy.predict(observe())
    np.testing.assert_array_equal(chunk.actions, own.actions)
    assert (chunk.observation_id, chunk.index, chunk.weights_version) == (5, 8, 7)
    assert steered.spec is policy.spec


def test_temperature_zero_takes_the_best_chunk_and_prediction_is_pure() -> None:
    rule = Rule(first_action)
    steered = Reranked(make_policy(), rule, temperature=0.0, count=8)
    chunk = steered.predict(observe()).actions
    np.testing.assert_array_equal(chunk, rule.seen[rule.seen[:, 0, 0].argmax()])
    assert rule.seen[:, 0, 0].argmax() != 0
    steered.predict(observe(seed=9))
    np.testing.assert_array_equal(steered.predict(observe()).actions, chunk)
    np.testing.assert_array_equal(steered.predict_batch([observe(seed=9), observe()])[1], chunk)


def test_choices_follow_the_softmax_of_the_scores() -> None:
    scores = np.array([0.0, 1.0, 2.0, -1.0], np.float32)
    uniforms = np.random.default_rng(0).random(4000)

    def frequencies(temperature: float) -> FloatArray:
        counts = np.bincount([choose(scores, temperature, u) for u in uniforms], minlength=4)
        return (counts / len(uniforms)).astype(np.float32)

    np.testing.assert_array_equal(frequencies(0.0), [0, 0, 1, 0])
    np.testing.assert_array_equal(frequencies(1e-3), [0, 0, 1, 0])
    np.testing.assert_array_equal(frequencies(1e-320), [0, 0, 1, 0])
    expected = np.exp(scores - 2.0)
    np.testing.assert_allclose(frequencies(1.0), expected / expected.sum(), atol=0.03)
    for temperature in (1e6, np.inf):
        np.testing.assert_allclose(frequencies(temperature), 0.25, atol=0.03)


def test_random_choices_differ_from_observation_to_observation() -> None:
    rule = Rule(lambda chunks: np.zeros(len(chunks), np.float32))
    steered = Reranked(make_policy(), rule, temperature=1.0, count=4)
    chosen = []
    for index in range(12):
        actions = steered.predict(observe(index=index)).actions
        chosen.append(int(np.flatnonzero((rule.seen == actions).all(axis=(1, 2)))[0]))
    assert len(set(chosen)) > 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    steered = Reranked(make_policy(), Rule(lambda chunks: first_action(chunks) + bad), temperature=0.0, count=2)
    with pytest.raises(PolicyError, match="finite"):
        steered.predict(observe())


@pytest.mark.parametrize(("temperature", "count"), [(-1.0, 2), (float("nan"), 2), (1.0, 0)])
def test_impossible_settings_are_refused(temperature: float, count: int) -> None:
    with pytest.raises(PolicyError, match="allowed"):
        Reranked(make_policy(), Rule(first_action), temperature=temperature, count=count)
