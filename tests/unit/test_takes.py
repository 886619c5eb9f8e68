"""Takes: what a person drove and called a success becomes a demonstration, once; everything else is kept apart."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from robot_stack.apps.layout import RunLayout
from robot_stack.apps.takes import Takes, as_demonstration
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.config.schema import StackConfig
from robot_stack.core.messages import Source, Step, Verdict
from robot_stack.learner.rewards.labels import HumanLabel, add_label

SESSION = "s"


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    return compose_config([f"runs_directory={tmp_path}", "run=r", "edge.spool_capacity_bytes=8000000"])


def take(episode: int, *, steps: int = 4, whole: bool = True, success: bool = False) -> list[Step]:
    zeros = np.zeros(2, np.float32)
    return [
        Step(
            run="r",
            robot="franka_0",
            task="peg_insertion",
            session=SESSION,
            seq=0,
            episode=episode,
            episode_seed=1,
            segment=0,
            index=index,
            stamp_ns=index,
            observation={"observation.state": zeros},
            action_base=zeros,
            action_asked=np.full(2, 0.5, np.float32),
            action_sent=np.full(2, 0.5, np.float32),
            verdict=Verdict.ACCEPTED,
            refusal=None,
            source=Source.HUMAN_CORRECTION,
            weights_version=0,
            reward=0.0,
            success=success and index == steps - 1,
            terminated=False,
            truncated=whole and index == steps - 1,
            late=False,
            final_observation={"observation.state": zeros} if whole and index == steps - 1 else None,
        )
        for index in range(steps)
    ]


def record(takes: Takes, steps: Sequence[Step]) -> None:
    for step in steps:
        takes.outbox.put(step)
    assert takes.outbox.flush(10.0)


def say(config: StackConfig, episode: int, *, success: bool) -> None:
    label = HumanLabel(
        run="r", robot="franka_0", session=SESSION, episode=episode, success=success, who="ada", when_s=0.0
    )
    add_label(RunLayout.of(config).labels, label)


def stored(directory: Path) -> dict[int, list[Step]]:
    episodes: dict[int, list[Step]] = {}
    with StepStore(directory) as store:
        for _, step in store.iterate(store.first_index):
            episodes.setdefault(step.episode, []).append(step)
    return episodes


def test_what_was_called_a_success_is_a_demonstration_and_everything_else_is_rejected(config: StackConfig) -> None:
    with Takes(config) as takes:
        for episode, success in enumerate((True, False, None, None)):
            record(takes, take(episode, success=episode == 3))
            if success is not None:
                say(config, episode, success=success)
        record(takes, take(4))
        say(config, 4, success=True)
        say(config, 4, success=False)  # the later label counts
        rejected = takes.settle({(SESSION, 3): "too slow"})
        assert takes.kept == 1
        assert takes.settle({}) == {}
    assert {episode: reason for (_, episode), reason in rejected.items()} == {
        1: "it was called a failure, or discarded",
        2: "nobody called it a success",
        3: "too slow",
        4: "it was called a failure, or discarded",
    }
    layout = RunLayout.of(config)
    assert set(stored(layout.demonstrations)) == {0}
    assert set(stored(layout.takes / "rejected")) == {1, 2, 3, 4}


def test_the_tasks_own_success_counts_where_nobody_says_anything(config: StackConfig) -> None:
    with Takes(config) as takes:
        record(takes, take(0, success=True))
        assert takes.settle({}) == {}
        assert takes.kept == 1


def test_a_person_is_the_expert_of_a_demonstration_and_its_last_step_is_the_success() -> None:
    steps = as_demonstration(take(0))
    assert {step.source for step in steps} == {Source.EXPERT}
    assert all((step.action_base == step.action_asked).all() for step in steps)
    last = steps[-1]
    assert (last.success, last.terminated, last.truncated, last.reward) == (True, True, False, 1.0)
    assert not any(step.success or step.terminated for step in steps[:-1])


def test_a_crash_before_the_judgement_loses_nothing_that_was_said(config: StackConfig) -> None:
    with Takes(config) as takes:
        record(takes, take(0))
        say(config, 0, success=True)
        record(takes, take(1, whole=False))
        say(config, 1, success=True)
    with Takes(config) as takes:
        assert takes.settle({}) == {(SESSION, 1): "it was broken off"}
        assert takes.kept == 1


def test_a_crash_in_the_middle_of_the_judgement_keeps_nothing_twice(config: StackConfig) -> None:
    layout = RunLayout.of(config)
    with Takes(config) as takes:
        record(takes, take(0))
        say(config, 0, success=True)
    aside = layout.root / "aside"
    shutil.copytree(layout.takes, aside)
    with Takes(config) as takes:
        takes.settle({})
    shutil.rmtree(layout.takes)  # as if the spool had not heard of it any more
    shutil.copytree(aside, layout.takes)
    with Takes(config) as takes:
        takes.settle({})
        assert takes.kept == 1
    assert len(stored(layout.demonstrations)[0]) == 4
