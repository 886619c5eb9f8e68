"""The spool: what is not acknowledged is kept, whatever happens to the process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robot_stack.buffer.segment import list_segments
from robot_stack.core.errors import ConfigError, StorageError
from robot_stack.edge.spool import MIN_CAPACITY_BYTES, Spool

CAPACITY = MIN_CAPACITY_BYTES


def test_records_wait_in_order_until_they_are_acknowledged(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        assert spool.pending(10, 1000) == (0, [])
        assert [spool.put(bytes([index])) for index in range(5)] == [0, 1, 2, 3, 4]
        assert spool.pending(3, 1000) == (0, [b"\0", b"\1", b"\2"])
        assert spool.pending(3, 1000) == (0, [b"\0", b"\1", b"\2"])  # sending is not being acknowledged
        spool.acknowledge(2)
        assert spool.unacknowledged == 2
        assert spool.pending(10, 1000) == (3, [b"\3", b"\4"])
        spool.acknowledge(1)  # an old answer
        assert spool.pending(10, 1000)[0] == 3
        spool.acknowledge(4)
        assert (spool.unacknowledged, spool.pending(10, 1000)) == (0, (5, []))


def test_a_batch_is_limited_in_bytes_but_always_goes_on(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        for size in (400, 400, 400, 5000, 10):
            spool.put(bytes(size))
        assert [len(record) for record in spool.pending(10, 1000)[1]] == [400, 400]
        spool.acknowledge(2)
        assert [len(record) for record in spool.pending(10, 1000)[1]] == [5000]


def test_reopening_resumes_with_everything_unacknowledged(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        for index in range(6):
            spool.put(bytes([index]))
        spool.acknowledge(3)
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        assert spool.pending(10, 1000) == (4, [b"\4", b"\5"])
        assert spool.put(b"new") == 6


@pytest.mark.parametrize("cursor", [None, b"", b"torn", b"x" * 12])
def test_a_lost_or_broken_cursor_only_repeats(tmp_path: Path, cursor: bytes | None) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        for index in range(3):
            spool.put(bytes([index]))
        spool.acknowledge(1)
    path = tmp_path / "spool" / "acknowledged"
    path.unlink() if cursor is None else path.write_bytes(cursor)
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        assert spool.pending(10, 1000) == (0, [b"\0", b"\1", b"\2"])


def test_after_a_power_loss_new_records_do_not_pass_for_acknowledged(tmp_path: Path) -> None:
    """The cursor reached the disk, the records did not; new records get the old numbers."""
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        spool.put(b"a")
        kept = spool.bytes_used
        for _ in range(5):
            spool.put(b"b")
        spool.acknowledge(5)
    os.truncate(list_segments(tmp_path / "spool")[0][1], kept)
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        assert spool.unacknowledged == 0
        assert spool.put(b"new") == 1
        assert spool.pending(10, 1000) == (1, [b"new"])
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        assert b"new" in spool.pending(10, 1000)[1]


def test_a_full_spool_says_so_and_drains(tmp_path: Path) -> None:
    record = bytes(10_000)
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        assert spool.bytes_used + 20 * len(record) < CAPACITY
        kept = 0
        with pytest.raises(StorageError, match="Start the learner or mend the link"):
            while True:
                spool.put(record)
                kept += 1
        assert kept * len(record) > 0.9 * CAPACITY
        assert spool.bytes_used + len(record) > 0.9 * CAPACITY
        assert spool.unacknowledged == kept
        for _ in range(3):  # for ever after: what was acknowledged makes room
            while spool.unacknowledged:
                first, records = spool.pending(7, 1 << 20)
                spool.acknowledge(first + len(records) - 1)
            assert spool.bytes_used < CAPACITY // 4
            for _ in range(35):
                spool.put(record)


def test_sizes_that_would_block_the_spool_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(MIN_CAPACITY_BYTES)):
        Spool(tmp_path / "spool", MIN_CAPACITY_BYTES - 1)
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        with pytest.raises(StorageError, match="at most a quarter"):
            spool.put(bytes(CAPACITY // 4 + 1))
        for _ in range(20):  # the largest allowed never gets stuck
            spool.acknowledge(spool.put(bytes(CAPACITY // 4)))


def test_an_answer_for_records_that_were_never_put_is_an_error(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        spool.put(b"a")
        with pytest.raises(StorageError, match="belongs to another spool"):
            spool.acknowledge(1)
        assert spool.unacknowledged == 1


def test_a_cursor_that_cannot_be_written_is_counted_and_does_not_stop_shipping(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        (tmp_path / "spool" / "acknowledged.new").mkdir()
        spool.put(b"a")
        spool.put(b"b")
        spool.acknowledge(0)
        assert (spool.cursor_failures, spool.unacknowledged) == (1, 1)


def test_one_thread_puts_while_another_ships(tmp_path: Path) -> None:
    received: list[bytes] = []
    total = 3000
    with Spool(tmp_path / "spool", 8 * CAPACITY) as spool:

        def ship() -> None:
            deadline = time.monotonic() + 20.0
            while len(received) < total and time.monotonic() < deadline:
                first, records = spool.pending(50, 1 << 20)
                received.extend(records)
                if records:
                    spool.acknowledge(first + len(records) - 1)

        shipper = threading.Thread(target=ship)
        shipper.start()
        for index in range(total):
            spool.put(index.to_bytes(4, "little") * 100)
        shipper.join()
        assert spool.unacknowledged == 0
    assert received == [index.to_bytes(4, "little") * 100 for index in range(total)]


EDGE = """
import os, sys, threading
from pathlib import Path
from robot_stack.edge.spool import Spool
with Spool(Path(sys.argv[1]), 1 << 26) as spool:
    def ship():
        while True:
            first, records = spool.pending(20, 1 << 20)
            for record in records:
                os.write(2, record[:8])  # "the learner" has it ...
            if records:
                spool.acknowledge(first + len(records) - 1)  # ... and said so
    number = int(sys.argv[2])
    threading.Thread(target=ship, daemon=True).start()
    while True:
        os.write(1, spool.put(number.to_bytes(8, "little") * 500).to_bytes(8, "little"))
        number += 1
"""


def test_kill_9_of_the_edge_loses_no_record_that_was_put(tmp_path: Path) -> None:
    rng = random.Random(0)
    shipped: set[int] = set()
    put = 0
    for _ in range(4):
        with Spool(tmp_path / "spool", 1 << 26) as spool:
            number = spool.put(b"") + 1  # the next index: every record below holds its own
            shipped.add(number - 1)
        command = [sys.executable, "-c", EDGE, str(tmp_path / "spool"), str(number)]
        with (
            (tmp_path / "learner").open("wb") as learner,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=learner) as edge,
        ):
            assert edge.stdout is not None
            out = edge.stdout.read(8)
            time.sleep(rng.uniform(0.0, 0.03))
            edge.send_signal(signal.SIGKILL)
            out += edge.stdout.read()
        put = int.from_bytes(out[len(out) // 8 * 8 - 8 : len(out) // 8 * 8], "little") + 1
        sent = (tmp_path / "learner").read_bytes()
        shipped |= {int.from_bytes(sent[i : i + 8], "little") for i in range(0, len(sent) // 8 * 8, 8)}
    with Spool(tmp_path / "spool", 1 << 26) as spool:
        while spool.unacknowledged:
            first, records = spool.pending(1000, 1 << 24)
            for index, record in enumerate(records, first):
                assert record in (b"", index.to_bytes(8, "little") * 500)
            shipped |= set(range(first, first + len(records)))
            spool.acknowledge(first + len(records) - 1)
    assert shipped >= set(range(put))


# ---- records that the learner refuses for good ------------------------------------------------------------------


def test_a_refused_record_is_set_aside_whole_and_no_longer_blocks(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        for record in (b"bad", b"good"):
            spool.put(record)
        used = spool.bytes_used
        path = spool.set_aside(0, "its reward is nan")
        assert path.read_bytes() == b"bad"
        assert path.with_suffix(".txt").read_text() == "its reward is nan"
        assert spool.pending(10, 1000) == (1, [b"good"])
        assert (spool.refused, spool.acknowledged, spool.unacknowledged) == (1, 0, 1)
        assert spool.bytes_used == used + 3
        with pytest.raises(StorageError, match="cannot be set aside"):
            spool.set_aside(0, "again")
        spool.acknowledge(1)
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        assert (spool.refused, spool.acknowledged, spool.unacknowledged) == (1, 1, 0)
        assert path.read_bytes() == b"bad"


def test_a_record_that_cannot_be_set_aside_stays_in_the_spool(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        spool.put(b"bad")
        spool.refused_directory.touch()  # a file where the folder should be
        with pytest.raises(StorageError, match="cannot write"):
            spool.set_aside(0, "reason")
        assert spool.pending(10, 1000) == (0, [b"bad"])
        assert spool.refused == 0


def test_records_set_aside_take_room_so_that_they_cannot_fill_the_disk(tmp_path: Path) -> None:
    record = bytes(100_000)
    with Spool(tmp_path / "spool", CAPACITY) as spool:
        with pytest.raises(StorageError, match="is full"):
            for number in range(100):
                spool.put(number.to_bytes(4, "little") + record)
                spool.set_aside(number, "reason")
        assert 3 <= spool.refused <= 6


def test_a_log_that_its_disk_stopped_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write fails halfway and cannot be taken back either: nothing of it may count, and the rest must stay."""

    def fail(fd: int, *_: object) -> None:
        raise OSError(5, "Input/output error")

    with Spool(tmp_path / "spool", CAPACITY) as spool:
        spool.put(b"a")
        spool.put(b"b")
        spool.acknowledge(0)
        with monkeypatch.context() as patch:
            real = os.pwrite
            patch.setattr(os, "ftruncate", fail)
            patch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:20], at) if len(data) > 20 else fail(fd))
            with pytest.raises(StorageError, match="Input/output"):
                spool.put(b"half" * 10)
        with pytest.raises(StorageError, match="stopped"):
            spool.put(b"c")
        assert spool.unacknowledged == 1
        spool.mend()
        spool.mend()
        assert spool.put(b"c") == 2
        assert spool.pending(10, 1000) == (1, [b"b", b"c"])
