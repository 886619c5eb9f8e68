"""The whole demo, tiny, with every robot reached through its vendor's interface: nothing but `backend` changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robot_stack.apps.connections import free_network, network_overrides
from tests.system.conftest import run_cli
from tests.vendor_kit import VENDORS, Vendor

TINY = (
    "task.demonstrations=2",
    "policy.training.steps=40",
    "algorithm.exploration.warmup_steps=40",
    "algorithm.update.critic_only_updates=5",
    "algorithm.batch_size=32",
    "learner.target_steps=120",
    "learner.publish_every_steps=40",
    "evaluation.episodes=2",
    "evaluation.workers=1",
    "evaluation.replan_every=[]",
    "evaluation.videos=0",
    "evaluation.wall_clock_episodes=0",
)


@pytest.mark.slow
@pytest.mark.parametrize("vendor", VENDORS, ids=str)
def test_the_demo_runs_through_the_vendors_interface(vendor: Vendor, tmp_path: Path) -> None:
    done = run_cli(
        "demo",
        f"robot={vendor.robot}",
        f"backend={vendor.backend}",
        "run=tiny",
        f"runs_directory={tmp_path}",
        *network_overrides(free_network(domain=True)),
        *TINY,
        timeout_s=280.0,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lost_steps"] == 0
    assert result["duplicate_steps"] == 0
    assert result["acknowledged_steps"] >= 120
