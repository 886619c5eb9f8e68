"""Where the updates of a cache schedule go: the dynamic program, the bubbling union and the baselines."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.acceleration.adaptive import adaptive_updates, bubbling_union, consecutive
from policies.acceleration.baselines import teacache_for_budget, teacache_updates, uniform_updates
from robot_stack.core.errors import PolicyError

NAMES = tuple(f"{layer}.{kind}" for layer in range(3) for kind in ("self", "cross", "feed"))


def value_of(similarity: NDArray[np.float64], updates: tuple[int, ...]) -> float:
    """What the scheduler maximises, call by call."""
    kept = [max(update for update in updates if update <= call) for call in range(len(similarity))]
    return float(sum(similarity[kept[call], call] for call in range(len(similarity))))


def random_similarity(calls: int, seed: int) -> NDArray[np.float64]:
    matrix = np.random.default_rng(seed).uniform(-1, 1, (calls, calls))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1.0)
    return matrix


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_no_other_schedule_keeps_more_similarity(calls: int, seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, calls))
    similarity = random_similarity(calls, seed)
    updates = adaptive_updates(similarity, budget)
    every = ((0, *rest) for rest in itertools.combinations(range(1, calls), budget - 1))
    best = max(every, key=lambda rows: value_of(similarity, rows))
    assert len(updates) == budget and list(updates) == sorted(set(updates)) and updates[0] == 0
    assert updates == best


def test_steady_change_gives_evenly_spread_updates() -> None:
    calls = np.arange(100)
    similarity = np.exp(-np.abs(calls[:, None] - calls) / 10)
    assert adaptive_updates(similarity, 10) == tuple(range(0, 100, 10))


def test_updates_go_where_the_output_changes() -> None:
    group = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2])
    similarity = (group[:, None] == group).astype(float)
    assert adaptive_updates(similarity, 3) == (0, 4, 6)


def test_all_calls_and_one_call() -> None:
    similarity = random_similarity(7, seed=1)
    assert adaptive_updates(similarity, 7) == tuple(range(7))
    assert adaptive_updates(similarity, 1) == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6), st.data())
def test_consecutive_similarities_have_a_closed_form(calls: int, seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, calls))
    similarity = random_similarity(calls, seed)
    least_alike = np.argsort(np.diagonal(similarity, offset=1))[: budget - 1] + 1
    assert adaptive_updates(consecutive(similarity), budget) == (0, *sorted(least_alike.tolist()))


@pytest.mark.parametrize("budget", [0, 8])
def test_budgets_out_of_range_are_refused(budget: int) -> None:
    with pytest.raises(PolicyError, match="allowed: 1 to 7"):
        adaptive_updates(random_similarity(7, seed=0), budget)
    with pytest.raises(PolicyError, match="allowed: 1 to 7"):
        uniform_updates(7, budget)
    with pytest.raises(PolicyError, match="allowed: 1 to 7"):
        teacache_for_budget(np.ones(7), budget)


def in_place_union(updates: list[tuple[int, ...]], chosen: list[int], feeds: list[int]) -> tuple[tuple[int, ...], ...]:
    """The paper's loop: block after block, each one reading what the ones before it left."""
    rows = [set(row) for row in updates]
    for block in chosen:
        for feed in feeds:
            if feed > block:
                rows[block] |= rows[feed]
    return tuple(tuple(sorted(row)) for row in rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 9))
def test_the_union_is_the_papers_in_any_order(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    updates = [(0, *sorted(generator.choice(np.arange(1, 50), 4, replace=False).tolist())) for _ in NAMES]
    errors = generator.uniform(size=len(NAMES))
    chosen = np.argsort(-errors)[:count].tolist()
    generator.shuffle(chosen)
    found = bubbling_union(NAMES, updates, errors, count)
    assert found == in_place_union(updates, chosen, feeds=[2, 5, 8])
    for block, row in enumerate(found):
        assert set(updates[block]) <= set(row)
        if block not in chosen:
            assert row == updates[block]


def test_one_block_is_spread_to_as_well() -> None:
    updates = [(0, block + 1) for block in range(9)]
    errors = np.zeros(9)
    errors[4] = 1.0
    found = bubbling_union(NAMES, updates, errors, 1)
    assert found[4] == (0, 5, 6, 9)  # its own, and the feed-forward blocks of layers 1 and 2
    assert all(found[block] == updates[block] for block in range(9) if block != 4)


def test_without_feed_forward_blocks_every_later_block_counts() -> None:
    found = bubbling_union(("down0.0", "mid.0", "up0.0"), [(0, 1), (0, 2), (0, 3)], np.array([0.0, 1.0, 0.5]), 1)
    assert found == ((0, 1), (0, 2, 3), (0, 3))


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(PolicyError, match="allowed: 0 or more"):
        bubbling_union(NAMES, [(0,)] * 9, np.zeros(9), -1)


@given(st.integers(1, 200), st.data())
def test_uniform_has_exactly_its_budget_evenly_spread(calls: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, calls))
    updates = uniform_updates(calls, budget)
    gaps = np.diff([*updates, calls])
    assert len(updates) == budget and updates[0] == 0
    assert gaps.max() - gaps.min() <= 1


def test_uniform_is_every_tenth() -> None:
    assert uniform_updates(100, 10) == tuple(range(0, 100, 10))


def test_teacache_updates_when_enough_has_changed() -> None:
    changes = np.array([9.0, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25])
    assert teacache_updates(changes, 0.5) == (0, 2, 4, 6)
    with pytest.raises(PolicyError, match="above 0"):
        teacache_updates(changes, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.data())
def test_teacache_has_exactly_its_budget(calls: int, seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, calls))
    changes = np.random.default_rng(seed).exponential(size=calls).round(1)  # with ties and zeros
    updates = teacache_for_budget(changes, budget)
    assert len(updates) == budget and updates[0] == 0 and list(updates) == sorted(set(updates))


def test_teacache_spends_where_the_change_is() -> None:
    changes = np.concatenate((np.full(50, 0.01), np.full(50, 1.0)))
    assert sum(call >= 50 for call in teacache_for_budget(changes, 10)) >= 8
