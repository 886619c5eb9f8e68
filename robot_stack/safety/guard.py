"""The guard around one robot: lifecycle, lease, command gate, watchdog and motion filter, in one small machine.

The robot server owns a guard and calls `tick` at the tick rate; every way to the driver goes through here, resets
and stops included. No sockets, no threads: time comes from the clock handed in, so the same guard runs on the wall
clock and in lock-step.

    unconfigured --connect--> inactive --activate--> active --deactivate--> inactive
                                  ^                     |
                                  '-- a person clears --+-- driver fault, error, emergency stop --> fault

The driver has authority (`engage`) from activation until the robot rests after it ceased to be active; then
`release`, and `idle` at every tick.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from robot_stack.core.clock import Clock, s_to_ns
from robot_stack.core.direction import Direction
from robot_stack.core.errors import CommandRefusedError, RobotFaultError, RobotStackError
from robot_stack.core.messages import (
    Command,
    CommandResult,
    Features,
    Lifecycle,
    Refusal,
    RobotState,
    StopLevel,
    TaskStatus,
    Verdict,
)
from robot_stack.core.protocols import EpisodicRobot, Reading, ReversibleRobot, Robot, Setpoint, SetpointLimits
from robot_stack.safety.gate import CommandGate, Decision, GateFacts
from robot_stack.safety.lease import ControlLease
from robot_stack.safety.limits import check_not_wider
from robot_stack.safety.motion import MotionFilter
from robot_stack.safety.passivity import EnergyTankConfig

logger = logging.getLogger(__name__)

LEASE_TIMEOUT_S = 1.0

Narrow = Callable[[SetpointLimits], SetpointLimits]

_TRANSITIONS = {
    (Lifecycle.INACTIVE, Lifecycle.ACTIVE),
    (Lifecycle.ACTIVE, Lifecycle.ACTIVE),
    (Lifecycle.ACTIVE, Lifecycle.INACTIVE),
    (Lifecycle.INACTIVE, Lifecycle.INACTIVE),
    (Lifecycle.FAULT, Lifecycle.INACTIVE),
}


@dataclass(frozen=True, slots=True)
class _Episode:
    """What an episodic robot tells of its scene beside its reading."""

    task: TaskStatus | None = None
    truth: Features | None = None
    instruction: str = ""


class RobotGuard:
    """Everything that stands between a request and the driver.

    A refused command is counted by reason in `refusals`, a tick at which the filter held back by cause in
    `held_back`. When commands cease, the stop ramp begins at the first tick after the last command's
    `command_timeout_s` has passed. Errors of the driver latch a fault; only those of `connect` and `close` propagate.

    Args:
        tank: bounds the energy that the robot puts into a contact, if its driver estimates external effort.
        narrow: what a configuration makes of the robot's limits; ConfigError if that is wider.
    """

    def __init__(
        self, robot: Robot, clock: Clock, tank: EnergyTankConfig | None = None, narrow: Narrow = lambda limits: limits
    ) -> None:
        self.robot = robot
        self.spec = robot.spec
        self._episodic = robot if isinstance(robot, EpisodicRobot) else None
        self.lifecycle = Lifecycle.UNCONFIGURED
        self.fault = ""
        self.refusals: Counter[Refusal] = Counter()
        self.verdicts: Counter[Verdict] = Counter()
        self.held_back: Counter[str] = Counter()
        self.stops = 0
        self._clock = clock
        self._boot = uuid4().hex
        self._lease = ControlLease(LEASE_TIMEOUT_S)
        self._gate = CommandGate(self.spec.name, self.spec.action)
        self._tank = tank
        self._narrow = narrow
        self._promised = robot.limits
        self._limits = narrow(self._promised)
        self._motion = MotionFilter(self._limits, 1.0 / self.spec.tick_rate_hz)
        self._timeout_ns = s_to_ns(self.spec.command_timeout_s)
        self._period_ns = s_to_ns(self.spec.control_period_s)
        self._goal: Setpoint | None = None
        self._goal_due_ns = 0
        self._goal_renewed = False
        self._expires_ns = 0
        self._last_seq = -1
        self._engaged = False
        self._stopping = False
        self._releasing = False
        self._state_seq = 0
        self._sample_ns = clock.now_ns()
        self._episode_seed = -1

    @property
    def boot(self) -> str:
        """Changes with every start of the server: a client sees that it talks to another incarnation."""
        return self._boot

    @property
    def lease_session(self) -> str:
        """The session that holds the control lease, or ''."""
        return self._lease.holder(self._clock.now_ns()) or ""

    def sample_age_s(self) -> float:
        """Age of the driver's newest sample that was read."""
        return max(0, self._clock.now_ns() - self._sample_ns) / 1e9

    @property
    def moving(self) -> bool:
        """Whether the setpoint changes."""
        return self._motion.moving

    # ---- lifecycle ----

    def connect(self) -> None:
        """Open the driver; ConfigError if the robot's own limits turn out wider than those it promised."""
        self.robot.connect()
        check_not_wider(self.spec.name, self.robot.limits, self._promised)
        self._limits = self._narrow(self.robot.limits)
        self._motion = MotionFilter(self._limits, 1.0 / self.spec.tick_rate_hz, self.robot.geometry, self._tank)
        self.lifecycle = Lifecycle.INACTIVE

    def close(self) -> None:
        """Leave the device in its safe state, whatever it was doing."""
        self.lifecycle = Lifecycle.UNCONFIGURED
        self._goal, self._engaged = None, False
        self.robot.close()

    def transition(self, target: Lifecycle) -> None:
        """Activate, deactivate, or (a person's act) clear a fault; CommandRefusedError if not allowed from here."""
        if (self.lifecycle, target) not in _TRANSITIONS:
            raise CommandRefusedError(
                "lifecycle",
                f"{self.spec.name} is {self.lifecycle.value} and cannot become {target.value}"
                + (f"; its fault is: {self.fault}; clear it first" if self.fault else ""),
            )
        before, self.fault = self.lifecycle, ""
        if before is target:
            return
        if target is Lifecycle.ACTIVE:
            self._activate()
        self.lifecycle, self._releasing = target, False
        if before is Lifecycle.ACTIVE:
            self._begin_stop("deactivated")

    def _activate(self) -> None:
        """Give the driver authority at rest; one that is still ramping down keeps it, and its ramp."""
        if self._engaged:
            return
        if not (self._attempt(self._rest_here) and self._attempt(self.robot.engage)):
            raise CommandRefusedError("fault", f"{self.spec.name} could not be activated: {self.fault}")
        self._engaged = True

    def latch_fault(self, message: str) -> None:
        """The robot ramps to rest while the driver still takes setpoints; a person clears the fault."""
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
            self._last_seq = self._lease.last_seq(session)
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
        stopping = self._stopping and (self._motion.moving or self._releasing)
        facts = GateFacts(now_ns, self.lifecycle, self._lease.holder(now_ns), self._last_seq, stopping)
        decision = self._gate.check(command, facts)
        if decision.verdict is not Verdict.REFUSED:
            decision = self._resolve(decision)
        self.verdicts[decision.verdict] += 1
        if decision.refusal is not None:
            self.refusals[decision.refusal] += 1
        else:
            self._last_seq = command.seq
            self._lease.saw(command.session, command.seq)
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
        try:
            goal = self.robot.resolve(decision.action)
        except RobotFaultError as error:
            self.latch_fault(str(error))
            return self._gate.refuse(Refusal.DRIVER, str(error))
        except RobotStackError as error:
            return self._gate.refuse(Refusal.DRIVER, str(error))
        if goal.shape != (len(self._limits.names),) or not np.isfinite(goal).all():
            return self._gate.refuse(Refusal.DRIVER, f"{self.spec.name}: no finite setpoint for this action")
        self._goal, self._goal_renewed = goal, True
        return decision

    def stop(self, reason: str, level: StopLevel = StopLevel.HOLD) -> None:
        """Ramp to rest and drop the goal. HOLD: new commands are taken again once the robot rests. RELEASE: it becomes
        inactive there. EMERGENCY: the vendor's hard stop now, and a fault."""
        if self.lifecycle is Lifecycle.UNCONFIGURED:
            return
        if level is StopLevel.EMERGENCY:
            self._emergency_stop(reason)
            return
        self._begin_stop(reason)
        self._releasing = level is StopLevel.RELEASE and self.lifecycle is Lifecycle.ACTIVE

    def _emergency_stop(self, reason: str) -> None:
        """After it no setpoint contradicts the vendor's stop: authority goes back at once."""
        self.stops += 1
        try:
            self.robot.emergency_stop()
        except RobotStackError as error:
            reason = f"{reason}; but it failed: {error}; use the hardware emergency stop"
        self.latch_fault(f"emergency stop: {reason}")
        if self._engaged:
            self._engaged = False
            self._attempt(self.robot.release)
        self._attempt(self._rest_here)
        self._stopping = True

    def reset(self, seed: int) -> None:
        """Begin an episode: the filter starts anew from the measured state, at rest. A simulated robot sets up its
        scene; that of a real one is set up by a person, and the episode begins where the robot is."""
        if self.lifecycle is not Lifecycle.ACTIVE:
            raise CommandRefusedError("not_active", f"{self.spec.name} is {self.lifecycle.value}; activate it first")
        episodic = self._episodic
        if episodic is None and self._motion.moving:
            raise CommandRefusedError("moving", f"{self.spec.name} is moving; stop it before an episode begins")
        if not ((episodic is None or self._attempt(lambda: episodic.reset(seed))) and self._attempt(self._rest_here)):
            raise CommandRefusedError("fault", f"{self.spec.name} could not be reset: {self.fault}")
        self._episode_seed = seed

    def begin_here(self, seed: int, direction: Direction) -> None:
        """Begin an episode from the present scene and pose, in that direction. The filter starts anew from the measured
        state, at rest, as after `reset`; so the robot has to rest."""
        if self.lifecycle is not Lifecycle.ACTIVE:
            raise CommandRefusedError("not_active", f"{self.spec.name} is {self.lifecycle.value}; activate it first")
        robot = self.robot if isinstance(self.robot, ReversibleRobot) else None
        if self._episodic is not None and (robot is None or direction not in robot.directions):
            raise CommandRefusedError(
                "one_way",
                f"the task '{self.spec.task}' of {self.spec.name} has no direction '{direction.value}': nothing tells "
                "when it is done; take a task that can be undone, or reset the scene",
            )
        if self._motion.moving:
            raise CommandRefusedError("moving", f"{self.spec.name} is moving; stop it before an episode begins here")
        if not (
            (robot is None or self._attempt(lambda: robot.begin_here(seed, direction)))
            and self._attempt(self._rest_here)
        ):
            raise CommandRefusedError("fault", f"{self.spec.name} could not begin here: {self.fault}")
        self._episode_seed = seed

    # ---- time ----

    def tick(self) -> None:
        """One period: watchdog, filter, driver. Errors of the driver latch a fault."""
        if self.lifecycle is Lifecycle.UNCONFIGURED:
            return
        now_ns = self._clock.now_ns()
        if self._goal is not None and now_ns > self._expires_ns:
            self._begin_stop("commands ceased")
        if not self._engaged:
            self._attempt(self.robot.idle)
            return
        was_faulty = self.lifecycle is Lifecycle.FAULT
        taken = self._attempt(lambda: self.robot.send(self._next_setpoint(now_ns)))
        self._count_held_back()
        resting = not self._motion.moving
        if self._releasing and resting and self.lifecycle is Lifecycle.ACTIVE:
            self.lifecycle = Lifecycle.INACTIVE
        if self.lifecycle is not Lifecycle.ACTIVE and (resting or (was_faulty and not taken)):
            self._engaged = self._releasing = False
            self._attempt(self.robot.release)

    def _next_setpoint(self, now_ns: int) -> Setpoint:
        effort = self._effort()
        if self._goal is None:
            return self._motion.stop(effort)
        renewed, self._goal_renewed = self._goal_renewed, False
        try:
            return self._motion.toward(self._goal, (self._goal_due_ns - now_ns) / 1e9, effort, renewed=renewed)
        except RobotStackError as error:  # of the geometry
            self.latch_fault(str(error))
            return self._motion.stop(effort)

    def _effort(self) -> Setpoint | None:
        if self._motion.tank is None:
            return None
        try:
            effort = self.robot.external_effort()
        except RobotStackError as error:
            self._latch_first(str(error))
            return None
        if effort is None:
            logger.warning("%s tells no external effort: its energy tank is off", self.spec.name)
            self._motion.tank = None
        return effort

    def _count_held_back(self) -> None:
        cause = self._motion.held_back.value
        if cause:
            self.held_back[cause] += 1

    def state(self) -> RobotState:
        """The newest state for publication; a fault that the driver reports is latched here."""
        reading = self._read()
        episode = self._episode()
        self._state_seq += 1
        return RobotState(
            boot=self._boot,
            seq=self._state_seq,
            stamp_ns=reading.stamp_ns,
            lifecycle=self.lifecycle,
            features=reading.features,
            task=episode.task,
            ground_truth=episode.truth,
            episode_seed=self._episode_seed,
            last_command_seq=self._last_seq,
            moving=self._motion.moving,
            stopping=self._stopping,
            held_back=self._motion.held_back.value if self._engaged else "",
            fault=self.fault,
            instruction=episode.instruction,
        )

    def _read(self) -> Reading:
        try:
            reading = self.robot.read()
        except RobotStackError as error:
            reading = Reading(stamp_ns=self._sample_ns, features={}, fault=str(error))
        self._sample_ns = reading.stamp_ns
        if reading.fault and self.lifecycle is not Lifecycle.FAULT:
            self.latch_fault(reading.fault)
        return reading

    def _episode(self) -> _Episode:
        robot = self._episodic
        if robot is None:
            return _Episode()
        try:
            return _Episode(robot.task_status(), robot.ground_truth(), robot.instruction())
        except RobotStackError as error:
            self._latch_first(str(error))
            return _Episode()

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Call the driver; True if it did not fail. A failure latches a fault, unless one is latched already."""
        try:
            call()
        except RobotStackError as error:
            self._latch_first(str(error))
            return False
        return True

    def _latch_first(self, message: str) -> None:
        if self.lifecycle is not Lifecycle.FAULT:
            self.latch_fault(message)

    def _rest_here(self) -> None:
        self.robot.hold()
        self._motion.start(self.robot.measured_setpoint())
        self._goal = None
        self._stopping = self._releasing = False

    def _begin_stop(self, reason: str) -> None:
        if self._goal is not None:
            self.stops += 1
            logger.info("%s: stopping: %s", self.spec.name, reason)
        self._goal = None
        self._stopping = True
        self._attempt(self.robot.hold)
