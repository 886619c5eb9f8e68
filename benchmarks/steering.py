"""A policy as it is, re-ranked by a learned value, and by pseudo-counts: `python -m benchmarks.steering [--quick]`.

With `--policy FOLDER --task NAME` on a simulated robot; without, on a toy: an episode is one chunk, and a third of the
demonstrations go to a wrong place, so that a policy trained on them often fails.

First the policy acts on practice seeds. The value is learned from the outcomes of all those episodes, the counts from
the chunks of those that succeeded. Then every way acts on the same test seeds, which are new. Success has a 95 %
interval (Wilson); `gain` is the difference to the base, episode by episode, with its own interval. `cpu_ms_per_chunk`:
median of chunks predicted one at a time, candidates included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.inference.rollouts import BatchPolicy, Outcomes, Simulation
from benchmarks.inference.tasks import task_of
from policies.common.normalization import MinMaxNormalizer
from policies.diffusion.config import TransformerConfig
from policies.generative.build import build_net, sizes_of
from policies.generative.config import DiffusionChain, GenerativeConfig, SolverConfig
from policies.generative.objectives import training_loss
from policies.generative.policy import GenerativePolicy
from policies.steering.config import CountConfig, CriticConfig
from policies.steering.features import make_features
from policies.steering.rerank import Reranked
from policies.steering.training import train_counts, train_value
from robot_stack.apps.seeds import practice_seed
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.specs import STATE, PolicySpec, vector
from robot_stack.evaluation.statistics import wilson_interval

Trial = Callable[[BatchPolicy, Sequence[int]], Outcomes]
TIMED = 20
NEAR = 0.15
RIGHT, WRONG = 0.5, -0.5


@dataclass
class Recorder:
    """Passes a policy's chunks on and keeps them; a `BatchPolicy`."""

    policy: BatchPolicy
    seen: list[Observation] = field(default_factory=list)
    chunks: list[FloatArray] = field(default_factory=list)

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        chunks = self.policy.predict_batch(observations)
        self.seen += observations
        self.chunks += list(chunks)
        return chunks


def toy_observation(seed: int) -> Observation:
    state = np.random.default_rng(seed).uniform(-0.4, 0.4, 2).astype(np.float32)
    return Observation(id=0, stamp_ns=0, features={STATE: state}, age_ns={}, episode_seed=seed)


def toy_trial(policy: BatchPolicy, seeds: Sequence[int]) -> Outcomes:
    """One chunk an episode: every action has to be near the state plus `RIGHT`."""
    observations = [toy_observation(seed) for seed in seeds]
    states = np.stack([observation.features[STATE] for observation in observations])
    distance = np.abs(policy.predict_batch(observations) - states[:, None] - RIGHT).max(axis=(1, 2))
    return Outcomes(distance < NEAR, np.ones(len(seeds), np.int64))


def toy_policy(seed: int, steps: int) -> GenerativePolicy:
    """Trained on demonstrations of which a third goes to the wrong place."""
    identity = MinMaxNormalizer(centre=(0.0, 0.0), half_range=(1.0, 1.0))
    spec = PolicySpec(
        name="toy",
        task="toy",
        horizon=4,
        action=vector(("x", "y"), (-1.0, -1.0), (1.0, 1.0)),
        observation={STATE: vector(("x", "y"))},
    )
    config = GenerativeConfig(
        net=TransformerConfig(embed_dim=32, layers=2, heads=2),
        process=DiffusionChain(train_steps=50),
        solver=SolverConfig(kind="ddim", steps=10),
        observation=identity,
        action=identity,
    )
    torch.manual_seed(seed)
    net = build_net(config.net, sizes_of(spec, config))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="toy policy", file=sys.stderr, mininterval=1.0):
        states = 0.8 * torch.rand(128, 1, 2, generator=generator) - 0.4
        places = torch.where(torch.rand(128, 1, 1, generator=generator) < 2 / 3, RIGHT, WRONG)
        actions = states + places + 0.05 * torch.randn(128, 4, 2, generator=generator)
        loss = training_loss(net, config.process, actions, (states,), generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return GenerativePolicy(spec, config, net)


def steered(
    policy: GenerativePolicy, trial: Trial, seeds: Sequence[int], options: argparse.Namespace
) -> dict[str, BatchPolicy]:
    """The ways that are compared, the learned ones trained on what the policy does on these seeds."""
    recorder = Recorder(policy)
    outcomes = trial(recorder, seeds)
    success = dict(zip(seeds, outcomes.success.tolist(), strict=True))
    length = dict(zip(seeds, outcomes.steps.tolist(), strict=True))
    critic = CriticConfig()
    features = make_features(options.features, policy)
    data = np.concatenate(
        [features([seen], chunk[None]) for seen, chunk in zip(recorder.seen, recorder.chunks, strict=True)]
    )
    won = np.array([success[seen.episode_seed] for seen in recorder.seen])
    left = np.array([length[seen.episode_seed] - 1 - seen.index for seen in recorder.seen])
    returns = (won * critic.discount**left).astype(np.float32)
    value = train_value(data, returns, features, critic, steps=options.steps, seed=options.seed)
    ways: dict[str, BatchPolicy] = {
        "base": policy,
        "value_argmax": Reranked(policy, value, temperature=0.0, count=options.candidates),
        "value_softmax": Reranked(policy, value, temperature=options.temperature, count=options.candidates),
    }
    if won.sum() >= 2:
        counts = train_counts(data[won], features, CountConfig(), steps=options.steps, seed=options.seed)
        ways["counts"] = Reranked(policy, counts, temperature=0.0, count=options.candidates)
    return ways


def compare(ways: dict[str, BatchPolicy], trial: Trial, seeds: Sequence[int]) -> dict[str, dict[str, object]]:
    results: dict[str, dict[str, object]] = {}
    base: NDArray[np.bool_] | None = None
    for name, policy in tqdm(ways.items(), file=sys.stderr):
        recorder = Recorder(policy)
        success = trial(recorder, seeds).success
        interval = wilson_interval(int(success.sum()), len(success))
        results[name] = {
            "success": round(float(success.mean()), 4),
            "interval": [round(interval.lower, 4), round(interval.upper, 4)],
            "cpu_ms_per_chunk": round(cpu_ms(policy, recorder.seen[:TIMED]), 3),
        }
        if base is None:
            base = success
            continue
        differences = success.astype(float) - base
        margin = 1.96 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
        gain = float(differences.mean())
        results[name]["gain"] = round(gain, 4)
        results[name]["gain_interval"] = [round(gain - margin, 4), round(gain + margin, 4)]
    return results


def cpu_ms(policy: BatchPolicy, observations: Sequence[Observation]) -> float:
    """Median over chunks that are predicted one at a time."""
    passed = []
    for observation in observations:
        began = time.process_time()
        policy.predict_batch([observation])
        passed.append(time.process_time() - began)
    return 1e3 * float(np.median(passed))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the toy, fewer episodes; under 45 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", type=Path, help="folder of a generative policy; without it: the toy")
    parser.add_argument("--task", default="pick_cube", help="benchmark task that the policy was trained for")
    parser.add_argument("--features", choices=("vector", "hidden"), default="vector")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    practice, test = (300, 200) if options.quick else (1_000, 1_000)
    options.steps = 400 if options.quick else 3_000
    practice_seeds, test_seeds = [practice_seed(options.seed, episode) for episode in range(practice)], range(test)
    if options.quick or options.policy is None:
        policy = toy_policy(options.seed, 800 if options.quick else 3_000)
        results = compare(steered(policy, toy_trial, practice_seeds, options), toy_trial, test_seeds)
    else:
        task = task_of(options.task)
        policy = GenerativePolicy.load(options.policy)
        with Simulation(task.make_robot) as simulation:

            def trial(tried: BatchPolicy, seeds: Sequence[int]) -> Outcomes:
                return simulation.rollouts(tried, seeds, task.execute_steps)

            results = compare(steered(policy, trial, practice_seeds, options), trial, test_seeds)
    for name, figures in results.items():
        print(f"{name:14s}", *(f"{key} {value}" for key, value in figures.items()))
    report = {"benchmark": "steering", "seed": options.seed, "quick": options.quick, "task": policy.spec.task}
    report |= {"candidates": options.candidates, "practice": practice, "test": test}
    print(json.dumps(report | {"ways": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
