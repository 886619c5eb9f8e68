"""One simulated robot in lock-step, behind its own safety filter: what the robot server does, without the sockets."""

from __future__ import annotations

from robot_stack.core.clock import ManualClock, s_to_ns
from robot_stack.core.direction import Direction
from robot_stack.core.errors import RobotError
from robot_stack.core.messages import (
    Command,
    CommandResult,
    Features,
    FloatArray,
    Lifecycle,
    Observation,
    RobotState,
    TaskStatus,
    Verdict,
)
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.safety.guard import RobotGuard
from robot_stack.safety.settling import settle

SESSION = "benchmark"
NO_DEADLINE_NS = 2**62
NOTHING_YET = TaskStatus(reward=0.0, success=False, terminated=False)


class Lane:
    """A simulated robot behind its `RobotGuard`: every action goes through gate, filter and watchdog, tick by tick.

    `state` and `index` (control steps of the episode so far) are those after the last `reset` or `step`. `past`: the
    features of the steps before, oldest first, as many as `remember` asked for. An episode ends by the task, after the
    robot's `max_episode_steps`, or by a fault, which counts as a failure and is cleared at the next `reset`.
    """

    def __init__(self, robot: SimulatedRobot) -> None:
        self._robot = robot
        self._clock = ManualClock()
        self._tick_s = 1.0 / robot.spec.tick_rate_hz
        self._tick_ns = s_to_ns(self._tick_s)
        self._ticks = round(robot.spec.tick_rate_hz / robot.spec.control_rate_hz)
        self._kept = 0
        self._seq = 0
        self.guard = RobotGuard(robot, self._clock)
        self.guard.connect()
        self.seed = -1
        self.index = 0
        self.past: tuple[Features, ...] = ()
        self.state: RobotState = self._armed()

    def close(self) -> None:
        self.guard.close()

    @property
    def task(self) -> TaskStatus:
        return self.state.task or NOTHING_YET

    @property
    def success(self) -> bool:
        return self.task.success and self.guard.lifecycle is Lifecycle.ACTIVE

    @property
    def ended(self) -> bool:
        task, most = self.task, self.guard.spec.max_episode_steps
        faulty = self.guard.lifecycle is not Lifecycle.ACTIVE
        return faulty or task.terminated or task.truncated or self.index >= most

    def remember(self, history: int) -> None:
        """Observations are read by a policy with that history."""
        self._kept = history - 1

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed."""
        self._armed()
        self.guard.reset(seed)
        self.seed, self.index, self.past = seed, 0, ()
        self.state = self.guard.state()

    def begin_here(self, seed: int, direction: Direction) -> None:
        """Begin an episode in that direction where scene and robot are, at rest."""
        settle(self.guard, self._tick, self._tick_s)
        self.guard.begin_here(seed, direction)
        self.seed, self.index, self.past = seed, 0, ()
        self.state = self.guard.state()

    def step(self, action: FloatArray) -> CommandResult:
        """One control period; a refused action lets the time pass as well. What the gate said of the action."""
        self._seq += 1
        command = Command(session=SESSION, seq=self._seq, deadline_ns=NO_DEADLINE_NS, action=action)
        result = self.guard.command(command)
        for _ in range(self._ticks):
            self._tick()
        self.past = (*self.past, self.state.features)[-self._kept :] if self._kept else ()
        self.index += 1
        self.state = self.guard.state()
        return result

    def run(self, actions: FloatArray) -> list[Verdict]:
        """Control steps with actions (n, A), fewer if the episode ends; the gate's verdict on each."""
        verdicts = []
        for action in actions:
            verdicts.append(self.step(action).verdict)
            if self.ended:
                break
        return verdicts

    def observation(self) -> Observation:
        """What a policy sees now."""
        return Observation(
            id=self.index,
            stamp_ns=self.state.stamp_ns,
            features=self.state.features,
            age_ns=dict.fromkeys(self.state.features, 0),
            episode_seed=self.seed,
            index=self.index,
            past=self.past,
            instruction=self.state.instruction,
        )

    def _tick(self) -> None:
        self.guard.tick()
        try:
            self._robot.advance(self._tick_s)
        except RobotError as error:
            self.guard.latch_fault(str(error))
        self._clock.advance_ns(self._tick_ns)

    def _armed(self) -> RobotState:
        """Lease taken and robot active; clears a fault, as a person at a simulated robot does."""
        self.guard.acquire_lease(SESSION, SESSION)
        if self.guard.lifecycle is Lifecycle.FAULT:
            self.guard.transition(Lifecycle.INACTIVE)
        self.guard.transition(Lifecycle.ACTIVE)
        return self.guard.state()
