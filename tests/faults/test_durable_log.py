"""The durable log under torn writes, damage, full disks, failing disks and killed processes."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robot_stack.buffer.log import DurableLog
from robot_stack.buffer.log_reader import LogReader
from robot_stack.buffer.segment import FILE_HEADER_BYTES, RECORD_HEADER_BYTES, list_segments
from robot_stack.core.errors import CorruptDataError, StorageError
from robot_stack.core.messages import STEP_SCHEMA_VERSION


def payload(index: int) -> bytes:
    """What record `index` must hold: any mix-up of records or lengths shows."""
    return random.Random(index).randbytes(1 + index * 7919 % 97)


def contents(directory: Path) -> list[bytes]:
    with DurableLog(directory, durability="process") as log:  # recovery is the same, without waiting for the disk
        records = list(log.iterate(log.first_index))
    assert [index for index, _ in records] == list(range(len(records)))
    return [record for _, record in records]


def write(directory: Path, count: int, **options: int) -> Path:
    """A log of `count` synced records; returns its last file."""
    with DurableLog(directory, **options) as log:
        for index in range(log.next_index, count):
            log.append(payload(index))
            log.sync()
    return list_segments(directory)[-1][1]


def record_starts(count: int) -> list[int]:
    starts = [FILE_HEADER_BYTES]
    for index in range(count):
        starts.append(starts[-1] + RECORD_HEADER_BYTES + len(payload(index)))
    return starts


# ---- torn writes ------------------------------------------------------------------------------------------------


def test_a_tail_torn_at_any_byte_of_the_last_three_records_is_cut_and_appending_goes_on(tmp_path: Path) -> None:
    file = write(tmp_path / "log", 8)
    whole, starts = file.read_bytes(), record_starts(8)
    assert len(whole) == starts[8]
    for size in range(starts[5], starts[8] + 1):
        file.write_bytes(whole[:size])
        kept = max(count for count in range(9) if starts[count] <= size)
        with DurableLog(tmp_path / "log", durability="process") as log:
            assert log.next_index == kept
            assert log.cut_bytes == size - starts[kept]
            log.append(payload(kept))
            log.sync()
        assert contents(tmp_path / "log") == [payload(index) for index in range(kept + 1)]


@pytest.mark.parametrize(
    "tail", [b"\0" * 4096, os.urandom(4096), b"\xd7RS\x9c" * 1000], ids=["zeros", "noise", "magic"]
)
def test_rubbish_behind_the_last_record_is_cut(tmp_path: Path, tail: bytes) -> None:
    file = write(tmp_path / "log", 3)
    with file.open("ab") as stream:
        stream.write(tail)
    assert contents(tmp_path / "log") == [payload(index) for index in range(3)]
    assert file.stat().st_size == record_starts(3)[3]


def test_every_single_bit_flip_in_the_last_record_is_found(tmp_path: Path) -> None:
    file = write(tmp_path / "log", 4)
    whole, start = file.read_bytes(), record_starts(4)[3]
    for bit in range(8 * start, 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert contents(tmp_path / "log") == [payload(index) for index in range(3)]


def test_unsynced_records_that_reached_the_disk_out_of_order_are_cut(tmp_path: Path) -> None:
    """Power loss: of the records after the last sync, a later one was written back and an earlier one was not."""
    file = write(tmp_path / "log", 3)
    with DurableLog(tmp_path / "log") as log:
        log.append_many([payload(3), payload(4), payload(5)])
    data, starts = bytearray(file.read_bytes()), record_starts(6)
    data[starts[3] : starts[4]] = bytes(starts[4] - starts[3])
    file.write_bytes(data)
    assert contents(tmp_path / "log") == [payload(index) for index in range(3)]


def test_a_lost_unsynced_tail_costs_only_unsynced_records(tmp_path: Path) -> None:
    with DurableLog(tmp_path / "log") as log:
        log.append_many([payload(0), payload(1)])
        log.sync()
        durable = log.size_bytes
        log.append_many([payload(2), payload(3)])
    os.truncate(list_segments(tmp_path / "log")[-1][1], durable)
    assert contents(tmp_path / "log") == [payload(0), payload(1)]


@pytest.mark.parametrize("size", [0, 1, FILE_HEADER_BYTES - 1])
def test_a_segment_whose_making_was_interrupted_is_made_again(tmp_path: Path, size: int) -> None:
    file = write(tmp_path / "log", 6, segment_bytes=200)
    first_index = list_segments(tmp_path / "log")[-1][0]
    os.truncate(file, size)
    assert contents(tmp_path / "log") == [payload(index) for index in range(first_index)]
    write(tmp_path / "log", 6)
    assert contents(tmp_path / "log") == [payload(index) for index in range(6)]


# ---- damage to what was acknowledged ----------------------------------------------------------------------------


@pytest.mark.parametrize("record", range(4))
def test_damage_before_a_later_acknowledged_record_is_an_error_and_changes_nothing(tmp_path: Path, record: int) -> None:
    file = write(tmp_path / "log", 5)
    data = bytearray(file.read_bytes())
    start = record_starts(5)[record]
    data[start + RECORD_HEADER_BYTES] ^= 1
    file.write_bytes(data)
    before = file.read_bytes()
    with pytest.raises(CorruptDataError, match=rf"{file} at byte offset {start}: record {record} ") as caught:
        DurableLog(tmp_path / "log").open()
    assert "move the whole directory aside" in str(caught.value)
    assert file.read_bytes() == before


def test_a_damaged_file_header_does_not_make_the_records_disappear(tmp_path: Path) -> None:
    file = write(tmp_path / "log", 5)
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptDataError):
        DurableLog(tmp_path / "log").open()


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "missing"])
def test_damage_to_a_sealed_segment_is_an_error(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "log", 30, segment_bytes=300)
    segments = list_segments(tmp_path / "log")
    assert len(segments) >= 4
    file = segments[1][1]
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "grow":
        file.write_bytes(data + b"\0")
    else:
        file.unlink()
    with pytest.raises(CorruptDataError, match=r"segment-\d+\.log"):
        DurableLog(tmp_path / "log").open()


def test_damage_that_happens_while_the_log_is_open_is_found_by_reading(tmp_path: Path) -> None:
    file = write(tmp_path / "log", 5)
    with DurableLog(tmp_path / "log") as log:
        with file.open("r+b") as stream:
            stream.seek(record_starts(5)[2] + RECORD_HEADER_BYTES)
            stream.write(bytes([payload(2)[0] ^ 1]))
        assert log.read(1) == payload(1)
        with pytest.raises(CorruptDataError, match="record 2"):
            log.read(2)
        with pytest.raises(CorruptDataError, match="record 2"):
            list(log.iterate(0))


def test_another_schema_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "log", 2)
    monkeypatch.setattr("robot_stack.buffer.segment.STEP_SCHEMA_VERSION", 999)
    with pytest.raises(StorageError, match=f"schema {STEP_SCHEMA_VERSION}; this program reads 1 and 999"):
        DurableLog(tmp_path / "log").open()


# ---- full and failing disks -------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The kernel cuts every write at this file size and then refuses it, as a full disk does.

    No fixture: the limit holds for the whole process, and pytest writes its report between a test and its teardown.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_short_write_is_taken_back_and_appending_works_again(tmp_path: Path) -> None:
    limit = 4096
    with file_size_limit(limit), DurableLog(tmp_path / "log") as log:
        log.append(payload(0))
        log.sync()
        before = log.size_bytes
        with pytest.raises(StorageError, match=r"nothing could be appended.*The log is unharmed"):
            log.append(bytes(limit))
        with pytest.raises(StorageError):
            log.append_many([payload(1), payload(2), bytes(limit)])
        assert log.next_index == 1
        assert list_segments(tmp_path / "log")[-1][1].stat().st_size == log.size_bytes == before
        assert log.append(payload(1)) == 1
        log.sync()
    assert contents(tmp_path / "log") == [payload(0), payload(1)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("not measured: a real full disk needs the program 'mount'")
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not measured: a real full disk needs the right to mount a tmpfs: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # lazy: a failed test may hold files open


@pytest.mark.parametrize("segment_bytes", [1024, 1 << 20])
def test_a_really_full_disk_refuses_and_corrupts_nothing(small_disk: Path, segment_bytes: int) -> None:
    filler = small_disk / "filler"
    log = DurableLog(small_disk / "log", segment_bytes=segment_bytes)
    log.open()
    acknowledged = refused = 0
    while refused < 20:
        try:
            assert log.append(payload(acknowledged)) == acknowledged
            log.sync()
            acknowledged += 1
        except StorageError as error:
            assert "Free space on that disk" in str(error)
            refused += 1
        if acknowledged == 10 and not filler.exists():
            filler.write_bytes(bytes(20_000))
    assert acknowledged > 100
    filler.unlink()
    assert log.append(payload(acknowledged)) == acknowledged
    log.sync()
    log.close()
    assert contents(small_disk / "log") == [payload(index) for index in range(acknowledged + 1)]


def test_after_a_failed_fsync_the_log_takes_back_what_was_not_stored_and_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DurableLog(tmp_path / "log")
    log.open()
    log.append(payload(0))
    log.sync()
    log.append(payload(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _failing_fsync)
        with pytest.raises(StorageError, match="the disk failed to store"):
            log.sync()
    for refused in (lambda: log.append(payload(1)), log.sync, lambda: log.drop_before(1)):
        with pytest.raises(StorageError, match="stopped after the disk failed"):
            refused()
    assert log.read(0) == payload(0)
    log.close()
    # What the failed sync left in the page cache must not pass for stored: a resend has to write it again.
    assert contents(tmp_path / "log") == [payload(0)]


def _failing_fsync(fd: int) -> None:
    raise OSError(5, "Input/output error")


def test_records_found_after_a_crash_are_synced_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DurableLog(tmp_path / "log") as log:
        log.append(payload(0))
    monkeypatch.setattr(os, "fsync", _failing_fsync)
    with pytest.raises(StorageError, match="cannot be opened"):
        DurableLog(tmp_path / "log").open()


# ---- processes --------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from tests.faults.test_durable_log import big_payload
from robot_stack.buffer.log import DurableLog
with DurableLog(Path(sys.argv[1]), segment_bytes=1 << 20, durability=sys.argv[2]) as log:
    while True:
        written = log.append_many([big_payload(log.next_index + i) for i in range(1 + log.next_index % 5)])
        log.sync()
        os.write(1, written.stop.to_bytes(8, "little"))
"""


def big_payload(index: int) -> bytes:
    head = struct.pack("<Q", index) * (1 + index * 7919 % 4096)
    return head + struct.pack("<I", zlib.crc32(head))


@pytest.mark.parametrize("durability", ["power", "process"])
def test_kill_9_of_the_writer_loses_nothing_acknowledged_and_shows_nothing_torn(
    tmp_path: Path, durability: str
) -> None:
    rng = random.Random(1)
    last = 0
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "log"), durability]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            acks = writer.stdout.read(8)
            time.sleep(rng.uniform(0.0, 0.03))
            writer.send_signal(signal.SIGKILL)
            acks += writer.stdout.read()
        acknowledged = int.from_bytes(acks[len(acks) // 8 * 8 - 8 : len(acks) // 8 * 8], "little")
        assert acknowledged > last
        with DurableLog(tmp_path / "log") as log:
            assert log.next_index >= acknowledged
            for index, record in log.iterate(last):
                assert record == big_payload(index)
            last = log.next_index


def test_a_second_writer_is_refused_in_this_and_in_another_process(tmp_path: Path) -> None:
    with DurableLog(tmp_path / "log") as log:
        with pytest.raises(StorageError, match=f"another process is writing the log in {tmp_path / 'log'}"):
            DurableLog(tmp_path / "log").open()
        command = [sys.executable, "-c", WRITER, str(tmp_path / "log"), "power"]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert "another process is writing the log" in other.stderr
        log.append(payload(0))
    assert contents(tmp_path / "log") == [payload(0)]


def test_a_reader_follows_a_live_writer_in_another_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "log"), "process"]
    reader, seen = LogReader(tmp_path / "log"), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.read(8)
        deadline = time.monotonic() + 10.0
        while len(list_segments(tmp_path / "log")) < 4 or seen < 100:
            for index, record in reader.poll():
                assert index == seen
                assert record == big_payload(index)
                seen += 1
            assert time.monotonic() < deadline
            writer.stdout.read1(65536)  # type: ignore[attr-defined]
        writer.send_signal(signal.SIGKILL)
        writer.stdout.read()
    while records := reader.poll(max_records=7):
        assert len(records) <= 7
        seen += len(records)
    assert reader.next_index == seen
    with DurableLog(tmp_path / "log") as log:
        assert log.next_index == seen
    assert reader.skipped == 0
