"""Rows of the robot server: kills in motion, clocks that are off, commands that must not run.

Real processes. The robot server killed with -9 in motion (per vendor: milliseconds until the vendor's side rests, as
its simulator knows it; whether anything armed again), the edge killed with -9 (milliseconds from the last command to
the beginning of the stop, and to rest), edges whose monotonic clock is off by up to an hour (commands refused as stale,
episodes that did not run), replayed, old-session and expired commands (how many were executed).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from hardware.franka.sim import SimulatedFranka
from robot_stack.apps.connections import (
    ROBOT_STATE,
    SCENE_STATE,
    free_network,
    network_overrides,
    remote_robot,
    robot_client,
)
from robot_stack.apps.keys import ROBOT_KEY, VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.compose import compose_config
from robot_stack.core.clock import ManualClock
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import Command, GetState, Lifecycle, RobotState, Verdict
from robot_stack.core.scene_messages import SceneState
from robot_stack.edge.remote_robot import RemoteRobot
from robot_stack.safety.guard import RobotGuard
from robot_stack.transport.stream import Subscriber

VENDORS = {"franka_ros2": ("franka", "ros2"), "g1_dds": ("g1", "dds"), "stretch_ros2": ("stretch", "ros2")}
REST_SPEED = 0.05
WATCH_S = 3.0
STEPS_IN_MOTION = 4  # fewer than a turn of `half_speed`: the kill must not come where the motion turns back
HOUR_S = 3600
NAMESPACE = ("unshare", "--time", "--monotonic")


class Stack:
    """A robot server, and the vendor's side where there is one, restarted when they die."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.network = free_network(domain=True)
        self.overrides = [*settings, "run=faults", f"runs_directory={directory}", *network_overrides(self.network)]
        self.layout = RunLayout.of(compose_config(self.overrides))
        self.keys = ensure_keys(self.layout)
        self.supervisor = Supervisor(directory / "logs", announce=lambda _: None)

    def start(self, name: str) -> None:
        self.supervisor.start(name, robot_stack_command(name, *self.overrides))

    def state(self) -> RobotState:
        with robot_client(self.network, self.keys, VIEWER_KEY) as client:
            reply = client.request(GetState(), timeout_s=60.0)
        if not isinstance(reply, RobotState):
            raise SystemExit(f"the robot server answered with {type(reply).__name__}")
        return reply

    def server(self) -> psutil.Process:
        """The process that owns the robot: the keeper's child, or the one process there is."""
        process = psutil.Process(self.supervisor.pid("robot-server"))
        kept = [child for child in process.children() if "--unkept" in child.cmdline()]
        return kept[0] if kept else process

    @contextmanager
    def robot(self) -> Iterator[RemoteRobot]:
        with remote_robot(self.network, self.keys) as robot:
            robot.connect(60.0)
            robot.arm(30.0)
            robot.reset(0)
            yield robot


def half_speed(robot: RemoteRobot, index: int) -> np.ndarray:
    """Back and forth, five steps each way."""
    sign = 1.0 if (index // 5) % 2 == 0 else -1.0
    return (0.4 * sign * robot.spec.action.upper_array()).astype(np.float32)


def kill_server(vendor: str, directory: Path, kills: int) -> dict[str, object]:
    """Kill the server in motion, again and again; how long the vendor's side went on moving."""
    robot, backend = VENDORS[vendor]
    stack = Stack(directory, f"robot={robot}", f"backend={backend}")
    to_rest_ms: list[float] = []
    armed_again, faulted_before = 0, list[str]()
    with stack.supervisor, tqdm(total=kills, desc=f"kill server {vendor}", unit="kill") as bar:
        stack.start("vendor-sim")
        stack.start("robot-server")
        while len(to_rest_ms) < kills and len(faulted_before) <= kills:
            with stack.robot() as driven:
                fault = _drive(stack, driven)
                stack.server().kill()
                if fault:
                    faulted_before.append(fault)
                else:
                    to_rest_ms.append(_time_to_rest_ms(stack))
                    bar.update()
            _until(partial(_serves_again, stack))
            armed_again += stack.state().lifecycle is Lifecycle.ACTIVE
    if not to_rest_ms:
        return {"not measured": f"the robot faulted before each kill: {faulted_before}"}
    return {
        "kills": len(to_rest_ms),
        "faulted_before_the_kill": faulted_before,
        "to_rest_ms_p50": round(statistics.median(to_rest_ms), 1),
        "to_rest_ms_max": round(max(to_rest_ms), 1),
        "armed_again": armed_again,
    }


def _drive(stack: Stack, robot: RemoteRobot) -> str:
    """Set the robot in motion; the fault it latched meanwhile, or ''."""
    try:
        for index in range(STEPS_IN_MOTION):
            robot.step(half_speed(robot, index))
    except RobotStackError as error:
        return stack.state().fault or str(error)
    return ""


def _serves_again(stack: Stack) -> bool:
    stack.supervisor.watch()
    return stack.state().lifecycle is not Lifecycle.UNCONFIGURED


def _time_to_rest_ms(stack: Stack) -> float:
    """Until the simulator's own joints move slower than 0.05 units/s, watched for three seconds."""
    killed_ns, last_moving_ns = time.monotonic_ns(), time.monotonic_ns()
    before: SceneState | None = None
    scenes: Subscriber[SceneState] = Subscriber(
        SCENE_STATE, stack.network.scene_state_address, stack.keys, VIEWER_KEY, ROBOT_KEY, SceneState
    )
    with scenes:
        while time.monotonic_ns() - killed_ns < WATCH_S * 1e9:
            scene = scenes.newest(timeout_s=0.05)
            if scene is None:
                continue
            if before is not None and scene.stamp_ns - before.stamp_ns > 40_000_000:
                speed = np.abs(scene.measured - before.measured).max() / ((scene.stamp_ns - before.stamp_ns) / 1e9)
                last_moving_ns = scene.stamp_ns if speed > REST_SPEED else last_moving_ns
                before = scene
            before = before or scene
    return (last_moving_ns - killed_ns) / 1e6


def kill_edge(directory: Path, kills: int) -> dict[str, object]:
    """Kill the commanding process in motion; when the stop begins, when the robot rests."""
    stack = Stack(directory, "robot=franka", "robot.lock_step=false")
    begins_ms, rests_ms = [], []
    with stack.supervisor:
        stack.start("robot-server")
        for _ in tqdm(range(kills), desc="kill edge", unit="kill"):
            states: Subscriber[RobotState] = Subscriber(
                ROBOT_STATE, stack.network.state_address, stack.keys, VIEWER_KEY, ROBOT_KEY, RobotState
            )
            with states:
                edge = subprocess.Popen(_edge_command(stack), stdout=subprocess.DEVNULL)
                _wait_for_motion(states)
                os.kill(edge.pid, signal.SIGKILL)
                edge.wait()
                begun, rested = _stop_times_ms(states)
            begins_ms.append(begun)
            rests_ms.append(rested)
    return {
        "kills": kills,
        "stop_begins_ms_p50": round(statistics.median(begins_ms), 1),
        "stop_begins_ms_max": round(max(begins_ms), 1),
        "at_rest_ms_max": round(max(rests_ms), 1),
    }


def _edge_command(stack: Stack, *more: str) -> list[str]:
    module = [sys.executable, "-m", "benchmarks.edge_standin"]
    return [*module, str(stack.layout.keys), stack.network.robot_address, stack.network.state_address, *more]


def _wait_for_motion(states: Subscriber[RobotState]) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        state = states.newest(timeout_s=0.2)
        if state is not None and state.last_command_seq > 8 and state.moving:
            return
    raise SystemExit("the robot never moved")


def _stop_times_ms(states: Subscriber[RobotState]) -> tuple[float, float]:
    """From the first state with the last command: to the first that is stopping, and on to the first at rest."""
    seen: list[RobotState] = []
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        state = states.newest(timeout_s=0.05)
        if state is not None:
            seen.append(state)
    last = max(state.last_command_seq for state in seen)
    fresh = next(state for state in seen if state.last_command_seq == last)
    stopping = next(state for state in seen if state.stopping and state.stamp_ns > fresh.stamp_ns)
    rest = next(state for state in seen if state.stamp_ns >= stopping.stamp_ns and not state.moving)
    return (stopping.stamp_ns - fresh.stamp_ns) / 1e6, (rest.stamp_ns - stopping.stamp_ns) / 1e6


def clock_jumps(directory: Path, jumps: int, seed: int) -> dict[str, object]:
    """Edges in time namespaces of their own, their monotonic clock ahead by up to an hour."""
    tried = subprocess.run([*NAMESPACE, "1", "--fork", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return {"not measured": f"no time namespaces here: {tried.stderr.strip()}"}
    stack, rng = Stack(directory, "robot=franka", "robot.lock_step=false"), np.random.default_rng(seed)
    stale = failed = commands = 0
    with stack.supervisor:
        stack.start("robot-server")
        for _ in tqdm(range(jumps), desc="clock jumps", unit="jump"):
            offset_s = str(int(rng.integers(1, HOUR_S)))
            command = [*NAMESPACE, offset_s, "--fork", *_edge_command(stack, "8")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            steps = [line.split() for line in done.stdout.splitlines()]
            commands += len(steps)
            stale += sum(refusal == "stale" for _, refusal, _ in steps)
            failed += done.returncode != 0
    return {"jumps": jumps, "commands": commands, "falsely_stale": stale, "episodes_failed": failed}


def refused_commands(count: int, seed: int) -> dict[str, int]:
    """Replayed, old-session and expired commands against a guard: how many were executed."""
    robot, clock, rng = SimulatedFranka("franka_0", "peg_insertion"), ManualClock(10**12), np.random.default_rng(seed)
    guard = RobotGuard(robot, clock)
    guard.connect()
    guard.acquire_lease("old", "edge")
    guard.acquire_lease("new", "edge")
    guard.transition(Lifecycle.ACTIVE)
    guard.reset(0)
    action = np.zeros(len(robot.spec.action.names), dtype=np.float32)
    executed = {"replayed": 0, "old_session": 0, "expired": 0}
    for index in range(count):
        now_ns = clock.now_ns()
        guard.command(Command(session="new", seq=index, deadline_ns=now_ns + 10**8, action=action))
        age_ns = int(rng.integers(1, 10**10))
        for kind, session, seq, deadline_ns in (
            ("replayed", "new", index - int(rng.integers(0, 5)), now_ns + 10**8),
            ("old_session", "old", index + 1, now_ns + 10**8),
            ("expired", "new", index + 1, now_ns - age_ns),
        ):
            result = guard.command(Command(session=session, seq=seq, deadline_ns=deadline_ns, action=action))
            executed[kind] += result.verdict is not Verdict.REFUSED
        if index % 100 == 0:
            guard.tick()
            robot.advance(0.01)
            clock.advance_ns(10**7)
    guard.close()
    return {"commands_each": count, **executed}


def _until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except RobotStackError:
            continue
        time.sleep(0.05)
    raise SystemExit("the robot server did not come back")


def robot_rows(root: Path, kills: int, jumps: int, seed: int, *, quick: bool) -> dict[str, object]:
    """All rows of this module; quick: one kill of the edge, no vendors, two clock jumps."""
    rows: dict[str, object] = {"refused": refused_commands(2_000 if quick else 100_000, seed)}
    rows["kill_edge"] = kill_edge(root / "edge", 1 if quick else kills)
    rows["clock_jumps"] = clock_jumps(root / "clocks", 2 if quick else jumps, seed)
    for vendor in () if quick else VENDORS:
        row = f"kill_server_{vendor}"
        rows[row] = kill_server(vendor, root / vendor, kills)
        print(vendor, json.dumps(rows[row]), flush=True)
    return rows
