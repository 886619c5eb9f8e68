"""A run's folder belongs to one configuration; where its processes listen may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from robot_stack.apps.layout import RunLayout
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError


def remember(directory: Path, *overrides: str) -> None:
    config = compose_config([f"runs_directory={directory}", *overrides])
    RunLayout.of(config).remember(config)


def test_a_run_is_not_continued_under_another_configuration(tmp_path: Path) -> None:
    remember(tmp_path, "seed=1")
    with pytest.raises(ConfigError, match="begun with another configuration"):
        remember(tmp_path, "seed=2")


def test_addresses_devices_and_the_wall_clock_may_change(tmp_path: Path) -> None:
    remember(tmp_path, "device=page", "robot.lock_step=false", "network.robot_address=tcp://127.0.0.1:9")
    remember(tmp_path, "teleop.port=1")
