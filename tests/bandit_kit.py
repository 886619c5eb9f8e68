"""One-step problems with a known best action, and small base policies, for algorithms that learn from samples."""

from __future__ import annotations

import numpy as np
import torch

from policies.common.normalization import MinMaxNormalizer, Standardizer
from policies.common.sizes import Sizes
from policies.flow.config import ExpertConfig
from policies.generative.build import build_net
from policies.generative.config import FlowPath, GenerativeConfig, SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.core.messages import Array, FloatArray, Observation
from robot_stack.core.protocols import Policy
from robot_stack.core.specs import STATE, PolicySpec, vector
from robot_stack.learner.algorithms.base import Algorithm, Batches, Ingredients

ACTION = vector(("a", "b"), (-0.1, -2.0), (0.1, 4.0))
CENTRE, HALF_RANGE = np.array([0.0, 1.0], np.float32), np.array([0.1, 3.0], np.float32)
SPEC = PolicySpec(name="small", task="t", horizon=3, action=ACTION, observation={STATE: vector(("x", "y"))})
DISCOUNT = 0.99


def base_policy(spec: PolicySpec = SPEC, seed: int = 0) -> GenerativePolicy:
    """An untrained flow: what it does is wide noise, whatever it sees."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = GenerativeConfig(
        net=ExpertConfig(embed_dim=8, layers=1, heads=2),
        process=FlowPath(),
        solver=SolverConfig(kind="euler", steps=2),
        observation=MinMaxNormalizer(centre=(0.0,) * 2, half_range=(1.0,) * 2),
        action=MinMaxNormalizer(centre=(0.02, 0.8), half_range=(0.08, 2.0)),
    )
    return GenerativePolicy(spec, config, build_net(config.net, Sizes.of(spec)))


def ingredients(base: GenerativePolicy | None = None, seed: int = 0) -> Ingredients:
    torch.set_num_threads(1)
    return Ingredients(
        action=ACTION,
        observation=SPEC.observation,
        standardizer=Standardizer(mean=(0.1, 0.0), std=(0.5, 0.5)),
        base=base,
        seed=seed,
    )


def reward_of(observation: FloatArray, action: FloatArray) -> FloatArray:
    """1 where the action (normalised to its bounds) is the observation; less with the squared distance."""
    found: FloatArray = 1.0 - np.square((action - CENTRE) / HALF_RANGE - observation).sum(axis=-1)
    return found


def random_steps(count: int, seed: int = 0, stratum: Stratum = Stratum.DEMONSTRATION) -> list[ReplayStep]:
    """Episodes of one step with uniform actions."""
    rng = np.random.default_rng(seed)
    observation = rng.uniform(-0.5, 0.5, (count, 2)).astype(np.float32)
    action = (CENTRE + rng.uniform(-1, 1, (count, 2)) * HALF_RANGE).astype(np.float32)
    reward = reward_of(observation, action)
    return [
        ReplayStep(
            stream=(seed, i),
            index=0,
            stratum=stratum,
            observation=observation[i],
            action_base=action[i],
            action=action[i],
            reward=float(reward[i]),
            terminated=True,
            truncated=False,
        )
        for i in range(count)
    ]


def batches_of(steps: list[ReplayStep], size: int = 16, seed: int = 0, lookahead: int = 2) -> Batches:
    replay = Replay(ReplayConfig(10_000, 2, 2, lookahead=lookahead, return_discount=DISCOUNT))
    for step in steps:
        replay.add(step)
    return Batches(Sampler([Part(replay)], seed), size, 1, DISCOUNT)


def seen(count: int, seed: int = 7) -> list[Observation]:
    rng = np.random.default_rng(seed)
    return [
        Observation(
            id=i,
            stamp_ns=0,
            features={STATE: rng.uniform(-0.5, 0.5, 2).astype(np.float32)},
            age_ns={},
            episode_seed=11,
            index=i,
        )
        for i in range(count)
    ]


def mean_reward(policy: Policy, count: int = 100) -> float:
    rewards = [reward_of(one.features[STATE], policy.predict(one).actions[0]) for one in seen(count)]
    return float(np.mean(rewards))


def equal(first: dict[str, Array], second: dict[str, Array]) -> bool:
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def check_twenty_and_twenty_equal_forty(whole: Algorithm, first: Algorithm, second: Algorithm) -> None:
    """`first` and `whole` are built alike, `second` with another seed."""
    steps = random_steps(200)
    batches = batches_of(steps)
    for _ in range(40):
        whole.update(batches)
    batches = batches_of(steps)
    for _ in range(20):
        first.update(batches)
    saved, cursor = first.state(), batches.sampler.state()
    first.update(batches)  # the saved state is a copy
    assert not equal(second.state(), saved)
    second.load_state(saved)
    assert second.updates == 20 and equal(second.state(), saved)
    resumed = batches_of(steps, seed=99)
    resumed.sampler.load_state(cursor)
    for _ in range(20):
        second.update(resumed)
    assert equal(second.state(), whole.state())
    assert equal(second.actor_tensors(), whole.actor_tensors())
