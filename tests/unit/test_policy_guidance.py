"""Guided sampling and warm starts: exact where they are switched off, and what they promise where they are on."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from policies.acceleration.schedule import CacheSchedule
from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import TransformerConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, FlowPath, GenerativeConfig, Process, SolverConfig
from policies.generative.guidance import Guidance, GuidedPolicy, guidance_gain, guided_sample, prefix_weights
from policies.generative.guidance_config import GuidanceConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.sampler import ChunkSampler
from policies.generative.solver import noise_levels
from policies.generative.warm_start import WarmStartPolicy, schedule_from, warm_sample
from robot_stack.core.errors import ConfigError, PolicyError
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.protocols import GuidedChunkPolicy
from robot_stack.core.specs import PolicySpec, vector

torch.set_num_threads(1)

H = 8
CHAIN, FLOW = DiffusionChain(train_steps=20), FlowPath()
SOLVERS = [(FLOW, "euler", 5), (FLOW, "heun", 5), (CHAIN, "ddim", 5), (CHAIN, "dpmpp", 5), (CHAIN, "ddpm", 20)]
SPEC = PolicySpec(
    name="p",
    task="t",
    horizon=H,
    action=vector(("a", "b"), (-0.1, -2.0), (0.1, 2.0)),
    observation={"observation.state": vector(("x", "y"))},
)


def make_policy(process: Process = FLOW, kind: str = "euler", steps: int = 5) -> GenerativePolicy:
    config = GenerativeConfig(
        net=TransformerConfig(embed_dim=16, layers=2, heads=2),
        process=process,
        solver=SolverConfig(kind=kind, steps=steps),  # type: ignore[arg-type]
        observation=MinMaxNormalizer(centre=(0.0, 1.0), half_range=(1.0, 2.0)),
        action=MinMaxNormalizer(centre=(0.0, 0.0), half_range=(0.1, 2.0)),
    )
    torch.manual_seed(0)
    net = build_net(config.net, sizes_of(SPEC, config))
    with torch.no_grad():
        net.action_out.weight.mul_(40.0)  # type: ignore[operator,union-attr]  # untrained it is near zero
    return GenerativePolicy(SPEC, config, net)


def with_schedule(policy: GenerativePolicy) -> GenerativePolicy:
    """Some blocks kept from call to call, each in another rhythm."""
    names, calls = policy.sampler.denoiser.block_names, len(policy.sampler.calls)
    updates = tuple(tuple(range(0, calls, 1 + number % 3)) for number in range(len(names)))
    schedule = CacheSchedule(method="test", calls=calls, blocks=names, updates=updates, belongs_to=policy.fingerprint)
    return policy.with_solver(policy.config.solver, schedule)


def observe(index: int = 4, x: float = 0.3) -> Observation:
    features = {"observation.state": np.array([x, 1.2], np.float32)}
    return Observation(id=5, stamp_ns=0, features=features, age_ns={}, episode_seed=3, index=index)


def committed(steps: int) -> FloatArray:
    return np.tile(np.array([0.05, -1.0], np.float32), (steps, 1))


class Gaussian(Denoiser):
    """The exact denoiser of actions that are all N(0, 0.25): linear."""

    block_names = ()

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    def context(self, condition: Tensors) -> Tensors:
        return condition

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        if isinstance(self._process, FlowPath):
            return times, 1.0 - times
        alphas, sigmas = noise_levels(self._process)
        return alphas[times.long()].float(), sigmas[times.long()].float()

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        alpha, sigma = (part[:, None, None] for part in clock)
        clean = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * actions
        return (clean - actions) / sigma if isinstance(self._process, FlowPath) else (actions - alpha * clean) / sigma


class Curved(Denoiser):
    """A nonlinear estimate of clean actions inside (-1, 1) that couples neighbours; flow time and flow's scale."""

    block_names = ()

    def __init__(self, alphas: Tensor, sigmas: Tensor, *, velocity: bool) -> None:
        super().__init__()
        self._alphas, self._sigmas, self._velocity = alphas, sigmas, velocity

    def context(self, condition: Tensors) -> Tensors:
        return condition

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        return self._alphas, self._sigmas

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        alpha, sigma = (part[:, None, None] for part in clock)
        point = actions / (alpha + sigma)
        clean = 0.6 * torch.tanh(point + 0.7 * point.roll(1, dims=1) + 0.2 + alpha / (alpha + sigma))
        return (clean - actions) / sigma if self._velocity else clean


def guide(target: float, weight: float | list[float], **config: object) -> Guidance:
    weights = torch.as_tensor(weight, dtype=torch.float32).expand(H)
    return Guidance(torch.full((1, H, 1), target), weights, GuidanceConfig(**config))  # type: ignore[arg-type]


def draw(sampler: ChunkSampler, rows: int, size: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(sampler.calls) + 1, rows, H, size)
    noise = torch.randn(shape, generator=generator)
    return noise[0], noise[1:]


# ---- weights and gain -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        ("linear", [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0]),
        ("exponential", [1, 1, 0.571, 0.287, 0.114, 0.026, 0, 0, 0, 0]),
    ],
)
def test_the_weights_fall_from_the_frozen_prefix_to_the_free_end(ramp: str, expected: list[float]) -> None:
    np.testing.assert_allclose(prefix_weights(10, 2, 4, ramp), expected, atol=1e-3)


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_a_delay_up_to_the_free_end_freezes_all_before_it(ramp: str) -> None:
    assert prefix_weights(6, 4, 2, ramp).tolist() == [1, 1, 1, 1, 0, 0]
    assert prefix_weights(6, 6, 2, ramp).tolist() == [1, 1, 1, 1, 0, 0]
    assert not prefix_weights(6, 3, 6, ramp).any()
    with pytest.raises(PolicyError, match="delay_steps is 7"):
        prefix_weights(6, 7, 2, ramp)


def test_the_gain_is_the_papers() -> None:
    assert guidance_gain(0.0, 1.0, 5.0) == 5.0
    assert guidance_gain(0.5, 0.5, 5.0) == pytest.approx(2.0)
    assert guidance_gain(0.5, 0.5, 1.5) == 1.5
    assert guidance_gain(0.4, 0.1, 5.0) == pytest.approx(0.2 / 0.8 * (0.2**2 + 0.8**2) / 0.2**2)
    assert guidance_gain(0.999, 0.001, 5.0) == 5.0
    with pytest.raises(ConfigError, match="max_gain is -1"):
        GuidanceConfig(max_gain=-1.0)


# ---- samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jacobian", ["full", "identity"])
@pytest.mark.parametrize(("process", "kind", "steps"), SOLVERS)
def test_the_committed_actions_are_met_the_better_the_heavier_they_weigh(
    process: Process, kind: str, steps: int, jacobian: str
) -> None:
    target = 1.5 if isinstance(process, FlowPath) else 0.9  # samples of a chain end at 1
    solver = SolverConfig(kind=kind, steps=steps)  # type: ignore[arg-type]
    sampler = ChunkSampler(Gaussian(process), process, solver)
    noise, step_noise = draw(sampler, rows=256)
    errors = []
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        sample = guided_sample(sampler, noise, step_noise, (), guide(target, weight, jacobian=jacobian))
        errors.append(float((sample - target).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 5


def test_each_action_is_pulled_by_its_own_weight() -> None:
    sampler = ChunkSampler(Gaussian(FLOW), FLOW, SolverConfig(kind="euler", steps=5))
    noise, _ = draw(sampler, rows=64)
    weights = prefix_weights(H, 3, 3, "linear").tolist()
    plain = guided_sample(sampler, noise, None, (), guide(1.5, 0.0))
    error = (guided_sample(sampler, noise, None, (), guide(1.5, weights)) - 1.5).abs().mean(dim=(0, 2))
    assert (error[:3] < 0.3).all() and torch.equal(error[-3:], (plain - 1.5).abs().mean(dim=(0, 2))[-3:])
    assert error[3] < error[4]


def test_a_guided_chain_and_a_guided_flow_agree_at_the_same_times() -> None:
    chain = DiffusionChain(train_steps=50, prediction="sample")
    ddim = ChunkSampler(Gaussian(chain), chain, SolverConfig(kind="ddim", steps=6))
    alphas, sigmas = ddim.levels[:, 0], ddim.levels[:, 1]
    ddim.denoiser = Curved(alphas, sigmas, velocity=False)
    times = (alphas / (alphas + sigmas)).tolist()
    flow = ChunkSampler(Gaussian(FLOW), FLOW, SolverConfig(kind="euler", steps=6))
    flow.calls = tuple(
        dataclasses.replace(
            flow.calls[0],
            alpha=now,
            sigma=1 - now,
            c_noisy=(1 - then) / (1 - now),
            c_clean=then - now * (1 - then) / (1 - now),
        )
        for now, then in zip(times, [*times[1:], 1.0], strict=True)
    )
    flow.levels = torch.tensor([(call.alpha, call.sigma) for call in flow.calls])
    flow.denoiser = Curved(flow.levels[:, 0], flow.levels[:, 1], velocity=True)
    noise, _ = draw(ddim, rows=4)
    scale = float(alphas[0] + sigmas[0])
    for jacobian in ("full", "identity"):
        pull = guide(0.3, [1, 1, 0.7, 0.4, 0.1, 0, 0, 0], jacobian=jacobian, max_gain=1.0)  # nothing is clipped
        chained = guided_sample(ddim, noise, None, (), pull)
        flown = guided_sample(flow, noise / scale, None, (), pull)
        assert (chained - guided_sample(ddim, noise, None, (), guide(0.3, 0.0))).abs().max() > 0.05
        torch.testing.assert_close(chained, flown, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("jacobian", ["full", "identity"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("process", "kind", "steps"), SOLVERS)
def test_without_weight_it_is_plain_sampling_bit_for_bit(
    process: Process, kind: str, steps: int, cached: bool, jacobian: str
) -> None:
    policy = make_policy(process, kind, steps)
    policy = with_schedule(policy) if cached else policy
    noise, step_noise = policy.noise([observe()])
    condition = policy.condition([observe()])
    plain = policy.backend.sample(noise, step_noise, condition)
    sample = guided_sample(
        policy.sampler,
        torch.from_numpy(noise),
        None if step_noise is None else torch.from_numpy(step_noise),
        tuple(torch.from_numpy(part) for part in condition),
        Guidance(torch.ones(1, H, 2), torch.zeros(H), GuidanceConfig(jacobian=jacobian)),  # type: ignore[arg-type]
    )
    assert sample.numpy().tobytes() == plain.tobytes()


# ---- the policy -------------------------------------------------------------------------------------------------


CLEAN = DiffusionChain(train_steps=20, prediction="sample")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("process", "kind", "steps"), [(FLOW, "euler", 5), (CLEAN, "ddim", 5), (CLEAN, "ddpm", 20)])
def test_a_guided_chunk_goes_on_from_what_is_planned(process: Process, kind: str, steps: int, cached: bool) -> None:
    policy = make_policy(process, kind, steps)
    policy = with_schedule(policy) if cached else policy
    guided = GuidedPolicy(policy)
    assert isinstance(guided, GuidedChunkPolicy)
    free, chunk = policy.predict(observe()).actions, guided.predict_guided(observe(), committed(5), 3, 3)
    scale = np.array([0.1, 2.0])
    away = np.abs((chunk.actions[:3] - committed(3)) / scale).mean()
    assert away < np.abs((free[:3] - committed(3)) / scale).mean() / 2
    assert chunk.actions.dtype == np.float32 and chunk.actions.shape == (H, 2)
    assert (chunk.index, chunk.observation_id) == (4, 5)
    again = guided.predict_guided(observe(), committed(5), 3, 3)
    assert chunk.actions.tobytes() == again.actions.tobytes()


def test_a_chunk_that_nothing_is_planned_for_is_the_policys_own() -> None:
    policy = make_policy()
    expected = policy.predict(observe()).actions.tobytes()
    guided = GuidedPolicy(policy)
    assert guided.predict(observe()).actions.tobytes() == expected
    assert guided.predict_guided(observe(), committed(0), 2, 4).actions.tobytes() == expected
    assert guided.predict_guided(observe(), committed(H), 0, H).actions.tobytes() == expected
    assert (
        GuidedPolicy(policy, GuidanceConfig(max_gain=0.0))
        .predict_guided(observe(), committed(5), 2, 3)
        .actions.tobytes()
        == expected
    )


@pytest.mark.parametrize("kind", [GuidedPolicy, lambda policy: WarmStartPolicy(policy, 2)])
def test_what_cannot_be_reached_any_more_is_frozen_however_free_the_rest_is(kind: type[GuidedPolicy]) -> None:
    policy = kind(make_policy())
    frozen = policy.predict_guided(observe(), committed(4), 4, H).actions
    assert frozen.tobytes() == policy.predict_guided(observe(), committed(4), 4, 2).actions.tobytes()
    assert frozen.tobytes() == policy.predict_guided(observe(), committed(4), 20, 1).actions.tobytes()
    assert frozen.tobytes() != policy.predict(observe()).actions.tobytes()


@pytest.mark.parametrize("bad", [np.zeros((H + 1, 2)), np.zeros((2, 3)), np.zeros(2), np.full((2, 2), np.nan)])
@pytest.mark.parametrize("kind", [GuidedPolicy, lambda policy: WarmStartPolicy(policy, 2)])
def test_planned_actions_that_cannot_be_are_refused(kind: type[GuidedPolicy], bad: FloatArray) -> None:
    with pytest.raises(PolicyError, match="committed actions"):
        kind(make_policy()).predict_guided(observe(), bad.astype(np.float32), 1, 4)


# ---- warm starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("process", "kind", "steps"), SOLVERS)
def test_a_warm_start_of_all_calls_is_plain_sampling_bit_for_bit(
    process: Process, kind: str, steps: int, cached: bool
) -> None:
    policy = make_policy(process, kind, steps)
    policy = with_schedule(policy) if cached else policy
    calls = len(policy.sampler.calls)
    warm = WarmStartPolicy(policy, calls).predict_guided(observe(), committed(4), 2, 4)
    assert warm.actions.tobytes() == policy.predict(observe()).actions.tobytes()


@pytest.mark.parametrize(("process", "kind", "steps"), SOLVERS)
def test_the_fewer_calls_the_nearer_a_chunk_stays_to_where_it_starts(process: Process, kind: str, steps: int) -> None:
    solver = SolverConfig(kind=kind, steps=steps)  # type: ignore[arg-type]
    sampler = ChunkSampler(Gaussian(process), process, solver)
    noise, step_noise = draw(sampler, rows=256)
    start = torch.full((256, H, 1), 0.8)
    total = len(sampler.calls)
    away = [
        float((warm_sample(sampler, noise, step_noise, (), start, calls) - start).abs().mean())
        for calls in (0, total // 2, total)
    ]
    assert away[0] == 0.0
    assert away[0] < away[1] < away[2]


def test_only_the_calls_of_the_warm_start_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = with_schedule(make_policy(CHAIN, "ddim", 5))
    seen: list[int] = []
    estimate = ChunkSampler.estimate

    def spy(sampler: ChunkSampler, index: int, *rest: object) -> Tensor:
        seen.append(index)
        return estimate(sampler, index, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ChunkSampler, "estimate", spy)
    chunk = WarmStartPolicy(policy, 2).predict_guided(observe(), committed(4), 0, 4)
    assert seen == [3, 4] and np.isfinite(chunk.actions).all()


def test_the_rest_of_a_schedule_begins_with_every_block() -> None:
    schedule = CacheSchedule(method="m", calls=6, blocks=("a", "b"), updates=((0, 2, 5), (0,)), belongs_to="x")
    rest = schedule_from(schedule, 3)
    assert rest == msgspec.structs.replace(schedule, calls=3, updates=((0, 2), (0,)))


@pytest.mark.parametrize("calls", [0, 6])
def test_a_warm_start_of_more_calls_than_there_are_is_refused(calls: int) -> None:
    with pytest.raises(PolicyError, match="1 to the solver's 5"):
        WarmStartPolicy(make_policy(), calls)
