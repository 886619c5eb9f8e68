"""n-step transitions: computed by hand, never across streams, the same from the same steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.transitions import (
    MAX_OPEN_STREAMS,
    StepVectors,
    TransitionBatch,
    TransitionBuffer,
    sample_mixed,
)
from robot_stack.core.errors import ConfigError, SpecMismatchError, StorageError

GAMMA = 0.9


def vec(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def make_step(stream: int, index: int, reward: float = 0.0, **changes: object) -> StepVectors:
    """The observation says which stream and index it is from; the final one says index + 1."""
    values = {
        "observation": vec(stream, index),
        "action_base": vec(index + 0.25),
        "action": vec(index + 0.5),
        "reward": reward,
        "terminated": False,
        "truncated": False,
    }
    return StepVectors(stream=stream, index=index, **{**values, **changes})  # type: ignore[arg-type]


def truncated(stream: int, index: int, reward: float = 0.0) -> StepVectors:
    final = {"final_observation": vec(stream, index + 1), "final_action_base": vec(index + 1.25)}
    return make_step(stream, index, reward, truncated=True, **final)


def make_buffer(steps: Iterable[StepVectors] = (), capacity: int = 1000, n_step: int = 3) -> TransitionBuffer:
    buffer = TransitionBuffer(capacity, observation_size=2, action_size=1, n_step=n_step, discount=GAMMA)
    for step in steps:
        buffer.add(step)
    return buffer


def rows(buffer: TransitionBuffer) -> list[tuple[float, ...]]:
    """All contents, sorted: stream, index, base, action, return, bootstrap, next stream, next index, next base."""
    batch = buffer.sample(60 * len(buffer), np.random.default_rng(0))
    table = np.column_stack(
        [
            batch.observation,
            batch.action_base,
            batch.action,
            batch.return_n,
            batch.bootstrap,
            batch.next_observation,
            batch.next_action_base,
        ]
    )
    found = [tuple(float(value) for value in row) for row in np.unique(table, axis=0)]
    assert len(found) <= len(buffer)
    return found


def close(got: Sequence[tuple[float, ...]], expected: Sequence[tuple[float, ...]]) -> bool:
    return len(got) == len(expected) and np.allclose(got, expected, rtol=1e-6)


def test_an_episode_that_terminates_at_step_3_computed_by_hand() -> None:
    """Five steps were planned, the fourth (index 3) terminates; n = 3, discount 0.9, rewards 1, 2, 4, 8."""
    steps = [make_step(7, index, float(2**index)) for index in range(3)]
    buffer = make_buffer([*steps, make_step(7, 3, 8.0, terminated=True)])
    expected = [
        (7, 0, 0.25, 0.5, 1 + 0.9 * 2 + 0.81 * 4, 0.729, 7, 3, 3.25),
        (7, 1, 1.25, 1.5, 2 + 0.9 * 4 + 0.81 * 8, 0.0, 0, 0, 0.0),
        (7, 2, 2.25, 2.5, 4 + 0.9 * 8, 0.0, 0, 0, 0.0),
        (7, 3, 3.25, 3.5, 8.0, 0.0, 0, 0, 0.0),
    ]
    assert close(rows(buffer), expected)
    assert (len(buffer), buffer.dropped) == (4, 0)


def test_a_truncated_episode_bootstraps_from_its_stored_final_observation() -> None:
    steps = [make_step(7, index, float(2**index)) for index in range(4)]
    buffer = make_buffer([*steps, truncated(7, 4, 16.0)])
    expected = [
        (7, 0, 0.25, 0.5, 1 + 0.9 * 2 + 0.81 * 4, 0.729, 7, 3, 3.25),
        (7, 1, 1.25, 1.5, 2 + 0.9 * 4 + 0.81 * 8, 0.729, 7, 4, 4.25),
        (7, 2, 2.25, 2.5, 4 + 0.9 * 8 + 0.81 * 16, 0.729, 7, 5, 5.25),
        (7, 3, 3.25, 3.5, 8 + 0.9 * 16, 0.81, 7, 5, 5.25),
        (7, 4, 4.25, 4.5, 16, 0.9, 7, 5, 5.25),
    ]
    assert close(rows(buffer), expected)


def test_termination_wins_over_truncation() -> None:
    final = {"final_observation": vec(7, 1), "final_action_base": vec(0)}
    buffer = make_buffer([make_step(7, 0, 1.0, terminated=True, truncated=True, **final)])
    assert rows(buffer)[0][5] == 0.0


@pytest.mark.parametrize("missing", ["final_observation", "final_action_base"])
def test_a_truncated_step_without_its_final_state_is_dropped_and_counted(missing: str) -> None:
    final = {"final_observation": vec(7, 2), "final_action_base": vec(0), missing: None}
    buffer = make_buffer([make_step(7, 0, 1.0), make_step(7, 1, 1.0, truncated=True, **final)])
    assert close(rows(buffer), [(7, 0, 0.25, 0.5, 1.0, 0.9, 7, 1, 1.25)])
    assert buffer.dropped == 1


def test_a_stream_that_stops_gives_what_it_has_and_drops_its_last_step() -> None:
    buffer = make_buffer([make_step(7, index, 1.0) for index in range(3)])
    assert len(buffer) == 0
    buffer.end(7)
    expected = [
        (7, 0, 0.25, 0.5, 1.9, 0.81, 7, 2, 2.25),
        (7, 1, 1.25, 1.5, 1.0, 0.9, 7, 2, 2.25),
    ]
    assert close(rows(buffer), expected)
    assert buffer.dropped == 1
    buffer.end(7)
    buffer.end("never seen")
    assert buffer.dropped == 1


def test_a_gap_in_the_index_ends_the_stretch_before_it() -> None:
    buffer = make_buffer([make_step(7, index) for index in (0, 1, 5, 6)] + [truncated(7, 7)])
    assert buffer.dropped == 1
    assert [(row[1], row[7]) for row in rows(buffer)] == [(0, 1), (5, 8), (6, 8), (7, 8)]


@pytest.mark.parametrize("field", ["observation", "action_base", "action", "reward"])
def test_a_step_that_is_not_finite_is_never_sampled(field: str) -> None:
    bad = float("nan") if field == "reward" else np.full(2 if field == "observation" else 1, np.inf, np.float32)
    steps = [make_step(7, 0), make_step(7, 1), make_step(7, 2, **{field: bad}), make_step(7, 3), truncated(7, 4)]
    buffer = make_buffer(steps)
    assert (buffer.non_finite, buffer.dropped) == (1, 1)
    assert np.isfinite(rows(buffer)).all()
    assert [(row[1], row[7]) for row in rows(buffer)] == [(0, 1), (3, 5), (4, 5)]


def test_streams_that_never_end_do_not_pile_up() -> None:
    buffer = make_buffer(make_step(stream, index) for stream in range(MAX_OPEN_STREAMS + 10) for index in range(2))
    assert buffer.dropped == 10
    assert [row[0] for row in rows(buffer)] == list(range(10))


Episodes = st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["terminated", "truncated", "killed"])), max_size=8)


def episode_steps(stream: int, length: int, ending: str) -> list[StepVectors]:
    steps = [make_step(stream, index, reward=100.0 * stream + index) for index in range(length)]
    if ending == "terminated":
        steps[-1] = make_step(stream, length - 1, reward=steps[-1].reward, terminated=True)
    elif ending == "truncated":
        steps[-1] = truncated(stream, length - 1, steps[-1].reward)
    return steps


@settings(max_examples=60, deadline=None)
@given(Episodes, st.integers(1, 5), st.randoms(use_true_random=False))
def test_no_sample_ever_mixes_streams_however_they_are_interleaved(
    episodes: list[tuple[int, str]], n_step: int, random: object
) -> None:
    queues = [episode_steps(stream, *episode) for stream, episode in enumerate(episodes, 1)]
    order = [stream for stream, queue in enumerate(queues) for _ in queue]
    random.shuffle(order)  # type: ignore[attr-defined]
    pending = [list(queue) for queue in queues]
    together = make_buffer((pending[stream].pop(0) for stream in order), n_step=n_step)
    for stream in range(1, len(queues) + 1):
        together.end(stream)
    expected_rows: list[tuple[float, ...]] = []
    killed = 0
    for stream, (length, ending) in enumerate(episodes, 1):
        killed += ending == "killed"
        expected_rows += expected(stream, length, ending, n_step)
    assert (len(together), together.dropped) == (len(expected_rows), killed)
    if expected_rows:
        assert close(rows(together), sorted(expected_rows))


def expected(stream: int, length: int, ending: str, n_step: int) -> list[tuple[float, ...]]:
    """The definition, written down directly: every t, its horizon, its sum, its next state."""
    states = length - (ending == "killed")  # a killed stream has no state after its last action
    result = []
    for t in range(states):
        k = min(n_step, states - t)
        total = sum(GAMMA**i * (100.0 * stream + t + i) for i in range(k))
        if ending == "terminated" and t + k == length:
            tail = (0.0, 0.0, 0.0, 0.0)
        else:
            tail = (GAMMA**k, float(stream), float(t + k), t + k + 0.25)
        result.append((float(stream), float(t), t + 0.25, t + 0.5, total, *tail))
    return result


def random_steps(seed: int, count: int) -> list[StepVectors]:
    rng = np.random.default_rng(seed)
    steps: list[StepVectors] = []
    while len(steps) < count:
        ending = ("terminated", "truncated", "killed")[rng.integers(3)]
        steps += episode_steps(len(steps), int(rng.integers(1, 12)), ending)
    return steps[:count]


def test_the_same_steps_rebuild_the_same_buffer_also_when_the_ring_wraps() -> None:
    steps = random_steps(1, 700)
    first, second = make_buffer(steps, capacity=97), make_buffer(steps, capacity=97)
    assert len(first) == len(second) == 97
    one, two = (buffer.sample(5000, np.random.default_rng(5)) for buffer in (first, second))
    assert equal(one, two)
    assert min(one.observation[:, 0]) >= 500  # the oldest made room
    assert not equal(one, first.sample(5000, np.random.default_rng(6)))


def equal(one: TransitionBatch, two: TransitionBatch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in TransitionBatch.__dataclass_fields__)


def test_sampling_is_uniform_and_gives_copies_in_float32() -> None:
    buffer = make_buffer([make_step(1, index, terminated=True) for index in range(10)])
    batch = buffer.sample(20_000, np.random.default_rng(0))
    counts = np.bincount(batch.observation[:, 1].astype(int), minlength=10)
    assert counts.min() > 1800 and counts.max() < 2200
    assert {getattr(batch, name).dtype for name in TransitionBatch.__dataclass_fields__} == {np.dtype(np.float32)}
    assert (batch.observation.shape, batch.action.shape, batch.return_n.shape) == ((20_000, 2), (20_000, 1), (20_000,))
    before = rows(buffer)
    for name in TransitionBatch.__dataclass_fields__:
        getattr(batch, name)[:] = -1.0
    assert rows(buffer) == before


def test_a_mix_has_exact_counts_in_the_order_of_its_buffers() -> None:
    buffers = [make_buffer([make_step(stream, 0, terminated=True)]) for stream in (1, 2, 3)]
    for shares, total, counts in [
        ((0.5, 0.5), 256, [128, 128]),
        ((0.5, 0.5), 5, [3, 2]),
        ((1.0, 1.0, 1.0), 256, [86, 85, 85]),
        ((0.1, 0.0, 0.9), 10, [1, 0, 9]),
        ((2.0, 1.0, 1.0), 3, [1, 1, 1]),
    ]:
        batch = sample_mixed(list(zip(buffers, shares, strict=False)), total, np.random.default_rng(0))
        streams = batch.observation[:, 0].astype(int).tolist()
        assert streams == [1 + i for i, count in enumerate(counts) for _ in range(count)]
        assert len(batch) == total


def test_an_empty_buffer_is_never_replaced_silently() -> None:
    full, empty = make_buffer([make_step(1, 0, terminated=True)]), make_buffer()
    rng = np.random.default_rng(0)
    with pytest.raises(StorageError, match="empty"):
        empty.sample(1, rng)
    with pytest.raises(StorageError, match="buffer 2 of 2"):
        sample_mixed([(full, 0.5), (empty, 0.5)], 8, rng)
    assert len(sample_mixed([(full, 1.0), (empty, 0.0)], 8, rng)) == 8
    for shares in ((0.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0)):
        with pytest.raises(ConfigError):
            sample_mixed([(full, shares[0]), (empty, shares[1])], 8, rng)


def test_vectors_of_another_robot_are_refused() -> None:
    with pytest.raises(SpecMismatchError, match=r"observation of step 0 of 7 has shape \[3\]"):
        make_buffer([make_step(7, 0, observation=vec(0, 0, 0))])
    with pytest.raises(SpecMismatchError, match="final_action_base"):
        make_buffer([make_step(7, 0, truncated=True, final_observation=vec(0, 0), final_action_base=vec(0, 0))])


@pytest.mark.parametrize("change", [{"capacity": 0}, {"n_step": 0}, {"discount": 1.1}, {"discount": float("nan")}])
def test_settings_without_meaning_are_refused(change: dict[str, float]) -> None:
    settings_ = {"capacity": 1, "observation_size": 1, "action_size": 1, "n_step": 1, "discount": 0.9, **change}
    with pytest.raises(ConfigError):
        TransitionBuffer(**settings_)  # type: ignore[arg-type]
