"""An edge whose chunks come from a policy server process: the same actions as with the policy in its own process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from robot_stack.apps.base_policy import load_base_policy
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.process import use_one_torch_thread
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Observation, Step
from robot_stack.edge.watch import EdgeStatus, read_status
from tests.system.conftest import SmallRun, run_cli

TIMEOUT_S = 240.0


def practise(run: SmallRun, *overrides: str) -> tuple[EdgeStatus, list[Step]]:
    """All processes until the learner has its steps; the edge's last status, and those steps."""
    everything = run.overrides("edge.inference=server", "learner.target_steps=80", *overrides)
    layout = RunLayout.of(compose_config(everything))
    deadline_s = time.monotonic() + TIMEOUT_S
    with Supervisor(layout.logs, announce=print) as supervisor:
        for name in ("robot-server", "policy-server", "learner", "edge"):
            supervisor.start(name, robot_stack_command(name, *everything))
        while not supervisor.finished("edge"):
            assert time.monotonic() < deadline_s, _logs(layout.logs)
            supervisor.watch()
            time.sleep(0.05)
    status = read_status(layout.edge / "status.json")
    assert status is not None
    with StepStore(layout.steps) as store:
        return status, [step for _, step in store.iterate(0)]


def _logs(directory: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in sorted(directory.glob("*.log")))


def test_actions_of_a_policy_server_are_those_of_the_policy_bit_for_bit(small_run: SmallRun) -> None:
    use_one_torch_thread()  # as the server does: the last bit depends on how sums are shared out
    status, steps = practise(small_run)
    base = load_base_policy(compose_config(small_run.overrides()))  # on the same back-end
    assert len(steps) >= 80
    checked = 0
    for step in steps:
        if step.index % 8 == 0:
            seen = Observation(
                id=0,
                stamp_ns=0,
                features=step.observation,
                age_ns={},
                episode_seed=step.episode_seed,
                index=step.index,
                instruction=step.instruction,
            )
            assert step.action_base.tobytes() == base.predict(seen).actions[0].tobytes()
            checked += 1
    assert checked >= 10
    assert status.gauges.warm and status.gauges.inference_ms.count >= checked
    assert status.gauges.steps >= len(steps) and status.gauges.period_jitter_ms.count == 0


@pytest.mark.slow
def test_beside_the_control_loop_in_real_time(small_run: SmallRun) -> None:
    status, steps = practise(small_run, "robot.lock_step=false", "edge.chunking=rtc", "policy.execute_steps=4")
    gauges = status.gauges
    assert len(steps) >= 80 and gauges.warm
    assert gauges.inference_ms.count >= 10 and gauges.period_jitter_ms.count >= 60
    assert gauges.period_jitter_ms.p50 < 50.0
    assert set(gauges.age_ms) == set(steps[0].observation)


def test_without_a_policy_server_the_edge_says_what_to_start(small_run: SmallRun) -> None:
    done = run_cli("edge", *small_run.overrides("edge.inference=server", "edge.patience_s=0.5"))
    assert done.returncode != 0 and "robot-stack policy-server" in done.stderr


def test_a_policy_server_without_a_policy_says_so(small_run: SmallRun) -> None:
    (small_run.root / "policy" / "policy.json").unlink()
    done = run_cli("policy-server", *small_run.overrides())
    assert done.returncode == PolicyError.exit_code and "no policy at" in done.stderr
