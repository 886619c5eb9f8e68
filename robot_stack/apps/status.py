"""`robot-stack status`: what the servers of a run say, in words."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from robot_stack.apps.connections import learner_client, robot_client
from robot_stack.apps.keys import VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.reset_free import describe_practice
from robot_stack.config.schema import DEFAULT_EDGE, StackConfig
from robot_stack.core.clock import NS_PER_S
from robot_stack.core.errors import RobotStackError
from robot_stack.core.messages import GetProgress, GetState, LearnerProgress, RobotFeed, RobotState
from robot_stack.edge.gauges import GaugeReadings, Spread
from robot_stack.edge.watch import read_status

TIMEOUT_S = 1.0


def print_status(config: StackConfig) -> int:
    """Print one paragraph for each server; the exit code of the first one that does not answer, else 0."""
    code = 0
    for describe in (_robot, _edges, _learner):
        try:
            sys.stdout.write(describe(config) + "\n")
        except RobotStackError as error:
            sys.stdout.write(f"{error}\n")
            code = code or type(error).exit_code
    return code


def _robot(config: StackConfig) -> str:
    keys = ensure_keys(RunLayout.of(config))
    with robot_client(config.network, keys, VIEWER_KEY) as client:
        state = client.request(GetState(), TIMEOUT_S)
    if not isinstance(state, RobotState):
        return f"robot: unexpected answer {type(state).__name__}"
    words = f"robot {config.robot.name}: {state.lifecycle.value}, {'moving' if state.moving else 'at rest'}"
    words += f", last command {state.last_command_seq}, state {state.seq}"
    return words + (f"\n  FAULT (a person has to clear it): {state.fault}" if state.fault else "")


def _edges(config: StackConfig) -> str:
    """All edges that work on this machine."""
    edges = RunLayout.of(config).edges
    return "\n".join(_edge(name, folder) for name, folder in edges.items()) or "edge: nothing recorded here"


def _edge(name: str, folder: Path) -> str:
    status = read_status(folder / "status.json")
    who = "edge" if name == DEFAULT_EDGE else f"edge {name}"
    if status is None:
        return f"{who}: nothing recorded here"
    now_ns = time.monotonic_ns()
    words = (
        f"{who}: {(now_ns - status.stamp_ns) / NS_PER_S:.0f} s ago {status.steps_kept} steps kept, "
        f"{status.steps_waiting} wait for the learner, {status.steps_dropped} could not be kept, "
        f"{status.steps_refused} were set aside"
    )
    return (
        words
        + _gauges(status.gauges)
        + describe_practice(folder)
        + "".join(
            f"\n  {alarm.kind.value}, for {(now_ns - alarm.since_ns) / NS_PER_S:.0f} s: {alarm.message}"
            for alarm in status.alarms
        )
    )


def _gauges(gauges: GaugeReadings) -> str:
    """The policy's and the loop's gauges, a line for each."""
    if not gauges.warm:
        return "\n  the policy is not warm yet: no episode begins"
    lines = [f"inference {_ms(gauges.inference_ms)}, {100 * gauges.cached_share:.0f} % of the block calls cached"]
    if gauges.steps:
        lines.append(
            f"{gauges.steps} control steps; {gauges.late_actions} actions came too late, "
            f"{gauges.empty_steps} steps had none"
        )
    if gauges.period_jitter_ms.count:
        lines.append(f"jitter of the control period {_ms(gauges.period_jitter_ms)}")
    lines += [f"age of {key} {_ms(spread)}" for key, spread in gauges.age_ms.items()]
    lines.append(f"weights version {gauges.weights_version}, {gauges.refused_weights} refused")
    return "".join(f"\n  {line}" for line in lines)


def _ms(spread: Spread) -> str:
    return f"{spread.p50:.2f} ms (p99 {spread.p99:.2f} ms)" if spread.count else "not measured yet"


def _learner(config: StackConfig) -> str:
    keys = ensure_keys(RunLayout.of(config))
    with learner_client(config.network, keys, VIEWER_KEY) as client:
        progress = client.request(GetProgress(), TIMEOUT_S)
    if not isinstance(progress, LearnerProgress):
        return f"learner: unexpected answer {type(progress).__name__}"
    return (
        f"learner: {progress.durable_steps} steps durable, trained through {progress.trained_steps} of "
        f"{progress.target_steps}, {progress.updates} updates, weights version {progress.weights_version}"
        + (", finished" if progress.finished else "")
        + f"\n  waited for steps {100 * progress.waiting_share:.0f} % of the last minute"
        + "".join(f"\n  {_feed(name, feed)}" for name, feed in progress.robots.items())
    )


def _feed(robot: str, feed: RobotFeed) -> str:
    """A robot as the learner sees it."""
    heard = f"edge {feed.edge} heard {feed.heard_s:.1f} s ago" if feed.heard_s >= 0 else "its edge was not heard yet"
    words = f"robot {robot}: {heard}, {feed.steps} steps, {feed.waiting} of them not trained through"
    stale = feed.staleness
    if not stale.steps:
        return words
    words += (
        f"; weights that acted were {stale.versions_median:.0f} versions behind (95 % within "
        f"{stale.versions_p95:.0f}, at most {stale.versions_max})"
    )
    if stale.age_max_s >= 0:
        words += (
            f" and published {stale.age_median_s:.1f} s before (95 % within {stale.age_p95_s:.1f} s, at most "
            f"{stale.age_max_s:.1f} s)"
        )
    return words
