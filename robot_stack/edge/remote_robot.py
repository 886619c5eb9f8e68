"""The edge's view of a robot server: lease, episodes, and one call per control step on either clock."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from msgspec import structs

from robot_stack.core.clock import ClockOffset, MonotonicClock, s_to_ns
from robot_stack.core.direction import Direction
from robot_stack.core.errors import CommandRefusedError, MessageError, RobotError, UnreachableError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    AcquireLease,
    Array,
    Command,
    CommandResult,
    FloatArray,
    GetState,
    Hello,
    Lifecycle,
    Ping,
    Pong,
    Refusal,
    ReleaseLease,
    ResetEpisode,
    RobotInfo,
    RobotReply,
    RobotRequest,
    RobotState,
    StopLevel,
    StopRobot,
    Transition,
    Verdict,
)
from robot_stack.core.specs import IMAGES, RobotSpec
from robot_stack.edge.operator import Parts
from robot_stack.edge.ticks import ControlPacer, ServerTicks, sleep_until
from robot_stack.transport.client import RequestClient
from robot_stack.transport.stream import Subscriber

_LOST = (Refusal.NOT_ACTIVE, Refusal.NO_LEASE)
REQUEST_TIMEOUT_S = 2.0
RESET_TIMEOUT_S = 20.0
PARTS_HZ = 100.0
_MARGIN_S = 0.001  # the last piece of a period is answered before its end
_BEGIN_TICKS = 0.3  # a control period begins so much of a tick after the robot server's answers
_CATCH_UP = 0.25  # of a control period that a step may take too long; the next one then begins at once
_CATCH_UP_DRIVEN = 0.7  # the same where a person drives: they may have to wait for the robot, but never for the grid
_SEVERITY = (Verdict.ACCEPTED, Verdict.CLIPPED, Verdict.REFUSED)
REST_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Begun:
    """The first state of an episode and its age."""

    state: RobotState
    age_ns: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one control step gave: the server's verdict, the state after it, its age, and whether we were late.

    `round_trip_s`: of the newest command, -1 where there is no way to a server.
    """

    result: CommandResult
    state: RobotState
    age_ns: int
    late: bool
    round_trip_s: float = -1.0


class RemoteRobot:
    """One robot server, as the edge commands it. Not thread-safe.

    In lock-step `step` returns as soon as the control period has been simulated; on the wall clock it returns at the
    next tick of the control period. RobotError (or a subclass) means the episode cannot go on.
    """

    def __init__(self, client: RequestClient[RobotReply], states: Subscriber[RobotState], peer: str) -> None:
        self._client = client
        self._states = states
        self._peer = peer
        self._clock = MonotonicClock()
        self._offset = ClockOffset()
        self._session = ""
        self._seq = 0
        self._info: RobotInfo | None = None
        self._round_trip_s = -1.0
        self._ticks = ServerTicks(0.01)
        self.pacer: ControlPacer | None = None

    @property
    def info(self) -> RobotInfo:
        if self._info is None:
            raise RobotError("not connected to a robot server yet")
        return self._info

    @property
    def spec(self) -> RobotSpec:
        return self.info.spec

    def connect(self, patience_s: float) -> RobotInfo:
        """Wait up to `patience_s` for the server, check its schema version and measure its clock."""
        hello = Hello(schema_version=SCHEMA_VERSION, peer=self._peer)
        reply = self._client.greet(hello, patience_s)
        if not isinstance(reply, RobotInfo):
            raise MessageError(f"the robot server answered Hello with {type(reply).__name__}")
        self._info = reply
        self._ticks = ServerTicks(1.0 / reply.spec.tick_rate_hz)
        self._offset = ClockOffset()
        for _ in range(5):
            sent_ns = self._clock.now_ns()
            pong = self._request(Ping())
            if isinstance(pong, Pong):
                self._offset.update(sent_ns, pong.stamp_ns, self._clock.now_ns())
        return reply

    def arm(self, patience_s: float) -> None:
        """Take the lease under a fresh session and wait until the robot is active.

        A simulated robot is activated from here. Anything else is armed by a person; this waits for them.
        """
        self._session = uuid4().hex
        self._seq = 0
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self._request(AcquireLease(session=self._session))
                if self.spec.simulated:
                    self._request(Transition(session=self._session, target=Lifecycle.ACTIVE))
                state = self._state(self._request(GetState()))
                if state.lifecycle is Lifecycle.ACTIVE:
                    return
                problem = f"{self.spec.name} is {state.lifecycle.value}: a person has to activate it"
            except CommandRefusedError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise RobotError(f"{problem} (waited {patience_s:.0f} s)")
            time.sleep(0.1)

    def hand_over(self, reason: str) -> None:
        """Stop and become inactive: a person may reach in, and `arm` waits until they activate the robot again."""
        self._request(StopRobot(reason=reason, level=StopLevel.RELEASE))
        deadline = time.monotonic() + REST_TIMEOUT_S
        while self._state(self._request(GetState())).lifecycle is Lifecycle.ACTIVE:
            if time.monotonic() > deadline:
                raise RobotError(f"{self.spec.name} did not become inactive within {REST_TIMEOUT_S:.0f} s")
            time.sleep(0.02)

    def release(self) -> None:
        """Give the lease back if the server still answers."""
        if self._session:
            with contextlib.suppress(RobotError, UnreachableError):
                self._request(ReleaseLease(session=self._session))
            self._session = ""

    def reset(self, seed: int) -> Begun:
        """Begin an episode; the first state of it. The lease may have lapsed in a pause: it is taken anew."""
        self._request(AcquireLease(session=self._session))
        reset = ResetEpisode(session=self._session, seed=seed)
        return self._begun(self._client.request(reset, timeout_s=RESET_TIMEOUT_S))

    def _begun(self, reply: RobotReply) -> Begun:
        state = self._state(reply)
        if not self.info.lock_step:
            self.pacer = ControlPacer(self.spec.control_period_s)
            self._ticks.answered(time.monotonic())
            sleep_until(self._ticks.after_answer(time.monotonic(), _BEGIN_TICKS / self.spec.tick_rate_hz))
        self._wait_for_tick()
        return Begun(state, self._age_ns(state))

    def begin_here(self, seed: int, direction: Direction) -> Begun:
        """Begin an episode from the present scene and pose; the robot is stopped first. The first state of it."""
        self._request(AcquireLease(session=self._session))
        if not self.info.lock_step:
            self._request(StopRobot(reason="an episode begins where the robot is"))
        begin = ResetEpisode(session=self._session, seed=seed, here=direction)
        deadline = time.monotonic() + REST_TIMEOUT_S
        while True:
            try:
                return self._begun(self._client.request(begin, timeout_s=RESET_TIMEOUT_S))
            except CommandRefusedError as error:
                if error.reason != "moving" or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def step(self, action: FloatArray) -> Stepped:
        """Send one action and return at the end of its control period."""
        if self.info.lock_step:
            result = self._command(action, deadline_ns=2**62)
            if result.state is None:
                raise MessageError(f"{self.spec.name} answered a lock-step command without a state")
            return Stepped(result, result.state, 0, late=False, round_trip_s=self._round_trip_s)
        return self._period_over(self._command(action, self._deadline_ns()), _CATCH_UP)

    def hold(self, action: FloatArray, woken: Callable[[float], bool]) -> Stepped:
        """Like `step` with an action (A,) that stands still, but over as soon as `woken`, which waits for up to so many
        seconds, is true: a person's first command does not wait for the end of a period in which nothing happens."""
        if self.info.lock_step or self.pacer is None:
            return self.step(action)
        result = self._command(action, self._deadline_ns())
        if not woken(max(0.0, self.pacer.due_s - time.monotonic())):
            return self._period_over(result, _CATCH_UP_DRIVEN)
        tick_s = 1.0 / self.spec.tick_rate_hz
        least_s = time.monotonic() + self.spec.control_period_s - tick_s / 2
        self.pacer.restart(self._ticks.after_answer(least_s, _BEGIN_TICKS * tick_s))
        return self._look(result, late=False)

    def step_in_parts(self, source: Parts) -> tuple[Stepped, FloatArray]:
        """What is left of the control period, in which a person drives: pieces of an action, each as new as it can be,
        so made shortly before the tick at which the robot server takes it.

        The verdict is the worst of the pieces', what was sent and the action (A,) that comes back are their sums.
        """
        until_s, share_left = (0.0, 1.0) if self.pacer is None else (self.pacer.due_s, self.pacer.share)
        if until_s <= time.monotonic():
            until_s = time.monotonic() + self.spec.control_period_s
        tick_s = 1.0 / self.spec.tick_rate_hz
        piece_s = tick_s * max(1, round(1.0 / (PARTS_HZ * tick_s)))
        send_s = self._ticks.send_at(time.monotonic())
        asked, results = [], []
        while share_left > 0.0:
            sleep_until(send_s)
            next_s = self._ticks.send_at(max(send_s, time.monotonic()) + piece_s - tick_s / 2)
            more = math.floor((until_s - _MARGIN_S - self._ticks.answer_at(next_s)) / piece_s) + 1
            share = share_left / (1 + max(0, more))
            asked.append(self._part(source, share))
            results.append(self._command(asked[-1], self._deadline_ns()))
            send_s, share_left = next_s, share_left - share if more > 0 else 0.0
        worst = max(results, key=lambda result: _SEVERITY.index(result.verdict))
        sent = [result.sent for result in results if result.verdict is not Verdict.REFUSED] or [worst.sent]
        result = structs.replace(worst, seq=self._seq, sent=source.summed(sent))
        return self._period_over(result, _CATCH_UP_DRIVEN), source.summed(asked)

    def _part(self, source: Parts, share: float) -> FloatArray:
        """The next piece (A,); stops the robot, whose goals still lie ahead of it, if there is none."""
        while (action := source.part(share)) is None:
            self._request(StopRobot(reason="the command of the person who drove it ran out"))
        return action

    def _deadline_ns(self) -> int:
        # The offset may be off by its error bound (a link slower there than back): the deadline errs to the safe side.
        timeout_ns = s_to_ns(self.spec.command_timeout_s) - self._offset.error_ns
        return self._offset.to_peer_ns(self._clock.now_ns() + timeout_ns)

    def _period_over(self, result: CommandResult, catch_up: float) -> Stepped:
        """Wait for the end of the control period, and look."""
        overruns = self.pacer.overruns if self.pacer else 0
        self._wait_for_tick(catch_up * self.spec.control_period_s)
        return self._look(result, late=self.pacer is not None and self.pacer.overruns > overruns)

    def _look(self, result: CommandResult, *, late: bool) -> Stepped:
        state = self._states.newest(timeout_s=self.spec.command_timeout_s)
        if state is None or state.boot != self.info.boot:
            raise UnreachableError(f"no state of {self.spec.name} for {self.spec.command_timeout_s * 1e3:.0f} ms")
        return Stepped(result, state, self._age_ns(state), late, self._round_trip_s)

    def _wait_for_tick(self, catch_up_s: float = 0.0) -> None:
        if self.pacer is not None:
            self.pacer.wait_or_catch_up(catch_up_s)

    def image(self, camera: str) -> Array:
        """One RGB image (height, width, 3) uint8 of a camera that the robot server itself renders."""
        return self._state(self._request(GetState(cameras=(camera,)))).features[IMAGES + camera]

    def _command(self, action: FloatArray, deadline_ns: int) -> CommandResult:
        self._seq += 1
        command = Command(session=self._session, seq=self._seq, deadline_ns=deadline_ns, action=action)
        sent_s = time.monotonic()
        result = self._request(command)
        answered_s = time.monotonic()
        self._round_trip_s = answered_s - sent_s
        self._ticks.answered(answered_s)
        if not isinstance(result, CommandResult):
            raise MessageError(f"the robot server answered a command with {type(result).__name__}")
        if result.refusal in _LOST:
            raise CommandRefusedError(result.refusal.value, result.message)
        return result

    def _request(self, message: RobotRequest) -> RobotReply:
        return self._client.request(message, timeout_s=REQUEST_TIMEOUT_S)

    def _state(self, reply: RobotReply) -> RobotState:
        if not isinstance(reply, RobotState):
            raise MessageError(f"the robot server answered with {type(reply).__name__} where a state was due")
        return reply

    def _age_ns(self, state: RobotState) -> int:
        if self.info.lock_step:
            return 0
        return max(0, self._offset.to_peer_ns(self._clock.now_ns()) - state.stamp_ns)
