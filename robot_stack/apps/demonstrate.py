"""Collect demonstrations by teleoperation: a person drives every episode from the page, and keeps the good ones.

Every episode begins with the robot at rest and ends with what the person calls its end (Finish), the task's success, or
`teleop.max_take_s`. Then the person says what it was, sets up the scene, and says that it is ready.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NoReturn

from msgspec import structs
from tqdm import tqdm

from robot_stack.apps.cameras import observed_cameras
from robot_stack.apps.collect import Collected
from robot_stack.apps.connections import network_overrides, remote_robot
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.seat import OperatorsSeat
from robot_stack.apps.seeds import demonstration_seed
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.apps.takes import TakeKey, Takes
from robot_stack.config.schema import NetworkConfig, StackConfig
from robot_stack.core.errors import ConfigError, RobotError, UnreachableError
from robot_stack.core.handling import Handling
from robot_stack.core.messages import FloatArray, Observation, RobotState, Source
from robot_stack.core.specs import RobotSpec
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, LoopStep, NoCorrection
from robot_stack.edge.operator import Interventions
from robot_stack.edge.recorder import Recorder, RecordingId
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.edge.seat import Seat

logger = logging.getLogger(__name__)

PAGE = "page"
POLL_S = 0.1
RETRY_S = 0.5
FLUSH_S = 60.0


class StandStill:
    """A `Proposer` that changes nothing: between a person's commands the robot stands, with its hand open."""

    source = Source.POLICY
    version = 0

    def __init__(self, spec: RobotSpec) -> None:
        self._action = Handling(spec).still(spec.action.upper_array())

    def begin(self, seed: int) -> None:
        """There is no plan."""

    def at_boundary(self, index: int) -> bool:
        return False

    def propose(self, observation: Observation, state: RobotState) -> FloatArray:
        return self._action


class TakeRate:
    """A `StepObserver`: how fast the control steps of the present take really followed each other."""

    def __init__(self) -> None:
        self._steps, self._ns = 0, 0

    def begin(self) -> None:
        self._steps, self._ns = 0, 0

    def on_step(self, step: LoopStep) -> None:
        self._steps += 1
        self._ns += step.following.stamp_ns - step.observation.stamp_ns

    @property
    def rate_hz(self) -> float:
        """Infinite before the first step."""
        return self._steps * 1e9 / self._ns if self._ns > 0 else float("inf")


def check_device(config: StackConfig, spec: RobotSpec | None = None) -> None:
    """ConfigError if `device` is none that the page's server knows, or the robot's actions cannot be driven by hand."""
    known = (PAGE, *config.teleop.devices)
    if config.device not in known:
        raise ConfigError(
            f"device = '{config.device}' is unknown; there are: {', '.join(known)}. Others are named by "
            "teleop.devices.NAME=KIND, see docs/teleoperation.md"
        )
    if spec is None:
        return
    handling = Handling(spec)
    absolute = [name for name in spec.action.names if name not in handling.drivable]
    if absolute:
        raise ConfigError(
            f"{spec.name} cannot be driven by hand: {', '.join(absolute)} are absolute, and naming them outright would "
            "be a jump; choose an action space of changes (robot.action_space=...)"
        )


class Demonstration:
    """Takes of one robot, one after the other, until there are enough demonstrations."""

    def __init__(
        self,
        config: StackConfig,
        network: NetworkConfig,
        takes: Takes,
        keep_running: Callable[[], bool],
        sleep: Callable[[float], None],
    ) -> None:
        self._config, self._network, self._takes = config, network, takes
        self._keep_running, self._sleep = keep_running, sleep
        self._layout = RunLayout.of(config)
        self._keys = ensure_keys(self._layout)
        self._rate = TakeRate()
        self._refusals: dict[TakeKey, str] = {}
        self.attempts = 0

    def run(self, bar: tqdm[NoReturn]) -> None:
        """While a robot server is away, wait for it; at first that is an error."""
        connected_once = False
        config = structs.replace(self._config, network=self._network)
        with OperatorsSeat(config, self._keys, "demonstration", self._keep_running) as seats:
            while self._wanted():
                try:
                    with remote_robot(self._network, self._keys) as robot:
                        robot.connect(self._config.edge.patience_s)
                        check_device(self._config, robot.spec)
                        if robot.info.lock_step:
                            raise ConfigError(
                                "a person needs the wall clock: start the robot server with lock_step=false"
                            )
                        connected_once = True
                        self._collect(robot, seats, bar)
                except (RobotError, UnreachableError) as error:
                    if not connected_once:
                        raise
                    if self._keep_running():
                        logger.warning("take abandoned: %s", error)
                    seats.failed()
                    self._settle(None, bar)
                    self._sleep(RETRY_S)

    def _wanted(self) -> bool:
        return self._keep_running() and self._takes.kept < self._config.task.demonstrations

    def _collect(self, robot: RemoteRobot, seats: OperatorsSeat, bar: tqdm[NoReturn]) -> None:
        config, spec = self._config, robot.spec
        with observed_cameras(config, spec, self._keys, config.edge.patience_s) as cameras:
            self._layout.remember_robot(cameras.spec)
            robot.arm(config.edge.patience_s)
            seat = seats.beside(spec, lock_step=False)
            recorder = Recorder(RecordingId(config.run, spec.name, config.task.name), self._takes.outbox.put)
            seat.recorded_as(recorder.session)
            loop = ControlLoop(
                robot,
                StandStill(spec),
                NoCorrection(),
                [recorder, self._rate, seat],
                config.edge.max_state_age_s,
                cameras.spec,
                cameras.feeds,
                state_latency_s=config.edge.state_latency_s,
                instruction=config.policy.instruction,
                interventions=Interventions(seat, "demonstration"),
                max_person_steps=config.teleop.max_person_steps(spec.control_rate_hz),
            )
            while self._wanted():
                number = self._takes.counter.take()
                self._rate.begin()
                loop.run_episode(EpisodeId(number, demonstration_seed(config.seed, number)))
                self.attempts += 1
                self._judge(seat, (recorder.session, number), spec.control_rate_hz, bar)

    def _judge(self, seat: Seat, take: TakeKey, control_rate_hz: float, bar: tqdm[NoReturn]) -> None:
        """Wait until the person has said what the take was and that the scene is ready."""
        needed_hz = self._config.teleop.min_rate_share * control_rate_hz
        refusals: dict[TakeKey, str] = {}
        if self._rate.rate_hz < needed_hz:
            refusals[take] = (
                f"its control steps came at {self._rate.rate_hz:.1f} Hz, {needed_hz:.1f} are required: this machine or "
                "the way to the robot is too slow"
            )
            seat.tell(f"this take cannot be kept: {refusals[take]}")
        seat.wait_for_scene()
        while seat.waits_for_scene and self._keep_running():
            self._sleep(POLL_S)
        if self._keep_running():  # else it waits on the disk for what is said of it
            self._settle(seat, bar, refusals)

    def _settle(self, seat: Seat | None, bar: tqdm[NoReturn], refusals: dict[TakeKey, str] | None = None) -> None:
        self._takes.outbox.flush(FLUSH_S)
        for (_, episode), reason in self._takes.settle(refusals or {}).items():
            tqdm.write(f"take {episode} is not kept: {reason}")
            if seat is not None:
                seat.tell(f"take {episode} is not kept: {reason}")
        bar.update(self._takes.kept - bar.n)


def demonstrate(
    config: StackConfig,
    overrides: Sequence[str],
    network: NetworkConfig,
    keep_running: Callable[[], bool],
    sleep: Callable[[float], None],
) -> Collected:
    """Serve the page and collect until the task's number of demonstrations lies in the run's store, or told to end.

    ConfigError if nobody could drive the robot that way. `overrides` are what `config` was composed from.
    """
    check_device(config)
    layout = RunLayout.of(config)
    wanted = config.task.demonstrations
    with Supervisor(layout.logs, announce=tqdm.write) as supervisor, Takes(config) as takes:
        takes.settle({})
        if takes.kept >= wanted:
            return Collected(takes.kept, takes.kept)
        supervisor.start("teleop", robot_stack_command("teleop", *overrides, *network_overrides(network)), shown=True)

        def alive() -> bool:
            supervisor.watch()
            return keep_running()

        with tqdm(total=wanted, initial=takes.kept, desc="collect", unit="episode") as bar:
            demonstration = Demonstration(config, network, takes, alive, sleep)
            demonstration.run(bar)
        return Collected(demonstration.attempts, takes.kept)
