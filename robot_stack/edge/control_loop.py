"""The control loop: one episode, one step at a time. Everything that watches (recorder, video) is an observer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from robot_stack.core.messages import FloatArray, Observation, RobotState, Source
from robot_stack.core.protocols import ResidualPolicy
from robot_stack.core.specs import PolicySpec, RobotSpec
from robot_stack.edge.alignment import Aligner
from robot_stack.edge.camera_feed import CameraFeed
from robot_stack.edge.remote_robot import RemoteRobot, Stepped
from robot_stack.edge.scheduler import Proposer


@dataclass(frozen=True, slots=True)
class EpisodeId:
    """`number` counts the episodes of a run; `seed` sets up the scene and the policy's random numbers."""

    number: int
    seed: int


@dataclass(frozen=True, slots=True)
class LoopStep:
    """One executed control step as observers see it.

    `following` is the observation after the action; `following_base` the base action there, only where the episode
    was truncated (the value of a time-out is bootstrapped from it).
    """

    episode: EpisodeId
    observation: Observation
    action_base: FloatArray
    action_asked: FloatArray
    stepped: Stepped
    source: Source
    weights_version: int
    terminated: bool
    truncated: bool
    following: Observation
    following_base: FloatArray | None


class StepObserver(Protocol):
    def on_step(self, step: LoopStep) -> None:
        """Called after every control step; must not block."""


class Corrector(ResidualPolicy, Protocol):
    """A residual whose weights may be exchanged between chunks."""

    def refresh(self) -> None:
        """Called at chunk boundaries: swap in newer verified weights, if there are any."""


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    episode: EpisodeId
    steps: int
    success: bool
    return_: float


class ControlLoop:
    """Runs episodes of one robot with one proposer and one corrector.

    `cameras`: open feeds of camera processes; `spec` then is the robot's with their images (`spec_with_cameras`).
    `reads`: the policy behind the proposer: observations carry the earlier steps that it reads. `state_latency_s` and
    `instruction`: see `Aligner`.
    """

    def __init__(
        self,
        robot: RemoteRobot,
        proposer: Proposer,
        corrector: Corrector,
        observers: Sequence[StepObserver],
        max_state_age_s: float,
        spec: RobotSpec | None = None,
        cameras: Mapping[str, CameraFeed] = MappingProxyType({}),
        *,
        reads: PolicySpec | None = None,
        state_latency_s: float = 0.0,
        instruction: str = "",
    ) -> None:
        self._robot = robot
        self._proposer = proposer
        self._corrector = corrector
        self._observers = observers
        self._aligner = Aligner(
            spec or robot.spec,
            max_state_age_s,
            cameras,
            reads=reads,
            state_latency_s=state_latency_s,
            instruction=instruction,
        )
        self._max_steps = robot.spec.max_episode_steps

    def run_episode(self, episode: EpisodeId) -> EpisodeSummary:
        """One episode, to its end or to a RobotError; every executed step has been given to the observers."""
        begun = self._robot.reset(episode.seed)
        self._proposer.begin(episode.seed)
        state = begun.state
        observation = self._aligner.observe(state, begun.age_ns, episode.seed, 0)
        return_ = 0.0
        for index in range(self._max_steps):
            step = self._step(episode, observation, state, last=index == self._max_steps - 1)
            for observer in self._observers:
                observer.on_step(step)
            state, observation = step.stepped.state, step.following
            return_ += state.task.reward if state.task else 0.0
            if step.terminated or step.truncated:
                break
        success = state.task.success if state.task else False
        return EpisodeSummary(episode, observation.index, success, return_)

    def _step(self, episode: EpisodeId, observation: Observation, state: RobotState, *, last: bool) -> LoopStep:
        if self._proposer.at_boundary(observation.index):
            self._corrector.refresh()
        action_base = self._proposer.propose(observation, state)
        version = self._corrector.version or self._proposer.version
        action_asked = self._corrector.correct(observation, action_base)
        stepped = self._robot.step(action_asked)
        following = self._aligner.observe(stepped.state, stepped.age_ns, episode.seed, observation.index + 1)
        task = stepped.state.task
        terminated = task is not None and task.terminated
        truncated = not terminated and (last or (task is not None and task.truncated))
        return LoopStep(
            episode=episode,
            observation=observation,
            action_base=action_base,
            action_asked=action_asked,
            stepped=stepped,
            source=self._proposer.source,
            weights_version=version,
            terminated=terminated,
            truncated=truncated,
            following=following,
            following_base=self._proposer.propose(following, stepped.state) if truncated else None,
        )


class NoCorrection:
    """The base policy alone."""

    version = 0

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        return action_base

    def refresh(self) -> None:
        """There are no weights to exchange."""
