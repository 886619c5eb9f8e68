"""One run on a Ray cluster of several nodes (all on this machine): nodes and processes are killed, and it goes on.

The head holds the robot. A learner's rank needs one CPU, and every other node has one: so each rank has its own node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
import psutil
import pytest

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.reporting import check_integrity
from robot_stack.apps.supervisor import robot_stack_command
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.messages import Step
from robot_stack.learner.cluster.nodes import LEARNER, HostState
from robot_stack.learner.metrics import MetricsLine, read_metrics
from tests.system.conftest import SMALL, SmallRun

ray = pytest.importorskip("ray", reason="needs the extra 'cluster': pip install 'robot-stack[cluster]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

T = TypeVar("T")
ROBOT = "franka_0"
PATIENCE_S = 240.0
LITTLE = {"object_store_memory": 80 << 20, "include_dashboard": False}
# A node counts as dead after three seconds of silence instead of twenty.
QUICK = {"health_check_initial_delay_ms": 3000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


class Nodes:
    """A head without CPUs that holds the robot, and learners' nodes of one CPU each."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "resources": {f"robot/{ROBOT}": 1}, "_system_config": QUICK, **LITTLE}
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self._nodes: list[Any] = []

    def add(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=1, **LITTLE))

    def kill_node_of(self, pid: int) -> None:
        """Kill the node whose Ray process started this one, as if its power failed."""
        raylet = psutil.Process(pid).ppid()
        node = next(one for one in self._nodes if one.all_processes["raylet"][0].process.pid == raylet)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


class ClusterRun:
    """`robot-stack cluster` as a process, seen from outside."""

    def __init__(self, nodes: Nodes, small: SmallRun, *more: str) -> None:
        self.layout = RunLayout(small.root)
        wanted = (f"cluster.address={nodes.address}", f"cluster.patience_s={PATIENCE_S:.0f}", *more)
        self._output = (small.root / "cluster.txt").open("w+b")
        command = robot_stack_command("cluster", *small.overrides(*wanted))
        self._process = subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT)

    def state(self, name: str) -> HostState | None:
        try:
            actor = ray.get_actor(name, namespace="robot_stack/small")
            return msgspec.msgpack.decode(ray.get(actor.state.remote(), timeout=5.0), type=HostState)
        except (ValueError, ray.exceptions.RayError):
            return None

    def pid(self, name: str) -> int:
        state = self.until(lambda: self.state(name), f"{name} never came")
        assert state is not None
        return state.pid

    def until(self, look: Callable[[], T], failure: str) -> T:
        """What `look` finds, once it is something."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, f"the run ended: {self.text()}"
            found = look()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{failure}: {self.text()}")

    def newest(self) -> MetricsLine | None:
        lines = read_metrics(self.layout.metrics)
        return lines[-1] if lines else None

    def goes_on(self, ranks: int) -> MetricsLine:
        """Until new weights come out of updates that so many ranks made."""
        before = self.newest()
        version = before.weights_version if before else 0

        def newer() -> MetricsLine | None:
            line = self.newest()
            there = line is not None and line.weights_version > version and line.metrics.get("ranks") == ranks
            return line if there else None

        line = self.until(newer, f"no weights of {ranks} ranks after version {version}")
        assert line is not None
        return line

    def text(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")[-3000:]

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(90.0)
        finally:
            self._process.kill()
            self._output.close()

    def steps(self) -> list[Step]:
        with StepStore(self.layout.steps, settings=StoreSettings(seal=False)) as store:
            return [step for _, step in store.iterate(store.first_index)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder of whoever runs the tests
        made = Nodes()
        made.add()
        ray.init(address=made.address, namespace="test", log_to_driver=False, configure_logging=False)
        yield made
        made.close()


@pytest.mark.timeout(900)  # it waits for seven processes to start, one after the other
def test_a_run_survives_the_death_of_nodes_and_processes(nodes: Nodes, small_run: SmallRun) -> None:
    run = ClusterRun(
        nodes, small_run, "cluster.ranks=2", "cluster.trusted_network=true", "learner.target_steps=1000000"
    )
    alone = run.goes_on(ranks=1)  # the second rank has no node yet
    nodes.add()
    run.goes_on(ranks=2)

    # Another run wants the robot: it is told who has it, within its patience.
    network = network_overrides(free_network())
    ours = [*SMALL, f"runs_directory={small_run.root.parent}", *network, f"cluster.address={nodes.address}"]
    began_s = time.monotonic()
    refused = subprocess.run(
        robot_stack_command("cluster", *ours, "run=other", "cluster.patience_s=2"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert refused.returncode == 9, refused.stderr
    assert f"The robot '{ROBOT}' is taken: run 'small' holds it" in refused.stderr
    assert "Waited 2 s" in refused.stderr and time.monotonic() - began_s < PATIENCE_S / 2

    # The second rank's node dies: rank 0 goes on alone, and shares again once there is a node.
    nodes.kill_node_of(run.pid("learner/1"))
    without = run.goes_on(ranks=1)
    nodes.add()
    run.goes_on(ranks=2)

    # The robot's actor is killed: Ray starts it again, with robot server and edge.
    robot = run.pid(f"robot/{ROBOT}")
    os.kill(robot, signal.SIGKILL)

    def came_back() -> bool:
        state = run.state(f"robot/{ROBOT}")
        return state is not None and state.pid != robot

    run.until(came_back, "the robot did not come back")
    assert run.goes_on(ranks=2).trained_steps > without.trained_steps > alone.trained_steps

    # Rank 0's node dies: it goes on elsewhere from the run's folder, and the curve with it.
    before = run.newest()
    nodes.kill_node_of(run.pid(LEARNER))
    nodes.add()
    after = run.goes_on(ranks=2)
    assert before is not None and after.trained_steps > before.trained_steps

    assert run.end() == 130, run.text()
    integrity = check_integrity(run.layout, run.steps(), restarts=0)
    assert integrity.acknowledged_steps > 0
    assert (integrity.lost_steps, integrity.duplicate_steps) == (0, 0)


def test_a_robot_that_no_node_has_is_named_with_those_that_are_there(nodes: Nodes, small_run: SmallRun) -> None:
    command = small_run.overrides(f"cluster.address={nodes.address}", "cluster.patience_s=2", "cluster.robots.left=''")
    refused = subprocess.run(
        robot_stack_command("cluster", *command), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert refused.returncode == 9, refused.stderr
    assert f"No node of the cluster has the robot 'left'; there are: {ROBOT}" in refused.stderr
    assert json.dumps({"robot/left": 1}) in refused.stderr


def test_without_a_cluster_the_message_says_how_to_start_one(small_run: SmallRun) -> None:
    command = small_run.overrides("cluster.address=127.0.0.1:1")
    refused = subprocess.run(
        robot_stack_command("cluster", *command), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert refused.returncode == 6, refused.stderr
    assert "ray start --head" in refused.stderr
