"""Demonstrations by a person at the page, with real processes: collected by hand, trained on, and nothing else kept."""

from __future__ import annotations

from pathlib import Path

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.train import read_demonstrations
from robot_stack.config.compose import compose_config
from robot_stack.core.messages import Source
from tests.operator_kit import Person, serving, stack, token_of
from tests.teleop_kit import PlainPage

SMALL = (
    "task.demonstrations=2",
    "policy.training.steps=20",
    "policy.training.net.embed_dim=16",
    "policy.training.net.layers=1",
    "policy.training.net.heads=2",
    "policy.training.solver.steps=2",
    "teleop.port=0",
    "teleop.min_rate_share=0.2",
    "teleop.max_take_s=8",
)


def test_demonstrations_by_hand(tmp_path: Path) -> None:
    overrides = [*SMALL, f"runs_directory={tmp_path}", "run=hand", f"teleop.directory={tmp_path}/teleop"]
    command = ["collect", *overrides, "device=page", *network_overrides(free_network())]
    with serving(tmp_path / "logs", command) as (process,):
        log = tmp_path / "logs" / "collect.log"
        url, token = token_of(log, "operator", lambda: process.poll() is None)
        with PlainPage(url, token) as page:
            person = Person(page)
            for success in (True, False, True):
                person.sees("paused")
                episode = person.seat["episode"]
                person.page.drive_for(1.0, "correct", moves={"dz_m": -0.5})
                person.ends(episode)
                if success:
                    person.labels(episode, success=True)
                page.send("ready")
                if not success:
                    page.until(lambda: "take 1 is not kept" in str(person.seat["refusal"]))
            assert process.wait(30) == 0, log.read_text()
    assert "take 1 is not kept: nobody called it a success" in log.read_text()
    assert "2 demonstrations kept of 3 attempts" in log.read_text()

    layout = RunLayout.of(compose_config(overrides))
    episodes = read_demonstrations(layout)
    assert [len({step.episode for step in steps}) for steps in episodes] == [1, 1]
    steps = [step for steps in episodes for step in steps]
    assert {step.source for step in steps} == {Source.EXPERT}
    assert all((step.action_base == step.action_asked).all() for step in steps)
    assert sum(float(step.action_asked[2]) for step in steps) < -0.02
    assert [steps[-1].success for steps in episodes] == [True, True]
    stack("train", *overrides)
    assert layout.policy.exists()


def test_an_unknown_device_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    overrides = [f"runs_directory={tmp_path}", "run=hand", "device=mouse"]
    with serving(tmp_path / "logs", ["collect", *overrides]) as (process,):
        assert process.wait(60) == 2
    text = (tmp_path / "logs" / "collect.log").read_text()
    assert "device = 'mouse' is unknown; there are: page" in text
