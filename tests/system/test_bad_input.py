"""Bad input gives one clear message and its own exit code, never a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.core.errors import (
    AuthenticationError,
    ConfigError,
    MissingDependencyError,
    PolicyError,
    RobotError,
    RobotStackError,
    SpecMismatchError,
    UnreachableError,
)
from tests.system.conftest import SmallRun, run_cli

HASTE = "edge.patience_s=2"


def check(done, error: type, *words: str) -> None:  # type: ignore[no-untyped-def]
    assert done.returncode == error.exit_code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    message = [line for line in done.stderr.splitlines() if line.startswith("robot-stack:")]
    assert len(message) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["robot=frankaa"], ["frankaa", "did you mean robot=franka"]),
        (["task=peg"], ["there is no task called 'peg'", "peg_insertion"]),
        (["learner.target_step=5"], ["learner.target_step", "did you mean 'learner.target_steps'"]),
        (["learner.target_steps=many"], ["many"]),
        (["learner.target_steps=0"], ["target_steps", "larger than 0"]),
        (["algorithm.residual.action_scale=3"], ["action_scale", "3.0", "0 to 1"]),
        (["run=../elsewhere"], ["not a name"]),
    ],
)
def test_wrong_configuration(overrides: list[str], words: list[str], tmp_path: Path) -> None:
    check(run_cli("collect", f"runs_directory={tmp_path}", *overrides), ConfigError, *words)


def test_unknown_environment(tmp_path: Path) -> None:
    overrides = ["robot=gymnasium", "robot.env_id=gym_pusht/NoSuch-v0", "task=pusht", f"runs_directory={tmp_path}"]
    done = run_cli("robot-server", *overrides, *network_overrides(free_network()))
    check(done, RobotError, "NoSuch")


def test_a_robot_server_of_ones_own_that_cannot_start_says_why(tmp_path: Path) -> None:
    done = run_cli("collect", f"runs_directory={tmp_path}", "robot.cameras=[back]", "edge.patience_s=10")
    assert done.returncode == RobotStackError.exit_code, done.stderr
    assert "no camera 'back'; it has front, wrist_rgb" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_without_demonstrations(tmp_path: Path) -> None:
    check(run_cli("train", f"runs_directory={tmp_path}"), PolicyError, "robot-stack collect")


def test_edge_without_a_policy(tmp_path: Path) -> None:
    check(run_cli("edge", f"runs_directory={tmp_path}", HASTE), PolicyError, "policy")


def test_unreachable_robot_server(small_run: SmallRun) -> None:
    done = run_cli("edge", *small_run.overrides(HASTE))
    check(done, UnreachableError, "robot.request", "127.0.0.1", "robot-stack robot-server")


def test_wrong_key(small_run: SmallRun, tmp_path: Path, prepared_run: Path) -> None:
    stranger = SmallRun(tmp_path / "stranger", prepared_run, network=small_run.network)
    shutil.rmtree(stranger.root / "keys")  # it will make keys of its own, which are on nobody's list
    with Supervisor(small_run.root / "logs", announce=print) as supervisor:
        supervisor.start("robot-server", robot_stack_command("robot-server", *small_run.overrides()))
        wait_until_served(small_run)
        done = run_cli("edge", *stranger.overrides("edge.patience_s=5"))
    check(done, AuthenticationError, "key")
    assert "refused" in (small_run.root / "logs" / "robot-server.log").read_text()


def wait_until_served(run: SmallRun) -> None:
    for _ in range(30):
        if "robot franka_0" in run_cli("status", *run.overrides()).stdout:
            return
    raise AssertionError("the robot server did not come up")


def test_a_person_activates_stops_and_deactivates_by_hand(small_run: SmallRun) -> None:
    with Supervisor(small_run.root / "logs", announce=print) as supervisor:
        supervisor.start("robot-server", robot_stack_command("robot-server", *small_run.overrides()))
        wait_until_served(small_run)
        for action, lifecycle in (("activate", "active"), ("stop", "active"), ("deactivate", "inactive")):
            done = run_cli("operate", action, *small_run.overrides())
            assert done.returncode == 0, done.stderr
            assert f"franka_0 is {lifecycle}" in done.stdout


def test_policy_of_another_task(small_run: SmallRun) -> None:
    with Supervisor(small_run.root / "logs", announce=print) as supervisor:
        other = small_run.overrides("task=pick_cube")
        supervisor.start("robot-server", robot_stack_command("robot-server", *other))
        wait_until_served(small_run)
        done = run_cli("edge", *small_run.overrides("edge.patience_s=10"))
    check(done, SpecMismatchError, "trained on 'peg_insertion', robot runs 'pick_cube'")


def test_damaged_policy(small_run: SmallRun) -> None:
    weights = small_run.root / "policy" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    check(run_cli("edge", *small_run.overrides(HASTE)), PolicyError, "damaged")


def test_continuing_a_run_under_another_configuration(small_run: SmallRun) -> None:
    shutil.rmtree(small_run.root / "policy")
    assert run_cli("collect", *small_run.overrides()).returncode == 0
    done = run_cli("collect", *small_run.overrides("task.demonstrations=9"))
    check(done, ConfigError, "another configuration")


def test_help_of_every_command_explains_itself() -> None:
    from robot_stack.apps.cli import SUBCOMMANDS

    overview = run_cli("--help")
    assert overview.returncode == 0
    for name, subcommand in SUBCOMMANDS.items():
        assert subcommand.summary in " ".join(overview.stdout.split())
        done = run_cli(name, "--help")
        assert done.returncode == 0 and "run=NAME" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["robot=stretch", "backend=body", "vendor=hardware"], MissingDependencyError, ["stretch-body", "pip install"]),
        (["robot=g1", "backend=ros2", "vendor=hardware"], RobotError, ["unitree_hg", "source its setup.bash"]),
        (["backend=fci", "vendor=hardware", "robot.fci.host=127.0.0.1"], RobotError, ["FCI is switched on"]),
        (["backend=ros2", "vendor=hardware", "robot.ros2.connect_timeout_s=1"], RobotError, ["joint_states"]),
        (["robot=g1", "backend=dds", "vendor=hardware", "robot.bus.connect_timeout_s=1"], RobotError, ["rt/lowstate"]),
        (["backend=dds"], ConfigError, ["no backend 'dds'", "sim, ros2, fci"]),
        (["backend=fci"], ConfigError, ["no vendor-side simulator", "vendor=hardware"]),
        (["robot=g1", "task=pick_cube"], ConfigError, ["no task 'pick_cube'", "g1_bimanual_lift"]),
        (["robot.limits.upper.fr3_joint1_rad=9"], ConfigError, ["wider than the robot's own", "fr3_joint1_rad"]),
        (["robot.limits.speed=3"], ConfigError, ["robot.limits.speed = 3", "at most 1"]),
    ],
)
def test_a_robot_that_is_not_there_or_asked_for_wrongly(
    overrides: list[str], error: type, words: list[str], tmp_path: Path
) -> None:
    place = [f"runs_directory={tmp_path}", *network_overrides(free_network())]
    check(run_cli("robot-server", *place, *overrides), error, *words)
