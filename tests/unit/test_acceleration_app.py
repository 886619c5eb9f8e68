"""The run's policy made faster on the run's demonstrations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policies.acceleration.saved import load_accelerated
from policies.generative.config import SolverConfig
from policies.generative.policy import GenerativePolicy
from robot_stack.apps.accelerate import accelerate, calibration_observations, schedule_path
from robot_stack.apps.layout import RunLayout
from robot_stack.buffer.store import StepStore
from robot_stack.config.compose import compose_config
from robot_stack.core.codec import pack
from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Step
from robot_stack.core.specs import STATE
from tests.buffer_kit import MANUAL, make_step
from tests.generative_kit import SPEC, make_policy, observations

LENGTHS = (5, 3, 9)


def episodes() -> list[list[Step]]:
    """The steps' state is (seq, episode, ...), `seq` counting from 0 in every episode."""
    return [
        [make_step("robot", f"session{number}", seq, number, ended=seq == length - 1) for seq in range(length)]
        for number, length in enumerate(LENGTHS)
    ]


def test_observations_are_spread_and_read_as_the_policy_would_have() -> None:
    found = calibration_observations(episodes(), SPEC, 17, instruction="push")
    assert [(one.episode_seed, one.index) for one in found] == [
        (number, index) for number, length in enumerate(LENGTHS) for index in range(length)
    ]
    for one in found:
        assert one.features[STATE][0] == one.index and list(one.features) == [STATE]
        assert [frame[STATE][0] for frame in one.past] == ([] if one.index == 0 else [one.index - 1])
        assert one.instruction == "push"
    assert [one.episode_seed for one in calibration_observations(episodes(), SPEC, 3)] == [0, 2, 2]


def test_nothing_to_calibrate_on_is_said() -> None:
    with pytest.raises(PolicyError, match="robot-stack collect"):
        calibration_observations([], SPEC, 3)
    with pytest.raises(PolicyError, match="ask for 1 or more"):
        calibration_observations(episodes(), SPEC, 0)


def test_the_runs_policy_is_made_faster(tmp_path: Path) -> None:
    config = compose_config([f"runs_directory={tmp_path}", "run=one"])
    layout = RunLayout.of(config)
    policy = make_policy()
    policy.save(layout.policy)
    with StepStore(layout.demonstrations, settings=MANUAL) as store:
        store.append([pack(step) for episode in episodes() for step in episode])
    solver = SolverConfig(kind="ddim", steps=8)
    fast = accelerate(config, budget=2, union=1, solver=solver, observations=3)
    loaded = load_accelerated(GenerativePolicy.load(layout.policy), schedule_path(layout))
    schedule = loaded.config.schedule
    assert loaded.config.solver == solver and schedule is not None and schedule == fast.config.schedule
    assert (schedule.method, schedule.calls) == ("adaptive", 8)
    assert sorted(map(len, schedule.updates))[:5] == [2] * 5
    seen = observations(1)[0]
    np.testing.assert_array_equal(loaded.predict(seen).actions, fast.predict(seen).actions)
