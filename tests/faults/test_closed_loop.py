"""kill -9 of real processes in the middle of their work: the run goes on, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from robot_stack.apps.connections import ROBOT_STATE
from robot_stack.apps.keys import ROBOT_KEY, VIEWER_KEY
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.reporting import check_integrity
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.buffer.store import StepStore
from robot_stack.core.messages import Lifecycle, RobotState, Step
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.stream import Subscriber
from tests.faults.practice import practise
from tests.system.conftest import SmallRun

COMMAND_TIMEOUT_S = 0.15
TICK_S = 0.01


def recorded(run: SmallRun) -> list[Step]:
    with StepStore(run.root / "learner" / "steps") as log:
        return [step for _, step in log.iterate(0)]


def parameters(run: SmallRun) -> dict[str, bytes]:
    store = CheckpointStore(run.root / "learner" / "checkpoints")
    store.open()
    checkpoint = store.latest()
    assert checkpoint is not None
    return {name: value.tobytes() for name, value in checkpoint.tensors.items()} | {"meta": checkpoint.meta}


def test_each_process_killed_twice_and_no_acknowledged_step_lost(small_run: SmallRun) -> None:
    kills = [
        (150, "edge"),
        (300, "learner"),
        (450, "robot-server"),
        (600, "learner"),
        (750, "edge"),
        (900, "robot-server"),
    ]
    restarts = practise(small_run, ["learner.target_steps=1100", "edge.max_lead_steps=200"], kills)
    assert restarts == {"edge": 2, "learner": 2, "robot-server": 2}
    steps = recorded(small_run)
    integrity = check_integrity(RunLayout(small_run.root), steps, 6)
    assert integrity.acknowledged_steps >= 1100
    assert integrity.lost_steps == 0
    assert integrity.duplicate_steps == 0
    assert len({step.session for step in steps}) >= 3
    seeds = [(step.session, step.episode, step.episode_seed) for step in steps if step.index == 0]
    assert len({seed for _, _, seed in seeds}) == len(seeds), "an episode was begun twice"


def test_a_killed_learner_ends_with_the_parameters_of_one_that_was_not(tmp_path: Path, prepared_run: Path) -> None:
    settings = ["learner.target_steps=480", "edge.max_lead_steps=0"]
    calm, killed = (SmallRun(tmp_path / name, prepared_run) for name in ("calm", "killed"))
    practise(calm, settings, [])
    restarts = practise(killed, settings, [(250, "learner"), (400, "learner")])
    assert restarts["learner"] == 2
    first, second = recorded(calm)[:480], recorded(killed)[:480]
    assert [step.action_sent.tobytes() for step in first] == [step.action_sent.tobytes() for step in second]
    assert parameters(calm) == parameters(killed)


def watch(states: Subscriber[RobotState], duration_s: float) -> list[RobotState]:
    """Every state that arrives within that time."""
    found: list[RobotState] = []
    end = time.monotonic() + duration_s
    while time.monotonic() < end:
        state = states.newest(timeout_s=0.05)
        if state is not None and (not found or state.seq != found[-1].seq):
            found.append(state)
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_the_robot_stops_within_deadline_and_a_period_when_the_edge_dies(small_run: SmallRun, number: int) -> None:
    real_time = small_run.overrides("robot.lock_step=false", "edge.max_lead_steps=-1", "learner.target_steps=10000")
    keys = KeyStore(small_run.root / "keys")
    states: Subscriber[RobotState] = Subscriber(
        ROBOT_STATE, small_run.network.state_address, keys, VIEWER_KEY, ROBOT_KEY, RobotState
    )
    with Supervisor(small_run.root / "logs", announce=print) as supervisor, states:
        for name in ("robot-server", "edge", "learner"):
            supervisor.start(name, robot_stack_command(name, *real_time))
        wait_for_motion(states)
        os.kill(supervisor.pid("edge"), signal.SIGKILL)
        after = watch(states, 1.0)
    last_command = max(state.last_command_seq for state in after)
    last_fresh = next(state for state in after if state.last_command_seq == last_command)
    stopping = next(state for state in after if state.stopping and state.seq > last_fresh.seq)
    delay_s = (stopping.stamp_ns - last_fresh.stamp_ns) / 1e9
    # One period for the stop to begin, one because a state shows it only afterwards. A busy machine stretches periods.
    periods_s = [(later.stamp_ns - state.stamp_ns) / 1e9 for state, later in pairwise(after)]
    allowed_s = COMMAND_TIMEOUT_S + TICK_S + max(TICK_S, *periods_s) + 0.002
    assert delay_s <= allowed_s, f"stop began {delay_s * 1e3:.0f} ms after the last command"
    at_rest = next(state for state in after if state.seq > stopping.seq and not state.moving)
    assert (at_rest.stamp_ns - stopping.stamp_ns) / 1e9 <= 0.25
    assert after[-1].lifecycle is Lifecycle.ACTIVE and not after[-1].moving


def wait_for_motion(states: Subscriber[RobotState]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = states.newest(timeout_s=0.2)
        if state is not None and state.last_command_seq > 8 and state.moving:
            return
    raise AssertionError("the robot never moved")
