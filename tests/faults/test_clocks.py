"""Clocks that jump or start elsewhere: deadlines are monotonic, and offsets between hosts are measured."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.keys import ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.compose import compose_config

ROOT = Path(__file__).parents[2]
HOUR_S = 3600
NAMESPACE = ("unshare", "--time", "--monotonic")
CONTROL_PATH = (
    "robot_stack/core",
    "robot_stack/safety",
    "robot_stack/edge",
    "robot_stack/transport",
    "hardware",
    "robot_stack/apps/robot_server.py",
    "robot_stack/apps/keeper.py",
)
FOR_LOGS_ONLY = {
    "robot_stack/transport/keys.py": "the day a key was made",
    "robot_stack/edge/reset_free.py": "the time at which a person was called",
}


def namespace_refused() -> str:
    """Why this machine does not let a process have clocks of its own; '' if it does."""
    tried = subprocess.run([*NAMESPACE, "1", "--fork", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def test_an_edge_whose_clock_is_an_hour_ahead_drives_as_usual(tmp_path: Path) -> None:
    reason = namespace_refused()
    if reason:
        pytest.skip(f"this machine offers no time namespaces ({reason})")
    network = free_network()
    overrides = ["run=clocks", f"runs_directory={tmp_path}", "robot.lock_step=false", *network_overrides(network)]
    layout = RunLayout.of(compose_config(overrides))
    ensure_keys(layout)
    with Supervisor(tmp_path / "logs", announce=print) as supervisor:
        supervisor.start("robot-server", robot_stack_command("robot-server", *overrides))
        edge = [sys.executable, "-m", "benchmarks.edge_standin", str(layout.keys)]
        done = subprocess.run(
            [*NAMESPACE, str(HOUR_S), "--fork", *edge, network.robot_address, network.state_address, "30"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [line.split() for line in done.stdout.splitlines()]
    assert len(steps) == 30
    assert all(refusal != "stale" for _, refusal, _ in steps)
    assert all(float(age_ms) < 1000.0 for _, _, age_ms in steps)


def _wall_clock_reads(path: Path) -> list[int]:
    """Lines that ask for the time of day."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if (owner, node.func.attr) in {("time", "time"), ("time", "time_ns"), ("datetime", "now")}:
                found.append(node.lineno)
    return found


def test_nothing_on_the_way_of_a_command_asks_for_the_time_of_day() -> None:
    """So a jump of the wall clock can neither miss a stop nor cause one."""
    files = [file for part in CONTROL_PATH for file in (sorted((ROOT / part).rglob("*.py")) or [ROOT / part])]
    assert len(files) > 50
    readers = {str(file.relative_to(ROOT)): lines for file in files if (lines := _wall_clock_reads(file))}
    assert set(readers) <= set(FOR_LOGS_ONLY), readers
