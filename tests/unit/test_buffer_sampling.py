"""Draws: exact shares, the right distributions, and the same sequence from the same state."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.batches import Draw
from robot_stack.buffer.eligible import EligibleRows
from robot_stack.buffer.replay import Replay, ReplayConfig, Stratum
from robot_stack.buffer.sampling import Part, Prioritised, Recent, Sampler, Uniform
from robot_stack.buffer.shares import SharedOut
from robot_stack.core.errors import ConfigError, SpecMismatchError, StorageError
from tests.replay_kit import Event, event_lists, make_replay, make_step


def single_steps(count: int, stream: int = 0, **changes: object) -> list[Event]:
    """Episodes of one step each: every row is eligible at once."""
    return [make_step(stream + i, 0, terminated=True, **changes) for i in range(count)]


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Distance from the mean of the chi-square distribution, in its standard deviations."""
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


# ---- shares ----


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(0.001, 10.0)), min_size=1, max_size=6).filter(any),
    st.lists(st.one_of(st.integers(1, 3), st.integers(1, 300)), min_size=1, max_size=60),
)
def test_no_part_is_ever_a_whole_sample_away_from_its_share(shares: list[float], batches: list[int]) -> None:
    dealt = SharedOut(shares)
    given_, total = np.zeros(len(shares)), 0
    parts = np.array(dealt.weights) / sum(dealt.weights)
    assert np.allclose(parts, np.array(shares) / sum(shares), atol=1e-5)
    for size in batches:
        counts = dealt.take(size)
        assert sum(counts) == size and min(counts) >= 0
        given_ += counts
        total += size
        assert (np.abs(given_ - total * parts) < 1.0).all()
    assert given_[np.array(shares) == 0.0].sum() == 0


def test_tiny_shares_in_tiny_batches_get_their_turn() -> None:
    dealt = SharedOut([0.05, 0.05, 0.45, 0.45])
    counts = np.array([dealt.take(1) for _ in range(2000)])
    assert counts.sum(axis=0).tolist() == [100, 100, 900, 900]
    assert counts[:20].sum(axis=0).tolist() == [1, 1, 9, 9]


def test_what_a_part_has_given_early_is_not_taken_back() -> None:
    """Part 4 gives its sample ahead of time; after the next one others have waited for longer than it."""
    dealt = SharedOut([1, 7, 7, 3, 1, 3])
    assert [dealt.take(3), dealt.take(1)] == [[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("shares", [[], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], [float("inf")]])
def test_shares_without_meaning_are_refused(shares: list[float]) -> None:
    with pytest.raises(ConfigError):
        SharedOut(shares)


def test_a_mix_comes_part_by_part_with_its_counts() -> None:
    replays = [make_replay(single_steps(1, stream)) for stream in (1, 2, 3)]
    sampler = Sampler([Part(replay, share=share) for replay, share in zip(replays, (1, 2, 1), strict=True)], seed=0)
    for wanted in ([1, 2, 1], [0, 1, 0], [1, 1, 1]):
        draw = sampler.draw(sum(wanted))
        batch = sampler.transitions(draw, 1, 0.9)
        assert list(draw.counts) == wanted
        assert batch.observation[:, 0].tolist() == [1 + i for i, count in enumerate(wanted) for _ in range(count)]


def test_a_part_of_one_stratum_gives_no_other_rows() -> None:
    steps = [step for i in range(40) for step in single_steps(1, i, stratum=Stratum(i % len(Stratum)))]
    sampler = Sampler([Part(make_replay(steps), stratum) for stratum in Stratum], seed=0)
    batch = sampler.transitions(sampler.draw(400), 1, 0.9)
    assert batch.stratum.tolist() == [stratum for stratum in Stratum for _ in range(80)]
    assert (batch.observation[:, 0] % len(Stratum) == batch.stratum).all()
    assert len(set(batch.observation[:, 0])) == 40


# ---- empty parts ----


def test_an_empty_part_is_never_replaced_silently() -> None:
    full, empty = make_replay(single_steps(3)), make_replay()
    sampler = Sampler([Part(full), Part(empty, Stratum.CORRECTION)], seed=0)
    before = sampler.state()
    with pytest.raises(StorageError, match=r"part 2 of 2 .* CORRECTION"):
        sampler.draw(8)
    assert sampler.state() == before and not sampler.ready()
    assert len(Sampler([Part(full), Part(empty, share=0.0)], seed=0).draw(8)) == 8
    with pytest.raises(StorageError):
        Sampler([Part(empty)], seed=0, on_empty="redistribute").draw(8)


def test_the_share_of_an_empty_part_goes_to_the_others_and_is_counted() -> None:
    replays = [make_replay(single_steps(3)), make_replay(), make_replay(single_steps(3, 10))]
    parts = [Part(replay, share=share) for replay, share in zip(replays, (1.0, 2.0, 1.0), strict=True)]
    sampler = Sampler(parts, seed=0, on_empty="redistribute")
    assert sampler.ready()
    assert [sampler.draw(8).counts for _ in range(2)] == [(4, 0, 4)] * 2
    assert sampler.redistributed == (0, 8, 0)
    make_replay(single_steps(1, 20), replay=replays[1])
    assert sampler.draw(8).counts == (2, 4, 2)  # no more than its share, once it has rows
    assert sampler.redistributed == (0, 8, 0)


# ---- distributions ----


def test_uniform_draws_are_uniform_after_the_ring_has_wrapped() -> None:
    replay = make_replay(single_steps(170), capacity=100)
    rows = np.concatenate([Sampler([Part(replay)], seed=seed).draw(500).rows for seed in range(60)])
    counts = np.bincount(rows, minlength=170)
    assert counts[:70].sum() == 0
    assert abs(chi_square(counts[70:], np.full(100, 300.0))) < 5


def test_recent_draws_are_uniform_over_the_window_alone() -> None:
    replay = make_replay(single_steps(100))
    counts = np.bincount(Sampler([Part(replay, selection=Recent(20))], seed=1).draw(20_000).rows, minlength=100)
    assert counts[:80].sum() == 0
    assert abs(chi_square(counts[80:], np.full(20, 1000.0))) < 5
    few = Sampler([Part(make_replay(single_steps(3)), selection=Recent(20))], seed=1)
    assert set(few.draw(100).rows) == {0, 1, 2}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=80))
def test_the_queue_of_eligible_rows_is_a_list(changes: list[tuple[int, bool]]) -> None:
    queue, wanted = EligibleRows(10, np.zeros(10, np.int64)), list[int]()
    for slot, removes in changes:
        if slot in wanted and removes:
            queue.remove(slot)
            wanted.remove(slot)
        elif slot not in wanted:
            queue.append(slot)
            wanted.append(slot)
        assert queue.all().tolist() == wanted


# ---- going on ----

Selections = st.sampled_from([Uniform(), Recent(5), Prioritised(alpha=0.8, beta_draws=10)])


def make_sampler(replay: Replay, selection: Uniform | Recent | Prioritised) -> Sampler:
    parts = [Part(replay, share=0.3, selection=selection), Part(replay, Stratum.ONLINE, 0.7), Part(replay, share=0.123)]
    return Sampler(parts, seed=3, on_empty="redistribute")


def use(sampler: Sampler, size: int) -> Draw | None:
    """A draw as a learner makes it, with priorities that depend on the rows."""
    if not sampler.ready():
        return None
    draw = sampler.draw(size)
    sampler.set_priorities(draw, (draw.rows % 7 + 0.5).astype(np.float32))
    return draw


def same(one: Draw | None, two: Draw | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.counts == two.counts and np.array_equal(one.rows, two.rows) and np.array_equal(one.weight, two.weight)


@settings(max_examples=80, deadline=None)
@given(event_lists(60), Selections, st.data())
def test_a_resumed_sampler_continues_the_same_sequence(
    events: list[Event], selection: Uniform, data: st.DataObject
) -> None:
    """The log is replayed into a new replay up to the checkpoint, without any draw; then the state is loaded."""
    stop = data.draw(st.integers(0, len(events)))
    capacity = data.draw(st.sampled_from([5, 20, 1000]))
    first = make_replay(capacity=capacity, lookahead=2)
    sampler = make_sampler(first, selection)
    for i, event in enumerate(events[:stop]):
        make_replay([event], replay=first)
        if i % 3 == 0:
            use(sampler, 1 + i % 5)
    state = sampler.state()
    second = make_replay(events[:stop], capacity=capacity, lookahead=2)
    resumed = make_sampler(second, selection)
    resumed.load_state(state)
    assert resumed.state() == state
    for i, event in enumerate(events[stop:]):
        make_replay([event], replay=first)
        make_replay([event], replay=second)
        if i % 2 == 0:
            assert same(use(sampler, 3 + i % 4), use(resumed, 3 + i % 4))
    assert same(use(sampler, 16), use(resumed, 16))
    assert resumed.redistributed == sampler.redistributed


def test_the_state_has_everything_that_an_odd_number_of_draws_leaves_in_the_generator() -> None:
    """A draw of one row takes 32 of 64 random bits; the other half belongs to the state."""
    replay = make_replay(single_steps(100))
    sampler, resumed = (Sampler([Part(replay)], seed=5) for _ in range(2))
    sampler.draw(1)
    assert json.loads(sampler.state())["cursor"]["rng_has_uint32"] == 1
    resumed.load_state(sampler.state())
    assert [sampler.draw(1).rows[0] for _ in range(9)] == [resumed.draw(1).rows[0] for _ in range(9)]


def test_taking_a_state_changes_nothing_and_rewinding_undoes_draws() -> None:
    replay = make_replay(single_steps(50))
    plain, watched = (make_sampler(replay, Prioritised()) for _ in range(2))
    for size in (5, 3, 8):
        make_replay(single_steps(2, 100 * size), replay=replay)
        watched.state()
        cursor = watched.cursor()
        undone = watched.draw(size)
        watched.rewind(cursor)
        assert same(undone, use(watched, size))
        assert same(undone, use(plain, size))


def test_other_seeds_give_other_draws() -> None:
    replay = make_replay(single_steps(100))
    draws = [Sampler([Part(replay)], seed=seed).draw(20).rows.tolist() for seed in range(4)]
    assert all(one != two for one, two in itertools.combinations(draws, 2))


def test_a_state_of_another_configuration_is_refused() -> None:
    replay = make_replay(single_steps(10))
    sampler = Sampler([Part(replay), Part(replay)], seed=0)
    prioritised = Sampler([Part(replay), Part(replay, selection=Prioritised())], seed=0)
    shared = Sampler([Part(replay, share=2.0), Part(replay)], seed=0)
    for other in (prioritised.state(), shared.state(), b"{}", b"\xff", sampler.state()[:-5]):
        with pytest.raises(StorageError):
            sampler.load_state(other)


def test_settings_without_meaning_are_refused() -> None:
    replay = make_replay(single_steps(10))
    for broken in (
        lambda: Sampler([], seed=0),
        lambda: Sampler([Part(replay)], seed=0, buffers=0),
        lambda: Sampler([Part(replay)], seed=0).draw(0),
        lambda: Recent(0),
        lambda: Prioritised(alpha=1.5),
        lambda: Prioritised(beta=float("nan")),
        lambda: Prioritised(beta_draws=0),
    ):
        with pytest.raises(ConfigError):
            broken()
    with pytest.raises(SpecMismatchError, match="part 2"):
        Sampler([Part(replay), Part(Replay(ReplayConfig(10, 3, 1)))], seed=0)
