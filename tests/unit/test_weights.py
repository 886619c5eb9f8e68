"""Weights from publisher to edge: every encoding, broken and superseded transfers, damage of every kind."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from robot_stack.core.delta import decode_delta, encode_delta
from robot_stack.core.errors import MessageError, PolicyError, TransportError, UnreachableError
from robot_stack.core.messages import (
    Array,
    FloatArray,
    GetWeights,
    Observation,
    WeightChunk,
    WeightEncoding,
    WeightSnapshot,
)
from robot_stack.edge.control_loop import NoCorrection
from robot_stack.edge.weights import LiveResidual, WeightFetch, WeightInbox, load_tensors
from robot_stack.learner.publication import CHUNK_BYTES, WeightPublisher

ENCODINGS = list(WeightEncoding)
BIG = 800_000  # numbers: more than three chunks; four times as many are more than one block of a delta


def tensors(seed: int, count: int = 300) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.standard_normal((count, 1)).astype(np.float32),
        "count": np.array([seed, 2**40], np.int64),
        "mean": rng.standard_normal(5),
    }


def updated(before: Mapping[str, Array], seed: int) -> dict[str, Array]:
    noise = np.random.default_rng(seed).standard_normal(before["weight"].shape)
    return {**before, "weight": (before["weight"] * (1 + 1e-3 * noise)).astype(np.float32)}


def assert_same(left: Mapping[str, Array], right: Mapping[str, Array]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype and value.tobytes() == right[name].tobytes()


def fetched(fetch: WeightFetch, ask: Callable[[GetWeights], object]) -> tuple[WeightSnapshot, dict[str, Array]]:
    whole = fetch.fetch(ask)
    assert whole is not None
    return whole[0], load_tensors(whole[1])


@pytest.mark.parametrize("encoding", [WeightEncoding.FULL, WeightEncoding.DELTA])
def test_exact_encodings_bring_every_version_bit_for_bit(encoding: WeightEncoding) -> None:
    publisher, fetch, sent = WeightPublisher("residual"), WeightFetch(encoding), tensors(0, BIG)
    used = []
    for version in (9, 10, 11):
        publisher.publish(version, sent, version * 100)
        snapshot, received = fetched(fetch, publisher.answer)
        assert_same(received, sent)
        assert (snapshot.version, snapshot.kind, snapshot.trained_steps) == (version, "residual", version * 100)
        used.append(snapshot.encoding)
        sent = updated(sent, version)
    assert used == [WeightEncoding.FULL, encoding, encoding]


def test_float16_says_so_rounds_once_and_keeps_the_types() -> None:
    publisher, sent = WeightPublisher("residual"), tensors(0)
    publisher.publish(1, sent, 7)
    snapshot, received = fetched(WeightFetch(WeightEncoding.FLOAT16), publisher.answer)
    assert snapshot.encoding is WeightEncoding.FLOAT16
    assert snapshot.size < len(save(sent))
    rounded = sent["weight"].astype(np.float16).astype(np.float32)
    assert_same(received, {**sent, "weight": rounded})


@pytest.mark.parametrize("value", [np.float32(1e5), np.float16(1.0)], ids=["out of range", "float16 already"])
def test_what_float16_cannot_carry_is_sent_whole(value: np.generic) -> None:
    publisher, sent = WeightPublisher("residual"), {"weight": np.array([value, value])}
    publisher.publish(1, sent, 7)
    snapshot, received = fetched(WeightFetch(WeightEncoding.FLOAT16), publisher.answer)
    assert snapshot.encoding is WeightEncoding.FULL
    assert_same(received, sent)


@pytest.mark.parametrize("sent", [{"weight": np.zeros(10, np.float32)}, tensors(0, 10)], ids=["other shapes", "gone"])
def test_a_delta_without_a_common_base_falls_back_to_the_whole(sent: dict[str, Array]) -> None:
    publisher, fetch = WeightPublisher("residual", history=2), WeightFetch(WeightEncoding.DELTA)
    publisher.publish(1, tensors(0, 10), 1)
    fetched(fetch, publisher.answer)
    if sent.keys() == {"weight"}:
        publisher.publish(2, sent, 1)
    else:
        publisher = WeightPublisher("residual")  # a learner that was started anew
        publisher.publish(2, sent, 1)
    snapshot, received = fetched(fetch, publisher.answer)
    assert snapshot.encoding is WeightEncoding.FULL
    assert_same(received, sent)


def test_deltas_of_a_small_update_are_much_smaller_and_of_frozen_weights_nearly_nothing() -> None:
    before = tensors(0, BIG)
    for after, limit in ((updated(before, 1), 0.75), ({**before, "mean": np.ones(5)}, 0.02)):
        publisher, fetch = WeightPublisher("residual"), WeightFetch(WeightEncoding.DELTA)
        publisher.publish(1, before, 1)
        fetched(fetch, publisher.answer)
        publisher.publish(2, after, 2)
        sent_bytes = 0

        def counting(request: GetWeights, publisher: WeightPublisher = publisher) -> WeightChunk:
            nonlocal sent_bytes
            chunk = publisher.answer(request)
            sent_bytes += len(chunk.data)
            return chunk

        snapshot, received = fetched(fetch, counting)
        assert_same(received, after)
        assert sent_bytes < limit * snapshot.size


class Line:
    """Between edge and publisher: counts chunks, and breaks, in the request or in the reply, as told."""

    def __init__(self, publisher: WeightPublisher, breaks: Callable[[int], bool] = lambda index: False) -> None:
        self.publisher, self.breaks, self.asked = publisher, breaks, 0

    def __call__(self, request: GetWeights) -> WeightChunk:
        self.asked += 1
        if self.breaks(self.asked):
            raise UnreachableError("the line is cut")
        return self.publisher.answer(request)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_broken_transfer_goes_on_where_it_stopped(encoding: WeightEncoding) -> None:
    publisher, fetch = WeightPublisher("residual"), WeightFetch(encoding)
    first = tensors(0, 4 * BIG)
    publisher.publish(1, first, 1)
    fetched(fetch, publisher.answer)
    publisher.publish(2, updated(first, 1), 2)
    whole = Line(publisher)
    other = WeightFetch(encoding)
    other._base, other._base_sha256 = fetch._base, fetch._base_sha256
    fetched(other, whole)
    line = Line(publisher, lambda index: index % 2 == 0)
    for _ in range(whole.asked):
        try:
            snapshot, _ = fetched(fetch, line)
            break
        except UnreachableError:
            assert fetch.received_bytes > 0
    assert snapshot.version == 2
    assert line.asked == 2 * whole.asked - 1  # each chunk was asked for once, and every second request was lost


def test_a_transfer_goes_on_after_the_learner_came_back_with_the_same_weights() -> None:
    sent, fetch = tensors(0, BIG), WeightFetch()
    first, second = WeightPublisher("residual"), WeightPublisher("residual")
    for publisher in (first, second):
        publisher.publish(3, sent, 5)
    with pytest.raises(UnreachableError):
        fetch.fetch(Line(first, lambda index: index == 3))
    assert fetch.received_bytes == 2 * CHUNK_BYTES
    line = Line(second)
    assert_same(fetched(fetch, line)[1], sent)
    assert line.asked == 2


def test_a_transfer_begins_anew_when_the_learner_came_back_with_other_weights_of_the_same_version() -> None:
    fetch, first, second = WeightFetch(), WeightPublisher("residual"), WeightPublisher("residual")
    first.publish(3, tensors(0, BIG), 5)
    second.publish(3, tensors(1, 10), 5)
    with pytest.raises(UnreachableError):
        fetch.fetch(Line(first, lambda index: index == 3))
    whole = fetch.fetch(second.answer) or fetch.fetch(second.answer)
    assert whole is not None
    assert_same(load_tensors(whole[1]), tensors(1, 10))


def test_a_slow_edge_finishes_what_it_fetches_while_newer_weights_appear() -> None:
    publisher, fetch = WeightPublisher("residual", history=3), WeightFetch()
    publisher.publish(0, tensors(0, BIG), 0)
    assert fetch.advance(publisher.answer) is None
    for version in (1, 2):
        publisher.publish(version, tensors(version, BIG), 0)
    snapshot, received = fetched(fetch, publisher.answer)
    assert snapshot.version == 0
    assert_same(received, tensors(0, BIG))
    assert fetched(fetch, publisher.answer)[0].version == 2


def test_a_snapshot_that_is_gone_is_replaced_by_the_newest() -> None:
    publisher, fetch = WeightPublisher("residual", history=1), WeightFetch()
    publisher.publish(0, tensors(0, BIG), 0)
    assert fetch.advance(publisher.answer) is None
    publisher.publish(1, tensors(1, BIG), 0)
    assert fetch.fetch(publisher.answer) is None  # it says so, and has begun with the newest
    snapshot, received = fetched(fetch, publisher.answer)
    assert snapshot.version == 1
    assert_same(received, tensors(1, BIG))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ENCODINGS), st.integers(1, 3), st.lists(st.sampled_from("aaaaacpr"), max_size=40))
def test_whatever_happens_on_the_way_only_published_weights_arrive(
    encoding: WeightEncoding, history: int, events: list[str]
) -> None:
    """advance, cut line, publish, restart of the learner in any order: what arrives is what was published."""
    publisher, fetch = WeightPublisher("residual", history), WeightFetch(encoding)
    published: dict[int, dict[str, Array]] = {0: tensors(0, 700_000)}
    publisher.publish(0, published[0], 0)
    for event in [*events, *"aaaaaaaaaa"]:
        version = max(published)
        if event == "c":
            with pytest.raises(UnreachableError):
                fetch.advance(Line(publisher, lambda index: True))
        elif event == "p":
            published[version + 1] = updated(published[version], version)
            publisher.publish(version + 1, published[version + 1], 0)
        elif event == "r":
            publisher = WeightPublisher("residual", history)
            publisher.publish(version, published[version], 0)
        else:
            whole = fetch.advance(publisher.answer)
            if whole is not None:
                snapshot, received = whole[0], load_tensors(whole[1])
                sent = published[snapshot.version]
                if snapshot.encoding is WeightEncoding.FLOAT16:
                    sent = {**sent, "weight": sent["weight"].astype(np.float16).astype(np.float32)}
                assert_same(received, sent)
    assert whole is not None or fetch.received_bytes > 0


def test_requests_that_make_no_sense_are_refused() -> None:
    publisher = WeightPublisher("residual")
    with pytest.raises(TransportError, match="no weights"):
        publisher.answer(GetWeights())
    publisher.publish(1, tensors(0), 1)
    for offset in (-1, 10**9, 2**63 - 1):
        with pytest.raises(TransportError, match="asked for offset"):
            publisher.answer(GetWeights(offset=offset))
    assert publisher.answer(GetWeights(version=7, offset=100)).offset == 0
    assert publisher.version == 1


def test_published_weights_do_not_change_with_the_arrays_they_came_from() -> None:
    publisher, sent = WeightPublisher("residual"), tensors(0)
    publisher.publish(1, sent, 1)
    sent["weight"][:] = 7
    for encoding in ENCODINGS:
        received = fetched(WeightFetch(encoding), publisher.answer)[1]["weight"]
        np.testing.assert_allclose(received, tensors(0)["weight"], rtol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 8},
        {"kind": "residuam"},
        {"trained_steps": 8},
        {"size": 2**40},
        {"size": 0},
        {"size": 17},
        {"sha256": "0" * 64},
        {"encoding": WeightEncoding.FLOAT16},
        {"encoding": WeightEncoding.DELTA},
        {"encoding": WeightEncoding.DELTA, "base_sha256": "1" * 64},
    ],
    ids=str,
)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_announcement_that_is_not_true_is_refused(encoding: WeightEncoding, changes: dict[str, object]) -> None:
    publisher, fetch = WeightPublisher("residual"), WeightFetch(encoding)
    publisher.publish(1, tensors(0), 1)
    if changes.get("encoding") is encoding is WeightEncoding.FLOAT16:
        changes = {"encoding": WeightEncoding.FULL}

    def lie(request: GetWeights) -> WeightChunk:
        chunk = publisher.answer(request)
        return msgspec.structs.replace(chunk, snapshot=msgspec.structs.replace(chunk.snapshot, **changes))

    with pytest.raises(MessageError):
        fetch.fetch(lie)
    assert fetch.received_bytes == 0
    assert fetched(fetch, publisher.answer)[0].version == 1  # and the truth is taken the next time


@pytest.mark.parametrize(
    "changes", [{"data": b""}, {"offset": 1}, {"data": bytes(1 << 20)}], ids=["empty", "gap", "long"]
)
def test_chunks_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    publisher = WeightPublisher("residual")
    publisher.publish(1, tensors(0), 1)
    with pytest.raises(MessageError):
        WeightFetch().fetch(lambda request: msgspec.structs.replace(publisher.answer(request), **changes))
    with pytest.raises(MessageError, match="answered a request for weights with str"):
        WeightFetch().fetch(lambda request: "hello")


def test_content_that_is_no_safetensors_file_is_refused_though_its_hash_is_right() -> None:
    for data in (b"12345678", b"\xff" * 40, save({"w": np.zeros(3, np.float32)})[:-1]):
        snapshot = WeightSnapshot(
            version=1, kind="r", sha256=hashlib.sha256(data).hexdigest(), size=len(data), trained_steps=1
        )
        chunk = WeightChunk(snapshot=snapshot, offset=0, data=data)
        with pytest.raises((MessageError, PolicyError)):
            fetched(WeightFetch(), lambda request, chunk=chunk: chunk)  # type: ignore[misc]


# ---- the delta's blocks -------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 40_000), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-7, 1e-3, 1.0]))
def test_any_block_comes_back_from_its_delta(size: int, seed: int, change: float) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(size // 4 + 1).astype(np.float32)
    base = numbers.tobytes()[:size]
    block = (numbers * (1 + change * rng.standard_normal(numbers.size))).astype(np.float32).tobytes()[:size]
    encoded = encode_delta(block, base)
    assert decode_delta(encoded, base) == block
    assert len(encoded) <= size + 20


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_a_delta_of_noise_is_a_message_error_or_a_block_of_the_right_size(noise: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert len(decode_delta(noise, bytes(64))) == 64


def test_a_delta_that_would_inflate_to_megabytes_is_refused() -> None:
    bomb = encode_delta(bytes(1 << 26), bytes(1 << 26))
    with pytest.raises(MessageError, match="whole deflated stream"):
        decode_delta(bomb, bytes(64))


# ---- the last checks before weights act ----------------------------------------------------------------------------


class Odd:
    """A residual that does what its weights say."""

    def __init__(self, version: int, tensors: Mapping[str, Array]) -> None:
        if "missing" in tensors:
            raise KeyError("weight.0")
        self.version, self._tensors = version, tensors

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        if "fail" in self._tensors:
            raise RuntimeError("shapes do not match")
        return action_base + self._tensors["add"]


@pytest.mark.parametrize(
    "bad",
    [
        {"missing": np.ones(1)},
        {"fail": np.ones(1)},
        {"add": np.full(2, np.nan, np.float32)},
        {"add": np.full(2, np.inf, np.float32)},
        {"add": np.ones((3, 2), np.float32)},
    ],
    ids=["not built", "fails", "nan", "infinite", "shape"],
)
def test_poisoned_weights_never_act_and_cost_no_control_step(
    bad: dict[str, Array], caplog: pytest.LogCaptureFixture
) -> None:
    inbox = WeightInbox()
    live = LiveResidual(NoCorrection(), inbox, Odd)
    observation = Observation(id=0, stamp_ns=0, features={}, age_ns={})
    base = np.zeros(2, np.float32)
    inbox.put(1, {"add": np.ones(2, np.float32)})
    live.refresh()
    assert live.correct(observation, base).tolist() == [1.0, 1.0]
    inbox.put(2, bad)
    live.refresh()
    assert live.correct(observation, base).tolist() == [1.0, 1.0]
    assert live.version == 1 and "weights version 2 refused" in caplog.text
    inbox.put(3, {"add": np.full(2, 3, np.float32)})
    live.refresh()
    assert live.correct(observation, base).tolist() == [3.0, 3.0] and live.version == 3
