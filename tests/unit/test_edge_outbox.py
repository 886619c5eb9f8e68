"""The outbox, admission, alarms and the watch: the control loop never waits, and whatever is lost is counted."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.images import ImageCodec, decode_image
from robot_stack.core.codec import pack, unpack
from robot_stack.core.errors import StorageError
from robot_stack.core.messages import Features, Source, Step, Verdict
from robot_stack.core.specs import Feature, vector
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.disk import Admission, disk_space, guess_step_bytes, probe_disk
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.spool import Spool
from robot_stack.edge.watch import EdgeWatch, read_status
from tests.transport_kit import eventually
from tests.unit.test_edge_parts import SPEC

IMAGE = "observation.images.front"
CAPACITY = 1 << 26
LONG_S = 30.0


def make_step(index: int, episode: int = 0, session: str = "s", *, side: int = 8, ended: bool = False) -> Step:
    rng = np.random.default_rng((episode, index))
    y, x = np.mgrid[0:side, 0:side]
    image = np.stack([(x * 3 + y * 2 + index) % 200] * 3, axis=-1).astype(np.uint8)
    features: Features = {"observation.state": rng.random(3, dtype=np.float32), IMAGE: image}
    action = rng.random(2, dtype=np.float32)
    return Step(
        run="r",
        robot="robot_0",
        task="t",
        session=session,
        seq=10_000 + index,
        episode=episode,
        episode_seed=7,
        segment=0,
        index=index,
        stamp_ns=index,
        observation=features,
        action_base=action,
        action_asked=action,
        action_sent=action,
        verdict=Verdict.ACCEPTED,
        refusal=None,
        source=Source.POLICY,
        weights_version=1,
        reward=0.0,
        success=False,
        terminated=ended,
        truncated=False,
        final_observation=features if ended else None,
    )


class Sink:
    """Keeps records in memory; can be told to hang or to fail."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def put(self, record: bytes) -> int:
        assert self.go.wait(LONG_S)
        if self.error is not None:
            raise self.error
        self.records.append(record)
        return len(self.records) - 1

    def steps(self) -> list[Step]:
        return [unpack(record, Step) for record in self.records]


def check_whole(steps: list[Step]) -> None:
    """Every episode is a prefix of itself, and every session's numbers have no gap."""
    indices: dict[tuple[str, int], list[int]] = defaultdict(list)
    numbers: dict[str, list[int]] = defaultdict(list)
    for step in steps:
        indices[step.session, step.episode].append(step.index)
        numbers[step.session].append(step.seq)
    for found in (*indices.values(), *numbers.values()):
        assert found == list(range(len(found)))


# ---- keeping ----------------------------------------------------------------------------------------------------


def test_raw_steps_reach_the_spool_in_order_and_bit_for_bit() -> None:
    sink = Sink()
    steps = [make_step(index, ended=index == 19) for index in range(20)]
    with Outbox(sink, ImageCodec.RAW, CAPACITY) as outbox:
        for step in steps:
            outbox.put(step)
        assert outbox.flush(LONG_S)
        assert (outbox.kept, outbox.dropped, outbox.waiting, outbox.queued_bytes) == (20, 0, 0, 0)
        for record, step in zip(sink.records, steps, strict=True):
            assert record == pack(msgspec.structs.replace(step, seq=step.index))
    check_whole(sink.steps())


def test_jpeg_steps_hold_one_file_for_each_image_and_nothing_else_changes() -> None:
    sink = Sink()
    step = make_step(0, side=64, ended=True)
    with Outbox(sink, ImageCodec.JPEG, CAPACITY) as outbox:
        outbox.put(step)
        assert outbox.flush(LONG_S)
    (kept,) = sink.steps()
    assert kept.final_observation is not None
    for features in (kept.observation, kept.final_observation):
        assert features[IMAGE].ndim == 1 and features[IMAGE].nbytes < step.observation[IMAGE].nbytes / 2
        assert np.abs(decode_image(features[IMAGE]).astype(int) - step.observation[IMAGE]).mean() < 10
        assert np.array_equal(features["observation.state"], step.observation["observation.state"])


def test_leaving_writes_out_what_still_waits() -> None:
    sink = Sink()
    sink.go.clear()
    with Outbox(sink, ImageCodec.RAW, CAPACITY) as outbox:
        for index in range(50):
            outbox.put(make_step(index))
        assert not outbox.flush(0.05)
        assert outbox.waiting == 50
        threading.Timer(0.1, sink.go.set).start()
    assert len(sink.records) == 50


# ---- losing -----------------------------------------------------------------------------------------------------


def test_put_stays_quick_while_the_disk_hangs_and_memory_stays_bounded() -> None:
    sink = Sink()
    sink.go.clear()
    step_bytes = make_step(0, side=64).observation[IMAGE].nbytes
    slowest_s = 0.0
    with Outbox(sink, ImageCodec.JPEG, capacity_bytes=100 * step_bytes) as outbox:
        for index in range(2000):
            step = make_step(index, side=64)
            begun_s = time.thread_time()
            outbox.put(step)
            slowest_s = max(slowest_s, time.thread_time() - begun_s)
            assert outbox.queued_bytes <= 100 * step_bytes
        wall_s = time.monotonic()
        for index in range(100):
            outbox.put(make_step(index, episode=1, side=64))
        assert time.monotonic() - wall_s < 5.0  # a put that waited for the disk would wait for ever
        assert slowest_s < 0.02
        assert outbox.stuck_s > 0.0
        assert "does not keep up" in outbox.problem
        sink.go.set()
        assert outbox.flush(LONG_S)
        assert outbox.stuck_s == 0.0
        outbox.put(make_step(0, episode=2, side=64))
        assert outbox.flush(LONG_S)
        assert outbox.problem == ""
        assert outbox.kept + outbox.dropped == 2101
    steps = sink.steps()
    check_whole(steps)
    assert len(steps) == outbox.kept
    assert 50 < sum(step.episode == 0 for step in steps) <= 100
    assert sum(step.episode == 2 for step in steps) == 1


@pytest.mark.parametrize("error", [StorageError("full"), RuntimeError("a bug"), MemoryError()])
def test_whatever_goes_wrong_the_rest_of_the_episode_is_dropped_and_the_next_one_kept(error: Exception) -> None:
    sink = Sink()
    with Outbox(sink, ImageCodec.RAW, CAPACITY) as outbox:
        for index in range(3):
            outbox.put(make_step(index))
        assert outbox.flush(LONG_S)
        sink.error = error
        outbox.put(make_step(3))
        assert outbox.flush(LONG_S)
        assert str(error) in outbox.problem and outbox.problem
        sink.error = None
        outbox.put(make_step(4))
        outbox.put(make_step(0, episode=1))
        assert outbox.flush(LONG_S)
        assert (outbox.kept, outbox.dropped, outbox.problem) == (4, 2, "")
    check_whole(sink.steps())
    assert [(step.episode, step.index) for step in sink.steps()] == [(0, 0), (0, 1), (0, 2), (1, 0)]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    failing=st.sets(st.integers(0, 35)),
    flushes=st.sets(st.integers(0, 35)),
    sessions=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_no_pattern_of_failures_leaves_a_gap_within_an_episode(
    lengths: list[int], failing: set[int], flushes: set[int], sessions: int
) -> None:
    calls = 0
    kept: list[Step] = []

    class Failing:
        def put(self, record: bytes) -> int:
            nonlocal calls
            calls += 1
            if calls - 1 in failing:
                raise StorageError("full")
            kept.append(unpack(record, Step))
            return 0

    total = 0
    with Outbox(Failing(), ImageCodec.RAW, capacity_bytes=6000) as outbox:
        for episode, length in enumerate(lengths):
            for index in range(length):
                outbox.put(make_step(index, episode, session=f"s{episode * sessions // len(lengths)}"))
                total += 1
                if total in flushes:
                    assert outbox.flush(LONG_S)
            assert outbox.flush(LONG_S)
        assert outbox.kept + outbox.dropped == total
    assert len(kept) == outbox.kept
    check_whole(kept)


# ---- kill -9 ----------------------------------------------------------------------------------------------------

EDGE = """
import os, sys, time
from pathlib import Path
from robot_stack.buffer.images import ImageCodec
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.spool import Spool
from tests.unit.test_edge_outbox import make_step
with Spool(Path(sys.argv[1]), 1 << 28) as spool, Outbox(spool, ImageCodec.JPEG, 1 << 26) as outbox:
    number = 0
    while True:
        outbox.put(make_step(number, session=sys.argv[2], side=96))
        number += 1
        # at most one step was in the hands of the writer when a step was safe: "number put, less those that wait"
        os.write(1, (number - outbox.waiting).to_bytes(8, "little"))
        time.sleep(0.002)
"""


def test_kill_9_loses_only_steps_that_were_still_being_written(tmp_path: Path) -> None:
    for number in range(3):
        session = f"s{number}"
        command = [sys.executable, "-c", EDGE, str(tmp_path / "spool"), session]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as edge:
            assert edge.stdout is not None
            out = edge.stdout.read(8)
            time.sleep(0.15)
            edge.send_signal(signal.SIGKILL)
            out += edge.stdout.read()
        safe = int.from_bytes(out[len(out) // 8 * 8 - 8 : len(out) // 8 * 8], "little")
        with Spool(tmp_path / "spool", 1 << 28) as spool:
            steps = [unpack(record, Step) for record in spool.pending(10_000, 1 << 28)[1]]
        found = [step for step in steps if step.session == session]
        check_whole(found)
        assert len(found) >= safe > 0
        for step in found:
            decode_image(step.observation[IMAGE])


# ---- admission --------------------------------------------------------------------------------------------------


def test_an_episode_is_admitted_by_what_steps_really_take(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", 4 << 20) as spool, Outbox(spool, ImageCodec.RAW, CAPACITY) as outbox:
        admission = Admission(spool, outbox, 50, first_guess_bytes=30_000)
        assert 50 * 30_000 < admission.episode_bytes < 2 * 50 * 30_000  # nothing was measured yet
        assert admission.refusal() == ""
        admitted = 0
        while not admission.refusal():
            for index in range(50):
                outbox.put(make_step(index, admitted, side=64, ended=index == 49))
            assert outbox.flush(LONG_S)
            admitted += 1
        assert outbox.dropped == 0  # what was admitted fitted, to its end
        assert admission.episode_bytes < 1.4 * 50 * (make_step(0, side=64).observation[IMAGE].nbytes + 1000)
        assert admitted >= 4
        assert "Start the learner" in admission.refusal()
        first, records = spool.pending(10_000, 1 << 30)
        spool.acknowledge(first + len(records) - 1)
        assert admission.refusal() == ""


def test_the_first_guess_comes_near_what_is_measured(tmp_path: Path) -> None:
    state = vector(("a", "b", "c"))
    image = Feature(dtype="uint8", shape=(64, 64, 3))
    spec = msgspec.structs.replace(SPEC, observation={"observation.state": state, IMAGE: image})
    for codec in ImageCodec:
        with Spool(tmp_path / codec.value, CAPACITY) as spool, Outbox(spool, codec, CAPACITY) as outbox:
            outbox.put(make_step(0, side=64))
            assert outbox.flush(LONG_S)
            assert 0.9 * outbox.largest_record_bytes < guess_step_bytes(spec, codec) < 3 * outbox.largest_record_bytes


def test_an_episode_that_never_fits_is_told(tmp_path: Path) -> None:
    with Spool(tmp_path / "small", 1 << 20) as spool, Outbox(spool, ImageCodec.RAW, CAPACITY) as outbox:
        outbox.put(make_step(0, side=64))
        assert outbox.flush(LONG_S)
        assert "edge.spool_capacity_bytes" in Admission(spool, outbox, 1000, 1).refusal()


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    probe_disk(tmp_path, 1 << 20)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="cannot be written"):
        probe_disk(tmp_path / "missing", 1)
    with pytest.raises(StorageError, match="does not answer"):
        disk_space(tmp_path / "missing")


# ---- alarms -----------------------------------------------------------------------------------------------------


def test_an_alarm_is_logged_once_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    board = AlarmBoard()
    for count in range(5):
        board.put(AlarmKind.STEPS_DROPPED, f"{count} steps")
    board.put(AlarmKind.DISK_LOW, "low")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert [alarm.message for alarm in board.active()] == ["4 steps", "low"]
    assert board.active()[0].since_ns <= board.active()[1].since_ns
    board.end(AlarmKind.STEPS_DROPPED, AlarmKind.DISK_LOW, AlarmKind.LEARNER_AWAY)
    board.put(AlarmKind.DISK_LOW, "")
    assert board.active() == ()
    assert len(caplog.records) == 4


def test_a_reminder_comes_every_ten_seconds_at_most(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    board = AlarmBoard()
    for repeat_s, logged in ((10.0, 1), (0.0, 4)):
        monkeypatch.setattr("robot_stack.edge.alarms.REPEAT_S", repeat_s)
        for _ in range(3):
            board.put(AlarmKind.LEARNER_REFUSES, "no", remind=True)
        assert len(caplog.records) == logged


def test_the_watch_raises_alarms_within_a_second_and_writes_them_down(tmp_path: Path) -> None:
    sink, board = Sink(), AlarmBoard()
    with (
        Spool(tmp_path / "spool", 1 << 22) as spool,
        Outbox(sink, ImageCodec.RAW, CAPACITY) as outbox,
        EdgeWatch(tmp_path / "status.json", spool, outbox, board, 0.0, lambda: 5),
    ):

        def shown(kind: AlarmKind) -> bool:
            status = read_status(tmp_path / "status.json")
            return status is not None and any(alarm.kind is kind for alarm in status.alarms)

        assert eventually(lambda: read_status(tmp_path / "status.json") is not None, 10.0)
        sink.go.clear()
        outbox.put(make_step(0))
        assert eventually(lambda: shown(AlarmKind.DISK_HANGS), 10.0)
        (alarm,) = board.active()
        assert alarm.kind is AlarmKind.DISK_HANGS
        sink.go.set()
        assert eventually(lambda: not shown(AlarmKind.DISK_HANGS), 10.0)
        sink.error = StorageError("full")
        outbox.put(make_step(1))
        assert eventually(lambda: shown(AlarmKind.STEPS_DROPPED), 10.0)
        status = read_status(tmp_path / "status.json")
        assert status is not None
        assert (status.steps_kept, status.steps_dropped, status.learner_heard_ns) == (1, 1, 5)
        sink.error = None
        outbox.put(make_step(0, episode=1))
        assert eventually(lambda: not shown(AlarmKind.STEPS_DROPPED), 10.0)


def test_a_low_disk_is_a_warning_and_not_an_error(tmp_path: Path) -> None:
    board = AlarmBoard()
    with Spool(tmp_path / "spool", 1 << 22) as spool, Outbox(spool, ImageCodec.RAW, CAPACITY) as outbox:
        with EdgeWatch(tmp_path / "status.json", spool, outbox, board, 1.1, lambda: -1):
            assert eventually(lambda: board.active() != (), 10.0)
        (alarm,) = board.active()
        assert alarm.kind is AlarmKind.DISK_LOW and not alarm.kind.is_error
        with EdgeWatch(tmp_path / "status.json", spool, outbox, board, 0.0, lambda: -1):
            assert eventually(lambda: board.active() == (), 10.0)


def test_a_status_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    assert read_status(tmp_path / "status.json") is None
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(StorageError, match=r"status\.json is no status"):
        read_status(tmp_path / "status.json")
