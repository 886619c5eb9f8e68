"""Fuzzed commands through gate and guard: `python -m benchmarks.safety [--quick] [--seed N]`.

Per robot 10^6 commands (quick: as many as fit in 35 s for all robots): in range, out of range, not numbers, wrong shape
or dtype, stale, repeated, of an old session, with stops and resets of the goal in between. The driver records; it has
the limits, geometry and spec of the simulated robot, and goals inside and far outside of its limits. Every setpoint
that reaches it is checked from outside: finite, position, velocity, acceleration and jerk by finite differences, box,
self-distance. `p99_ms` is of the filter step, from the tick's beginning to the driver, on the CPU's
clock; `wall_p99_ms` is the same on the wall's, which other load on the machine lengthens. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.core.clock import ManualClock
from robot_stack.core.messages import Command, FloatArray, Lifecycle, Refusal, StopLevel, Verdict
from robot_stack.core.protocols import Reading, Robot, RobotGeometry, Setpoint, SetpointLimits
from robot_stack.core.specs import RobotSpec
from robot_stack.safety.guard import RobotGuard

FULL_COMMANDS = 1_000_000
QUICK_S = 35.0
COMMANDS_PER_TICK = 5
CHUNK = 5_000
RATE_TOLERANCE = 1e-5
PLACE_TOLERANCE_M = 1e-9
SESSION = "fuzz"
KINDS = ("fair",) * 5 + ("slightly_out", "far_out", "not_finite", "shape", "dtype", "stale", "repeated", "session")
ODD_NUMBERS = (np.nan, np.inf, -np.inf, -0.0, 1e-45)


@dataclass(frozen=True)
class RobotCase:
    """A simulated robot: where its class is, and the task it is made with."""

    module: str
    class_name: str
    task: str

    def make(self) -> Robot | None:
        """None where this checkout has no such robot."""
        try:
            robot_class = getattr(importlib.import_module(self.module), self.class_name)
        except (ModuleNotFoundError, AttributeError):
            return None
        robot: Robot = robot_class(self.class_name, self.task)
        robot.connect()
        return robot


CASES = {
    "franka": RobotCase("hardware.franka.sim", "SimulatedFranka", "pick_cube"),
    "unitree_g1": RobotCase("hardware.unitree_g1.sim", "SimulatedG1", "g1_bimanual_lift"),
    "stretch": RobotCase("hardware.stretch.sim", "SimulatedStretch", "stretch_reach_grasp"),
}


class RecordingDriver(Robot):
    """The simulated robot without its physics: it is wherever it was sent, at once."""

    def __init__(self, robot: Robot, rng: np.random.Generator) -> None:
        self._robot = robot
        self._rng = rng
        limits = robot.limits
        self._position = np.clip(robot.measured_setpoint(), limits.lower, limits.upper)
        span = np.subtract(limits.upper, limits.lower)
        self._reach = np.minimum(span, 2.0 * np.asarray(limits.max_velocity))
        self.sent: list[Setpoint] = [self._position]
        self.tick_began = (0.0, 0.0)
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []

    @property
    def spec(self) -> RobotSpec:
        return self._robot.spec

    @property
    def limits(self) -> SetpointLimits:
        return self._robot.limits

    @property
    def geometry(self) -> RobotGeometry | None:
        return self._robot.geometry

    def measured_setpoint(self) -> Setpoint:
        return self._position

    def resolve(self, action: FloatArray) -> Setpoint:
        kind = self._rng.integers(0, 8)
        goal = self._position + self._rng.uniform(-1.0, 1.0, len(self._position)) * self._reach
        if kind == 0:
            return 1e3 * goal
        if kind == 1:
            return np.where(self._rng.random(len(goal)) < 0.2, self._rng.choice(ODD_NUMBERS), goal)
        if kind == 2:
            return self._position + 0.02 * (goal - self._position)
        return goal

    def send(self, setpoint: Setpoint) -> None:
        self.cpu_s.append(time.thread_time() - self.tick_began[0])
        self.wall_s.append(time.perf_counter() - self.tick_began[1])
        self.sent.append(setpoint)
        self._position = setpoint

    def read(self) -> Reading:
        return Reading(stamp_ns=0, features={})

    def connect(self) -> None:
        """The robot is connected already."""

    def close(self) -> None:
        """There is nothing to close."""

    def hold(self) -> None:
        """Goals do not count from the last one."""


class Fuzzer:
    """One robot behind its guard."""

    def __init__(self, robot: Robot, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.driver = RecordingDriver(robot, self.rng)
        self._clock = ManualClock(10**9)
        self._tick_ns = round(1e9 / robot.spec.tick_rate_hz)
        self.guard = RobotGuard(self.driver, self._clock)
        self.guard.connect()
        self.guard.acquire_lease(SESSION, "edge")
        self.guard.transition(Lifecycle.ACTIVE)
        self._lower, self._upper = robot.spec.action.lower_array(), robot.spec.action.upper_array()
        self._seq = 0
        self._accepted = -1

    def run(self, commands: int) -> int:
        """Send commands and tick; how many were executed although they must not be."""
        executed = 0
        for index in range(commands):
            kind = KINDS[self.rng.integers(len(KINDS))]
            result = self.guard.command(self._command(kind))
            if result.verdict is not Verdict.REFUSED:
                self._accepted = result.seq
            if kind in ("not_finite", "shape", "dtype", "stale", "repeated", "session", "far_out"):
                executed += result.verdict is not Verdict.REFUSED
            if index % COMMANDS_PER_TICK == 0:
                self._tick()
            if self.rng.random() < 2e-4:
                self.guard.stop("fuzz", StopLevel.HOLD)
        return executed

    def _tick(self) -> None:
        self.driver.tick_began = (time.thread_time(), time.perf_counter())
        self.guard.tick()
        self._clock.advance_ns(self._tick_ns)

    def _command(self, kind: str) -> Command:
        rng, spread = self.rng, self._upper - self._lower
        action: NDArray[np.float32] = rng.uniform(self._lower, self._upper).astype(np.float32)
        self._seq += 1
        seq, session, deadline_ns = self._seq, SESSION, self._clock.now_ns() + 10**8
        axis = rng.integers(len(action))
        if kind == "slightly_out":
            action += (0.2 * spread).astype(np.float32)
        elif kind == "far_out":
            action[axis] = self._upper[axis] + spread[axis] * np.float32(10.0 ** rng.uniform(0.5, 30.0))
        elif kind == "not_finite":
            action[axis] = rng.choice(ODD_NUMBERS[:3])
        elif kind == "shape":
            action = np.resize(action, rng.choice([0, len(action) - 1, len(action) + 1]))
        elif kind == "dtype":
            action = action.astype(rng.choice(["float64", "float16", "int32"]))
        elif kind == "stale":
            deadline_ns = self._clock.now_ns() - int(rng.integers(1, 10**9))
        elif kind == "repeated":
            self._seq -= 1
            seq = self._accepted - int(rng.integers(0, 1000))
        elif kind == "session":
            session = "old"
        else:
            action[axis] = rng.choice([action[axis], np.float32(-0.0)]) if self._lower[axis] <= 0 else action[axis]
        return Command(session=session, seq=seq, deadline_ns=deadline_ns, action=action)


class Judge:
    """Counts violations in what reached the driver, chunk by chunk."""

    def __init__(self, robot: Robot) -> None:
        self._limits = robot.limits
        self._tick_s = 1.0 / robot.spec.tick_rate_hz
        self._geometry = robot.geometry
        self.violations: Counter[str] = Counter()
        self.worst: dict[str, float] = {}

    def check(self, path: list[Setpoint], fresh: int) -> None:
        """`path` (n, S) with the last `fresh` setpoints unseen; the ones before are the history of the differences."""
        positions = np.array(path)
        self._count("finite", np.asarray(~np.isfinite(positions[-fresh:]).all(axis=1)))
        outside = (positions < self._limits.lower) | (positions > self._limits.upper)
        self._count("position", np.asarray(outside[-fresh:].any(axis=1)))
        rates = positions
        jerk = self._limits.max_jerk or (np.inf,) * len(self._limits.names)
        for name, most in (
            ("velocity", self._limits.max_velocity),
            ("acceleration", self._limits.max_acceleration),
            ("jerk", jerk),
        ):
            rates = np.diff(rates, axis=0) / self._tick_s
            share = (np.abs(rates[-fresh:]) / np.asarray(most)).max(axis=1)
            self.worst[name] = max(self.worst.get(name, 0.0), float(share.max()))
            self._count(name, share > 1.0 + RATE_TOLERANCE)
        if self._geometry is not None:
            self._check_places(positions[-fresh:], self._geometry)

    def _check_places(self, positions: NDArray[np.float64], geometry: RobotGeometry) -> None:
        moved = np.append(True, (np.diff(positions, axis=0) != 0.0).any(axis=1))
        for position in positions[moved]:
            clearance = geometry.look(position)
            points = clearance.points_m
            outside_m = float(np.maximum(geometry.box_lower_m - points, points - geometry.box_upper_m).max())
            short_m = geometry.min_self_distance_m - clearance.self_distance_m
            self.worst["outside_mm"] = max(self.worst.get("outside_mm", -1e9), 1e3 * outside_m)
            self.worst["too_near_mm"] = max(self.worst.get("too_near_mm", -1e9), 1e3 * short_m)
            self.violations["workspace"] += int(not outside_m <= PLACE_TOLERANCE_M)
            self.violations["self_collision"] += int(not short_m <= PLACE_TOLERANCE_M)

    def _count(self, name: str, bad: NDArray[np.bool_]) -> None:
        self.violations[name] += int(bad.sum())


def measure(robot: Robot, seed: int, commands: int, budget_s: float) -> dict[str, object]:
    """Fuzz one robot until so many commands or so much time are spent."""
    fuzzer, judge = Fuzzer(robot, seed), Judge(robot)
    path = fuzzer.driver.sent
    path[:0] = [path[0]] * 3  # it rested before
    ends, done, executed, checked = time.monotonic() + budget_s, 0, 0, len(path)
    while done < commands and time.monotonic() < ends:
        executed += fuzzer.run(min(CHUNK, commands - done))
        done += min(CHUNK, commands - done)
        judge.check(path[checked - 3 :], len(path) - checked)
        checked = len(path)
    guard, driver = fuzzer.guard, fuzzer.driver
    cpu_ms, wall_ms = 1e3 * np.array(driver.cpu_s), 1e3 * np.array(driver.wall_s)
    return {
        "commands": done,
        "violations": sum(judge.violations.values()) + executed,
        "executed_though_bad": executed,
        "refused": guard.verdicts[Verdict.REFUSED],
        "clipped": guard.verdicts[Verdict.CLIPPED],
        "accepted": guard.verdicts[Verdict.ACCEPTED],
        "no_goal": guard.refusals[Refusal.DRIVER],
        "setpoints": len(path) - 3,
        "way": round(float(np.abs(np.diff(path, axis=0)).sum()), 1),
        "held_back": dict(guard.held_back),
        "worst": {name: round(value, 6) for name, value in judge.worst.items()},
        "p50_ms": round(float(np.median(cpu_ms)), 4),
        "p99_ms": round(float(np.quantile(cpu_ms, 0.99)), 4),
        "wall_p99_ms": round(float(np.quantile(wall_ms, 0.99)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"stop after {QUICK_S:.0f} s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    robots = {name: case.make() for name, case in CASES.items()}
    present = {name: robot for name, robot in robots.items() if robot is not None}
    budget_s = QUICK_S / max(len(present), 1) if options.quick else float("inf")
    result: dict[str, dict[str, object]] = {}
    for name, robot in present.items():
        result[name] = measure(robot, options.seed, FULL_COMMANDS, budget_s)
        print(name, *(f"{key}={value}" for key, value in result[name].items()))
        robot.close()
    totals = {
        key: sum(int(str(figures[key])) for figures in result.values())
        for key in ("commands", "violations", "refused", "clipped")
    }
    p99_ms = max((float(str(figures["p99_ms"])) for figures in result.values()), default=0.0)
    missing = sorted(set(robots) - set(present))
    print(
        json.dumps(
            {"benchmark": "safety", "seed": options.seed, **totals, "p99_ms": p99_ms, "missing": missing, **result}
        )
    )


if __name__ == "__main__":
    main()
