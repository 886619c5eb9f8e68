"""The robot server: one process that owns one robot and every way to it.

Wall clock: a fixed tick; requests are answered between ticks, the guard ticks, a simulated world moves on, and the
newest state is published. Lock-step (simulated robots only): time stands still between commands; each command of
the lease holder lets exactly one control period pass, tick by tick through the same guard, and its answer carries
the state after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from msgspec import structs

from robot_stack.apps.build import build_robot, build_simulated, has_simulated_vendor, runs_in_lock_step
from robot_stack.apps.connections import ROBOT_REQUEST, ROBOT_STATE
from robot_stack.apps.keys import ROBOT_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.limits import narrowed, tank_of
from robot_stack.apps.scene_robot import SceneRobot
from robot_stack.config.schema import StackConfig
from robot_stack.core.clock import ManualClock, MonotonicClock, Pacer, s_to_ns
from robot_stack.core.errors import CommandRefusedError, ConfigError, RobotError, RobotStackError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    AcquireLease,
    Command,
    CommandResult,
    Done,
    Failed,
    GetDiagnostics,
    GetState,
    Hello,
    Lifecycle,
    Ping,
    Pong,
    ReleaseLease,
    ResetEpisode,
    RobotDiagnostics,
    RobotInfo,
    RobotReply,
    RobotRequest,
    RobotState,
    StopRobot,
    Transition,
)
from robot_stack.core.protocols import Renderer, Robot, SimulatedRobot
from robot_stack.core.specs import IMAGES
from robot_stack.safety.guard import Narrow, RobotGuard
from robot_stack.safety.passivity import EnergyTankConfig
from robot_stack.safety.settling import settle
from robot_stack.transport.keys import Role
from robot_stack.transport.server import Request, RequestServer
from robot_stack.transport.stream import Publisher

logger = logging.getLogger(__name__)


class RobotServer:
    """Serves one robot until `keep_running` says no. Use `run`; sockets and robot are opened by the caller's `with`."""

    def __init__(
        self,
        robot: Robot,
        requests: RequestServer[RobotRequest],
        states: Publisher,
        *,
        lock_step: bool,
        tank: EnergyTankConfig | None = None,
        narrow: Narrow = lambda limits: limits,
    ) -> None:
        if lock_step and not isinstance(robot, SimulatedRobot):
            raise ConfigError(f"{robot.spec.name} is not simulated: lock-step time is for simulated robots only")
        self._clock = ManualClock() if lock_step else MonotonicClock()
        self._simulated = robot if isinstance(robot, SimulatedRobot) else None
        self._renderer = robot if isinstance(robot, Renderer) else None
        self._requests = requests
        self._states = states
        self._lock_step = lock_step
        self._tick_s = 1.0 / robot.spec.tick_rate_hz
        self._ticks_per_step = round(robot.spec.tick_rate_hz / robot.spec.control_rate_hz)
        self._publish_every = max(1, round(robot.spec.tick_rate_hz / ROBOT_STATE.rate_hz))
        self._observed_cameras = tuple(
            name.removeprefix(IMAGES) for name in robot.spec.observation if name.startswith(IMAGES)
        )
        self.guard = RobotGuard(robot, self._clock, tank, narrow)
        self.pacer = Pacer(self._tick_s)

    def run(self, keep_running: Callable[[], bool]) -> None:
        """Connect, serve, and leave the robot in its safe state."""
        self.guard.connect()
        try:
            logger.info("%s (%s) serves at %s", self.guard.spec.name, self.guard.spec.model, self._requests.address)
            while keep_running():
                if self._lock_step:
                    self._answer_all(timeout_s=0.1)
                else:
                    self._wall_clock_tick()
        finally:
            self.guard.close()

    def _wall_clock_tick(self) -> None:
        self.pacer.wait()
        self._answer_all(timeout_s=0.0)
        self._tick()
        if self.pacer.ticks % self._publish_every == 0:
            self._states.send(self._state())

    def _tick(self) -> None:
        self.guard.tick()
        if self._simulated is not None:
            try:
                self._simulated.advance(self._tick_s)
            except RobotError as error:
                self.guard.latch_fault(str(error))
        if isinstance(self._clock, ManualClock):
            self._clock.advance_ns(s_to_ns(self._tick_s))

    def _answer_all(self, timeout_s: float) -> None:
        for request in self._requests.poll(timeout_s):
            request.reply(self._answer(request))

    def _answer(self, request: Request[RobotRequest]) -> RobotReply:
        try:
            return self._handle(request.message, request.peer, request.role)
        except RobotStackError as error:
            return Failed(reason=getattr(error, "reason", type(error).__name__), message=str(error))

    def _handle(self, message: RobotRequest, peer: str, role: Role) -> RobotReply:
        guard = self.guard
        if isinstance(message, Command):
            return self._command(message)
        if isinstance(message, GetState):
            return self._with_images(message.cameras)
        if isinstance(message, GetDiagnostics):
            return self._diagnostics()
        if isinstance(message, Ping):
            return Pong(stamp_ns=self._clock.now_ns())
        if isinstance(message, Hello):
            return self._hello(message)
        if isinstance(message, StopRobot):
            guard.stop(f"{peer}: {message.reason}", message.level)
            return Done()
        if isinstance(message, AcquireLease):
            guard.acquire_lease(message.session, peer)
            return Done()
        if isinstance(message, ReleaseLease):
            guard.release_lease(message.session)
            return Done()
        if isinstance(message, Transition):
            self._transition(message, role)
            return Done()
        guard.require_lease(message.session)
        return self._reset(message)

    def _transition(self, message: Transition, role: Role) -> None:
        """An operator's key may do it at any time; the lease holder only what needs no person."""
        if role is not Role.OPERATOR:
            self.guard.require_lease(message.session)
            arms = message.target is Lifecycle.ACTIVE and not self.guard.spec.simulated
            if arms or self.guard.lifecycle is Lifecycle.FAULT:
                needed = (
                    "activate it: robot-stack operate activate"
                    if arms
                    else "look at it: robot-stack operate clear-fault"
                )
                fault = f" is in fault ({self.guard.fault})" if self.guard.fault else ""
                raise CommandRefusedError("person", f"{self.guard.spec.name}{fault}: a person has to {needed}")
        self.guard.transition(message.target)

    def _hello(self, message: Hello) -> RobotReply:
        if message.schema_version != SCHEMA_VERSION:
            text = f"{message.peer} speaks schema version {message.schema_version}, this server {SCHEMA_VERSION}"
            return Failed(reason="schema_version", message=f"{text}; install the same release on both")
        return RobotInfo(
            schema_version=SCHEMA_VERSION, boot=self.guard.boot, lock_step=self._lock_step, spec=self.guard.spec
        )

    def _diagnostics(self) -> RobotDiagnostics:
        guard, periods_s = self.guard, np.asarray(self.pacer.periods_s() or [self._tick_s])
        jitter_s = np.abs(periods_s - self._tick_s)
        return RobotDiagnostics(
            boot=guard.boot,
            lifecycle=guard.lifecycle,
            fault=guard.fault,
            ticks=self.pacer.ticks,
            overruns=self.pacer.overruns,
            period_p50_s=float(np.median(periods_s)),
            jitter_p50_s=float(np.median(jitter_s)),
            jitter_p99_s=float(np.quantile(jitter_s, 0.99)),
            jitter_max_s=float(jitter_s.max()),
            sample_age_s=guard.sample_age_s(),
            stops=guard.stops,
            refusals={refusal.value: count for refusal, count in guard.refusals.items()},
            held_back=dict(guard.held_back),
            lease_session=guard.lease_session,
        )

    def _command(self, command: Command) -> CommandResult:
        result = self.guard.command(command)
        if not self._lock_step:
            return result
        if self.guard.holds_lease(command.session) and self.guard.lifecycle is Lifecycle.ACTIVE:
            for _ in range(self._ticks_per_step):
                self._tick()
        return structs.replace(result, state=self._state())

    def _reset(self, message: ResetEpisode) -> RobotState:
        if message.here is None:
            self.guard.reset(message.seed)
        else:
            self._settle()
            self.guard.begin_here(message.seed, message.here)
        return self._state()

    def _settle(self) -> None:
        """In lock-step time stands still between commands, so the robot comes to rest here; on the wall clock whoever
        asked tries again."""
        if not self._lock_step or self.guard.lifecycle is not Lifecycle.ACTIVE:
            return
        settle(self.guard, self._tick, self._tick_s)

    def _state(self) -> RobotState:
        """The newest state, with an image of every camera that the robot's observation names."""
        return self._with_images(self._observed_cameras)

    def _with_images(self, cameras: tuple[str, ...]) -> RobotState:
        state = self.guard.state()
        for camera in cameras:
            if self._renderer is None or camera not in self._renderer.cameras:
                offered = ", ".join(self._renderer.cameras) if self._renderer else ""
                raise ConfigError(f"this robot server renders no camera '{camera}'; it has: {offered or 'none'}")
            state.features[IMAGES + camera] = self._renderer.render(camera)
        return state


def run_robot_server(config: StackConfig, keep_running: Callable[[], bool]) -> None:
    """Serve the configured robot. A simulated one is armed by whoever takes its lease; nothing arms a real one."""
    layout = RunLayout.of(config)
    keys = ensure_keys(layout)
    robot = build_robot(config)
    if has_simulated_vendor(config):
        robot = SceneRobot(robot, build_simulated(config), config.network, keys)
    network = config.network
    requests: RequestServer[RobotRequest] = RequestServer(
        ROBOT_REQUEST, network.robot_address, keys, ROBOT_KEY, RobotRequest
    )
    with requests, Publisher(ROBOT_STATE, network.state_address, keys, ROBOT_KEY) as states:
        server = RobotServer(
            robot,
            requests,
            states,
            lock_step=runs_in_lock_step(config),
            tank=tank_of(config.robot),
            narrow=lambda limits: narrowed(config.robot.name, limits, config.robot.limits),
        )
        server.run(keep_running)
