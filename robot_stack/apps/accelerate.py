"""Make the run's policy faster: find solver and cache schedule on its demonstrations, and keep them beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policies.acceleration.calibration import Method, make_schedule
from policies.acceleration.saved import save_acceleration
from policies.generative.config import SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.recorded import observation_at
from robot_stack.apps.train import read_demonstrations
from robot_stack.config.schema import StackConfig
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Observation, Step
from robot_stack.core.specs import PolicySpec


def accelerate(
    config: StackConfig,
    method: Method = "adaptive",
    budget: int = 5,
    union: int = 5,
    solver: SolverConfig | None = None,
    observations: int = 8,
) -> GenerativePolicy:
    """The run's policy under a new schedule, which stands in the run's folder from now on (`load_accelerated`).

    method, budget, union: as of `make_schedule`. solver: another one than the policy's own. observations: so many of
    the demonstrations' are looked at. PolicyError without policy or demonstrations, or for a budget that is larger than
    the solver's calls.
    """
    layout = RunLayout.of(config)
    use_one_torch_thread()
    policy = GenerativePolicy.load(layout.policy)
    if solver is not None:
        policy = policy.with_solver(solver)
    seen = calibration_observations(read_demonstrations(layout), policy.spec, observations, config.policy.instruction)
    schedule = make_schedule(policy, seen, method, budget, union)
    fast = policy.with_solver(policy.config.solver, schedule)
    save_acceleration(fast, schedule_path(layout))
    return fast


def schedule_path(layout: RunLayout) -> Path:
    """Where `accelerate` keeps what it found."""
    return layout.acceleration / "schedule.json"


def calibration_observations(
    episodes: Sequence[Sequence[Step]], spec: PolicySpec, count: int, instruction: str = ""
) -> list[Observation]:
    """`count` observations, evenly spread over the steps of all episodes, as the policy would have read them there.

    `instruction` stands in where none was recorded. PolicyError without steps, or for a count below 1.
    """
    places = [(episode, index) for episode in episodes for index in range(len(episode))]
    if not places or count < 1:
        raise PolicyError(
            f"{count} of {len(places)} demonstrated steps cannot be calibrated on; ask for 1 or more, and collect "
            "demonstrations first: robot-stack collect"
        )
    chosen = np.unique(np.linspace(0, len(places) - 1, count).round().astype(np.int64))
    return [
        observation_at([step.observation for step in episode], index, episode, spec, instruction)
        for episode, index in (places[place] for place in chosen)
    ]
