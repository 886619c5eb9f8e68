"""Rows, links and gathered batches: as computed by hand and by a slow reference, never across streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.batches import Draw, TransitionBatch
from robot_stack.buffer.replay import MAX_OPEN_STREAMS, Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.core.errors import ConfigError, SpecMismatchError, StorageError
from tests.replay_kit import (
    GAMMA,
    Event,
    event_lists,
    every_row,
    make_replay,
    make_step,
    reference,
    truncated,
    vec,
)


def transitions(replay: Replay, n_step: int = 3) -> TransitionBatch:
    sampler, draw = every_row(replay)
    return sampler.transitions(draw, n_step, GAMMA)


def table(replay: Replay, n_step: int = 3) -> list[tuple[float, ...]]:
    """By row: stream, index, base, action, return, bootstrap, next stream, next index, next base."""
    batch = transitions(replay, n_step)
    columns = (
        batch.observation,
        batch.action_base,
        batch.action,
        batch.return_n,
        batch.bootstrap,
        batch.next_observation,
        batch.next_action_base,
    )
    return [tuple(row) for row in np.column_stack(columns).tolist()]


def test_an_episode_that_terminates_at_step_3_computed_by_hand() -> None:
    """n = 3, discount 0.9, rewards 1, 2, 4, 8."""
    steps = [make_step(7, index, float(2**index)) for index in range(3)]
    replay = make_replay([*steps, make_step(7, 3, 8.0, terminated=True)])
    expected = [
        (7, 0, 0.25, 0.5, 1 + 0.9 * 2 + 0.81 * 4, 0.729, 7, 3, 3.25),
        (7, 1, 1.25, 1.5, 2 + 0.9 * 4 + 0.81 * 8, 0.0, 0, 0, 0.0),
        (7, 2, 2.25, 2.5, 4 + 0.9 * 8, 0.0, 0, 0, 0.0),
        (7, 3, 3.25, 3.5, 8.0, 0.0, 0, 0, 0.0),
    ]
    assert np.allclose(table(replay), expected, rtol=1e-6)
    assert (len(replay), replay.dropped) == (4, 0)


def test_a_truncated_episode_bootstraps_from_its_stored_final_observation() -> None:
    steps = [make_step(7, index, float(2**index)) for index in range(4)]
    replay = make_replay([*steps, truncated(7, 4, 16.0)])
    expected = [
        (7, 0, 0.25, 0.5, 1 + 0.9 * 2 + 0.81 * 4, 0.729, 7, 3, 3.25),
        (7, 1, 1.25, 1.5, 2 + 0.9 * 4 + 0.81 * 8, 0.729, 7, 4, 4.25),
        (7, 2, 2.25, 2.5, 4 + 0.9 * 8 + 0.81 * 16, 0.729, 7, 5, 5.25),
        (7, 3, 3.25, 3.5, 8 + 0.9 * 16, 0.81, 7, 5, 5.25),
        (7, 4, 4.25, 4.5, 16, 0.9, 7, 5, 5.25),
    ]
    assert np.allclose(table(replay), expected, rtol=1e-6)


def test_termination_wins_over_truncation_and_its_final_state_may_be_anything() -> None:
    final = {"final_observation": vec(np.nan, 1), "final_action_base": vec(0)}
    replay = make_replay([make_step(7, 0, 1.0, terminated=True, truncated=True, **final)])
    assert table(replay) == [(7, 0, 0.25, 0.5, 1.0, 0.0, 0, 0, 0.0)]


@pytest.mark.parametrize("missing", ["final_observation", "final_action_base"])
def test_a_truncated_step_without_its_final_state_is_dropped_and_counted(missing: str) -> None:
    replay = make_replay([make_step(7, 0, 1.0), truncated(7, 1, 1.0, **{missing: None})])
    assert np.allclose(table(replay), [(7, 0, 0.25, 0.5, 1.0, 0.9, 7, 1, 1.25)])
    assert replay.dropped == 1


def test_a_stream_that_stops_gives_what_it_has_and_drops_its_last_step() -> None:
    replay = make_replay([make_step(7, index, 1.0) for index in range(3)])
    assert len(replay) == 0
    replay.end(7)
    assert [(row[1], row[7]) for row in table(replay)] == [(0, 2), (1, 2)]
    assert replay.dropped == 1
    replay.end(7)
    replay.end("never seen")
    assert replay.dropped == 1


@pytest.mark.parametrize("field", ["observation", "action_base", "action", "reward"])
def test_a_step_that_is_not_finite_is_never_sampled(field: str) -> None:
    bad = float("nan") if field == "reward" else np.full(2 if field == "observation" else 1, np.inf, np.float32)
    steps = [make_step(7, 0), make_step(7, 1), make_step(7, 2, **{field: bad}), make_step(7, 3), truncated(7, 4)]
    replay = make_replay(steps)
    assert (replay.non_finite, replay.dropped) == (1, 1)
    assert np.isfinite(table(replay)).all()
    assert [(row[1], row[7]) for row in table(replay)] == [(0, 1), (3, 5), (4, 5)]


def test_a_truncated_step_whose_final_state_is_not_finite_is_left_out() -> None:
    replay = make_replay([make_step(7, 0), make_step(7, 1), truncated(7, 2, final_action_base=vec(np.nan))])
    assert (replay.non_finite, replay.dropped) == (1, 1)
    assert [(row[1], row[7]) for row in table(replay)] == [(0, 1)]


def test_streams_that_never_end_do_not_pile_up() -> None:
    replay = make_replay([make_step(stream, index) for stream in range(MAX_OPEN_STREAMS + 10) for index in range(2)])
    assert replay.dropped == 10
    assert [row[0] for row in table(replay)] == list(range(10))


@settings(max_examples=150, deadline=None)
@given(event_lists(), st.integers(1, 4), st.sampled_from([1, 2, 5, 17, 1000]))
def test_everything_gathered_equals_the_reference(events: list[Event], lookahead: int, capacity: int) -> None:
    replay, expected = make_replay(events, capacity, lookahead), reference(events, capacity, lookahead)
    sampler, draw = every_row(replay)
    assert draw.rows.tolist() == [number for number, _, _ in expected.rows]
    assert (replay.dropped, replay.non_finite) == (expected.dropped, expected.non_finite)
    assert [replay.size(stratum) for stratum in Stratum] == [
        sum(stretch.steps[t].stratum == stratum for _, stretch, t in expected.rows) for stratum in Stratum
    ]
    if not len(draw):
        return
    count = range(len(draw))
    for n_step in range(1, lookahead + 1):
        batch = sampler.transitions(draw, n_step, GAMMA)
        wanted = [expected.transition(row, n_step) for row in count]
        got = (batch.observation, batch.return_n, batch.bootstrap, batch.next_observation, batch.next_action_base)
        assert all(np.allclose(part, [row[i] for row in wanted], rtol=1e-5) for i, part in enumerate(got))
        assert batch.stratum.tolist() == [stretch.steps[t].stratum for _, stretch, t in expected.rows]
    for horizon in (1, lookahead + 1):
        chunks = sampler.chunks(draw, horizon)
        assert chunks.actions.tolist() == [expected.chunk(row, horizon)[0] for row in count]
        assert chunks.is_pad.tolist() == [expected.chunk(row, horizon)[1] for row in count]
    sequences = sampler.sequences(draw, lookahead)
    wanted_sequences = [expected.sequence(row, lookahead) for row in count]
    assert sequences.observation.tolist() == [row[0] for row in wanted_sequences]
    assert sequences.reward.tolist() == [row[1] for row in wanted_sequences]
    assert sequences.terminated.tolist() == [row[2] for row in wanted_sequences]
    assert sequences.valid.tolist() == [row[3] for row in wanted_sequences]
    assert sequences.next_observation.tolist() == [row[4][0] for row in wanted_sequences]
    assert sequences.next_action_base.tolist() == [row[4][1] for row in wanted_sequences]


@settings(max_examples=60, deadline=None)
@given(event_lists(), st.integers(1, 3), st.sampled_from([3, 7, 1000]))
def test_no_sample_ever_mixes_streams_at_any_time(events: list[Event], lookahead: int, capacity: int) -> None:
    """Observation 0 is the stream's own number, in the final observation as well."""
    replay = make_replay(capacity=capacity, lookahead=lookahead)
    for count, event in enumerate(events):
        make_replay([event], replay=replay)
        if not len(replay):
            continue
        sampler = Sampler([Part(replay)], seed=count)
        draw = sampler.draw(8)
        batch, sequences = sampler.transitions(draw, lookahead, GAMMA), sampler.sequences(draw, lookahead)
        goes_on = batch.bootstrap > 0
        assert (batch.next_observation[goes_on, 0] == batch.observation[goes_on, 0]).all()
        assert (sequences.observation[..., 0] == sequences.observation[:, :1, 0]).all()
        assert (np.diff(sequences.observation[..., 1], axis=1)[sequences.valid[:, 1:]] > 0).all()


def episode(stream: int, length: int, ending: str) -> list[ReplayStep]:
    steps = [make_step(stream, index, reward=100.0 * stream + index) for index in range(length)]
    if ending == "terminated":
        steps[-1] = make_step(stream, length - 1, terminated=True)
    elif ending == "truncated":
        steps[-1] = truncated(stream, length - 1)
    return steps


def random_steps(seed: int, count: int) -> list[ReplayStep]:
    rng = np.random.default_rng(seed)
    steps: list[ReplayStep] = []
    while len(steps) < count:
        ending = ("terminated", "truncated", "killed")[rng.integers(3)]
        steps += episode(len(steps), int(rng.integers(1, 12)), ending)
    return steps[:count]


def test_the_ring_wraps_many_times_and_keeps_the_newest() -> None:
    steps = random_steps(1, 2000)
    replay = make_replay(steps, capacity=97)
    expected = reference(steps, 97, 3)
    assert [row[1] for row in table(replay)] == [stretch.steps[t].index for _, stretch, t in expected.rows]
    assert replay.first_row == 2000 - 97 and replay.next_row_number == 2000
    again = make_replay(steps, capacity=97)
    assert table(replay) == table(again)


def test_a_step_of_the_wrong_shape_is_refused_and_changes_nothing() -> None:
    replay = make_replay([make_step(7, 0)])
    with pytest.raises(SpecMismatchError, match=r"observation of step 1 of 7 has shape \[3\]"):
        replay.add(make_step(7, 1, observation=vec(0, 0, 0)))
    with pytest.raises(SpecMismatchError, match="final_action_base"):
        replay.add(truncated(7, 1, final_action_base=vec(0, 0)))
    replay.add(truncated(7, 1))
    assert len(replay) == 2 and replay.dropped == 0


@pytest.mark.parametrize("change", [{"capacity": 0}, {"lookahead": 0}, {"observation_size": 0}])
def test_settings_without_meaning_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        ReplayConfig(**{"capacity": 1, "observation_size": 1, "action_size": 1, "lookahead": 1, **change})


def test_more_than_the_lookahead_is_refused() -> None:
    sampler, draw = every_row(make_replay(episode(1, 5, "terminated"), lookahead=2))
    for gather in (
        lambda: sampler.transitions(draw, 3, GAMMA),
        lambda: sampler.transitions(draw, 0, GAMMA),
        lambda: sampler.transitions(draw, 2, 1.1),
        lambda: sampler.chunks(draw, 4),
        lambda: sampler.sequences(draw, 3),
    ):
        with pytest.raises(ConfigError):
            gather()
    assert sampler.chunks(draw, 3).actions.shape == (5, 3, 1)


def test_a_draw_whose_rows_were_forgotten_is_refused() -> None:
    replay = make_replay(episode(1, 5, "terminated"), capacity=5)
    sampler = Sampler([Part(replay)], seed=0)
    draw = sampler.draw(50)
    replay.add(make_step(2, 0))
    with pytest.raises(StorageError, match="rows 0 to 4"):
        sampler.transitions(draw, 1, GAMMA)
    with pytest.raises(StorageError):
        replay.slots(np.array([replay.next_row_number]))


def test_batches_are_copies_in_float32() -> None:
    replay = make_replay(random_steps(2, 50))
    before = table(replay)
    batch = transitions(replay)
    for name in ("observation", "action_base", "action", "return_n", "bootstrap", "next_observation", "weight"):
        assert getattr(batch, name).dtype == np.float32
        getattr(batch, name)[:] = -1.0
    assert table(replay) == before


def test_a_batch_that_comes_from_no_replay() -> None:
    values = vec(1, 2, 3)
    rows = np.ones((3, 2), np.float32)
    batch = TransitionBatch.of(rows, rows, rows, values, values, rows, rows)
    assert len(batch) == 3 and batch.rows.tolist() == [-1] * 3 and batch.weight.tolist() == [1.0] * 3
    assert isinstance(batch.draw, Draw)


# ---- Monte-Carlo returns ----


def with_returns(steps: Sequence[Event] = (), capacity: int = 1000, lookahead: int = 3) -> Replay:
    config = ReplayConfig(capacity, 2, 1, lookahead=lookahead, return_discount=GAMMA)
    return make_replay(steps, replay=Replay(config))


def returns(replay: Replay) -> list[tuple[float, int]]:
    batch = transitions(replay, 1)
    return list(zip(batch.return_to_go.tolist(), batch.steps_to_go.tolist(), strict=True))


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_returns_to_the_end_of_an_episode_computed_by_hand(ending: str) -> None:
    """Rewards 1, 2, 4, discount 0.9."""
    last = make_step(7, 2, 4.0, terminated=True) if ending == "terminated" else truncated(7, 2, 4.0)
    found = returns(with_returns([make_step(7, 0, 1.0), make_step(7, 1, 2.0), last]))
    assert np.allclose([value for value, _ in found], [1 + 0.9 * 2 + 0.81 * 4, 2 + 0.9 * 4, 4.0])
    assert [count for _, count in found] == [3, 2, 1]


def test_returns_of_an_episode_that_goes_on_are_no_floor_until_it_ends() -> None:
    replay = with_returns([make_step(7, index, 1.0) for index in range(5)], lookahead=2)
    assert returns(replay) == [(-np.inf, 0)] * 3
    make_replay([make_step(7, 5, 1.0, terminated=True)], replay=replay)
    assert [count for _, count in returns(replay)] == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("how", ["end", "gap", "nan", "no_final"])
def test_returns_of_a_stream_that_was_cut_stay_unknown(how: str) -> None:
    cuts: dict[str, Event] = {
        "end": ("end", 7),
        "gap": make_step(7, 5, 1.0),
        "nan": make_step(7, 2, np.nan),
        "no_final": truncated(7, 2, 1.0, final_observation=None),
    }
    replay = with_returns([make_step(7, 0, 1.0), make_step(7, 1, 1.0), cuts[how]])
    assert len(replay) > 0 and returns(replay) == [(-np.inf, 0)] * len(replay)


def test_a_slot_that_is_used_again_forgets_its_return() -> None:
    replay = with_returns([*episode(1, 4, "terminated"), make_step(2, 0, 1.0), make_step(2, 1, 1.0)], 4, lookahead=1)
    assert [count for _, count in returns(replay)] == [2, 1, 0]


def test_an_episode_longer_than_the_ring_has_right_returns_for_what_is_held() -> None:
    steps = [make_step(7, index, float(index)) for index in range(30)]
    found = returns(with_returns([*steps, make_step(7, 30, 30.0, terminated=True)], capacity=3))
    assert np.allclose([value for value, _ in found], [28 + 0.9 * 29 + 0.81 * 30, 29 + 0.9 * 30, 30.0])


def test_the_return_of_a_constant_reward_tends_to_the_infinite_sum() -> None:
    replay = Replay(ReplayConfig(3000, 2, 1, return_discount=0.99))
    make_replay([*(make_step(7, index, -1.0) for index in range(2000)), truncated(7, 2000, -1.0)], replay=replay)
    sampler, draw = every_row(replay)
    found = sampler.transitions(draw, 1, 0.99).return_to_go
    assert found.dtype == np.float32 and found[0] == pytest.approx(-100.0, abs=1e-5) and found[-1] == -1.0
    assert (np.diff(found) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(event_lists(), st.integers(1, 4), st.sampled_from([1, 2, 5, 17, 1000]))
def test_returns_equal_the_reference(events: list[Event], lookahead: int, capacity: int) -> None:
    replay, expected = with_returns(events, capacity, lookahead), reference(events, capacity, lookahead)
    if not expected.rows:
        return
    wanted = []
    for _, stretch, t in expected.rows:
        rewards = [step.reward for step in stretch.steps[t:]]
        over = stretch.ending in ("terminated", "truncated")
        total = sum(GAMMA**i * reward for i, reward in enumerate(rewards))
        wanted.append((total, len(rewards)) if over else (-np.inf, 0))
    assert np.allclose(returns(replay), wanted, rtol=1e-5)


def test_returns_are_neither_computed_nor_mixed_up_with_another_discount() -> None:
    assert returns(make_replay(episode(1, 3, "terminated"))) == [(-np.inf, 0)] * 3
    sampler, draw = every_row(with_returns(episode(1, 3, "terminated")))
    with pytest.raises(ConfigError, match="return_discount"):
        sampler.transitions(draw, 1, 0.5)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="return_discount"):
            ReplayConfig(1, 1, 1, return_discount=wrong)
