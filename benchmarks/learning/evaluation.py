"""Success of the deterministic policy on held-out seeds, many robots side by side.

One batched prediction serves all robots; what acts at every step is asked for each robot by itself. Everything goes
through each robot's own safety filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from benchmarks.inference.lane import Lane
from benchmarks.inference.rollouts import Simulation
from robot_stack.apps.actors import Improved
from robot_stack.core.messages import FloatArray, Observation
from robot_stack.core.protocols import Policy


@runtime_checkable
class _Batched(Protocol):
    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray: ...


def successes(
    simulation: Simulation, acting: Improved, seeds: Sequence[int], execute_steps: int, lanes: int
) -> list[bool]:
    """Whether the episode of each seed succeeded, by the task's predicate, in the order of the seeds."""
    policy, outcome = acting.policy, dict.fromkeys(seeds, False)
    free = simulation.lanes(min(lanes, len(seeds)), policy.spec.history)
    todo, running = iter(seeds), list[Lane]()
    while True:
        while free and (seed := next(todo, None)) is not None:
            free[-1].reset(seed)
            running.append(free.pop())
        if not running:
            return list(outcome.values())
        chunks = _predict(policy, [lane.observation() for lane in running])
        going = []
        for lane, chunk in zip(running, chunks, strict=True):
            _run(lane, chunk[:execute_steps], acting)
            if lane.ended:
                outcome[lane.seed] = lane.success
                free.append(lane)
            else:
                going.append(lane)
        running = going


def _predict(policy: Policy, observations: Sequence[Observation]) -> FloatArray:
    if isinstance(policy, _Batched):
        return policy.predict_batch(observations)
    return np.stack([policy.predict(observation).actions for observation in observations])


def _run(lane: Lane, actions: FloatArray, acting: Improved) -> None:
    for action in actions:
        lane.step(acting.corrector.correct(lane.observation(), action))
        if lane.ended:
            return
