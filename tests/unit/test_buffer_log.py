"""The durable log and its reader where nothing goes wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robot_stack.buffer.log import DurableLog
from robot_stack.buffer.log_reader import LogReader
from robot_stack.buffer.segment import MAX_PAYLOAD_BYTES, list_segments
from robot_stack.core.errors import CorruptDataError, StorageError


def test_records_come_back_by_index_and_in_order_also_after_reopening(tmp_path: Path) -> None:
    payloads = [b"", b"a", os.urandom(1000), b"\xd7RS\x9c" * 20] * 10
    with DurableLog(tmp_path / "log", segment_bytes=2000) as log:
        assert log.append_many(payloads[:15]) == range(15)
        assert [log.append(payload) for payload in payloads[15:]] == list(range(15, 40))
        assert log.append_many([]) == range(40, 40)
        assert [log.read(index) for index in range(40)] == payloads
    with DurableLog(tmp_path / "log", segment_bytes=2000) as log:
        assert (log.first_index, log.next_index, log.cut_bytes) == (0, 40, 0)
        assert [log.read(index) for index in reversed(range(40))] == payloads[::-1]
        assert list(log.iterate(0)) == list(enumerate(payloads))
        assert list(log.iterate(37)) == list(enumerate(payloads))[37:]
        assert list(log.iterate(40)) == []
    assert len(list_segments(tmp_path / "log")) > 3


def test_iterate_ends_at_what_was_appended_when_it_was_called(tmp_path: Path) -> None:
    with DurableLog(tmp_path / "log", segment_bytes=100) as log:
        log.append_many([b"x" * 60] * 3)
        seen = 0
        for index, _ in log.iterate(0):
            log.append(b"y" * 60)
            seen = index
        assert seen == 2
        assert log.next_index == 6


@pytest.mark.parametrize("index", [-1, 2, 3])
def test_an_index_outside_the_log_is_an_error_that_names_the_range(tmp_path: Path, index: int) -> None:
    with DurableLog(tmp_path / "log") as log:
        log.append_many([b"a", b"b"])
        with pytest.raises(StorageError, match=r"no record 2 yet|records 0 to 1"):
            log.read(index)


def test_old_segments_are_dropped_whole_and_indices_go_on(tmp_path: Path) -> None:
    with DurableLog(tmp_path / "log", segment_bytes=300) as log:
        for index in range(20):
            log.append(bytes([index]) * 100)
        starts = [first for first, _ in list_segments(tmp_path / "log")]
        log.drop_before(starts[2] + 1)
        assert log.first_index == starts[2]
        log.drop_before(10_000)
        assert log.first_index == starts[-1]  # the segment being written stays
        assert log.size_bytes == list_segments(tmp_path / "log")[0][1].stat().st_size
    with DurableLog(tmp_path / "log", segment_bytes=300) as log:
        assert log.first_index == starts[-1]
        assert log.append(b"next") == 20


def test_a_record_above_the_cap_is_refused_and_uses_no_index(tmp_path: Path) -> None:
    with DurableLog(tmp_path / "log") as log:
        with pytest.raises(StorageError, match=f"at most {MAX_PAYLOAD_BYTES} bytes"):
            log.append_many([b"small", bytes(MAX_PAYLOAD_BYTES + 1)])
        assert log.append(b"a") == 0


def test_a_log_that_is_not_open_refuses(tmp_path: Path) -> None:
    log = DurableLog(tmp_path / "log")
    assert not (tmp_path / "log").exists()  # the constructor touches nothing
    with pytest.raises(StorageError, match="is not open"):
        log.append(b"a")
    log.open()
    with pytest.raises(StorageError, match="already open"):
        log.open()
    log.close()
    with pytest.raises(StorageError, match="is not open"):
        log.sync()


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be opened"):
        DurableLog(tmp_path / "file" / "log").open()


def test_sync_reaches_the_disk_once_per_group_and_never_in_process_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd)))
    with DurableLog(tmp_path / "power") as log:
        synced.clear()
        for _ in range(10):
            log.append(b"a")
        assert synced == []
        log.sync()
        log.sync()
        assert len(synced) == 1
    synced.clear()
    with DurableLog(tmp_path / "process", durability="process", segment_bytes=100) as log:
        for _ in range(10):
            log.append(b"a" * 60)
            log.sync()
        log.drop_before(5)
    assert synced == []


def test_a_sealed_segment_is_on_the_disk_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_open = os.fsync, os.open
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), real_fsync(fd)))

    def recording_open(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_EXCL:
            events.append("new segment")
        return real_open(path, flags, *rest)  # type: ignore[call-overload, no-any-return]

    with DurableLog(tmp_path / "log", segment_bytes=100) as log:
        monkeypatch.setattr(os, "open", recording_open)
        log.append(b"a" * 100)
        events.clear()
        log.append(b"b")
        assert events == ["fsync", "new segment"]
        log.sync()
        assert events == ["fsync", "new segment", "fsync", "fsync"]  # the file, and the directory that names it


def test_a_reader_gets_each_record_once_and_waits_at_an_unfinished_one(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "log")
    assert reader.poll() == []
    with DurableLog(tmp_path / "log", segment_bytes=200) as log:
        assert reader.poll() == []
        for index in range(9):
            log.append(bytes([index]) * 80)
            assert reader.poll() == [(index, bytes([index]) * 80)]
        assert reader.poll() == []
        file = list_segments(tmp_path / "log")[-1][1]
        log.append(b"last")
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        assert reader.poll() == []
        file.write_bytes(whole)
        assert reader.poll() == [(9, b"last")]


def test_a_reader_that_comes_late_skips_dropped_segments_and_counts_them(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "log")
    with DurableLog(tmp_path / "log", segment_bytes=200) as log:
        log.append(b"a" * 80)
        assert len(reader.poll()) == 1
        log.append_many([b"b" * 80] * 3)
        for _ in range(6):
            log.append(b"c" * 80)
        log.drop_before(8)
        records = reader.poll()
        assert [index for index, _ in records] == list(range(log.first_index, 10))
        assert reader.skipped == log.first_index - 1


def test_a_reader_does_not_pass_over_a_damaged_sealed_segment(tmp_path: Path) -> None:
    with DurableLog(tmp_path / "log", segment_bytes=200) as log:
        for _ in range(9):
            log.append(b"a" * 80)
    file = list_segments(tmp_path / "log")[1][1]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=str(file)):
        LogReader(tmp_path / "log").poll()
