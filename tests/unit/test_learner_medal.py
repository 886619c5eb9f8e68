"""MEDAL's backward reward: what the discriminator converges to, and what the curator does with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robot_stack.core.direction import Direction, direction_of
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import Source, Step, Verdict
from robot_stack.core.specs import STATE, Feature, vector
from robot_stack.learner.curation import EveryStep, Kept
from robot_stack.learner.rewards.medal import Discriminator, MedalCurator, PlaceReader, unpaid_backward
from robot_stack.learner.rewards.settings import MedalSettings
from robot_stack.learner.trainer import replay_step

OBSERVATION: dict[str, Feature] = {STATE: vector(("tool_x_m", "speed_m_s"))}
SETTINGS = MedalSettings(places=("tool_x_m",), batch_size=64, visited=50, reward_scale=1.0, lr=3e-3, hidden=16)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_at_the_optimum_the_discriminator_gives_the_density_ratio() -> None:
    """Two Gaussians of unit width, one apart: the log ratio of their densities is x - 1/2 in the first one's favour."""
    rng = np.random.default_rng(0)
    demonstrated = rng.normal(1.0, 1.0, (4000, 1)).astype(np.float32)
    visited = rng.normal(0.0, 1.0, (4000, 1)).astype(np.float32)
    settings = MedalSettings(mixup=False, lr=3e-3, hidden=16, batch_size=512)
    discriminator = Discriminator(demonstrated, settings)
    for _ in range(400):
        discriminator.learn(visited)
    x = np.linspace(-0.8, 1.8, 14, dtype=np.float32)[:, None]
    np.testing.assert_allclose(discriminator.logits(x), x[:, 0] - 0.5, atol=0.3)
    expected = settings.reward_scale * np.log1p(np.exp(x[:, 0] - 0.5))
    np.testing.assert_allclose(discriminator.rewards(x), expected, atol=settings.reward_scale * 0.2)


def test_mixup_flattens_the_discriminator_and_keeps_its_order() -> None:
    rng = np.random.default_rng(1)
    demonstrated = rng.normal(1.0, 1.0, (2000, 1)).astype(np.float32)
    visited = rng.normal(-1.0, 1.0, (2000, 1)).astype(np.float32)
    x = np.array([[-1.5], [0.0], [1.5]], np.float32)
    spread = {}
    for mixup in (False, True):
        discriminator = Discriminator(demonstrated, MedalSettings(mixup=mixup, lr=3e-3, hidden=16))
        for _ in range(150):
            discriminator.learn(visited)
        logits = discriminator.logits(x)
        assert (np.diff(logits) > 0).all()
        spread[mixup] = logits[-1] - logits[0]
    assert spread[True] < spread[False]


def step(episode: int, index: int, x: float, direction: Direction, last: bool = False) -> Step:
    return Step(
        run="r",
        robot="a",
        task="t",
        session="s",
        seq=100 * episode + index,
        episode=episode,
        episode_seed=episode,
        segment=0,
        index=index,
        stamp_ns=0,
        observation={STATE: np.array([x, 9.0], np.float32)},
        action_base=np.zeros(1, np.float32),
        action_asked=np.zeros(1, np.float32),
        action_sent=np.zeros(1, np.float32),
        verdict=Verdict.ACCEPTED,
        refusal=None,
        source=Source.POLICY,
        weights_version=0,
        reward=float(last),
        success=last,
        terminated=last,
        truncated=False,
        final_observation={STATE: np.array([x + 0.1, 9.0], np.float32)} if last else None,
        final_action_base=np.zeros(1, np.float32) if last else None,
        instruction=direction.words("do it"),
    )


def episode(number: int, start: float, direction: Direction, steps: int = 5) -> list[Step]:
    return [step(number, i, start + 0.1 * i, direction, last=i == steps - 1) for i in range(steps)]


DEMONSTRATIONS = [episode(0, 0.0, Direction.FORWARD), episode(1, 5.0, Direction.BACKWARD)]


def curated(steps: list[Step]) -> list[Kept]:
    curator = MedalCurator(EveryStep(), SETTINGS, PlaceReader(OBSERVATION, SETTINGS.places), DEMONSTRATIONS)
    return [kept for i, one in enumerate(steps) for kept in curator.take(one, replay_step(one, i, OBSERVATION))]


def test_only_backward_steps_are_paid_anew_and_they_never_terminate() -> None:
    steps = [*episode(2, 0.0, Direction.FORWARD), *episode(3, 2.0, Direction.BACKWARD)]
    kept = curated(steps)
    assert [one.step.index for one in kept] == [one.index for one in steps], "every step, once, in order"
    forward, backward = kept[:5], kept[5:]
    assert [one.step.reward for one in forward] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert forward[-1].step.terminated
    assert all(one.step.reward > 0.0 for one in backward)
    assert [one.step.truncated for one in backward] == [False] * 4 + [True]
    assert not any(one.step.terminated for one in backward)


def test_demonstrated_states_come_to_be_paid_more_than_visited_ones() -> None:
    curator = MedalCurator(EveryStep(), SETTINGS, PlaceReader(OBSERVATION, SETTINGS.places), DEMONSTRATIONS)
    for number in range(2, 30):
        for i, one in enumerate(episode(number, 2.0, Direction.BACKWARD)):
            list(curator.take(one, replay_step(one, i, OBSERVATION)))
    demonstrated, visited = curator.discriminator.rewards(np.array([[0.2], [2.2]], np.float32))
    assert demonstrated > 2.0 * visited


def test_the_same_steps_give_the_same_rewards() -> None:
    steps = [one for number in range(2, 8) for one in episode(number, 2.0, Direction.BACKWARD)]
    assert [one.step.reward for one in curated(steps)] == [one.step.reward for one in curated(steps)]


def test_backward_demonstrations_lose_their_goal() -> None:
    forward, backward = unpaid_backward(DEMONSTRATIONS, SETTINGS)
    assert forward == DEMONSTRATIONS[0]
    assert all(one.reward == pytest.approx(np.log(2.0)) and not one.success for one in backward)
    assert backward[-1].truncated and not backward[-1].terminated


def test_places_must_exist() -> None:
    with pytest.raises(ConfigError, match="tool_q_m"):
        PlaceReader(OBSERVATION, ("tool_x_m", "tool_q_m"))
    assert PlaceReader(OBSERVATION, ("tool_x_m",)).read({STATE: np.array([3.0, 4.0], np.float32)}) == [3.0]


def test_an_instruction_names_its_direction() -> None:
    assert direction_of(Direction.BACKWARD.words("pull")) is Direction.BACKWARD
    assert direction_of(Direction.FORWARD.words("push backward: no")) is Direction.FORWARD
    assert direction_of("") is direction_of("touch the red block") is Direction.FORWARD
