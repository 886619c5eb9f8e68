"""A round of RaC through the page: robot server, edge, learner and page as processes, a scripted person who takes over,
rewinds, corrects and labels, and a policy that was fine-tuned on it and acts on the robot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.buffer.log_reader import LogReader
from robot_stack.core.codec import unpack
from robot_stack.core.messages import Source, Step
from robot_stack.learner.metrics import read_metrics
from robot_stack.learner.rewards.labels import read_labels
from tests.operator_kit import Person, serving, stack, token_of
from tests.teleop_kit import PlainPage

ROUNDS = 2
SMALL = (
    "algorithm=rac",
    "task.demonstrations=5",
    "policy.training.steps=60",
    "policy.training.net.embed_dim=16",
    "policy.training.net.layers=1",
    "policy.training.net.heads=2",
    "policy.training.solver.steps=2",
    "algorithm.batch_size=16",
    "learner.publish_every_steps=10",
    "learner.store.seal=false",
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[Path, PlainPage]]:
    """The run's folder, and a page before the robot."""
    overrides = [*SMALL, f"runs_directory={tmp_path}", "run=round", *network_overrides(free_network())]
    stack("collect", *overrides)
    stack("train", *overrides)
    overrides += ["robot.lock_step=false", f"teleop.directory={tmp_path}/teleop", "teleop.port=0"]
    logs = tmp_path / "logs"
    commands = [(name, *overrides) for name in ("robot-server", "learner", "teleop")]
    with serving(logs, *commands, ("edge", *overrides, "edge.operator=seat", "edge.rule=rac")) as running:
        url, token = token_of(logs / "teleop.log", "operator", lambda: all(one.poll() is None for one in running))
        with PlainPage(url, token) as page:
            yield tmp_path / "round", page


def test_a_round_through_the_page_ends_in_a_fine_tuned_policy_on_the_robot(run: tuple[Path, PlainPage]) -> None:
    root, page = run
    person = Person(page)
    for _ in range(ROUNDS):
        person.sees("autonomous")
        person.does("hold", "paused")
        episode = person.seat["episode"]
        person.rewinds(1.0)
        person.inserts_the_peg(within_s=5.0)
        person.ends(episode)
        person.labels(episode, success=True)
    page.until(lambda: int(str(person.seat["weights_version"])) >= 1, 120.0)

    labels = read_labels(root / "labels.jsonl")
    assert [label.success for label in labels] == [True] * ROUNDS
    assert {label.who for label in labels} == {"operator"}
    labelled = {label.episode for label in labels}
    assert read_metrics(root / "learner" / "metrics.jsonl")[-1].updates > 0
    page.until(lambda: corrected(root) >= labelled, 30.0)
    person.sees("autonomous")
    person.does("hold", "paused")  # and all processes end when they are told to, although a person holds the robot


def corrected(root: Path) -> set[int]:
    """Episodes at the learner that end with a recovery and a correction."""
    episodes: dict[int, list[Step]] = {}
    for _, record in LogReader(root / "learner" / "steps" / "log").poll(100_000):
        step: Step = unpack(record, Step)
        episodes.setdefault(step.episode, []).append(step)
    wanted = [Source.HUMAN_RECOVERY, Source.HUMAN_CORRECTION]
    return {
        number
        for number, steps in episodes.items()
        if [source for source, _ in groupby(step.source for step in steps)][-2:] == wanted
        and (steps[-1].truncated or steps[-1].terminated)
    }
