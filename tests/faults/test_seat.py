"""The operator's seat on the wall clock: a real robot server in a process of its own, the control loop in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from robot_stack.apps.connections import ROBOT_STATE, remote_robot, robot_client
from robot_stack.apps.keys import OPERATOR_KEY, ROBOT_KEY, VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.local_robot import local_robot_server
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import NetworkConfig
from robot_stack.core.messages import FloatArray, Lifecycle, Observation, RobotState, Source, StopRobot
from robot_stack.core.seat import Drive, Intent, Phase, SeatTaken
from robot_stack.core.specs import STATE, RobotSpec
from robot_stack.edge.control_loop import ControlLoop, EpisodeId, LoopStep, NoCorrection
from robot_stack.edge.operator import Interventions, Rule
from robot_stack.edge.seat import Seat
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.stream import Subscriber
from tests.seat_kit import Acts
from tests.vendor_kit import wait_until

VALID_S = 0.2
SLACK_S = 0.15
"""What a busy machine may add."""
REST_M_S = 0.01


@dataclass
class Bench:
    """A robot that stands in the middle of its task, whose policy does next to nothing, and a person with its seat."""

    network: NetworkConfig
    keys: KeyStore
    rule: Rule
    spec: RobotSpec = field(init=False)
    seat: Seat = field(init=False)
    steps: list[LoopStep] = field(default_factory=list)
    error: Exception | None = None
    think_s: float = 0.0
    _seq: int = 0
    _session: str = ""
    _ready: threading.Event = field(default_factory=threading.Event)

    def on_step(self, step: LoopStep) -> None:
        self.steps.append(step)

    def act(self, observation: Observation, state: RobotState) -> FloatArray:
        time.sleep(self.think_s)
        return np.array([0.0, 0.0, 0.001, 0.0, 1.0], np.float32)

    def run(self) -> None:
        """In a thread of its own, as sockets are."""
        try:
            with remote_robot(self.network, self.keys) as robot:
                robot.connect(120.0)
                robot.arm(30.0)
                self.spec = robot.spec
                self.seat = Seat(robot.spec, self.rule, "seat", lock_step=False)
                taken = self.seat.take("ann", by_force=True)
                assert isinstance(taken, SeatTaken)
                self._session = taken.session
                self._ready.set()
                interventions = Interventions(self.seat, self.rule)
                loop = ControlLoop(
                    robot, Acts(self.act), NoCorrection(), [self, self.seat], 2.0, interventions=interventions
                )
                loop.run_episode(EpisodeId(0, 7))
        except Exception as error:  # the test's own thread reports it
            self.error = error
            if self._ready.is_set():
                self.seat.failed()
        self._ready.set()

    def begins(self) -> None:
        """Wait until the episode runs."""
        assert self._ready.wait(120.0) and self.error is None, self.error
        wait_until(lambda: STATE in self.seat.read().features or self.error is not None, 30.0, "the episode begins")
        assert self.error is None, self.error

    def wants(self, intent: Intent, dz: float = 0.0, to_index: int = -1) -> tuple[str, int]:
        """Why not, or '', and the deadline."""
        self._seq += 1
        deadline_ns = time.monotonic_ns() + round(VALID_S * 1e9)
        moves = {"dz_m": dz} if dz else {}
        drive = Drive(
            session=self._session,
            seq=self._seq,
            deadline_ns=deadline_ns,
            intent=intent,
            moves=moves,
            speed=1.0,
            to_index=to_index,
        )
        return self.seat.drive(drive)[0], deadline_ns

    def holds(self, intent: Intent, duration_s: float, dz: float = 0.0, to_index: int = -1) -> int:
        """The person holds it for so long; the last deadline."""
        end_s, deadline_ns = time.monotonic() + duration_s, 0
        while time.monotonic() < end_s:
            deadline_ns = self.wants(intent, dz, to_index)[1]
            time.sleep(0.02)
        return deadline_ns

    def states(self) -> Subscriber[RobotState]:
        """Open it before the robot moves: a connection takes longer than a stop."""
        return Subscriber(ROBOT_STATE, self.network.state_address, self.keys, VIEWER_KEY, ROBOT_KEY, RobotState)

    def rests_since_ns(self, states: Subscriber[RobotState], watch_s: float) -> int:
        """The robot server's stamp of the last state at which the tool still moved; 0 if it rested all the time."""
        last_ns, until_s = 0, time.monotonic() + watch_s
        while time.monotonic() < until_s:
            self.seat.keep(self._session)
            state = states.newest(timeout_s=1.0)
            if state is not None and np.abs(state.features[STATE][6:9]).max() > REST_M_S:
                last_ns = state.stamp_ns
        return last_ns

    def rests(self, watch_s: float) -> bool:
        """Whether it stands still for so long."""
        with self.states() as states:
            assert states.newest(timeout_s=10.0) is not None
            return self.rests_since_ns(states, watch_s) == 0

    def height(self) -> float:
        return float(self.seat.read().features[STATE][2])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NetworkConfig, KeyStore]]:
    directory: Path = tmp_path_factory.mktemp("seat")
    overrides = ["robot=franka", "task=pick_cube", "run=seat", f"runs_directory={directory}", "robot.lock_step=false"]
    config = compose_config(overrides)
    keys = ensure_keys(RunLayout.of(config))
    with local_robot_server(config, overrides) as network:
        yield network, keys


@pytest.fixture
def open_bench(served: tuple[NetworkConfig, KeyStore]) -> Iterator[Callable[[Rule], Bench]]:
    network, keys = served
    threads: list[tuple[Bench, threading.Thread]] = []

    def start(rule: Rule) -> Bench:
        bench = Bench(network, keys, rule)
        thread = threading.Thread(target=bench.run)
        threads.append((bench, thread))
        thread.start()
        bench.begins()
        return bench

    yield start
    for bench, thread in threads:
        bench.seat.close("the test is over")
        thread.join(timeout=30.0)
        assert not thread.is_alive()


def test_when_commands_stop_arriving_the_robot_rests_by_the_deadline_and_one_period(
    open_bench: Callable[[Rule], Bench],
) -> None:
    bench = open_bench("hg_dagger")
    before = bench.height()
    with bench.states() as states:
        assert states.newest(timeout_s=10.0) is not None
        deadline_ns = bench.holds(Intent.CORRECT, 0.8, dz=0.5)  # the workspace ends above
        rests_ns = bench.rests_since_ns(states, 2.0)
    assert bench.height() > before + 0.03, "it moved"
    late_s = (rests_ns - deadline_ns) / 1e9
    print(f"at rest {late_s * 1e3:.0f} ms after the deadline")
    assert rests_ns > 0 and late_s < bench.spec.control_period_s + SLACK_S, late_s
    assert bench.seat.phase is Phase.PAUSED and bench.error is None


def test_a_long_pause_keeps_the_robot_active_at_rest_and_the_episode_goes_on(
    open_bench: Callable[[Rule], Bench],
) -> None:
    bench = open_bench("rac")
    wait_until(lambda: len(bench.steps) >= 3, 60.0, "the policy acts")
    assert bench.wants(Intent.HOLD)[0] == ""
    time.sleep(1.0)
    count, height = len(bench.steps), bench.height()
    assert bench.rests(4.0), "four seconds: longer than the robot's lease and every deadline"
    shown = bench.seat.read()
    assert len(bench.steps) == count and bench.height() == pytest.approx(height, abs=1e-3)
    assert (shown.lifecycle, shown.stopping, shown.fault, shown.phase) == (Lifecycle.ACTIVE, False, "", Phase.PAUSED)
    assert bench.wants(Intent.RESUME)[0] == ""
    wait_until(lambda: len(bench.steps) >= count + 3, 60.0, "the policy goes on")
    assert [step.observation.index for step in bench.steps] == list(range(len(bench.steps)))
    assert bench.error is None


def test_an_intervention_with_a_rewind_ends_the_episode(open_bench: Callable[[Rule], Bench]) -> None:
    bench = open_bench("rac")
    wait_until(lambda: len(bench.steps) >= 3, 60.0, "the policy acts")
    bench.holds(Intent.RECOVER, 1.2, dz=1.0)
    top = bench.height()
    time.sleep(0.6)
    target = 2
    wanted = float(bench.steps[target].observation.features[STATE][2])
    for _ in range(40):
        if abs(bench.height() - wanted) < 0.004 and bench.seat.phase is Phase.PAUSED:
            break
        bench.holds(Intent.REWIND, 0.5, to_index=target)
        bench.wants(Intent.HOLD)
    assert top > wanted + 0.03 and bench.height() == pytest.approx(wanted, abs=0.005)
    bench.holds(Intent.CORRECT, 0.5, dz=-0.5)
    assert bench.wants(Intent.FINISH)[0] == ""
    wait_until(lambda: bench.seat.phase is Phase.BETWEEN, 30.0, "the episode ends")
    sources = [step.source for step in bench.steps]
    assert sources == sorted(sources, key=[Source.POLICY, Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION].index)
    assert len(set(sources)) == 3 and bench.steps[-1].truncated and bench.error is None
    bounds = bench.spec.action.upper_array()
    assert all((np.abs(step.action_asked) <= bounds).all() for step in bench.steps)


def test_a_stop_by_somebody_else_stops_what_a_person_drives(open_bench: Callable[[Rule], Bench]) -> None:
    bench = open_bench("hg_dagger")
    bench.holds(Intent.CORRECT, 0.5, dz=1.0)
    with robot_client(bench.network, bench.keys, OPERATOR_KEY) as client:
        client.request(StopRobot(reason="test"), timeout_s=10.0)
    bench.wants(Intent.HOLD)
    time.sleep(0.5)
    assert bench.rests(1.0) and bench.error is None
    height = bench.height()
    bench.holds(Intent.CORRECT, 0.8, dz=1.0)
    assert bench.height() > height + 0.01, "a stop that holds is over when the robot rests"


def test_a_slow_policy_does_not_move_the_robot_while_a_person_waits(open_bench: Callable[[Rule], Bench]) -> None:
    bench = open_bench("hg_dagger")
    bench.think_s = 0.25
    assert bench.wants(Intent.HOLD)[0] == ""
    time.sleep(1.0)
    height = bench.height()
    bench.holds(Intent.CORRECT, 2.5, dz=1.0)
    assert bench.height() > height + 0.01 and bench.error is None
    bench.wants(Intent.HOLD)
    time.sleep(1.0)
    assert bench.rests(1.0)
