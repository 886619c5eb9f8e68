"""The uplink against learners that go away, refuse, or find steps malformed: nothing is lost and nothing blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from robot_stack.apps.connections import free_network, learner_client
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.steps import StepLog
from robot_stack.core.codec import pack
from robot_stack.core.errors import MessageError, RobotStackError
from robot_stack.core.messages import (
    SCHEMA_VERSION,
    Done,
    Failed,
    GetProgress,
    Hello,
    LearnerProgress,
    LearnerReply,
    LearnerRequest,
    StepAck,
    StepBatch,
)
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.spool import Spool
from robot_stack.edge.uplink import MAX_BATCH_BYTES, MIN_BATCH_BYTES, BatchLimits, Uplink
from robot_stack.edge.weights import WeightInbox
from robot_stack.transport.client import RequestClient
from robot_stack.transport.keys import KeyStore
from robot_stack.transport.server import RequestServer
from robot_stack.transport.services import SERVICES
from tests.transport_kit import eventually, make_keys
from tests.unit.test_edge_outbox import make_step

WITHIN_S = 60.0


class Learner:
    """A learner without training: the real server and the real log, answering as `learner/loop.py` does."""

    def __init__(self, directory: Path, keys: KeyStore, address: str) -> None:
        self.log = StepLog(directory, durability="process")
        self.address = address
        self.refusal: Failed | None = None
        self.schema_version = SCHEMA_VERSION
        self.batches: list[int] = []
        self.progress_asked = 0
        self._keys = keys
        self._stop = threading.Event()

    @contextmanager
    def serving(self) -> Iterator[None]:
        self._stop.clear()
        with self.log:
            thread = threading.Thread(target=self._serve)
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join()

    def _serve(self) -> None:
        service = SERVICES["learner.request"]
        server: RequestServer[LearnerRequest] = RequestServer(
            service, self.address, self._keys, "learner", LearnerRequest
        )
        with server:
            while not self._stop.is_set():
                for request in server.poll(0.01):
                    request.reply(self._answer(request.message))

    def _answer(self, message: LearnerRequest) -> LearnerReply:
        if isinstance(message, Hello):
            if message.schema_version != self.schema_version:
                return Failed(reason="schema_version", message=f"this learner speaks {self.schema_version}")
            return Done()
        if isinstance(message, GetProgress):
            self.progress_asked += 1
            return progress(self.log.next_index)
        assert isinstance(message, StepBatch)
        if self.refusal is not None:
            return self.refusal
        try:
            _, duplicates = self.log.append(message.records)
        except RobotStackError as error:
            return Failed(reason=type(error).__name__, message=str(error))
        self.batches.append(len(message.records))
        return StepAck(records=len(message.records), duplicates=duplicates)


def progress(durable: int) -> LearnerProgress:
    return LearnerProgress(
        durable_steps=durable,
        trained_steps=durable,
        updates=0,
        weights_version=-1,
        target_steps=10**9,
        finished=False,
        metrics={},
    )


class Edge:
    """Spool, outbox, uplink and alarms of an edge, without the robot."""

    def __init__(self, directory: Path, keys: KeyStore, address: str, key: str = "edge") -> None:
        network = msgspec.structs.replace(free_network(), learner_address=address)
        self.spool = Spool(directory, 1 << 28)
        self.outbox = Outbox(self.spool, ImageCodec.RAW, 1 << 26)
        self.board = AlarmBoard()

        def client() -> RequestClient[LearnerReply]:
            return learner_client(network, keys, key)

        self.uplink = Uplink(client, self.spool, WeightInbox(), self.board)

    def __enter__(self) -> Edge:
        self.spool.open()
        self.uplink.__enter__()
        self.outbox.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.outbox.__exit__(*error)
        self.uplink.__exit__(*error)
        self.spool.close()

    def shows(self, kind: AlarmKind) -> bool:
        return any(alarm.kind is kind for alarm in self.board.active())


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return make_keys(tmp_path)


@pytest.fixture
def learner(tmp_path: Path, keys: KeyStore) -> Learner:
    return Learner(tmp_path / "steps", keys, free_network().learner_address)


def delivered(learner: Learner) -> list[tuple[str, int]]:
    with learner.log:
        return [(step.session, step.seq) for _, step in learner.log.iterate(0)]


def test_after_partitions_everything_arrives_once_and_in_order(
    tmp_path: Path, keys: KeyStore, learner: Learner
) -> None:
    total = 0
    with Edge(tmp_path / "spool", keys, learner.address) as edge:
        for _ in range(3):
            with learner.serving():
                for _ in range(200):
                    edge.outbox.put(make_step(total, side=16))
                    total += 1
                if total > 200:  # the first time the partition comes in the middle of the work
                    assert edge.outbox.flush(WITHIN_S)
                    assert eventually(lambda: edge.spool.unacknowledged == 0, WITHIN_S)
                    assert not edge.shows(AlarmKind.LEARNER_AWAY)
            for _ in range(300):
                edge.outbox.put(make_step(total, side=16))
                total += 1
            assert eventually(lambda: edge.shows(AlarmKind.LEARNER_AWAY), WITHIN_S)
        with learner.serving():
            assert edge.outbox.flush(WITHIN_S)
            assert eventually(lambda: edge.spool.unacknowledged == 0, WITHIN_S)
            assert eventually(lambda: edge.board.active() == (), WITHIN_S)
            assert edge.uplink.heard_ns > 0
            durable = total
            assert edge.uplink.wait_until(lambda report: report.durable_steps == durable, lambda: True)
    assert delivered(learner) == [("s", seq) for seq in range(total)]


def test_catching_up_uses_few_large_batches_and_asks_for_progress_seldom(
    tmp_path: Path, keys: KeyStore, learner: Learner
) -> None:
    total = 2000
    with Edge(tmp_path / "spool", keys, learner.address) as edge:
        for index in range(total):
            edge.outbox.put(make_step(index, side=64))
        assert edge.outbox.flush(WITHIN_S)
        begun_s = time.monotonic()
        with learner.serving():
            assert eventually(lambda: edge.spool.unacknowledged == 0, WITHIN_S)
            took_s = time.monotonic() - begun_s
    assert len(delivered(learner)) == total
    assert learner.progress_asked <= took_s + 5
    assert max(learner.batches) > 3 * learner.batches[0]
    # 2000 steps are 200 s of a robot at 10 Hz; five times real time would be 40 s
    assert took_s < 40.0


def test_a_lost_answer_repeats_a_batch_and_counts_it_once(tmp_path: Path, keys: KeyStore, learner: Learner) -> None:
    with Spool(tmp_path / "spool", 1 << 28) as spool:
        for index in range(50):
            spool.put(pack(msgspec.structs.replace(make_step(index), seq=index)))
        with learner.log:  # it stored this batch, and the answer was lost
            learner.log.append(spool.pending(20, 1 << 20)[1])
    with Edge(tmp_path / "spool", keys, learner.address) as edge, learner.serving():
        assert eventually(lambda: edge.spool.unacknowledged == 0, WITHIN_S)
    assert delivered(learner) == [("s", seq) for seq in range(50)]


def test_malformed_steps_are_set_aside_alone_and_the_others_arrive(
    tmp_path: Path, keys: KeyStore, learner: Learner
) -> None:
    bad = {0, 7, 8, 9, 63, 99}
    with Spool(tmp_path / "spool", 1 << 28) as spool:
        for index in range(100):
            step = msgspec.structs.replace(make_step(index), seq=index)
            spool.put(b"no step at all" if index in bad else pack(step))
    with Edge(tmp_path / "spool", keys, learner.address) as edge, learner.serving():
        assert eventually(lambda: edge.spool.unacknowledged == 0, WITHIN_S)
        assert edge.spool.refused == len(bad)
        aside = sorted(edge.spool.refused_directory.glob("*.step"))
    assert [int(path.name.split("-")[0]) for path in aside] == sorted(bad)
    assert all(path.read_bytes() == b"no step at all" for path in aside)
    assert all("is not a step" in path.with_suffix(".txt").read_text() for path in aside)
    assert [seq for _, seq in delivered(learner)] == [index for index in range(100) if index not in bad]


@pytest.mark.parametrize("reason", ["StorageError", "CorruptDataError", "quota", "malformed", "TransportError"])
def test_no_other_refusal_makes_the_edge_give_a_step_away(
    tmp_path: Path, keys: KeyStore, learner: Learner, reason: str
) -> None:
    learner.refusal = Failed(reason=reason, message="the disk is full")
    with Edge(tmp_path / "spool", keys, learner.address) as edge, learner.serving():
        for index in range(10):
            edge.outbox.put(make_step(index))
        assert eventually(lambda: edge.shows(AlarmKind.LEARNER_REFUSES), WITHIN_S)
        assert "the disk is full" in edge.board.active()[0].message
        time.sleep(1.0)  # a few more attempts
        assert (edge.spool.unacknowledged, edge.spool.refused) == (10, 0)
        learner.refusal = None
        assert eventually(lambda: edge.spool.unacknowledged == 0 and not edge.board.active(), WITHIN_S)
    assert len(delivered(learner)) == 10


def test_a_learner_of_another_schema_version_gets_no_steps(tmp_path: Path, keys: KeyStore, learner: Learner) -> None:
    learner.schema_version = SCHEMA_VERSION + 1
    with Edge(tmp_path / "spool", keys, learner.address) as edge, learner.serving():
        edge.outbox.put(make_step(0))
        assert eventually(lambda: edge.shows(AlarmKind.LEARNER_REFUSES), WITHIN_S)
        assert f"speaks {SCHEMA_VERSION + 1}" in edge.board.active()[0].message
        assert edge.outbox.flush(WITHIN_S)
        assert edge.spool.unacknowledged == 1
    assert delivered(learner) == []


def test_an_edge_with_the_wrong_key_says_so(
    tmp_path: Path, keys: KeyStore, learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    keys_of_nobody = make_keys(tmp_path / "other")
    for name in ("learner",):  # it knows the server, the server does not know it
        source = keys.directory / "public" / f"{name}.json"
        (keys_of_nobody.directory / "public" / f"{name}.json").write_bytes(source.read_bytes())
    with Edge(tmp_path / "spool", keys_of_nobody, learner.address) as edge, learner.serving():
        edge.outbox.put(make_step(0))
        assert eventually(lambda: edge.shows(AlarmKind.LEARNER_REFUSES), WITHIN_S)
        assert "refused our key 'edge'" in edge.board.active()[0].message
        time.sleep(1.5)
        assert sum("refused our key" in record.getMessage() for record in caplog.records) == 1
        assert edge.outbox.flush(WITHIN_S)
        assert edge.spool.unacknowledged == 1


def test_a_broken_spool_does_not_end_the_uplink(
    tmp_path: Path, keys: KeyStore, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise OSError(5, "Input/output error")

    with Edge(tmp_path / "spool", keys, learner.address) as edge, learner.serving():
        with monkeypatch.context() as patch:
            patch.setattr(edge.spool, "pending", fail)
            assert eventually(lambda: edge.shows(AlarmKind.LEARNER_AWAY), WITHIN_S)
            assert "Input/output" in edge.board.active()[0].message
        edge.outbox.put(make_step(0))
        assert eventually(lambda: not edge.board.active(), WITHIN_S)
    assert len(delivered(learner)) == 1


def test_batches_grow_on_a_quick_link_and_shrink_on_a_slow_one() -> None:
    limits = BatchLimits()
    for _ in range(20):
        limits.acknowledged(limits.size_bytes, 0.01)
    assert limits.size_bytes == MAX_BATCH_BYTES
    for _ in range(20):
        limits.acknowledged(limits.size_bytes, 3.0)
    assert limits.size_bytes == MIN_BATCH_BYTES
    limits.acknowledged(100, 0.01)  # a small batch says nothing about the link
    assert limits.size_bytes == MIN_BATCH_BYTES
    limits.refused(9)
    assert limits.records == 4
    for _ in range(5):
        limits.refused(limits.records)
    assert limits.records == 1


def test_the_errors_that_name_a_malformed_step_are_those_of_the_log() -> None:
    from robot_stack.edge.uplink import MALFORMED_STEP

    assert MessageError.__name__ == MALFORMED_STEP
