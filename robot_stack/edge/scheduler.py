"""Who proposes the action of *now*: the chunk schedulers, and the interface they share with scripted experts."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np

from robot_stack.core.errors import PolicyError, RobotError
from robot_stack.core.messages import ActionChunk, FloatArray, Observation, RobotState, Source
from robot_stack.core.protocols import GuidedChunkPolicy, Policy
from robot_stack.core.specs import PolicySpec
from robot_stack.edge.chunking import ActionPlan, ChunkCounts, ChunkingConfig, NewestChunk
from robot_stack.edge.ensembling import TemporalEnsemble
from robot_stack.edge.inference_thread import Inference, Job
from robot_stack.edge.latency import LatencyEstimate


class Proposer(Protocol):
    """Proposes the base action of each control step."""

    @property
    def source(self) -> Source: ...

    @property
    def version(self) -> int:
        """Version of the weights that the newest chunk came from."""

    def begin(self, seed: int) -> None:
        """A new episode begins."""

    def at_boundary(self, index: int) -> bool:
        """True if step `index` starts a new chunk: the only moments at which weights may change."""

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        """The base action (A,) for this control step."""


class ChunkScheduler:
    """Runs a chunked policy: executes the first `execute_steps` of every chunk, then plans again.

    The action executed at step t is always the one that was predicted for step t.
    """

    def __init__(self, policy: Policy, execute_steps: int) -> None:
        _check_execute_steps(policy.spec, execute_steps)
        self._policy = policy
        self._execute_steps = execute_steps
        self._chunk: ActionChunk | None = None

    @property
    def source(self) -> Source:
        return Source.POLICY

    @property
    def version(self) -> int:
        return 0 if self._chunk is None else self._chunk.weights_version

    def begin(self, seed: int) -> None:
        self._chunk = None

    def at_boundary(self, index: int) -> bool:
        return self._chunk is None or index >= self._chunk.index + self._execute_steps

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        if self._chunk is None or self.at_boundary(observation.index):
            self._chunk = self._policy.predict(observation)
        return self._chunk.actions[observation.index - self._chunk.index]


class AsyncChunkScheduler:
    """Runs a chunked policy beside the control loop: the old chunk goes on while the new one is computed.

    The action executed at step t is always one that was predicted for step t. Only an episode's first chunk is waited
    for, with the robot at rest; later `propose` never waits. At a step for which there is no action the robot holds as
    `config.when_empty` says; `stop` raises RobotError. What the policy raises, `propose` raises.

    Args:
        policy: called by `inference` alone, one call at a time; with mode `rtc` a `GuidedChunkPolicy`.
        inference: an open `InferenceThread`, or a `DelayedInference` in lock-step.
    """

    def __init__(self, policy: Policy, inference: Inference, config: ChunkingConfig) -> None:
        _check_execute_steps(policy.spec, config.execute_steps)
        self._guided = policy if config.mode == "rtc" and isinstance(policy, GuidedChunkPolicy) else None
        if config.mode == "rtc" and self._guided is None:
            raise PolicyError(
                f"policy '{policy.spec.name}' cannot go on from planned actions, which chunking.mode=rtc needs; choose "
                "switch or ensemble"
            )
        self._policy = policy
        self._inference = inference
        self._config = config
        self._plan = _plan(policy.spec, config)
        self._asked = -1
        self._promised = 0
        self._begun = False
        self._version = 0
        self._last: FloatArray = np.zeros(policy.spec.action.shape, np.float32)
        self._relative = policy.spec.action.lower_array() == -policy.spec.action.upper_array()
        self.latency = LatencyEstimate(config.latency_window, config.latency_quantile, config.latency_initial_steps)
        self.counts = ChunkCounts()

    @property
    def source(self) -> Source:
        return Source.POLICY

    @property
    def version(self) -> int:
        return self._version

    def begin(self, seed: int) -> None:
        self._inference.discard()
        self._plan.clear()
        self._begun = False

    def at_boundary(self, index: int) -> bool:
        arrives = self._inference.arrived(index) or (self._inference.immediate and self._due(index))
        return not self._begun or arrives

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        index = observation.index
        if not self._begun:
            self._take_first(observation)
        else:
            self._take_arrived(index)
            if self._due(index):
                self._ask(observation)
                self._take_arrived(index)
        action = self._plan.action(index)
        self._last = self._hold(index) if action is None else action
        return self._last

    def _due(self, index: int) -> bool:
        """Enough of the newest chunk has run, or what is left will just do until another one is there."""
        planned = self._plan.end - index
        enough = index >= self._asked + self._config.execute_steps or planned <= self.latency.steps
        return enough and not self._inference.busy

    def _ask(self, observation: Observation) -> None:
        self._asked, self._promised = observation.index, self.latency.steps
        self._inference.start(self._job(observation), observation.index)

    def _job(self, observation: Observation) -> Job:
        if self._guided is None:
            return partial(self._policy.predict, observation)
        rest = self._plan.rest(observation.index).copy()
        return partial(self._guided.predict_guided, observation, rest, self._promised, self._config.execute_steps)

    def _take_first(self, observation: Observation) -> None:
        self._ask(observation)
        chunk, delay = self._inference.wait()
        self.latency.add(delay)
        self.counts.chunks += 1
        self._plan.take(chunk, observation.index)
        self._version = chunk.weights_version
        self._begun = True

    def _take_arrived(self, index: int) -> None:
        chunk = self._inference.take(index)
        if chunk is None:
            return
        delay = index - chunk.index
        self.latency.add(delay)
        self.counts.late_chunks += delay > self._promised
        self.counts.late_actions += min(delay, len(chunk.actions))
        if delay >= len(chunk.actions):
            self.counts.lost_chunks += 1
            return
        self.counts.chunks += 1
        self._plan.take(chunk, index)
        self._version = chunk.weights_version

    def _hold(self, index: int) -> FloatArray:
        self.counts.empty_steps += 1
        if self._config.when_empty == "stop":
            raise RobotError(
                f"no action for step {index}: inference takes about {self.latency.steps} control steps, and the "
                f"policy's chunks have {self._policy.spec.horizon}; use a faster solver or back-end, or a smaller "
                "chunking.execute_steps"
            )
        if self._config.when_empty == "last":
            return self._last
        return np.where(self._relative, np.float32(0.0), self._last)


def _plan(spec: PolicySpec, config: ChunkingConfig) -> ActionPlan:
    size = spec.action.shape[0]
    return TemporalEnsemble(size, config.ensemble_decay) if config.mode == "ensemble" else NewestChunk(size)


def _check_execute_steps(spec: PolicySpec, execute_steps: int) -> None:
    if not 1 <= execute_steps <= spec.horizon:
        raise PolicyError(
            f"execute_steps = {execute_steps} is outside [1, {spec.horizon}], the horizon of policy '{spec.name}'"
        )
