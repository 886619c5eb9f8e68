"""Prioritised replay: in proportion to priority^alpha, and weighted back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robot_stack.buffer.priorities import SumTree
from robot_stack.buffer.replay import Replay, Stratum
from robot_stack.buffer.sampling import Part, Prioritised, Sampler
from robot_stack.core.errors import ConfigError, StorageError
from tests.replay_kit import Event, event_lists, make_replay, make_step


def single_steps(count: int, **changes: object) -> list[Event]:
    return [make_step(i, 0, terminated=True, **changes) for i in range(count)]


def sampler_of(replay: Replay, stratum: Stratum | None = None, **settings_: float) -> Sampler:
    selection = Prioritised(**settings_)  # type: ignore[arg-type]
    return Sampler([Part(replay, stratum, selection=selection)], seed=0)


def prioritise(sampler: Sampler, values: dict[int, float]) -> None:
    """Set the priorities of rows, whether they were drawn or not."""
    draw = sampler.draw(len(values))
    draw.rows[:] = list(values)
    sampler.set_priorities(draw, np.array(list(values.values()), np.float32))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(0.0, 1e6)), st.data())
def test_the_tree_finds_what_a_running_sum_finds(values: np.ndarray, data: st.DataObject) -> None:
    values = np.floor(values)  # whole numbers: no rounding in either sum
    tree = SumTree(len(values))
    order = np.array(data.draw(st.permutations(range(len(values)))), np.int64)
    tree.set(order, np.full(len(values), 17.0))
    tree.set(order, values[order])
    assert tree.total == values.sum()
    if not values.sum():
        return
    fractions = data.draw(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=20))
    amounts = np.array(fractions) * tree.total
    assert tree.find(amounts).tolist() == np.searchsorted(np.cumsum(values), amounts, side="right").tolist()


def test_a_leaf_without_value_is_never_found_even_where_rounding_leads_there() -> None:
    tree = SumTree(8)
    tree.set(np.array([1, 5]), np.array([0.1, 0.2]))
    amounts = np.array([0.0, np.nextafter(tree.total, 0.0), tree.total, 2 * tree.total])
    assert tree.find(amounts).tolist() == [1, 5, 5, 5]


def test_draws_are_in_proportion_to_priority_to_the_alpha() -> None:
    replay = make_replay(single_steps(50))
    sampler = sampler_of(replay, alpha=0.5)
    priorities = {row: float(1 + row % 9) for row in range(50)}
    prioritise(sampler, priorities)
    chances = np.sqrt(list(priorities.values()))
    chances /= chances.sum()
    single = np.bincount([sampler.draw(1).rows[0] for _ in range(10_000)], minlength=50)
    assert abs(chi_square(single, 10_000 * chances)) < 5
    whole = np.bincount(sampler.draw(10_000).rows, minlength=50)
    assert np.abs(whole - 10_000 * chances).max() < 2.0  # one from each equal slice of the sum


def test_weights_undo_the_preference_and_the_largest_is_1() -> None:
    replay = make_replay(single_steps(4))
    sampler = sampler_of(replay, alpha=1.0, beta=1.0, beta_final=1.0)
    prioritise(sampler, {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0})
    draw = sampler.draw(600)
    wanted = np.array([1.0, 0.5, 0.25, 0.125])
    assert np.allclose(draw.weight, wanted[draw.rows] / wanted[draw.rows].max(), rtol=1e-5)
    assert draw.weight.dtype == np.float32 and draw.weight.max() == 1.0
    assert abs(draw.weight.mean() * 15 - 4) < 0.05  # so every row has the same total weight


def test_beta_rises_to_its_end_over_the_draws() -> None:
    replay = make_replay(single_steps(2))
    sampler = sampler_of(replay, alpha=1.0, beta=0.0, beta_final=1.0, beta_draws=4)
    prioritise(sampler, {0: 1.0, 1: 4.0})  # this was draw 0
    smallest = [float(sampler.draw(50).weight.min()) for _ in range(5)]
    assert np.allclose(smallest, [4.0**-0.25, 4.0**-0.5, 4.0**-0.75, 4.0**-1.0, 4.0**-1.0], rtol=1e-5)


def test_uniform_parts_beside_a_prioritised_one_keep_equal_weights() -> None:
    replay = make_replay(single_steps(4))
    sampler = Sampler([Part(replay), Part(replay, selection=Prioritised(beta=1.0))], seed=0)
    draw = sampler.draw(8)
    draw.rows[4:] = range(4)
    sampler.set_priorities(draw, (draw.rows + 1).astype(np.float32))
    draw = sampler.draw(100)
    chances = (1.0 + np.arange(4)) ** 0.6
    weights = 1.0 / (4 * chances / chances.sum())
    assert np.allclose(draw.weight[:50], 1.0 / weights.max(), rtol=1e-5)
    assert np.allclose(draw.weight[50:], (weights / weights.max())[draw.rows[50:]], rtol=1e-5)


def test_a_new_row_has_the_largest_priority_that_was_set_until_it_came() -> None:
    replay = make_replay(single_steps(10), capacity=12)
    sampler = sampler_of(replay, alpha=1.0, beta=1.0)
    prioritise(sampler, dict.fromkeys(range(10), 0.5) | {9: 10.0})
    replay.add(make_step(100, 0, terminated=True))  # row 10
    prioritise(sampler, {9: 40.0})
    replay.add(make_step(101, 0, terminated=True))  # row 11
    prioritise(sampler, {9: 0.5})
    counts = np.bincount(sampler.draw(55_000).rows, minlength=12)
    assert np.allclose(counts / 1000, [0.5] * 10 + [10.0, 40.0], atol=0.01)


@settings(max_examples=60, deadline=None)
@given(event_lists(60), st.sampled_from([3, 10, 1000]), st.sampled_from([None, Stratum.ONLINE]))
def test_only_eligible_rows_of_the_stratum_are_drawn(
    events: list[Event], capacity: int, stratum: Stratum | None
) -> None:
    replay = make_replay(capacity=capacity, lookahead=2)
    sampler = sampler_of(replay, stratum)
    for event in events:
        make_replay([event], replay=replay)
        if not replay.size(stratum):
            continue
        draw = sampler.draw(200)
        assert set(draw.rows) <= set(replay.row_number[replay.eligible(stratum).all()])
        sampler.set_priorities(draw, np.ones(len(draw), np.float32))
        assert set(sampler.draw(200).rows) == set(replay.row_number[replay.eligible(stratum).all()])  # all equal


def test_priorities_of_forgotten_rows_are_passed_over() -> None:
    replay = make_replay(single_steps(4), capacity=4)
    sampler = sampler_of(replay, alpha=1.0)
    draw = sampler.draw(4)
    make_replay(single_steps(4), replay=replay)
    sampler.set_priorities(draw, np.array([0.5, 0.25, 0.125, 0.0625], np.float32))
    assert np.bincount(sampler.draw(400).rows).tolist() == [0, 0, 0, 0, 100, 100, 100, 100]


def test_a_row_that_came_before_a_priority_was_set_does_not_get_it() -> None:
    replay = make_replay(single_steps(3))
    sampler = sampler_of(replay, alpha=1.0)
    draw = sampler.draw(1)
    replay.add(make_step(100, 0, terminated=True))
    sampler.set_priorities(draw, np.full(1, 50.0, np.float32))
    others = [row for row in range(4) if row != draw.rows[0]]
    assert np.allclose(np.bincount(sampler.draw(53_000).rows)[others] / 1000, 1.0, atol=0.01)


def test_a_reader_who_looks_rarely_still_sees_everything() -> None:
    replay = make_replay(capacity=4)
    sampler = sampler_of(replay)
    make_replay(single_steps(50), replay=replay)
    assert set(sampler.draw(100).rows) == {46, 47, 48, 49}


@pytest.mark.parametrize("values", [[1.0, 0.0], [1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0], [1.0]])
def test_priorities_without_meaning_are_refused(values: list[float]) -> None:
    sampler = sampler_of(make_replay(single_steps(4)))
    with pytest.raises(ConfigError):
        sampler.set_priorities(sampler.draw(2), np.array(values, np.float32))


def test_priorities_need_the_replay_that_they_were_made_for() -> None:
    replay = make_replay(single_steps(4))
    state = sampler_of(replay).state()
    for other in (make_replay(), make_replay(single_steps(5)), make_replay(single_steps(5), capacity=4)):
        with pytest.raises(StorageError, match="refill"):
            sampler_of(other).load_state(state)
