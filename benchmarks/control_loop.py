"""The robot server's own period: `python -m benchmarks.control_loop [--quick] [--seed N]`.

A real robot server process for each robot, at the far end of the vendor's interface a vendor-side simulator: Franka
and Stretch at 100 Hz over ROS 2, G1 at 500 Hz over DDS, and the simulated Franka in the server's own process as
baseline. The server follows commands at 10 Hz while it is measured. Four conditions, in one run: alone; with a policy's
inference loop busy on the other core; with the ROS 2 node beside the server; with both. Figures come from the server
itself, over its last periods; jitter is the distance from the wanted period. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from robot_stack.apps.connections import network_overrides, remote_robot, robot_client
from robot_stack.apps.keys import VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.local_robot import local_robot_server
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import NetworkConfig, StackConfig
from robot_stack.core.messages import GetDiagnostics, RobotDiagnostics
from robot_stack.edge.remote_robot import RemoteRobot

ROBOTS = {
    "franka_sim": ("robot=franka", "robot.lock_step=false"),
    "franka_ros2": ("robot=franka", "backend=ros2"),
    "stretch_ros2": ("robot=stretch", "backend=ros2"),
    "g1_dds": ("robot=g1", "backend=dds"),
}
_BUSY = "import numpy as np\na = np.random.rand(200, 200)\nwhile True:\n    a = np.tanh(a @ a / 200)\n"


@contextmanager
def inference_load(wanted: bool) -> Iterator[None]:
    """A process that computes without pause, one thread, as a policy does."""
    if not wanted:
        yield
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", _BUSY], env=environment)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def ros2_node(wanted: bool, logs: Path, overrides: list[str]) -> Iterator[None]:
    """The ROS 2 node beside the server."""
    if not wanted:
        yield
        return
    with Supervisor(logs, announce=print) as supervisor:
        supervisor.start("ros2-node", robot_stack_command("ros2-node", *overrides))
        time.sleep(2.0)
        supervisor.watch()
        yield


def diagnostics(config: StackConfig, network: NetworkConfig) -> RobotDiagnostics:
    with robot_client(network, ensure_keys(RunLayout.of(config)), VIEWER_KEY) as client:
        reply = client.request(GetDiagnostics(), timeout_s=5.0)
    if not isinstance(reply, RobotDiagnostics):
        raise SystemExit(f"the robot server answered with {type(reply).__name__}")
    return reply


def drive(robot: RemoteRobot, rng: np.random.Generator, duration_s: float) -> None:
    """Small random actions at the control rate."""
    robot.reset(0)
    action = robot.spec.action
    middle = (action.lower_array() + action.upper_array()) / 2
    end = time.monotonic() + duration_s
    while time.monotonic() < end:
        noise = rng.uniform(-0.2, 0.2, middle.shape) * (action.upper_array() - action.lower_array()) / 2
        robot.step((middle + noise).astype(np.float32))


def measure(name: str, directory: Path, seed: int, duration_s: float) -> dict[str, dict[str, float]]:
    """Period and jitter of one robot's server in every condition."""
    overrides = [*ROBOTS[name], f"run={name}", f"runs_directory={directory}"]
    config = compose_config(overrides)
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    keys = ensure_keys(RunLayout.of(config))
    for condition, load, ros in (
        ("alone", False, False),
        ("inference", True, False),
        ("ros2_node", False, True),
        ("inference_and_ros2_node", True, True),
    ):
        with ExitStack() as stack:
            network = stack.enter_context(local_robot_server(config, overrides, name=f"{name}-{condition}"))
            robot = stack.enter_context(remote_robot(network, keys))
            robot.connect(40.0)
            stack.enter_context(ros2_node(ros, directory / name, [*overrides, *network_overrides(network)]))
            stack.enter_context(inference_load(load))
            robot.arm(20.0)
            before = diagnostics(config, network)
            drive(robot, rng, duration_s)
            found[condition] = _figures(before, diagnostics(config, network), robot.spec.tick_rate_hz)
        print(name, condition, json.dumps(found[condition]), flush=True)
    return found


def _figures(before: RobotDiagnostics, after: RobotDiagnostics, tick_rate_hz: float) -> dict[str, float]:
    wanted_ms = 1e3 / tick_rate_hz
    return {
        "period_wanted_ms": wanted_ms,
        "period_p50_ms": round(after.period_p50_s * 1e3, 4),
        "jitter_p50_ms": round(after.jitter_p50_s * 1e3, 4),
        "jitter_p99_ms": round(after.jitter_p99_s * 1e3, 4),
        "jitter_max_ms": round(after.jitter_max_s * 1e3, 4),
        "ticks": after.ticks - before.ticks,
        "overruns": after.overruns - before.overruns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a second each, Franka over ROS 2 and G1 only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = ("franka_ros2", "g1_dds") if options.quick else tuple(ROBOTS)
    duration_s = 1.0 if options.quick else 10.0
    with tempfile.TemporaryDirectory() as directory:
        result = {name: measure(name, Path(directory), options.seed, duration_s) for name in names}
    added = {
        name: round(figures["ros2_node"]["jitter_p99_ms"] - figures["alone"]["jitter_p99_ms"], 4)
        for name, figures in result.items()
    }
    print(json.dumps({"benchmark": "control_loop", "seed": options.seed, "ros2_added_p99_ms": added, **result}))


if __name__ == "__main__":
    main()
