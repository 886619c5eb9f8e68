"""The store under killed processes, full disks and damaged files, also in the middle of sealing and retention."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robot_stack.buffer.segment import list_segments
from robot_stack.buffer.steps import SessionKey
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.codec import pack
from robot_stack.core.errors import CorruptDataError, StorageError
from robot_stack.core.messages import Step
from tests.buffer_kit import IMAGE, MANUAL, contents, episode_of, make_step, sealed_paths
from tests.faults.test_durable_log import small_disk

__all__ = ["small_disk"]

ROBOTS = ("a", "b", "c")
LENGTH = 7


def numbered(robot: str, seq: int) -> bytes:
    """Step `seq` of a robot's endless run of episodes."""
    return pack(make_step(robot, "s", seq, seq // LENGTH, ended=seq % LENGTH == LENGTH - 1))


def send(store: StepStore, rng: random.Random) -> None:
    """What the edges send next, with some steps that they are not sure about and send again."""
    for _ in range(rng.randint(1, 4)):
        robot = rng.choice(ROBOTS)
        known = store.sessions().get(SessionKey("run", robot, "s"), 0)
        store.append([numbered(robot, seq) for seq in range(max(0, known - 3), known + rng.randint(1, 9))])


def check(store: StepStore, acknowledged: int, kept_from: int = 0) -> None:
    """Nothing acknowledged is lost, nothing is there twice, nothing has changed."""
    assert store.next_index == len(store) >= acknowledged
    sessions = store.sessions()
    assert sum(sessions.values()) == len(store)
    expected = {numbered(key.robot, seq) for key, count in sessions.items() for seq in range(count)}
    found = list(contents(store).values())
    assert len(found) == len(set(found)) and set(found) <= expected
    if kept_from == 0:
        assert len(found) == len(expected)


# ---- killed -----------------------------------------------------------------------------------------------------

WRITER = """
import os, random, sys
from pathlib import Path
from tests.faults.test_store import send
from robot_stack.buffer.store import StepStore, StoreSettings
settings = StoreSettings(segment_bytes=3000, idle_s=0.001, stale_s=0.05, retry_s=0.01, keep_bytes=int(sys.argv[3]))
rng = random.Random(int(sys.argv[2]))
with StepStore(Path(sys.argv[1]), "process", settings) as store:
    while True:
        send(store, rng)
        os.write(1, store.next_index.to_bytes(8, "little"))
"""


@pytest.mark.parametrize(("kills", "keep_bytes"), [(14, 0), (6, 60_000)], ids=["keep all", "retention"])
def test_kill_9_while_appending_sealing_and_dropping_loses_and_repeats_nothing(
    tmp_path: Path, kills: int, keep_bytes: int
) -> None:
    rng, last = random.Random(keep_bytes), 0
    for kill in range(kills):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(kill), str(keep_bytes)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            acks = writer.stdout.read(8)
            time.sleep(rng.uniform(0.0, 0.25))
            writer.send_signal(signal.SIGKILL)
            acks += writer.stdout.read()
        acknowledged = int.from_bytes(acks[len(acks) // 8 * 8 - 8 : len(acks) // 8 * 8], "little")
        assert acknowledged > last
        if rng.random() < 0.2:
            (tmp_path / "store" / "catalog").unlink()
        with StepStore(tmp_path / "store", "process", StoreSettings(background=False)) as store:
            check(store, acknowledged, kept_from=keep_bytes)
            assert store.missing_files == 0
            last = store.next_index
            sealed = len(store.episodes())
    assert sealed > 2
    assert list_segments(tmp_path / "store" / "log")[0][0] > 0


def _die_at(call: int) -> None:
    """End this process, as kill -9 does, before its `call`-th change of the disk from now on."""
    left = [call]

    def counting(change: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return change(*arguments, **named)

        return counted

    for name in ("pwrite", "fsync", "unlink", "rename", "replace", "ftruncate", "mkdir"):
        setattr(os, name, counting(getattr(os, name)))


def _live(directory: Path, acks: int) -> None:
    """A short life with everything in it: appending, sealing, rolling, dropping segments and files, pinning."""
    rng = random.Random(1)
    settings = StoreSettings(segment_bytes=3000, background=False, keep_bytes=40_000)
    for _ in range(2):
        with StepStore(directory, "power", settings) as store:
            for _ in range(4):
                send(store, rng)
                os.write(acks, store.next_index.to_bytes(8, "little"))
                store.seal(2)
                if rng.random() < 0.5:
                    store._tracker.complete_idle(float("inf"))
                    store.seal(10)
                    store.release()
                    store.retain()
                if store.episodes():
                    store.pin(store.episodes()[-1].first_index)


def test_death_before_any_single_change_of_the_disk_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Every instant between two changes of the disk, one after the other, instead of random ones."""
    call, code = 0, 9
    while code == 9:
        directory = tmp_path / str(call)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _die_at(call)
            _live(directory, writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            acks = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        acknowledged = int.from_bytes(acks[-8:], "little")
        with StepStore(directory, "process", StoreSettings(background=False)) as store:
            check(store, acknowledged, kept_from=1)
            dropped = len(store) - len(contents(store))
            assert dropped == sum(len(seqs) for seqs in store._ledger.known.sessions.values())
            assert store.missing_files == 0
            send(store, random.Random(2))
            store.seal(100)
            check(store, acknowledged, kept_from=1)
            assert store.verify().is_good
        call += 1 if call < 40 else 5  # the beginning in full, then every fifth: keeps the test short
    assert call > 150
    assert dropped > 0


# ---- full and failing disks -------------------------------------------------------------------------------------


def test_a_disk_that_is_full_while_sealing_leaves_the_log_as_it_is(small_disk: Path) -> None:
    directory = small_disk / "store"
    with StepStore(directory, "power", MANUAL) as store:
        store.append(episode_of("a", "s", 0, 6) + episode_of("a", "s", 1, 6))
        before, log = contents(store), _bytes_of_log(directory)
        filler = small_disk / "filler"
        _fill(filler)
        for _ in range(3):
            with pytest.raises(StorageError, match="cannot be written"):
                store.seal(2)
        assert list((directory / "episodes").iterdir()) == []
        assert (_bytes_of_log(directory), contents(store), store.waiting_stretches) == (log, before, 2)
        filler.unlink()
        assert store.seal(2) == 2
        assert contents(store) == before
        assert store.append(episode_of("a", "s", 1, 6)) == (0, 6)
    with StepStore(directory, "power", MANUAL) as store:
        assert contents(store) == before
        assert store.verify().is_good


def test_the_background_thread_counts_a_full_disk_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    directory = small_disk / "store"
    quick = StoreSettings(retry_s=0.02)
    with StepStore(directory, "power", quick) as store:
        store.append(episode_of("a", "s", 0, 6)[:5])
        filler = small_disk / "filler"
        filler.write_bytes(bytes(4096))
        _fill(small_disk / "more")
        filler.unlink()
        store.append(episode_of("a", "s", 0, 6)[5:])  # there is room for this step, not for the file
        _wait(lambda: store.seal_errors >= 2)
        assert len(contents(store)) == 6 and store.episodes() == []
        (small_disk / "more").unlink()
        _wait(lambda: len(store.episodes()) == 1)
        assert len(contents(store)) == 6


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(512))


def _bytes_of_log(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((directory / "log").glob("*.log"))]


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_catalog_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    with StepStore(tmp_path, "process", MANUAL) as store:
        store.append(episode_of("a", "s", 0, 6) + episode_of("a", "s", 1, 6))
        store._catalog.close()
        assert store.seal(2) == 2
        assert store._catalog.disk_errors == 2
        before = contents(store)
    (tmp_path / "catalog").unlink()
    (tmp_path / "catalog").mkdir()
    with StepStore(tmp_path, "process", MANUAL) as store:
        assert contents(store) == before and len(store.episodes()) == 2


# ---- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed_store(tmp_path: Path) -> Path:
    """Three sealed episodes, and a few steps in the log only."""
    with StepStore(tmp_path / "store", "process", MANUAL) as store:
        for episode in range(3):
            store.append(episode_of("a", "s", episode, 6))
        store.append(episode_of("b", "t", 0, 6)[:2])
        store.seal(3)
        store._log.drop_before(18)
    return tmp_path / "store"


def test_a_catalog_damaged_at_any_place_is_made_anew(sealed_store: Path) -> None:
    catalog = sealed_store / "catalog"
    with StepStore(sealed_store, "process", MANUAL) as store:
        before = contents(store)
    whole = catalog.read_bytes()
    flips = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(0, len(whole), 11)]
    cuts = [whole[:size] for size in range(0, len(whole), 23)]
    for damaged in [*flips, *cuts, whole + b"\0" * 100, whole + whole, b"", os.urandom(500)]:
        catalog.write_bytes(damaged)
        with StepStore(sealed_store, "process", MANUAL) as store:
            assert contents(store) == before
            assert (len(store), store.missing_files) == (20, 0)
        assert catalog.read_bytes() == whole


def test_the_catalog_of_another_time_is_brought_up_to_date(sealed_store: Path) -> None:
    old = (sealed_store / "catalog").read_bytes()
    with StepStore(sealed_store, "process", MANUAL) as store:
        store.append(episode_of("b", "t", 0, 6))
        store.append(episode_of("a", "s", 3, 6))
        assert store.seal(10) == 2
        before = contents(store)
    (sealed_store / "catalog").write_bytes(old)
    with StepStore(sealed_store, "process", MANUAL) as store:
        assert contents(store) == before and len(store.episodes()) == 5


def test_a_damaged_sealed_file_is_found_by_verify_and_by_reading(sealed_store: Path) -> None:
    path = sealed_paths(sealed_store)[1]
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02") // 2
    data[at] ^= 1
    path.write_bytes(data)
    with StepStore(sealed_store, "process", MANUAL) as store:
        report = store.verify()
        assert not report.is_good
        assert len(report.damaged) == 1 and str(path) in report.damaged[0]
        assert (report.files, report.unaccounted_steps) == (3, 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=str(path)):
        StepStore(sealed_store, "process", MANUAL).open()


def test_a_file_exchanged_for_another_of_the_same_size_is_found(tmp_path: Path) -> None:
    with StepStore(tmp_path, "process", MANUAL) as store:
        for episode in range(4):
            store.append(episode_of("a", "s", episode, 10))
        assert store.seal(4) == 4
        store.release()
    second, third = sealed_paths(tmp_path)[1:3]
    assert second.stat().st_size == third.stat().st_size
    third.write_bytes(second.read_bytes())
    with StepStore(tmp_path, "process", MANUAL) as store:
        assert "not the file that was sealed" in store.verify().damaged[0]
        with pytest.raises(CorruptDataError, match="not the file that was sealed"):
            contents(store)
        out = np.zeros((1, 4, 6, 3), np.uint8)
        with pytest.raises(CorruptDataError, match="not the file that was sealed"):
            store.read_images(IMAGE, np.array([25]), np.zeros(1, np.bool_), out)


def test_a_stretch_whose_records_are_damaged_is_set_aside_and_the_others_are_sealed(tmp_path: Path) -> None:
    with StepStore(tmp_path, "process", MANUAL) as store:
        store.append(episode_of("a", "s", 0, 6) + episode_of("a", "s", 1, 6))
        path = list_segments(tmp_path / "log")[0][1]
        data = bytearray(path.read_bytes())
        data[200] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptDataError, match="record 0"):
            store.seal(2)
        assert store.seal(2) == 1
        assert (store.unsealable, store.waiting_stretches) == (1, 0)
        assert [info.first_index for info in store.episodes()] == [6]
        assert not store.release()  # the damaged records stay for whoever can mend them
        assert "record 0" in store.verify().damaged[0]


def test_a_stretch_that_fits_into_no_file_stays_in_the_log(tmp_path: Path) -> None:
    step = make_step("a", "s", 0, 0, ended=True)
    values = {name: getattr(step, name) for name in Step.__struct_fields__} | {"stamp_ns": 2**63}
    with StepStore(tmp_path, "process", StoreSettings(retry_s=0.01)) as store:
        store.append([pack(Step(**values)), *episode_of("a", "t", 0, 6)])
        _wait(lambda: len(store.episodes()) == 1)
        assert (store.unsealable, store.seal_errors) == (1, 1)
        assert len(contents(store)) == 7
