"""Episodes of a policy on many simulated robots in lock-step.

All robots re-plan at the same steps, so one batched prediction serves them all. A robot whose episode ended rests until
the next re-planning and begins the next seed there. A policy's random numbers come from (seed, step), so an episode
does not depend on the others of its batch, within the rounding of batched matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.inference.lane import Lane
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import FloatArray, Observation, Verdict
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.specs import PolicySpec

MakeRobot = Callable[[], SimulatedRobot]
BATCH = 64


class BatchPolicy(Protocol):
    """What a rollout asks of a policy."""

    @property
    def spec(self) -> PolicySpec: ...

    def predict_batch(self, observations: Sequence[Observation]) -> FloatArray:
        """Chunks (N, H, A) in the action's units."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the episodes of some seeds ended, in the order of the seeds.

    Attributes:
        success: (n,) bool, the task's own verdict.
        steps: (n,) int64, control steps.
        clipped, refused: actions that the gate of the safety filter clipped and refused, over all episodes.
    """

    success: NDArray[np.bool_]
    steps: NDArray[np.int64]
    clipped: int = 0
    refused: int = 0


class Simulation:
    """Robots of one task, made when first needed and kept for further rollouts; closed by `with`."""

    def __init__(self, make_robot: MakeRobot) -> None:
        self._make_robot = make_robot
        self._robots: list[SimulatedRobot] = []
        self._lanes: list[Lane] = []

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()

    def lanes(self, count: int, history: int) -> list[Lane]:
        """`count` robots that remember `history` observations."""
        while len(self._lanes) < count:
            self._lanes.append(Lane(self._make_robot()))
        for lane in self._lanes[:count]:
            lane.remember(history)
        return self._lanes[:count]

    def rollouts(
        self,
        policy: BatchPolicy,
        seeds: Sequence[int],
        execute_steps: int,
        batch: int = BATCH,
        on_episode: Callable[[bool], None] = lambda success: None,
    ) -> Outcomes:
        """One episode per seed, `batch` of them at a time, with `execute_steps` actions of every chunk."""
        if not 1 <= execute_steps <= policy.spec.horizon:
            raise PolicyError(f"execute_steps is {execute_steps}; allowed: 1 up to the horizon, {policy.spec.horizon}")
        todo = iter(enumerate(seeds))
        free = self.lanes(min(batch, len(seeds)), policy.spec.history)
        running: list[tuple[int, Lane]] = []
        success, steps = np.zeros(len(seeds), np.bool_), np.zeros(len(seeds), np.int64)
        clipped = refused = 0
        while True:
            while free and (following := next(todo, None)) is not None:
                number, seed = following
                free[-1].reset(seed)
                running.append((number, free.pop()))
            if not running:
                return Outcomes(success, steps, clipped, refused)
            chunks = policy.predict_batch([lane.observation() for _, lane in running])
            going = []
            for (number, lane), chunk in zip(running, chunks, strict=True):
                verdicts = lane.run(chunk[:execute_steps])
                clipped += verdicts.count(Verdict.CLIPPED)
                refused += verdicts.count(Verdict.REFUSED)
                if not lane.ended:
                    going.append((number, lane))
                    continue
                success[number], steps[number] = lane.success, lane.index
                free.append(lane)
                on_episode(lane.success)
            running = going


def rollouts(
    make_robot: MakeRobot, policy: BatchPolicy, seeds: Sequence[int], execute_steps: int, batch: int = BATCH
) -> Outcomes:
    """`Simulation.rollouts` with robots of its own."""
    with Simulation(make_robot) as opened:
        return opened.rollouts(policy, seeds, execute_steps, batch)
