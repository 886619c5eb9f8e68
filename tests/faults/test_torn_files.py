"""Power cuts, damage and short writes under the whole store: short runs of the benchmark's rows."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults.crash_disk import CrashDisk, cut_at, everything, nothing, sectors
from benchmarks.faults.files import bit_flips, power_cuts, short_writes


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # hundreds of damaged stores would be logged


def test_the_power_may_fail_at_every_fsync_of_appending_and_sealing(tmp_path: Path) -> None:
    row = power_cuts(tmp_path / "power", seed=0, batches=12, stride=17)
    assert row.instants >= 20  # fsyncs of the log, of sealed files, of the folders
    assert row.truncations >= 60
    assert (row.acked_lost, row.bad_returned, row.twice, row.refused) == (0, 0, 0, 0), row.first_problem


def test_a_store_that_does_not_wait_for_its_disk_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the disk must be able to lose something."""
    from benchmarks.faults import files
    from robot_stack.buffer.store import StepStore

    monkeypatch.setattr(files, "open_store", lambda folder, settings, _="": StepStore(folder, "process", settings))
    row = power_cuts(tmp_path / "power", seed=0, batches=12, stride=1000)
    assert row.acked_lost > 0


def test_no_flipped_bit_in_any_file_of_a_store_makes_it_return_a_wrong_step(tmp_path: Path) -> None:
    row = bit_flips(tmp_path / "flips", seed=0, flips=120, batches=16)
    assert row.found > 20
    assert (row.bad_returned, row.silently_missing) == (0, 0)


def test_short_writes_cost_nothing_acknowledged(tmp_path: Path) -> None:
    row = short_writes(tmp_path / "short", seed=0, limits=10, batches=16)
    assert row.refused_batches > 10
    assert row.acked > 300
    assert (row.acked_lost, row.bad_returned, row.twice) == (0, 0, 0)


class Written:
    """A folder with one file: synced content, then more that is not synced."""

    def __init__(self, root: Path) -> None:
        (root / "disk").mkdir()
        (root / "shadow").mkdir()
        self.disk = CrashDisk(root / "disk", root / "shadow")
        self.file = root / "disk" / "file"
        self._left = root / "left"
        with self.disk.watching(lambda: None):
            fd = os.open(self.file, os.O_WRONLY | os.O_CREAT)
            folder = os.open(self.file.parent, os.O_RDONLY)
            os.write(fd, b"a" * 700)
            os.fsync(fd)
            os.fsync(folder)
            os.write(fd, b"b" * 1500)
            os.close(fd)
            os.close(folder)

    def leave(self, content: object, names: float, number: int) -> dict[str, bytes]:
        target = self._left.with_name(f"left-{number}")
        self.disk.leave(target, np.random.default_rng(number), content, names)  # type: ignore[arg-type]
        return {path.name: path.read_bytes() for path in target.iterdir()}


def test_the_model_of_the_disk_keeps_what_was_synced_and_any_part_of_the_rest(tmp_path: Path) -> None:
    written = Written(tmp_path)
    assert written.leave(nothing, 1.0, 0) == {"file": b"a" * 700}
    assert written.leave(everything, 1.0, 1) == {"file": b"a" * 700 + b"b" * 1500}
    assert written.leave(cut_at(10), 1.0, 2) == {"file": b"a" * 700 + b"b" * 10}
    kinds = set()
    for number in range(3, 60):
        left = written.leave(sectors(np.random.default_rng(number), 0.5), 1.0, number)["file"]
        assert left[:700] == b"a" * 700
        assert set(left[700:]) <= {0, ord("b")}
        kinds.add(left)
    assert len(kinds) > 10


def test_the_model_of_the_disk_knows_that_a_rename_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    written = Written(tmp_path)
    aside = written.file.with_name("aside")
    aside.write_bytes(b"new")
    with written.disk.watching(lambda: None):
        fd = os.open(aside, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    aside.replace(written.file)
    left = [written.leave(nothing, 0.5, number) for number in range(40)]
    assert {"file": b"new"} in left
    assert all(one.get("file") in (b"a" * 700, b"new") for one in left)
    assert any(one["file"] == b"a" * 700 for one in left)
