"""Batches gathered ahead are those that would have been gathered one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.batches import Draw, TransitionBatch
from robot_stack.buffer.frames import ImageBuffers
from robot_stack.buffer.prefetch import Prefetcher
from robot_stack.buffer.replay import Replay, ReplayConfig
from robot_stack.buffer.sampling import Part, Prioritised, Sampler, Selection, Uniform
from robot_stack.core.errors import ConfigError, StorageError
from tests.replay_kit import GAMMA, make_step

CAMERA = "observation.images.front"
SHAPE = (32, 32, 3)
WAIT_S = 30.0


def add_steps(replay: Replay, count: int) -> None:
    """Every frame's pixels are its row number modulo 251."""
    for _ in range(count):
        number = replay.next_row_number
        frame = np.full(SHAPE, number % 251, np.uint8)
        replay.add(make_step(number, 0, terminated=True, images={CAMERA: frame}))


def make_sampler(rows: int = 300, selection: Selection = Uniform()) -> Sampler:  # noqa: B008
    replay = Replay(ReplayConfig(1000, 2, 1, {CAMERA: SHAPE}, frame_budget_bytes=1000 * 32 * 32 * 3))
    add_steps(replay, rows)
    return Sampler([Part(replay, share=0.3, selection=selection), Part(replay, share=0.7)], seed=4)


def gatherer(sampler: Sampler) -> object:
    return lambda draw, out: sampler.transitions(draw, 1, GAMMA, images=[CAMERA], out=out)


def prefetcher(sampler: Sampler, batch_size: int = 8, **settings_: int) -> Prefetcher[TransitionBatch]:
    return Prefetcher(sampler, batch_size, gatherer(sampler), **settings_)  # type: ignore[arg-type]


def check(batch: TransitionBatch, rows: np.ndarray) -> None:
    assert np.array_equal(batch.rows, rows)
    assert (batch.images[CAMERA] == (rows % 251)[:, None, None, None]).all()


Actions = st.lists(st.sampled_from(["next", "next", "next", "add", "priorities", "expect", "state"]), max_size=30)


@settings(max_examples=40, deadline=None)
@given(Actions, st.integers(1, 4), st.integers(1, 3), st.sampled_from([Uniform(), Prioritised(beta_draws=5)]))
def test_prefetching_changes_nothing(actions: list[str], depth: int, workers: int, selection: Selection) -> None:
    plain, ahead = make_sampler(20, selection), make_sampler(20, selection)
    with prefetcher(ahead, depth=depth, workers=workers) as batches:
        for count, action in enumerate(actions):
            if action == "next":
                check(batches.next(), plain.draw(8).rows)
            elif action == "add":
                for sampler in (plain, ahead):
                    add_steps(sampler.parts[0].replay, 3)
            elif action == "priorities":
                wanted = plain.draw(8)
                batch = batches.next()
                check(batch, wanted.rows)
                values = (wanted.rows % 5 + 0.5).astype(np.float32)
                plain.set_priorities(wanted, values)
                ahead.set_priorities(batch.draw, values)
            elif action == "expect":
                batches.expect(count % 4)
            else:
                assert batches.state() == plain.state()
        assert batches.state() == plain.state()
    check(gather_one(ahead), plain.draw(8).rows)  # after closing the sampler goes on where the consumer was


def gather_one(sampler: Sampler) -> TransitionBatch:
    return sampler.transitions(sampler.draw(8), 1, GAMMA, images=[CAMERA])


def test_resuming_from_its_state_goes_on_with_the_next_batch_that_was_not_taken() -> None:
    first, second = make_sampler(), make_sampler()
    with prefetcher(first, depth=3) as batches, prefetcher(second, depth=3) as resumed:
        for _ in range(5):
            batches.next()
        resumed.next()
        resumed.load_state(batches.state())
        for _ in range(5):
            check(resumed.next(), batches.next().rows)


def test_a_batch_stays_as_it_is_until_keep_more_were_taken() -> None:
    with prefetcher(make_sampler(), depth=2, keep=3) as batches:
        taken = []
        for _ in range(30):
            batch = batches.next()
            taken.append((batch, batch.rows.copy()))
            for kept, rows in taken[-3:]:
                check(kept, rows)


class Gate:
    """A gather that waits for leave, and fails when told to."""

    def __init__(self, sampler: Sampler) -> None:
        self.open = threading.Event()
        self.fails = False
        self.begun = threading.Semaphore(0)
        self._sampler = sampler

    def __call__(self, draw: Draw, out: ImageBuffers) -> TransitionBatch:
        self.begun.release()
        assert self.open.wait(WAIT_S)
        if self.fails:
            raise StorageError("the disk is gone")
        return self._sampler.transitions(draw, 1, GAMMA, images=[CAMERA], out=out)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate(make_sampler())
    yield gate
    gate.open.set()


def test_batches_are_gathered_before_they_are_asked_for(gate: Gate) -> None:
    with Prefetcher(gate._sampler, 8, gate, depth=3, workers=2) as batches:
        batches.expect(3)
        assert all(gate.begun.acquire(timeout=WAIT_S) for _ in range(2))  # both workers, nothing was taken yet
        gate.open.set()
        rows = [batches.next().rows.tolist() for _ in range(3)]
        gate.begun.acquire(timeout=WAIT_S)
        assert not gate.begun.acquire(blocking=False)  # three were expected, no fourth was begun
    plain = make_sampler()
    assert rows == [plain.draw(8).rows.tolist() for _ in range(3)]


def test_what_was_gathered_before_a_change_is_thrown_away_and_counted(gate: Gate) -> None:
    gate.open.set()
    with Prefetcher(gate._sampler, 8, gate, depth=2) as batches:
        batches.next()
        assert batches.thrown_away == 0
        add_steps(gate._sampler.parts[0].replay, 1)
        batches.next()
        assert batches.thrown_away == 2


def test_what_was_expected_before_a_change_is_not_gathered_after_it(gate: Gate) -> None:
    gate.open.set()
    with Prefetcher(gate._sampler, 8, gate, depth=2) as batches:
        batches.expect(9)
        for _ in range(4):
            batches.next()
            add_steps(gate._sampler.parts[0].replay, 1)
        assert batches.thrown_away == 2  # those of the first change; nothing was gathered ahead after it


def test_an_error_of_a_worker_is_raised_in_the_consumer_and_the_batch_is_not_lost(gate: Gate) -> None:
    gate.open.set()
    plain = make_sampler()
    with Prefetcher(gate._sampler, 8, gate, depth=3) as batches:
        check(batches.next(), plain.draw(8).rows)
        gate.fails = True
        add_steps(gate._sampler.parts[0].replay, 1)
        add_steps(plain.parts[0].replay, 1)
        state = batches.state()
        for _ in range(2):
            with pytest.raises(StorageError, match="disk"):
                batches.next()
        assert batches.state() == state
        gate.fails = False
        for _ in range(4):
            check(batches.next(), plain.draw(8).rows)


def test_an_empty_replay_is_an_error_until_steps_come() -> None:
    sampler = make_sampler(rows=0)
    with prefetcher(sampler) as batches:
        with pytest.raises(StorageError, match="part 1 of 2"):
            batches.next()
        add_steps(sampler.parts[0].replay, 5)
        check(batches.next(), make_sampler(rows=5).draw(8).rows)


def test_closing_ends_its_threads_and_may_be_done_twice() -> None:
    before = threading.active_count()
    batches = prefetcher(make_sampler(), depth=4, workers=3)
    batches.next()
    assert threading.active_count() > before
    batches.close()
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(StorageError, match="closed"):
        batches.next()


@pytest.mark.parametrize("change", [{"depth": 0}, {"workers": 0}, {"keep": 0}])
def test_settings_without_meaning_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        prefetcher(make_sampler(1), **change)
