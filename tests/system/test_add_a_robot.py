"""The recipe in docs/add-a-robot.md, followed to the letter in a copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robot_stack.apps.connections import free_network, network_overrides

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "docs" / "add-a-robot.md"
BLOCK = re.compile(r"`((?:hardware|robot_stack)/[\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def copy_with_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    for package in ("robot_stack", "hardware", "policies"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    files = dict(BLOCK.findall(RECIPE.read_text()))
    assert set(files) == {"hardware/toy/robot.py", "robot_stack/config/robots/toy.py"}
    (copy / "hardware" / "toy").mkdir()
    (copy / "hardware" / "toy" / "__init__.py").touch()
    for name, text in files.items():
        (copy / name).write_text(text)
    return copy


def robot_stack(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robot_stack.apps.cli", *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_recipe_takes_one_folder_and_one_file(copy_with_toy: Path) -> None:
    done = robot_stack(copy_with_toy, "config", "robot=toy")
    assert done.returncode == 0, done.stderr
    assert '"name": "toy_0"' in done.stdout
    assert '"name": "toy_reach"' in done.stdout


def test_the_new_robot_learns_through_the_whole_pipeline(copy_with_toy: Path) -> None:
    done = robot_stack(
        copy_with_toy,
        "demo",
        "robot=toy",
        "run=toy",
        f"runs_directory={copy_with_toy / 'runs'}",
        *network_overrides(free_network()),
        "task.demonstrations=10",
        "policy.training.steps=150",
        "algorithm.exploration.warmup_steps=60",
        "algorithm.update.critic_only_updates=5",
        "learner.target_steps=150",
        "learner.publish_every_steps=40",
        "evaluation.episodes=4",
        "evaluation.replan_every=[]",
        "evaluation.videos=0",
        "evaluation.wall_clock_episodes=0",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"lost_steps":0' in done.stdout.replace(" ", "")


def test_the_recipe_is_well_typed(copy_with_toy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "hardware.toy"],
        cwd=copy_with_toy,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout
