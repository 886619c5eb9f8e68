"""One small run with demonstrations and a base policy, made once; tests work on copies of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.supervisor import robot_stack_command
from robot_stack.config.schema import NetworkConfig

SMALL = (
    "run=small",
    "task.demonstrations=8",
    "policy.training.steps=150",
    "algorithm.exploration.warmup_steps=200",
    "algorithm.update.critic_only_updates=20",
    "algorithm.updates_per_step=0.5",
    "learner.publish_every_steps=60",
    "learner.checkpoint_every_s=1",
)


def run_cli(*arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run `robot-stack` as a user does; its output as text."""
    return subprocess.run(
        robot_stack_command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False
    )


class SmallRun:
    """A copy of the prepared run in a folder of its own, with free ports."""

    def __init__(self, directory: Path, prepared: Path, network: NetworkConfig | None = None) -> None:
        shutil.copytree(prepared, directory / "small")
        self.root = directory / "small"
        self.network = network or free_network()
        self._directory = directory

    def overrides(self, *more: str) -> list[str]:
        return [*SMALL, f"runs_directory={self._directory}", *network_overrides(self.network), *more]


@pytest.fixture(scope="session")
def prepared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    for command in ("collect", "train"):
        done = run_cli(command, *SMALL, f"runs_directory={directory}")
        assert done.returncode == 0, done.stderr
    (directory / "small" / "config.json").unlink()
    return directory / "small"


@pytest.fixture
def small_run(tmp_path: Path, prepared_run: Path) -> SmallRun:
    return SmallRun(tmp_path, prepared_run)
