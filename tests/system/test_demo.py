"""The whole loop through the command line, small: it ends with a result, and goes on after an interruption."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.reporting import Result
from robot_stack.apps.supervisor import robot_stack_command
from tests.system.conftest import SMALL, SmallRun, run_cli

TINY = (
    "learner.target_steps=500",
    "evaluation.episodes=4",
    "evaluation.replan_every=[4]",
    "evaluation.replan_episodes=2",
    "evaluation.videos=1",
    "evaluation.wall_clock_episodes=1",
)


def result_of(output: str, root: Path) -> Result:
    """The last line of output, which is also in result.json."""
    result = msgspec.json.decode(output.strip().splitlines()[-1], type=Result)
    assert msgspec.json.decode((root / "result.json").read_bytes(), type=Result) == result
    return result


def test_an_interrupted_demo_goes_on_and_ends_with_its_result(small_run: SmallRun) -> None:
    command = ["demo", *small_run.overrides(*TINY)]
    log = small_run.root / "learner" / "steps"
    with subprocess.Popen(robot_stack_command(*command), stdout=subprocess.PIPE, text=True) as first:
        deadline = time.monotonic() + 60
        while not any(log.glob("*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2.0)
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "goes on from here" in output
    done = run_cli(*command, timeout_s=240)
    assert done.returncode == 0, done.stderr
    result = result_of(done.stdout, small_run.root)
    assert result.env_steps == 500 and result.updates == 20 + 150
    assert result.acknowledged_steps >= 500
    assert (result.lost_steps, result.duplicate_steps) == (0, 0)
    assert result.episodes == 4 and set(result.bc_replanning) == {"4", "8"}
    assert result.rl_success is not None and result.p_value is not None and result.rl_ci is not None
    report = (small_run.root / "report.html").read_text()
    assert "data:image/gif;base64" in report and "edge control loop, wall clock" in report


@pytest.mark.parametrize(
    ("robot", "task", "settings"),
    [
        ("gym_pusht", "pusht", ["robot.max_episode_steps=120", "task.keep=return", "task.keep_return=-1"]),
        ("gym_hil", "panda_pick_cube", ["robot.max_episode_steps=30"]),
    ],
)
def test_the_same_pipeline_runs_gymnasium_tasks_by_configuration_alone(
    robot: str, task: str, settings: list[str], tmp_path: Path
) -> None:
    done = run_cli(
        "demo",
        *SMALL,
        *network_overrides(free_network()),
        f"runs_directory={tmp_path}",
        f"robot={robot}",
        f"task={task}",
        *settings,
        "task.demonstrations=3",
        "learner.target_steps=260",
        "evaluation.episodes=2",
        "evaluation.replan_every=[]",
        "evaluation.videos=0",
        timeout_s=280,
    )
    assert done.returncode == 0, done.stderr
    result = result_of(done.stdout, tmp_path / "small")
    assert result.task == task and result.env_steps == 260 and result.lost_steps == 0
