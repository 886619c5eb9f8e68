"""The control loop: one episode, one step at a time. Everything that watches (recorder, video) is an observer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from robot_stack.core.direction import Direction
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import HUMAN_SOURCES, FloatArray, Observation, RobotState, Source
from robot_stack.core.protocols import ResidualPolicy
from robot_stack.core.specs import PolicySpec, RobotSpec
from robot_stack.edge.alignment import Aligner
from robot_stack.edge.camera_feed import CameraFeed
from robot_stack.edge.operator import Interventions, Nobody, Parts
from robot_stack.edge.remote_robot import Begun, Stepped
from robot_stack.edge.scheduler import Proposer


@dataclass(frozen=True, slots=True)
class EpisodeId:
    """`number` counts the episodes of a run; `seed` sets up the scene and the policy's random numbers.

    `here`: the scene and the robot stay where they are, and the episode goes in this direction; None: the scene is set
    up. `limit`: its most steps; None: the robot's.
    """

    number: int
    seed: int
    here: Direction | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class LoopStep:
    """One executed control step as observers see it.

    `action_base` is what the policy proposed, also where a person acted (`source`) and `action_asked` is theirs.
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


class LoopRobot(Protocol):
    """A robot as the control loop drives it, always through its safety filter: `RemoteRobot`, or one in this process.

    RobotError (or a subclass) means the episode cannot go on.
    """

    @property
    def spec(self) -> RobotSpec: ...

    def reset(self, seed: int) -> Begun:
        """Begin an episode; the first state of it."""

    def step(self, action: FloatArray) -> Stepped:
        """Send one action (A,) and return at the end of its control period."""


@runtime_checkable
class DrivenInParts(LoopRobot, Protocol):
    """A robot on the wall clock that takes several commands in one control period."""

    def step_in_parts(self, source: Parts) -> tuple[Stepped, FloatArray]:
        """One control period of a person's action in pieces; the action (A,) that they were together."""


@runtime_checkable
class HoldsUntilWoken(LoopRobot, Protocol):
    """A robot whose person need not wait for the end of a control period in which it stands still."""

    def hold(self, action: FloatArray, woken: Callable[[float], bool]) -> Stepped:
        """Like `step` with an action (A,) that stands still, but over as soon as `woken(most seconds)` is true."""


@runtime_checkable
class KeepsScene(LoopRobot, Protocol):
    """A robot that can begin an episode without any reset."""

    def begin_here(self, seed: int, direction: Direction) -> Begun:
        """Begin an episode in that direction from the present scene and pose, at rest; the first state of it."""


class StepObserver(Protocol):
    def on_step(self, step: LoopStep) -> None:
        """Called after every control step; must not block."""


class Corrector(ResidualPolicy, Protocol):
    """A residual whose weights may be exchanged between chunks."""

    def refresh(self) -> None:
        """Called at chunk boundaries: swap in newer verified weights, if there are any."""


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """`person_steps`: of the `steps`, those at which a person acted."""

    episode: EpisodeId
    steps: int
    success: bool
    return_: float
    person_steps: int = 0


class ControlLoop:
    """Runs episodes of one robot with one proposer, one corrector, and somebody who may take over.

    `cameras`: open feeds of camera processes; `spec` then is the robot's with their images (`spec_with_cameras`).
    `reads`: the policy behind the proposer: observations carry the earlier steps that it reads. `state_latency_s` and
    `instruction`: see `Aligner`. `interventions`: a person's action replaces the policy's as it is, without corrector
    and exploration; an episode that they end is truncated. `max_person_steps`: a person's steps of an episode, which
    then do not count towards the robot's `max_episode_steps`: a time-out must not take the robot out of their hands.
    None: they do count.
    """

    def __init__(
        self,
        robot: LoopRobot,
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
        interventions: Interventions | None = None,
        max_person_steps: int | None = None,
    ) -> None:
        self._robot = robot
        self._proposer = proposer
        self._corrector = corrector
        self._interventions = interventions or Interventions(Nobody())
        self._observers = observers
        self._aligner = Aligner(
            spec or robot.spec,
            max_state_age_s,
            cameras,
            reads=reads,
            state_latency_s=state_latency_s,
            instruction=instruction,
        )
        self._max_steps, self._max_person_steps = robot.spec.max_episode_steps, max_person_steps

    def run_episode(self, episode: EpisodeId) -> EpisodeSummary:
        """One episode, to its end or to a RobotError; every executed step has been given to the observers."""
        begun = self._begin(episode)
        self._proposer.begin(episode.seed)
        self._interventions.begin(episode)
        state = begun.state
        observation = self._aligner.observe(state, begun.age_ns, episode.seed, 0)
        return_, person_steps = 0.0, 0
        while True:
            observation, state = self._stand_still(episode, observation, state)
            last = self._is_last(episode, observation.index, person_steps)
            step = self._step(episode, observation, state, last=last)
            for observer in self._observers:
                observer.on_step(step)
            state, observation = step.stepped.state, step.following
            return_ += state.task.reward if state.task else 0.0
            person_steps += step.source in HUMAN_SOURCES
            if step.terminated or step.truncated:
                break
        success = state.task.success if state.task else False
        return EpisodeSummary(episode, observation.index, success, return_, person_steps)

    def _is_last(self, episode: EpisodeId, index: int, person_steps: int) -> bool:
        """Whether no step may follow the one that begins."""
        max_steps = min(self._max_steps, episode.limit or self._max_steps)
        if self._max_person_steps is None:
            return index + 1 >= max_steps
        if self._interventions.under_way:
            return person_steps + 1 >= self._max_person_steps
        return index - person_steps + 1 >= max_steps

    def _begin(self, episode: EpisodeId) -> Begun:
        if episode.here is None:
            return self._robot.reset(episode.seed)
        if not isinstance(self._robot, KeepsScene):
            raise RobotError(f"{self._robot.spec.name} cannot begin an episode where it is; say practice.mode=episodic")
        return self._robot.begin_here(episode.seed, episode.here)

    def _stand_still(
        self, episode: EpisodeId, observation: Observation, state: RobotState
    ) -> tuple[Observation, RobotState]:
        """While a person holds the robot, nothing is recorded or counted. The newest observation and state."""
        stood = False
        while True:
            propose = partial(self._proposer.propose, observation, state)
            still = self._interventions.stands_still(observation, state, propose)
            if still is None:
                break
            stepped, stood = self._hold(still), True
            state = stepped.state
            observation = self._aligner.observe(state, stepped.age_ns, episode.seed, observation.index)
        if stood and not self._interventions.under_way:
            self._proposer.begin(episode.seed)  # the world went on, and what was planned is old
        return observation, state

    def _hold(self, still: FloatArray) -> Stepped:
        woken = self._interventions.woken
        if woken is not None and isinstance(self._robot, HoldsUntilWoken):
            return self._robot.hold(still, woken)
        return self._robot.step(still)

    def _step(self, episode: EpisodeId, observation: Observation, state: RobotState, *, last: bool) -> LoopStep:
        if self._proposer.at_boundary(observation.index):
            self._corrector.refresh()
        action_base = self._proposer.propose(observation, state)
        action, source = self._corrector.correct(observation, action_base), self._proposer.source
        version = self._corrector.version or self._proposer.version
        taken_over = self._interventions.ask(observation, state, action)
        if taken_over is not None:
            action, source = taken_over.action, taken_over.source
        if taken_over is not None and taken_over.parts is not None and isinstance(self._robot, DrivenInParts):
            stepped, action = self._robot.step_in_parts(taken_over.parts)
        else:
            stepped = self._robot.step(action)
        following = self._aligner.observe(stepped.state, stepped.age_ns, episode.seed, observation.index + 1)
        let_go = self._interventions.lets_go(stepped, following)
        over = last or (let_go and self._interventions.end_the_episode)
        task = stepped.state.task
        terminated = task is not None and task.terminated
        truncated = not terminated and (over or (task is not None and task.truncated))
        if let_go and not (terminated or truncated):
            self._proposer.begin(episode.seed)  # what was planned before the person acted no longer fits
        return LoopStep(
            episode=episode,
            observation=observation,
            action_base=action_base,
            action_asked=action,
            stepped=stepped,
            source=source,
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
