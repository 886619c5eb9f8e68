"""A simulated robot for the edge's control loop without a robot server: the same guard, in this process."""

from __future__ import annotations

from types import TracebackType

from msgspec import structs

from benchmarks.inference.lane import Lane
from robot_stack.core.direction import Direction
from robot_stack.core.errors import CommandRefusedError
from robot_stack.core.messages import FloatArray, Refusal, RobotState
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.remote_robot import Begun, Stepped

_LOST = (Refusal.NOT_ACTIVE, Refusal.NO_LEASE)


class LocalRobot:
    """What `RemoteRobot` is in lock-step, for `ControlLoop`, with gate, filter and watchdog but without sockets.

    A fault ends the episode with a RobotError, as it does through a server; the next `reset` clears it, as a person
    at a simulated robot does.

    Args:
        robot: not connected yet; closed with this one.
        success_reward: the reward is 1 in a step that the task calls a success and else 0, whatever the task pays.
    """

    def __init__(self, robot: SimulatedRobot, *, success_reward: bool = False) -> None:
        self._lane = Lane(robot)
        self._success_reward = success_reward

    def __enter__(self) -> LocalRobot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lane.close()

    @property
    def spec(self) -> RobotSpec:
        return self._lane.guard.spec

    def reset(self, seed: int) -> Begun:
        """Begin an episode; the first state of it."""
        self._lane.reset(seed)
        return Begun(self._state(), 0)

    def begin_here(self, seed: int, direction: Direction) -> Begun:
        """Begin an episode in that direction from the present scene and pose; the first state of it."""
        self._lane.begin_here(seed, direction)
        return Begun(self._state(), 0)

    def step(self, action: FloatArray) -> Stepped:
        """One action (A,) and the state at the end of its control period; RobotError after a fault."""
        result = self._lane.step(action)
        if result.refusal in _LOST:
            raise CommandRefusedError(result.refusal.value, result.message)
        state = self._state()
        return Stepped(structs.replace(result, state=state), state, 0, late=False)

    def _state(self) -> RobotState:
        state = self._lane.state
        if not self._success_reward or state.task is None:
            return state
        return structs.replace(state, task=structs.replace(state.task, reward=float(state.task.success)))
