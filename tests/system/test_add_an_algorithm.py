"""The recipe in docs/add-an-algorithm.md, followed to the letter in a copy of the sources."""

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
RECIPE = ROOT / "docs" / "add-an-algorithm.md"
BLOCK = re.compile(r"`(robot_stack/[\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)
FOLDER = "robot_stack/learner/algorithms"


@pytest.fixture(scope="module")
def copy_with_algorithm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    for package in ("robot_stack", "hardware", "policies"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    files = dict(BLOCK.findall(RECIPE.read_text()))
    assert set(files) == {f"{FOLDER}/good_returns.py", f"{FOLDER}/settings/good_returns.py"}
    for name, text in files.items():
        (copy / name).write_text(text)
    return copy


def python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_the_new_algorithm_practises_through_the_whole_pipeline(copy_with_algorithm: Path) -> None:
    done = python(
        copy_with_algorithm,
        *("-m", "robot_stack.apps.cli", "demo"),
        "algorithm=good_returns",
        "algorithm.spread=0.1",
        "run=new",
        f"runs_directory={copy_with_algorithm / 'runs'}",
        *network_overrides(free_network()),
        "task.demonstrations=5",
        "policy.training.steps=60",
        "algorithm.exploration.warmup_steps=60",
        "learner.target_steps=250",
        "learner.publish_every_steps=40",
        "evaluation.episodes=2",
        "evaluation.replan_every=[]",
        "evaluation.videos=0",
        "evaluation.wall_clock_episodes=0",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"lost_steps":0' in done.stdout.replace(" ", "")
    assert list((copy_with_algorithm / "runs" / "new" / "evaluation").glob("practised-v[1-9]*.json")), done.stdout


def test_the_recipe_is_well_typed(copy_with_algorithm: Path) -> None:
    module = f"{FOLDER}/good_returns".replace("/", ".")
    done = python(copy_with_algorithm, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-m", module)
    assert done.returncode == 0, done.stdout
