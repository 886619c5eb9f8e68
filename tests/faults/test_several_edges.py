"""Several edges feed one learner, in real processes: each has its own robot, spool, key and place in the reports."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from robot_stack.apps.connections import free_network, learner_client
from robot_stack.apps.keys import VIEWER_KEY, ensure_keys
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.reporting import check_integrity
from robot_stack.apps.status import print_status
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.core.codec import pack
from robot_stack.core.errors import TransportError
from robot_stack.core.messages import GetProgress, LearnerProgress, Step
from robot_stack.core.specs import STATE, vector
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.spool import Spool
from robot_stack.edge.uplink import Uplink
from robot_stack.edge.weights import WeightInbox
from robot_stack.evaluation.curves import learning_curve
from robot_stack.learner.metrics import read_metrics
from tests.learner_kit import SPEC, LearnerRun, practice_episode
from tests.system.conftest import SmallRun
from tests.transport_kit import eventually

WITHIN_S = 600.0
KILL_AT = 120
MORE_STEPS = 150


@pytest.mark.timeout(900)
def test_two_edges_feed_one_learner_and_one_of_them_is_killed(
    small_run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    common = small_run.overrides("learner.target_steps=1000000", "edge.max_lead_steps=150", "edge.patience_s=120")
    other = free_network()
    right = [
        *common,
        "edge.name=right",
        "robot.name=franka_1",
        f"network.robot_address={other.robot_address}",
        f"network.state_address={other.state_address}",
    ]
    with Supervisor(small_run.root / "logs", announce=print) as supervisor:
        for name, command, overrides in (
            ("robot-server", "robot-server", common),
            ("robot-server-right", "robot-server", right),
            ("learner", "learner", common),
            ("edge", "edge", common),
            ("edge-right", "edge", right),
        ):
            supervisor.start(name, robot_stack_command(command, *overrides))
        progress = follow(small_run, supervisor)
        print_status(compose_config(common))
        restarts = supervisor.restarts()
    assert restarts == {"robot-server": 0, "robot-server-right": 0, "learner": 0, "edge": 0, "edge-right": 1}
    steps = recorded(small_run)
    check_each_robot_got_on(small_run, steps, progress)
    words = capsys.readouterr().out
    for expected in ("edge: ", "edge right: ", "robot franka_0: edge edge heard", "robot franka_1: edge right heard"):
        assert expected in words


def follow(run: SmallRun, supervisor: Supervisor) -> LearnerProgress:
    """Kill the edge of franka_1 on the way, until both edges have got on after that. The learner's last news."""
    deadline, at_kill = time.monotonic() + WITHIN_S, dict[str, int]()
    keys = ensure_keys(RunLayout(run.root))
    with learner_client(run.network, keys, VIEWER_KEY) as client:
        while time.monotonic() < deadline:
            supervisor.watch()
            try:
                progress = client.request(GetProgress(), timeout_s=1.0)
            except TransportError:
                continue
            assert isinstance(progress, LearnerProgress)
            steps = {name: feed.steps for name, feed in progress.robots.items()}
            if not at_kill and len(steps) == 2 and min(steps.values()) >= KILL_AT:
                os.kill(supervisor.pid("edge-right"), signal.SIGKILL)
                at_kill = steps
            if at_kill and all(steps[name] >= before + MORE_STEPS for name, before in at_kill.items()):
                return progress
            time.sleep(0.02)
    raise AssertionError(f"the edges did not get so far within {WITHIN_S:.0f} s; logs are in {run.root / 'logs'}")


def recorded(run: SmallRun) -> list[Step]:
    with StepStore(run.root / "learner" / "steps") as store:
        return [step for _, step in store.iterate(0)]


def check_each_robot_got_on(run: SmallRun, steps: list[Step], progress: LearnerProgress) -> None:
    layout = RunLayout(run.root)
    assert set(layout.edges) == {"edge", "right"}
    integrity = check_integrity(layout, steps, 1)
    assert 2 * (KILL_AT + MORE_STEPS) <= integrity.acknowledged_steps <= len(steps)
    assert (integrity.lost_steps, integrity.duplicate_steps) == (0, 0)
    by_robot = {name: [step for step in steps if step.robot == name] for name in ("franka_0", "franka_1")}
    for name, own in by_robot.items():
        feed = progress.robots[name]
        assert feed.edge == {"franka_0": "edge", "franka_1": "right"}[name]
        assert KILL_AT + MORE_STEPS <= feed.steps <= len(own)
        assert feed.staleness.steps > 0 and feed.staleness.age_max_s >= 0
        assert max(step.weights_version for step in own) > 0, "weights never reached this robot"
    assert len({step.session for step in by_robot["franka_1"]}) == 2
    assert len({step.session for step in by_robot["franka_0"]}) == 1
    begun = [step.episode_seed for step in steps if step.index == 0]
    assert len(set(begun)) == len(begun), "an episode was begun twice"
    curve = learning_curve(steps)
    assert len(curve.env_steps) == sum(step.terminated or step.truncated for step in steps)
    lines = read_metrics(layout.metrics)
    assert set(lines[-1].robots) == set(by_robot)
    assert all(0 <= line.waiting_share <= 1 for line in lines)


def test_a_robot_that_does_not_fit_is_refused_and_the_alarm_names_the_feature(tmp_path: Path) -> None:
    run = LearnerRun(tmp_path, free_network(), ("learner.target_steps=100000",))
    run.prepare()
    right = compose_config([*run.overrides, "edge.name=right"])
    keys = ensure_keys(RunLayout.of(right))
    board = AlarmBoard()
    misfit = msgspec.structs.replace(
        SPEC, name="robot_1", observation=SPEC.observation | {STATE: vector(("p_mm", "q_m", "r_m"))}
    )
    steps = practice_episode("robot_1", "s", 0, 0)
    with (
        Supervisor(tmp_path / "logs", announce=print) as supervisor,
        Spool(tmp_path / "spool", 1 << 26) as spool,
        Uplink(lambda: learner_client(run.network, keys, "right"), spool, WeightInbox(), board, "right") as uplink,
    ):
        supervisor.start("learner", robot_stack_command("learner", *run.overrides))
        uplink.tell_robot(misfit)
        for step in steps:
            spool.put(pack(step))
        assert eventually(lambda: any(a.kind is AlarmKind.LEARNER_REFUSES for a in board.active()), WITHIN_S)
        (alarm,) = (alarm for alarm in board.active() if alarm.kind is AlarmKind.LEARNER_REFUSES)
        assert "observation.state: names is ('p_mm', 'q_m', 'r_m') instead of ('p_m', 'q_m', 'r_m')" in alarm.message
        assert spool.unacknowledged == len(steps), "a step of a robot that does not fit was taken"
        uplink.tell_robot(msgspec.structs.replace(SPEC, name="robot_1"))
        assert eventually(lambda: spool.unacknowledged == 0, WITHIN_S)
        assert eventually(lambda: not board.active(), WITHIN_S)


def test_an_edge_with_a_robot_that_does_not_fit_the_run_ends_with_words(small_run: SmallRun) -> None:
    other = [*small_run.overrides(), "robot.control_rate_hz=5", "robot.name=franka_1"]
    with Supervisor(small_run.root / "logs", announce=print) as supervisor:
        supervisor.start("robot-server", robot_stack_command("robot-server", *other))
        supervisor.start("edge", robot_stack_command("edge", *other, "edge.name=right"))
        log = small_run.root / "logs" / "edge.log"
        assert eventually(lambda: "control_rate_hz: 5.0 instead of 10.0" in log.read_text(), WITHIN_S)
    assert "robot 'franka_1' (franka_fr3) cannot feed a run of robot 'franka_0'" in log.read_text()
