"""Rows of the command link: what a slow, lossy or broken link makes the robot do late. The answer must be: nothing.

A robot server with its guard and a simulated Franka runs in a process of its own. Every action carries a number, so the
driver itself tells which command was executed when, whatever gate and guard thought of it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from msgspec import Struct
from tqdm import tqdm

from benchmarks.faults.processes import Fork, Site, make_site
from benchmarks.faults.proxy import FAIR, PARTITIONED, Proxy, Weather
from hardware.franka.sim import SimulatedFranka
from robot_stack.apps.connections import ROBOT_REQUEST, ROBOT_STATE, free_network
from robot_stack.apps.keys import EDGE_KEY, ROBOT_KEY
from robot_stack.apps.robot_server import RobotServer
from robot_stack.core.clock import s_to_ns
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import (
    AcquireLease,
    Command,
    FloatArray,
    Lifecycle,
    ResetEpisode,
    RobotReply,
    RobotRequest,
    RobotState,
    Transition,
)
from robot_stack.core.protocols import Setpoint
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.transport.client import RequestClient
from robot_stack.transport.server import RequestServer
from robot_stack.transport.stream import Publisher, Subscriber

SLOW = Weather(delay_s=0.15, loss=0.3, reset_every_s=20.0)
SLOWER = Weather(delay_s=0.3, loss=0.3, reset_every_s=20.0)
LOPSIDED = Weather(delay_s=0.25, delay_back_s=0.0)
TASK = "peg_insertion"
DIGITS = 4096
HOLD = 2**32 - 1
LOOKS_LATE_AFTER_S = 0.03  # the driver's clock is read after the guard's: a busy machine may put a pause between
EVENT = struct.Struct("<QQ")  # when, which number (or HOLD)
FLOOD_PERIOD_S = 0.02
TURN_S = 5.0
LOPSIDED_S = 5.0  # connecting takes two of them


class SlowLinkRow(Struct, frozen=True, kw_only=True):
    """30 % loss with 300 ms there and back, and with 300 ms each way; no loss, but 250 ms there and 0 back.

    `flooded`: commands sent every 20 ms without waiting, in loss; `asked`: by the edge's own `RemoteRobot`, that got
    into loss on the way; `lopsided`: by one that measured the server's clock through the lopsided link.
    """

    flooded: int
    flooded_executed_late: int
    asked: int
    asked_executed_late: int
    lopsided: int
    lopsided_executed_late: int
    executed: int
    executed_late: int
    oldest_executed_ms: float
    lost_segments: int


class ReconnectRow(Struct, frozen=True, kw_only=True):
    """`executed_old`: later than their deadline, or after a newer one. Stop: from the last executed command to the
    stop's begin, which `stop_due_ms` (deadline and one period) allows."""

    reconnects: int
    failed_connects: int
    sent: int
    executed: int
    executed_old: int
    oldest_executed_ms: float
    stops: int
    stop_due_ms: float
    stop_begins_ms_p50: float
    stop_begins_ms_max: float


class WatchedFranka(SimulatedFranka):
    """Writes down when the driver gets which numbered action, and when it is told to hold."""

    def __init__(self, events: int) -> None:
        super().__init__("franka_0", TASK)
        self._events = events

    def resolve(self, action: FloatArray) -> Setpoint:
        os.write(self._events, EVENT.pack(time.monotonic_ns(), number_of(action, self.spec.action.upper_array())))
        return super().resolve(action)

    def hold(self) -> None:
        os.write(self._events, EVENT.pack(time.monotonic_ns(), HOLD))
        super().hold()


def action_of(number: int, upper: FloatArray) -> FloatArray:
    """A small action that carries a number below DIGITS ** 2 in its first two elements."""
    action = np.zeros_like(upper)
    digits = divmod(number, DIGITS)
    action[:2] = (np.array([digits[0], digits[1] * 1103 % DIGITS]) / DIGITS - 0.5).astype(np.float32) * upper[:2]
    return action


def number_of(action: FloatArray, upper: FloatArray) -> int:
    """Inverse of `action_of`."""
    high, low = np.rint((action[:2].astype(np.float64) / upper[:2] + 0.5) * DIGITS).astype(int)
    return int(high) * DIGITS + int(low) * pow(1103, -1, DIGITS) % DIGITS


@dataclass(slots=True)
class Numbered:
    """Numbers for commands, and when each was sent."""

    upper: FloatArray
    sent_ns: list[int] = field(default_factory=list)

    def next(self) -> FloatArray:
        self.sent_ns.append(time.monotonic_ns())
        return action_of(len(self.sent_ns) - 1, self.upper)


class RobotSide:
    """A robot server in its own process behind a proxy; what its driver saw."""

    def __init__(self, root: Path, seed: int) -> None:
        self.site = make_site(root, proxied=True)
        network = free_network(domain=True)
        self._states_address = network.state_address
        self.spec = SimulatedFranka("franka_0", TASK).spec
        self.proxy = Proxy(self.site.uplink_address, self.site.ingest_address, seed)
        self.numbered = Numbered(self.spec.action.upper_array())
        self._fork: Fork | None = None

    def __enter__(self) -> RobotSide:
        work = partial(_serve_robot, self.site, self._states_address)
        self._fork = Fork(work, self.site.root / "robot.log")
        self.proxy.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._fork is not None:
            self._fork.kill()
        self.proxy.__exit__()

    def client(self) -> RequestClient[RobotReply]:
        address = self.site.uplink_address
        return RequestClient(ROBOT_REQUEST, address, self.site.keys, EDGE_KEY, ROBOT_KEY, RobotReply)

    @contextlib.contextmanager
    def remote(self) -> Iterator[RemoteRobot]:
        """The edge's own view of the robot: commands through the proxy, states directly."""
        states: Subscriber[RobotState] = Subscriber(
            ROBOT_STATE, self._states_address, self.site.keys, EDGE_KEY, ROBOT_KEY, RobotState
        )
        with self.client() as client, states:
            yield RemoteRobot(client, states, EDGE_KEY)

    def events(self) -> np.ndarray:
        """(N, 2) int64: when, and which number or HOLD."""
        data = (self.site.observed / "driver").read_bytes()
        return np.frombuffer(data[: len(data) // EVENT.size * EVENT.size], np.int64).reshape(-1, 2)


def _serve_robot(site: Site, states_address: str) -> None:
    events = os.open(site.observed / "driver", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    requests: RequestServer[RobotRequest] = RequestServer(
        ROBOT_REQUEST, site.ingest_address, site.keys, ROBOT_KEY, RobotRequest
    )
    with requests, Publisher(ROBOT_STATE, states_address, site.keys, ROBOT_KEY) as states:
        RobotServer(WatchedFranka(events), requests, states, lock_step=False).run(lambda: True)


def arm(client: RequestClient[RobotReply], session: str) -> None:
    """Lease, active, episode; RobotStackError if the link does not let it through in time."""
    for request in (
        AcquireLease(session=session),
        Transition(session=session, target=Lifecycle.ACTIVE),
        ResetEpisode(session=session, seed=0),
    ):
        client.request(request, timeout_s=20.0)


def slow_link(root: Path, seed: int, *, duration_s: float) -> SlowLinkRow:
    """A flood of commands into loss, then the edge's own way of commanding in loss and over a lopsided link."""
    third_s = duration_s / 3
    with RobotSide(root, seed) as side, tqdm(total=3, desc="slow command link", unit="part", leave=False) as bar:
        with side.client() as client:
            arm(client, "first")
            _flood(side, client, 20, "fair")
            ends_s, turns, count = time.monotonic() + third_s, 0, round(min(TURN_S, third_s) / FLOOD_PERIOD_S)
            while time.monotonic() < ends_s:
                side.proxy.set(SLOWER if turns % 2 else SLOW)
                _flood(side, client, count, f"flood-{turns}")
                turns += 1
        bar.update()
        flooded = len(side.numbered.sent_ns)
        _ask(side, time.monotonic() + third_s, FAIR, SLOW)
        asked = len(side.numbered.sent_ns)
        bar.update()
        _ask(side, time.monotonic() + max(third_s, LOPSIDED_S), LOPSIDED, LOPSIDED)
        bar.update()
        side.proxy.set(FAIR)
        time.sleep(1.0)
        events, lost = side.events(), side.proxy.lost_segments
    return _judge_slow_link(side, events, (flooded, asked), lost)


def _judge_slow_link(side: RobotSide, events: np.ndarray, parts: tuple[int, int], lost: int) -> SlowLinkRow:
    executed, sent = events[events[:, 1] != HOLD], len(side.numbered.sent_ns)
    age_ns = executed[:, 0] - np.asarray(side.numbered.sent_ns)[executed[:, 1]]
    part = np.searchsorted(parts, executed[age_ns > _late_ns(side), 1], side="right")
    return SlowLinkRow(
        flooded=parts[0],
        flooded_executed_late=int((part == 0).sum()),
        asked=parts[1] - parts[0],
        asked_executed_late=int((part == 1).sum()),
        lopsided=sent - parts[1],
        lopsided_executed_late=int((part == 2).sum()),
        executed=len(executed),
        executed_late=len(part),
        oldest_executed_ms=round(float(age_ns.max()) / 1e6, 1),
        lost_segments=lost,
    )


def _late_ns(side: RobotSide) -> int:
    return s_to_ns(side.spec.command_timeout_s + LOOKS_LATE_AFTER_S)


def _flood(side: RobotSide, client: RequestClient[RobotReply], count: int, session: str) -> None:
    """Send commands every 20 ms and wait for no answer; deadlines by the true clock, which is one here."""
    with contextlib.suppress(RobotStackError):
        client.request(AcquireLease(session=session), timeout_s=5.0)
    timeout_ns = s_to_ns(side.spec.command_timeout_s)
    for seq in range(count):
        action = side.numbered.next()
        deadline_ns = side.numbered.sent_ns[-1] + timeout_ns
        command = Command(session=session, seq=seq, deadline_ns=deadline_ns, action=action)
        with contextlib.suppress(RobotStackError):
            client.request(command, timeout_s=FLOOD_PERIOD_S)


def _ask(side: RobotSide, ends_s: float, connecting: Weather, commanding: Weather) -> None:
    """What the edge does: connect, measure the server's clock, command; begin again after every error."""
    while time.monotonic() < ends_s:
        side.proxy.set(connecting)
        with contextlib.suppress(RobotStackError), side.remote() as robot:
            robot.connect(20.0)
            robot.arm(20.0)
            robot.reset(0)
            side.proxy.set(commanding)
            while time.monotonic() < ends_s:
                robot.step(side.numbered.next())


def reconnects(root: Path, seed: int, count: int) -> ReconnectRow:
    """Short partitions and cuts of the command link at random instants, with commands on their way each time."""
    rng = np.random.default_rng(seed)
    failed = 0
    with RobotSide(root, seed) as side:
        with side.client() as client:
            arm(client, "first")
        for index in tqdm(range(count), desc="reconnects", unit="partition"):
            side.proxy.set(FAIR)
            with side.client() as client:
                try:
                    client.request(AcquireLease(session=f"s{index}"), timeout_s=5.0)
                except RobotStackError:
                    failed += 1
                _command_into_partition(side, client, f"s{index}", rng)
        time.sleep(1.0)
        events = side.events()
    return _judge_reconnects(side, events, count, failed)


def _command_into_partition(
    side: RobotSide, client: RequestClient[RobotReply], session: str, rng: np.random.Generator
) -> None:
    timeout_ns = s_to_ns(side.spec.command_timeout_s)
    parts_at, heals_at = int(rng.integers(1, 6)), int(rng.integers(8, 20))
    for seq in range(heals_at + 3):
        if seq == parts_at:
            side.proxy.set(PARTITIONED)
        if seq == heals_at:
            if rng.random() < 0.5:
                side.proxy.cut()
            side.proxy.set(FAIR)
        action = side.numbered.next()
        deadline_ns = side.numbered.sent_ns[-1] + timeout_ns
        with contextlib.suppress(RobotStackError):
            client.request(Command(session=session, seq=seq, deadline_ns=deadline_ns, action=action), timeout_s=0.015)


def _judge_reconnects(side: RobotSide, events: np.ndarray, count: int, failed: int) -> ReconnectRow:
    executed = events[events[:, 1] != HOLD]
    age_ns = executed[:, 0] - np.asarray(side.numbered.sent_ns)[executed[:, 1]]
    after_newer = executed[:, 1] < np.maximum.accumulate(executed[:, 1])
    stops_ms = stop_delays_ms(events, s_to_ns(side.spec.command_timeout_s))
    return ReconnectRow(
        reconnects=count,
        failed_connects=failed,
        sent=len(side.numbered.sent_ns),
        executed=len(executed),
        executed_old=int(((age_ns > _late_ns(side)) | after_newer).sum()),
        oldest_executed_ms=round(float(age_ns.max()) / 1e6, 1),
        stops=len(stops_ms),
        stop_due_ms=round(1e3 * (side.spec.command_timeout_s + 1.0 / side.spec.tick_rate_hz), 1),
        stop_begins_ms_p50=round(float(np.median(stops_ms)), 1),
        stop_begins_ms_max=round(float(stops_ms.max()), 1),
    )


def stop_delays_ms(events: np.ndarray, timeout_ns: int) -> np.ndarray:
    """From each executed command that no other followed within the deadline to the next hold."""
    delays = []
    for this, after in pairwise(events):
        gap_ns = after[0] - this[0]
        if this[1] != HOLD and (after[1] == HOLD or gap_ns > timeout_ns) and gap_ns >= timeout_ns:
            delays.append(gap_ns / 1e6)
    return np.asarray(delays)
