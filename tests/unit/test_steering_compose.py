"""Two policies as one: the parents at the ends, the weighted mean of Gaussians between, and what cannot be mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from policies.acceleration.schedule import CacheSchedule
from policies.common.blocks import Blocks
from policies.common.denoiser import Denoiser, Tensors
from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import UNetConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, FlowPath, Process, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.sampler import ChunkSampler
from policies.generative.solver import noise_levels
from policies.steering.candidates import sample_candidates
from policies.steering.compose import WEIGHTS, ComposedDenoiser, ComposedPolicy, search_weight
from policies.steering.rerank import Reranked
from robot_stack.core.errors import PolicyError
from robot_stack.core.specs import vector
from tests.unit.test_steering_rerank import CONFIG, Rule, first_action, make_policy, observe, one_thread

__all__ = ["one_thread"]

UNET = UNetConfig(channels=(8, 16), groups=4, time_dim=16)


def parents() -> tuple[GenerativePolicy, GenerativePolicy]:
    """Of different networks and statistics of observations."""
    wider = MinMaxNormalizer(centre=(0.1, 0.0, 0.0), half_range=(2.0, 2.0, 2.0))
    return make_policy(), make_policy(replace(CONFIG, net=UNET, observation=wider), seed=1)


def uniform_schedule(policy: GenerativePolicy) -> CacheSchedule:
    blocks = policy.sampler.denoiser.block_names
    updates = ((0, 3),) * len(blocks)
    return CacheSchedule(method="uniform", calls=5, blocks=blocks, updates=updates, belongs_to=policy.fingerprint)


def cached(policy: GenerativePolicy) -> GenerativePolicy:
    return policy.with_solver(CONFIG.solver, uniform_schedule(policy))


def test_a_weight_of_one_or_zero_is_a_parent_bit_for_bit() -> None:
    first, second = parents()
    for one, other in ((first, second), (cached(first), cached(second)), (cached(first), second)):
        for weight, parent in ((1.0, one), (0.0, other)):
            chunk = ComposedPolicy(one, other, weight).predict(observe()).actions
            np.testing.assert_array_equal(chunk, parent.predict(observe()).actions)


def test_a_composition_is_none_of_its_parents_and_mixes_every_call() -> None:
    first, second = parents()
    mixed = ComposedPolicy(first, second, 0.4).predict(observe()).actions
    ends = [policy.predict(observe()).actions for policy in (first, second)]
    assert min(np.abs(mixed - end).max() for end in ends) > 1e-3
    assert np.abs(mixed - (0.4 * ends[0] + 0.6 * ends[1])).max() > 1e-4


def test_parents_of_different_schedules_skip_their_own_blocks_only() -> None:
    first, second = parents()
    composed = ComposedPolicy(cached(first), second, 0.5)
    schedule = composed.sampler.schedule
    assert schedule is not None
    split = len(first.sampler.denoiser.block_names)
    assert set(schedule.updates[:split]) == {(0, 3)} and set(schedule.updates[split:]) == {(0, 1, 2, 3, 4)}
    assert schedule.blocks == composed.sampler.denoiser.block_names
    assert ComposedPolicy(first, second, 0.5).sampler.schedule is None


def test_a_composition_can_be_reranked() -> None:
    first, second = parents()
    for composed in (ComposedPolicy(first, second, 0.5), ComposedPolicy(cached(first), cached(second), 0.5)):
        own = composed.predict(observe()).actions
        np.testing.assert_allclose(sample_candidates(composed, observe(), 4)[0], own, atol=1e-4)
        rule = Rule(first_action)
        best = Reranked(composed, rule, temperature=0.0, count=6).predict(observe()).actions
        assert best[0, 0] == rule.seen[:, 0, 0].max()
        np.testing.assert_array_equal(
            Reranked(composed, rule, temperature=0.0, count=1).predict(observe()).actions, own
        )


class Gaussian(Denoiser):
    """The exact estimate where every action is N(mean, std^2): its noise on a chain, its velocity on a flow."""

    block_names = ()

    def __init__(self, process: Process, mean: float, std: float) -> None:
        super().__init__()
        self.process, self.mean, self.std = process, mean, std

    def context(self, condition: Tensors) -> Tensors:
        return (condition[0],)

    def clock(self, times: Tensor, strides: Tensor) -> Tensors:
        if isinstance(self.process, FlowPath):
            return (times[:, None, None], 1.0 - times[:, None, None])
        alphas, sigmas = (level.float()[times.long()][:, None, None] for level in noise_levels(self.process))
        return (alphas, sigmas)

    def step(self, actions: Tensor, clock: Tensors, context: Tensors, blocks: Blocks) -> Tensor:
        alpha, sigma = clock
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        clean = self.mean + gain * (actions - alpha * self.mean)
        if isinstance(self.process, FlowPath):
            return (clean - actions) / sigma
        return (actions - alpha * clean) / sigma


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (DiffusionChain(train_steps=100), SolverConfig(kind="ddim", steps=100)),
        (FlowPath(), SolverConfig(kind="euler", steps=100)),
    ],
)
def test_gaussians_of_one_width_compose_to_the_weighted_mean_of_that_width(
    process: Process, solver: SolverConfig
) -> None:
    std, weight = 0.1, 0.3
    mixed = ComposedDenoiser(Gaussian(process, 0.5, std), Gaussian(process, -0.5, std), weight, condition_parts=1)
    torch.manual_seed(0)
    condition = torch.zeros(4000, 1, 1)
    with torch.inference_mode():
        samples = ChunkSampler(mixed, process, solver)(torch.randn(4000, 1, 1), None, condition, condition)
    assert samples.mean().item() == pytest.approx(weight * 0.5 - (1 - weight) * 0.5, abs=0.02)
    assert samples.std().item() == pytest.approx(std, rel=0.1)


def test_parents_that_do_not_act_alike_are_refused() -> None:
    first, _ = parents()
    scaled = MinMaxNormalizer(centre=(0.0, 0.0), half_range=(0.5, 1.0))
    others = {
        "solver": make_policy(replace(CONFIG, solver=SolverConfig(steps=4))),
        "process": make_policy(replace(CONFIG, process=DiffusionChain(train_steps=30))),
        "normalisation of actions": make_policy(replace(CONFIG, action=scaled)),
    }
    for name, other in others.items():
        with pytest.raises(PolicyError, match=f"{name}:"):
            ComposedPolicy(first, other, 0.5)
    spec = replace(first.spec, observation={"observation.state": vector(("x", "y", "other"))})
    renamed = GenerativePolicy(spec, CONFIG, make_policy().sampler.denoiser)
    with pytest.raises(PolicyError, match="disagree on feature"):
        ComposedPolicy(first, renamed, 0.5)
    with pytest.raises(PolicyError, match="allowed: 0 to 1"):
        ComposedPolicy(first, first, 1.1)


def test_parents_may_read_different_things() -> None:
    first, _ = parents()
    spec = replace(first.spec, observation={"observation.environment_state": vector(("u", "v", "w"))}, history=2)
    torch.manual_seed(2)
    config = replace(CONFIG, net=UNET)
    other = GenerativePolicy(spec, config, build_net(UNET, sizes_of(spec, config)))
    composed = ComposedPolicy(first, other, 0.5)
    assert set(composed.spec.observation) == {"observation.state", "observation.environment_state"}
    assert composed.spec.history == 2
    seen = replace(observe(), past=(observe().features | {"observation.environment_state": np.zeros(3, np.float32)},))
    seen.features["observation.environment_state"] = np.array([0.1, 0.2, 0.3], np.float32)
    before = composed.predict(seen).actions
    seen.features["observation.environment_state"] = np.array([0.9, -0.9, 0.3], np.float32)
    assert not np.array_equal(composed.predict(seen).actions, before)
    with pytest.raises(PolicyError, match="lacks"):
        composed.predict(replace(observe(), past=(observe().features,)))


def test_the_search_takes_the_best_weight() -> None:
    first, second = parents()
    target = ComposedPolicy(first, second, 0.7).predict(observe()).actions

    def score(policy: ComposedPolicy) -> float:
        return -float(np.abs(policy.predict(observe()).actions - target).max())

    best, scores = search_weight(first, second, score)
    assert best == 0.7 and scores[0.7] == 0.0
    assert tuple(scores) == WEIGHTS == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
