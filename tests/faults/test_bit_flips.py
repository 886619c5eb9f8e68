"""Every flipped bit in a checkpoint or a weight snapshot is caught, and the previous version is what is used.

Together more than 10^4 flips: every single bit of small files and messages, random ones of larger.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_stack.core.codec import pack, unpack
from robot_stack.core.errors import MessageError, PolicyError
from robot_stack.core.messages import (
    Array,
    FloatArray,
    GetWeights,
    LearnerReply,
    Observation,
    WeightChunk,
    WeightEncoding,
)
from robot_stack.edge.control_loop import NoCorrection
from robot_stack.edge.weights import LiveResidual, WeightFetch, WeightInbox, load_tensors
from robot_stack.learner.checkpoint import CheckpointStore
from robot_stack.learner.publication import CHUNK_BYTES, WeightPublisher


def flipped(whole: bytes, bits: Iterator[int] | range) -> Iterator[tuple[int, bytes]]:
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(damaged)


def tensors(version: int, count: int = 12) -> dict[str, Array]:
    rng = np.random.default_rng(version)
    return {"weight": rng.standard_normal(count).astype(np.float32), "count": np.array([version], np.int64)}


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def two_checkpoints(directory: Path, count: int) -> CheckpointStore:
    store = CheckpointStore(directory)
    store.open()
    store.save(1, tensors(1, count), b"one", score=0.25)
    store.save(2, tensors(2, count), b"two", score=0.5)
    return store


def damage_all(store: CheckpointStore, path: Path, bits: Iterator[int] | range) -> int:
    whole, flips = path.read_bytes(), 0
    for bit, damaged in flipped(whole, bits):
        path.write_bytes(damaged)
        for found in (store.latest(), store.best()) if bit % 16 == 0 else (store.latest(),):
            assert found is not None and (found.step, found.meta, found.score) == (1, b"one", 0.25), (path.name, bit)
        flips += 1
    path.write_bytes(whole)
    return flips


def test_every_bit_of_a_small_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    store = two_checkpoints(tmp_path, count=12)
    flips = 0
    for path in sorted((tmp_path / "step-000000000002").iterdir()):
        flips += damage_all(store, path, range(path.stat().st_size * 8))
    assert flips > 3_000
    found = store.latest()
    assert found is not None and found.step == 2
    np.testing.assert_array_equal(found.tensors["weight"], tensors(2)["weight"])


def test_random_bits_of_a_larger_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    store = two_checkpoints(tmp_path, count=50_000)
    path = tmp_path / "step-000000000002" / "tensors.safetensors"
    bits = np.random.default_rng(0).integers(path.stat().st_size * 8, size=500)
    assert damage_all(store, path, iter(bits.tolist())) == 500


# ---- weights on their way -------------------------------------------------------------------------------------------


class Scaled:
    def __init__(self, version: int, tensors: dict[str, Array]) -> None:
        self.version, self.total = version, tensors["weight"].sum()

    def correct(self, observation: Observation, action_base: FloatArray) -> FloatArray:
        return action_base + self.total


class Edge:
    """The edge's side: fetch, load, hand over, canary; version 1 is in use."""

    def __init__(self, publisher: WeightPublisher, encoding: WeightEncoding) -> None:
        self.inbox = WeightInbox()
        self.live = LiveResidual(NoCorrection(), self.inbox, Scaled)  # type: ignore[arg-type]
        self.publisher, self.encoding = publisher, encoding
        first = self.fetch()
        self.receive(first, None)
        self.act()
        assert self.live.version == 1

    def fetch(self) -> WeightFetch:
        return WeightFetch(self.encoding)

    def ask(self, request: GetWeights) -> WeightChunk:
        return self.publisher.answer(request)

    def holding_version_one(self) -> WeightFetch:
        """A fetch that has version 1 as its base."""
        fetch = self.fetch()
        fetch._base_sha256, fetch._base = self._base
        return fetch

    def receive(self, fetch: WeightFetch, blob: bytes | None) -> None:
        """As the uplink does; `blob`, where given, is what arrives instead of the answer."""

        def ask(request: GetWeights) -> object:
            return self.ask(request) if blob is None else unpack(blob, LearnerReply)

        whole = fetch.fetch(ask)
        assert whole is not None
        self._base = (fetch._base_sha256, fetch._base)
        self.inbox.put(whole[0].version, load_tensors(whole[1]))

    def act(self) -> None:
        self.live.refresh()
        self.live.correct(Observation(id=0, stamp_ns=0, features={}, age_ns={}), np.zeros(1, np.float32))


@pytest.mark.parametrize("encoding", list(WeightEncoding))
def test_every_bit_of_a_weight_message(encoding: WeightEncoding) -> None:
    """Announcement and data: each flip is refused by the codec or by the fetch, and version 1 goes on acting."""
    publisher = WeightPublisher("residual")
    publisher.publish(1, tensors(1), 10)
    edge = Edge(publisher, encoding)
    base = edge._base
    publisher.publish(2, tensors(2), 20)
    request = edge.holding_version_one()._request()
    blob = pack(publisher.answer(request))
    for bit, damaged in flipped(blob, range(len(blob) * 8)):
        edge._base = base
        with pytest.raises((MessageError, PolicyError)):
            edge.receive(edge.holding_version_one(), damaged)
            pytest.fail(f"bit {bit} of {len(blob) * 8} was not noticed")
        edge.act()
        assert edge.live.version == 1
    edge._base = base
    edge.receive(edge.holding_version_one(), blob)
    edge.act()
    assert edge.live.version == 2
    assert publisher.answer(request).snapshot.encoding is encoding
    assert len(blob) * 8 > 3_000


@pytest.mark.parametrize("encoding", list(WeightEncoding))
def test_random_bits_in_the_data_of_a_larger_snapshot(encoding: WeightEncoding) -> None:
    """In any of several chunks; what was fetched so far is thrown away, and the next attempt succeeds."""
    publisher, rng = WeightPublisher("residual"), np.random.default_rng(0)
    count = 3 * CHUNK_BYTES // 4
    publisher.publish(1, tensors(1, count), 10)
    fetch = WeightFetch(encoding)
    assert fetch.fetch(publisher.answer) is not None
    publisher.publish(2, tensors(2, count), 20)
    for _ in range(60):
        left = int(rng.integers(3)) if encoding is WeightEncoding.FULL else 0

        def ask(request: GetWeights, left: list[int] = [left]) -> WeightChunk:  # noqa: B006
            chunk = publisher.answer(request)
            left[0] -= 1
            if left[0] != -1:
                return chunk
            ((_, damaged),) = flipped(chunk.data, iter([int(rng.integers(len(chunk.data) * 8))]))
            return WeightChunk(snapshot=chunk.snapshot, offset=chunk.offset, data=damaged, sha256=chunk.sha256)

        base = (fetch._base_sha256, fetch._base)
        with pytest.raises((MessageError, PolicyError)):
            fetch.fetch(ask)
        assert fetch.received_bytes == 0
        fetch._base_sha256, fetch._base = base
    whole = fetch.fetch(publisher.answer)
    assert whole is not None and whole[0].version == 2 and whole[0].encoding is encoding
