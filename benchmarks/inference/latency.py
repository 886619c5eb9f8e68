"""Latency of every configuration on every back-end at batch 1, on one thread, beside the baseline in the same run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.inference.configurations import Configuration
from benchmarks.inference.reference import DiffusersBackend
from benchmarks.inference.schedules import Schedules
from benchmarks.inference.timing import interleaved_medians
from policies.generative.config import DiffusionChain, SolverConfig
from policies.generative.policy import GenerativePolicy
from policies.generative.runtime import backend_maker
from policies.generative.runtime_config import RuntimeConfig
from robot_stack.core.messages import Observation

BASELINE = "baseline"
AGREEMENT = 1e-4
"""Root mean square difference between back-ends, in normalised units, up to which success is taken as the same."""


class Latencies:
    """Calls to be timed: whole predictions, from an observation to actions, by `<family>/<solver>[+<cache>]@<backend>`.

    `differences`: root mean square difference of each back-end's chunks to eager ones. `refused`: back-ends that could
    not be made, and why.
    """

    def __init__(self, graphs: Path) -> None:
        self._graphs = graphs
        self.calls: dict[str, Callable[[], object]] = {}
        self.differences: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def add_baseline(self, policy: GenerativePolicy, observation: Observation) -> None:
        """Eager DDPM as it is commonly run; of a diffusion policy."""
        chain = policy.config.process
        steps = chain.train_steps if isinstance(chain, DiffusionChain) else 0
        usual = policy.with_solver(SolverConfig(kind="ddpm", steps=steps)).with_backend(
            lambda sampler, example: DiffusersBackend(sampler, torch.Generator().manual_seed(0))
        )
        self.calls[BASELINE] = partial(usual.predict_batch, [observation])

    def add(
        self,
        policy: GenerativePolicy,
        configurations: Sequence[Configuration],
        schedules: Schedules,
        runtime: RuntimeConfig,
        observations: Sequence[Observation],
    ) -> None:
        """Every configuration on one back-end; graphs that were built before are taken from the folder of graphs."""
        for configuration in tqdm(configurations, desc=f"build {runtime.backend}", unit="graph", file=sys.stderr):
            name = f"{configuration}@{runtime.backend}"
            eager = policy.with_solver(configuration.solver, schedules[str(configuration)])
            try:
                made = eager.with_backend(backend_maker(runtime, self._graphs))
            except Exception as error:  # a back-end that is not there must not hide the others
                self.refused[name] = f"{type(error).__name__}: {error}"
                continue
            self.differences[name] = _difference(eager, made, observations)
            self.calls[name] = partial(made.predict_batch, [observations[0]])

    def medians_ms(self, rounds: int) -> Mapping[str, float]:
        """Medians of all that were added, in turn."""
        torch.set_num_threads(1)
        with tqdm(total=rounds, desc="latency", unit="round", file=sys.stderr) as bar:
            medians = interleaved_medians(self.calls, rounds, on_round=bar.update)
        return {name: 1e3 * seconds for name, seconds in medians.items()}


def _difference(eager: GenerativePolicy, made: GenerativePolicy, observations: Sequence[Observation]) -> float:
    squares = [
        float(((eager.to_samples(eager.predict_batch([one])) - made.to_samples(made.predict_batch([one]))) ** 2).mean())
        for one in observations
    ]
    return float(sum(squares) / len(squares)) ** 0.5
