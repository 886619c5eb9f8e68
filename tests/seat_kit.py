"""What the tests of the operator's seat share: a person with a clock of their own, and robots in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.clock import ManualClock, s_to_ns
from robot_stack.core.messages import (
    Command,
    CommandResult,
    Features,
    FloatArray,
    Lifecycle,
    Observation,
    RobotState,
    Source,
    TaskStatus,
    Verdict,
)
from robot_stack.core.protocols import SimulatedRobot
from robot_stack.core.seat import Drive, Intent, SeatTaken
from robot_stack.core.specs import STATE, RobotSpec, vector
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, LoopStep, NoCorrection
from robot_stack.edge.operator import Interventions, Rule
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.remote_robot import Begun, Stepped
from robot_stack.edge.seat import Seat
from robot_stack.safety.guard import RobotGuard

VALID_S = 0.2
MAX_COMMANDS = 1500
_AXES = ("x_m", "y_m", "yaw_rad")
SPEC = RobotSpec(
    name="arm_0",
    model="arm",
    task="way",
    simulated=True,
    control_rate_hz=10.0,
    tick_rate_hz=100.0,
    command_timeout_s=0.15,
    max_episode_steps=60,
    action=vector(("dx_m", "dy_m", "dyaw_rad", "gripper"), (-0.01, -0.01, -0.1, 0.0), (0.01, 0.01, 0.1, 1.0)),
    observation={STATE: vector((*(f"tool_{axis}" for axis in _AXES), *(f"goal_minus_tool_{axis}" for axis in _AXES)))},
)


class Arm:
    """A robot that is where it was told to be, but for what it is `off`; it succeeds when `done` says so."""

    spec = SPEC

    def __init__(self, off: tuple[float, ...] = (0.0, 0.0, 0.0)) -> None:
        self.goal = np.zeros(3)
        self.off = np.array(off)
        self.actions: list[FloatArray] = []
        self.done = False

    def reset(self, seed: int) -> Begun:
        self.goal[:] = 0.0
        return Begun(self.state(), 0)

    def step(self, action: FloatArray) -> Stepped:
        lower, upper = SPEC.action.lower_array(), SPEC.action.upper_array()
        assert (action >= lower).all() and (action <= upper).all(), action
        self.actions.append(action.copy())
        self.goal += action[:3].astype(np.float64)
        return Stepped(_result(len(self.actions), action), self.state(), 0, late=False)

    def state(self) -> RobotState:
        measured = self.goal - self.off
        return RobotState(
            boot="b",
            seq=len(self.actions),
            stamp_ns=0,
            lifecycle=Lifecycle.ACTIVE,
            features={STATE: np.concatenate([measured, self.off]).astype(np.float32)},
            task=TaskStatus(reward=0.0, success=self.done, terminated=self.done),
        )


def _result(seq: int, sent: FloatArray) -> CommandResult:
    return CommandResult(seq=seq, verdict=Verdict.ACCEPTED, refusal=None, message="", sent=sent)


class GuardedRobot:
    """A simulated robot behind the robot server's own guard, in lock-step: a `LoopRobot` without sockets."""

    def __init__(self, robot: SimulatedRobot) -> None:
        self._robot, self._clock = robot, ManualClock()
        self.guard = RobotGuard(robot, self._clock)
        self.guard.connect()
        self.guard.acquire_lease("s", "test")
        self.guard.transition(Lifecycle.ACTIVE)
        self.results: list[CommandResult] = []

    @property
    def spec(self) -> RobotSpec:
        return self._robot.spec

    def reset(self, seed: int) -> Begun:
        self.guard.acquire_lease("s", "test")
        self.guard.reset(seed)
        return Begun(self.guard.state(), 0)

    def step(self, action: FloatArray) -> Stepped:
        command = Command(session="s", seq=len(self.results), deadline_ns=2**62, action=action)
        result = self.guard.command(command)
        self.results.append(result)
        for _ in range(round(self.spec.tick_rate_hz / self.spec.control_rate_hz)):
            self.guard.tick()
            self._robot.advance(1.0 / self.spec.tick_rate_hz)
            self._clock.advance_ns(s_to_ns(1.0 / self.spec.tick_rate_hz))
        return Stepped(result, self.guard.state(), 0, late=False)


class Acts:
    """A policy that acts as a function of step and state says."""

    source = Source.POLICY
    version = 0

    def __init__(self, act: Callable[[Observation, RobotState], FloatArray]) -> None:
        self._act = act
        self.begun = 0

    def begin(self, seed: int) -> None:
        self.begun += 1

    def at_boundary(self, index: int) -> bool:
        return True

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        return self._act(observation, state)


def forward(observation: Observation, state: RobotState) -> FloatArray:
    """Along x and up in y, with the hand open."""
    return np.array([0.01, 0.004, 0.05, 1.0], np.float32)


@dataclass
class Person:
    """Somebody with the seat, whose clock is the test's."""

    seat: Seat
    clock: ManualClock
    session: str = ""
    seq: int = 0

    def sit(self, name: str = "ann", *, by_force: bool = False) -> Person:
        taken = self.seat.take(name, by_force=by_force)
        assert isinstance(taken, SeatTaken), taken
        self.session = taken.session
        return self

    def wants(
        self,
        intent: Intent,
        moves: dict[str, float] | None = None,
        *,
        valid_s: float = VALID_S,
        speed: float = 1.0,
        to_index: int = -1,
    ) -> str:
        """Why not, or ''."""
        self.seq += 1
        drive = Drive(
            session=self.session,
            seq=self.seq,
            deadline_ns=self.clock.now_ns() + s_to_ns(valid_s),
            intent=intent,
            moves=moves or {},
            speed=speed,
            to_index=to_index,
        )
        return self.seat.drive(drive)[0]

    def lets_time_pass(self, duration_s: float) -> None:
        self.clock.advance_ns(s_to_ns(duration_s))


Plan = Callable[[int, Person], None]
"""What the person does before the n-th command of the loop, still ones included."""


@dataclass
class Show:
    """An episode with a person: what was recorded, and what became of it."""

    person: Person
    robot: object
    seen: list[LoopStep] = field(default_factory=list)
    interventions: Interventions | None = None
    policy: Acts | None = None

    def sources(self) -> str:
        """p, r or c for every recorded step."""
        letters = {Source.POLICY: "p", Source.HUMAN_RECOVERY: "r", Source.HUMAN_CORRECTION: "c"}
        return "".join(letters[step.source] for step in self.seen)


class _Watched:
    """A robot that lets the person act before each command, while a control period passes."""

    def __init__(self, robot: Arm | GuardedRobot, person: Person, plan: Plan) -> None:
        self._robot, self._person, self._plan = robot, person, plan
        self.spec = robot.spec
        self.commands = 0

    def reset(self, seed: int) -> Begun:
        begun = self._robot.reset(seed)
        self._plan(0, self._person)
        return begun

    def step(self, action: FloatArray) -> Stepped:
        stepped = self._robot.step(action)
        self.commands += 1
        assert self.commands < MAX_COMMANDS, "the person forgot to end the pause"
        self._person.lets_time_pass(self.spec.control_period_s)
        self._plan(self.commands, self._person)
        return stepped


class _Seen:
    def __init__(self, steps: list[LoopStep]) -> None:
        self._steps = steps

    def on_step(self, step: LoopStep) -> None:
        self._steps.append(step)


def make_seat(
    rule: Rule = "rac", spec: RobotSpec = SPEC, familiarity: Callable[[Features], float] | None = None
) -> tuple[Seat, Person]:
    """A seat for a robot that takes one command in a control period, on a clock that stands still; somebody sits."""
    clock = ManualClock(start_ns=s_to_ns(100.0))
    seat = Seat(spec, rule, "run", lock_step=True, familiarity=familiarity, now_ns=clock.now_ns, sleep=lambda _: None)
    return seat, Person(seat, clock).sit()


def show(
    plan: Plan,
    rule: Rule = "rac",
    robot: Arm | GuardedRobot | None = None,
    act: Callable[[Observation, RobotState], FloatArray] = forward,
    *,
    episodes: int = 1,
    seed: int = 7,
) -> Show:
    """Episodes of a policy with a person who does as planned, whose seat they share."""
    driven = robot or Arm()
    seat, person = make_seat(rule, driven.spec)
    done = Show(person, driven, interventions=Interventions(seat, rule), policy=Acts(act))
    recorder = Recorder(RecordingId("run", driven.spec.name, driven.spec.task), lambda _: None)
    seat.recorded_as(recorder.session)
    assert done.policy is not None
    loop = ControlLoop(
        _Watched(driven, person, plan),
        done.policy,
        NoCorrection(),
        [_Seen(done.seen), recorder, seat],
        1.0,
        interventions=done.interventions,
    )
    for number in range(episodes):
        loop.run_episode(EpisodeId(number, seed))
    return done


def places(steps: list[LoopStep], key: str = STATE) -> NDArray[np.float64]:
    """(T, D) what was observed before each recorded step."""
    return np.array([step.observation.features[key] for step in steps], np.float64)
