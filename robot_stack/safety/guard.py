"""The guard around one robot: lifecycle, lease, command gate, watchdog and setpoint filter, in one small machine.

The robot server owns a guard and calls `tick` at the tick rate; every way to the driver goes through here, resets
and stops included. No sockets, no threads: time comes from the clock handed in, so the same guard runs on the wall
clock and in lock-step.

    unconfigured --connect--> inactive --activate--> active --deactivate--> inactive
                                  ^                     |
                                  '-- a person clears --+-- driver fault, error --> fault
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from uuid import uuid4

import numpy as np

from robot_stack.core.clock import Clock, s_to_ns
from robot_stack.core.errors import CommandRefusedError, RobotError, RobotFaultError
from robot_stack.core.messages import Command, CommandResult, Lifecycle, Refusal, RobotState, TaskStatus, Verdict
from robot_stack.core.protocols import Reading, Robot, Setpoint, SimulatedRobot
from robot_stack.safety.gate import CommandGate, Decision, GateFacts
from robot_stack.safety.lease import ControlLease
from robot_stack.safety.limiter import SetpointLimiter

logger = logging.getLogger(__name__)

LEASE_TIMEOUT_S = 1.0


class RobotGuard:
    """Everything that stands between a request and the driver.

    A refused command is counted by reason in `refusals`. When commands cease, the stop ramp begins at the first
    tick after the last command's `command_timeout_s` has passed.
    """

    def __init__(self, robot: Robot, clock: Clock) -> None:
        self.robot = robot
        self.spec = robot.spec
        self._simulated = robot if isinstance(robot, SimulatedRobot) else None
        self.lifecycle = Lifecycle.UNCONFIGURED
        self.fault = ""
        self.refusals: Counter[Refusal] = Counter()
        self.verdicts: Counter[Verdict] = Counter()
        self.stops = 0
        self._clock = clock
        self._boot = uuid4().hex
        self._lease = ControlLease(LEASE_TIMEOUT_S)
        self._gate = CommandGate(self.spec.name, self.spec.action)
        self._limiter = SetpointLimiter(robot.limits, 1.0 / self.spec.tick_rate_hz)
        self._timeout_ns = s_to_ns(self.spec.command_timeout_s)
        self._period_ns = s_to_ns(self.spec.control_period_s)
        self._goal: Setpoint | None = None
        self._goal_due_ns = 0
        self._expires_ns = 0
        self._last_seq = -1
        self._stopping = False
        self._state_seq = 0
        self._episode_seed = -1

    @property
    def boot(self) -> str:
        """Changes with every start of the server: a client sees that it talks to another incarnation."""
        return self._boot

    # ---- lifecycle ----

    def connect(self) -> None:
        self.robot.connect()
        self.lifecycle = Lifecycle.INACTIVE

    def close(self) -> None:
        self.lifecycle = Lifecycle.UNCONFIGURED
        self.robot.close()

    def transition(self, target: Lifecycle) -> None:
        """Activate, deactivate, or (a person's act) clear a fault; CommandRefusedError if not allowed from here."""
        allowed = {
            (Lifecycle.INACTIVE, Lifecycle.ACTIVE),
            (Lifecycle.ACTIVE, Lifecycle.ACTIVE),
            (Lifecycle.ACTIVE, Lifecycle.INACTIVE),
            (Lifecycle.INACTIVE, Lifecycle.INACTIVE),
            (Lifecycle.FAULT, Lifecycle.INACTIVE),
        }
        if (self.lifecycle, target) not in allowed:
            raise CommandRefusedError(
                "lifecycle",
                f"{self.spec.name} is {self.lifecycle.value} and cannot become {target.value}"
                + (f"; its fault is: {self.fault}; clear it first" if self.fault else ""),
            )
        if target is Lifecycle.ACTIVE and self.lifecycle is Lifecycle.INACTIVE:
            self._rest_here()
        if target is Lifecycle.INACTIVE and self.lifecycle is Lifecycle.ACTIVE:
            self._begin_stop("deactivated")
        self.fault = "" if target is not Lifecycle.ACTIVE else self.fault
        self.lifecycle = target

    def latch_fault(self, message: str) -> None:
        logger.error("%s: fault latched: %s", self.spec.name, message)
        self.fault = message
        self.lifecycle = Lifecycle.FAULT
        self._goal = None
        self._stopping = True

    # ---- lease ----

    def acquire_lease(self, session: str, peer: str) -> None:
        """A new session starts its sequence numbers afresh; commands of the old one are refused from now on."""
        now_ns = self._clock.now_ns()
        before = self._lease.holder(now_ns)
        if not self._lease.acquire(session, peer, now_ns):
            raise CommandRefusedError("no_lease", f"the control lease of {self.spec.name} is held by session {before}")
        if before != session:
            self._last_seq = -1
            if self._goal is not None:
                self._begin_stop("the control lease changed hands")

    def release_lease(self, session: str) -> None:
        self._lease.release(session)

    def require_lease(self, session: str) -> None:
        now_ns = self._clock.now_ns()
        if self._lease.holder(now_ns) != session:
            raise CommandRefusedError("no_lease", f"session {session} does not hold the lease of {self.spec.name}")
        self._lease.renew(session, now_ns)

    def holds_lease(self, session: str) -> bool:
        return self._lease.holder(self._clock.now_ns()) == session

    # ---- commands ----

    def command(self, command: Command) -> CommandResult:
        """Check one command and, if it passes, make it the goal. Never raises for a bad command."""
        now_ns = self._clock.now_ns()
        facts = GateFacts(
            now_ns, self.lifecycle, self._lease.holder(now_ns), self._last_seq, self._stopping and self._limiter.moving
        )
        decision = self._gate.check(command, facts)
        if decision.verdict is not Verdict.REFUSED:
            decision = self._resolve(decision)
        self.verdicts[decision.verdict] += 1
        if decision.verdict is Verdict.REFUSED:
            self.refusals[decision.refusal or Refusal.DRIVER] += 1
        else:
            self._last_seq = command.seq
            self._goal_due_ns = now_ns + self._period_ns
            self._expires_ns = now_ns + self._timeout_ns
            self._stopping = False
        if facts.lease_session == command.session:
            self._lease.renew(command.session, now_ns)
        return CommandResult(
            seq=command.seq,
            verdict=decision.verdict,
            refusal=decision.refusal,
            message=decision.message,
            sent=decision.action,
        )

    def _resolve(self, decision: Decision) -> Decision:
        refused = Decision(Verdict.REFUSED, Refusal.DRIVER, "", np.zeros_like(decision.action))
        try:
            goal = self.robot.resolve(decision.action)
        except RobotFaultError as error:
            self.latch_fault(str(error))
            return replace(refused, message=str(error))
        except RobotError as error:
            return replace(refused, message=str(error))
        if not np.isfinite(goal).all():
            return replace(refused, message=f"{self.spec.name}: no finite setpoint for this action")
        self._goal = goal
        return decision

    def stop(self, reason: str) -> None:
        """Ramp to rest and drop the goal; new commands are taken again once the robot rests."""
        self._begin_stop(reason)

    def reset(self, seed: int) -> None:
        """Begin an episode. A simulated robot sets up its scene; the filter starts anew from the measured state."""
        if self.lifecycle is not Lifecycle.ACTIVE:
            raise CommandRefusedError("not_active", f"{self.spec.name} is {self.lifecycle.value}; activate it first")
        if self._simulated is None:
            raise CommandRefusedError("reset", f"{self.spec.name} cannot reset its scene: a person must")
        self._simulated.reset(seed)
        self._episode_seed = seed
        self._rest_here()

    # ---- time ----

    def tick(self) -> None:
        """One period: watchdog, filter, driver. Errors of the driver latch a fault."""
        if self.lifecycle is Lifecycle.UNCONFIGURED:
            return
        now_ns = self._clock.now_ns()
        if self._goal is not None and now_ns > self._expires_ns:
            self._begin_stop("commands ceased")
        if self._goal is None:
            setpoint = self._limiter.stop()
        else:
            setpoint = self._limiter.toward(self._goal, (self._goal_due_ns - now_ns) / 1e9)
        try:
            if self.lifecycle is Lifecycle.ACTIVE or self._limiter.moving:
                self.robot.send(setpoint)
        except RobotError as error:
            self.latch_fault(str(error))

    def state(self) -> RobotState:
        """The newest state for publication; a fault that the driver reports is latched here."""
        reading = self._read()
        self._state_seq += 1
        return RobotState(
            boot=self._boot,
            seq=self._state_seq,
            stamp_ns=reading.stamp_ns,
            lifecycle=self.lifecycle,
            features=reading.features,
            task=self._task_status(),
            ground_truth=self._simulated.ground_truth() if self._simulated else None,
            episode_seed=self._episode_seed,
            last_command_seq=self._last_seq,
            moving=self._limiter.moving,
            stopping=self._stopping,
            fault=self.fault,
        )

    def _read(self) -> Reading:
        try:
            reading = self.robot.read()
        except RobotError as error:
            if self.lifecycle is not Lifecycle.FAULT:
                self.latch_fault(str(error))
            return Reading(stamp_ns=self._clock.now_ns(), features={}, fault=str(error))
        if reading.fault and self.lifecycle is not Lifecycle.FAULT:
            self.latch_fault(reading.fault)
        return reading

    def _task_status(self) -> TaskStatus | None:
        return self._simulated.task_status() if self._simulated else None

    def _rest_here(self) -> None:
        self.robot.hold()
        self._limiter.start(self.robot.measured_setpoint())
        self._goal = None
        self._stopping = False

    def _begin_stop(self, reason: str) -> None:
        if self._goal is not None:
            self.stops += 1
            logger.info("%s: stopping: %s", self.spec.name, reason)
        self._goal = None
        self._stopping = True
        self.robot.hold()
