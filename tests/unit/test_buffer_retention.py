"""Retention: the oldest sealed episodes go, pinned ones never, and what went still counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robot_stack.buffer import retention
from robot_stack.buffer.retention import Ledger
from robot_stack.buffer.steps import SessionKey
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.codec import pack
from robot_stack.core.errors import CorruptDataError, StorageError
from tests.buffer_kit import IMAGE, contents, episode_of, make_step, sealed_paths

KEY = SessionKey("run", "a", "s")


def limits(**changes: float) -> StoreSettings:
    values = {"segment_bytes": 1000, "background": False} | changes
    return StoreSettings(**values)  # type: ignore[arg-type]


def filled(directory: Path, episodes: int = 8, **changes: float) -> StepStore:
    """A store of sealed episodes of 5 steps; nothing is left in its log."""
    store = StepStore(directory, "process", limits(**changes))
    store.open()
    for episode in range(episodes):
        store.append(episode_of("a", "s", episode, 5))
        store.seal(10)
        store.release()
    return store


def firsts(store: StepStore) -> list[int]:
    return [info.first_index for info in store.episodes()]


def size_of_one(tmp_path: Path) -> int:
    store = filled(tmp_path / "one", 1)
    store.close()
    return sealed_paths(tmp_path / "one")[0].stat().st_size


def closed(store: StepStore) -> StepStore:
    store.close()
    return store


def test_the_oldest_episodes_go_when_the_files_are_too_large_together(tmp_path: Path) -> None:
    size = size_of_one(tmp_path)
    store = filled(tmp_path / "store", keep_bytes=3 * size + size // 2)
    store.retain()
    assert firsts(store) == [25, 30, 35]
    assert len(sealed_paths(tmp_path / "store")) == 3
    assert list(contents(store)) == list(range(25, 40))
    assert (store.first_index, store.next_index, len(store)) == (25, 40, 40)
    assert store.verify().is_good
    store.close()


def test_what_retention_dropped_is_a_duplicate_also_after_restarts_and_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "COMPACT_ABOVE", 3)
    everything = [record for episode in range(12) for record in episode_of("a", "s", episode, 5)]
    settings = limits(keep_bytes=1)
    closed(filled(tmp_path / "store", 12, keep_bytes=1))
    for lost in (False, True):
        if lost:
            (tmp_path / "store" / "catalog").unlink()
        with StepStore(tmp_path / "store", "process", settings) as store:
            store.retain()
            assert firsts(store) == []
            assert store.append(everything) == (0, 60)
            assert store.sessions() == {KEY: 60}
            assert (len(store), store.next_index, store.first_index) == (60, 60, 60)
            assert list(store.iterate(0)) == []
    assert (tmp_path / "store" / "ledger").stat().st_size < 1000
    with StepStore(tmp_path / "store", "process", settings) as store:
        assert store.append(episode_of("a", "s", 12, 5)) == (5, 0)
        assert list(contents(store)) == list(range(60, 65))


def test_the_age_that_counts_is_that_of_the_file(tmp_path: Path) -> None:
    closed(filled(tmp_path / "store"))
    (tmp_path / "store" / "catalog").unlink()
    for path in sealed_paths(tmp_path / "store")[:3]:
        os.utime(path, (time.time() - 1000, time.time() - 1000))
    with StepStore(tmp_path / "store", "process", limits(keep_age_s=500.0)) as store:
        assert store.retain() == 3
        assert store.retain() == 0
        assert firsts(store) == [15, 20, 25, 30, 35]


def test_a_pinned_episode_stays_until_it_is_unpinned(tmp_path: Path) -> None:
    closed(filled(tmp_path / "store"))
    with StepStore(tmp_path / "store", "process", limits()) as store:
        store.pin(5)
        store.pin(30)
        store.pin(30)
        with pytest.raises(StorageError, match="no sealed episode that begins at step 6"):
            store.pin(6)
    with StepStore(tmp_path / "store", "process", limits(keep_bytes=1)) as store:
        assert store.pinned() == {5, 30}
        assert store.retain() == 6
        assert firsts(store) == [5, 30]
        assert list(contents(store)) == [*range(5, 10), *range(30, 35)]
        store.unpin(5)
        with pytest.raises(StorageError, match="is pinned"):
            store.unpin(5)
        assert store.retain() == 1
        assert firsts(store) == [30]


def test_pins_survive_compaction(tmp_path: Path) -> None:
    closed(filled(tmp_path / "store", 2))
    ledger = Ledger(tmp_path / "store")
    ledger.open()
    ledger.pin(5)
    ledger.compact()
    ledger.close()
    with StepStore(tmp_path / "store", "process", limits(keep_bytes=1)) as store:
        assert (store.retain(), firsts(store)) == (1, [5])


def test_steps_that_are_not_sealed_or_still_in_the_log_are_never_dropped(tmp_path: Path) -> None:
    settings = StoreSettings(background=False, keep_bytes=1)
    with StepStore(tmp_path, "process", settings) as store:
        store.append(episode_of("a", "s", 0, 5) + episode_of("a", "s", 1, 5)[:3])
        store.seal(10)
        assert (store.retain(), firsts(store), len(contents(store))) == (0, [0], 8)
        store.append([pack(make_step("a", "t", 0, 0))])
        store.seal(10)
        assert not store.release()  # the new session's step is not sealed
        assert len(contents(store)) == 9
    with StepStore(tmp_path, "process", settings) as store:
        assert len(contents(store)) == 9


def test_an_image_of_a_dropped_step_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", keep_bytes=1)
    with pytest.raises(StorageError, match="retention dropped it"):
        store.read_images(IMAGE, np.array([0]), np.zeros(1, np.bool_), np.zeros((1, 4, 6, 3), np.uint8))
    store.close()


def test_a_drop_that_a_kill_interrupted_is_finished_at_the_next_start(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    store = filled(directory)
    victims = [file for file in store._catalog.files() if file.info.first_index < 15]
    store._ledger.drop(victims)  # killed before the first file is deleted
    store.close()
    assert len(sealed_paths(directory)) == 8
    for _ in range(2):
        with StepStore(directory, "process", limits()) as store:
            assert firsts(store) == [15, 20, 25, 30, 35]
            assert (store.sessions(), store.missing_files) == ({KEY: 40}, 0)
            assert store.append(episode_of("a", "s", 1, 5)) == (0, 5)
        assert len(sealed_paths(directory)) == 5


def test_a_file_that_somebody_took_away_is_shown_counts_on_and_may_come_back(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    closed(filled(directory))
    path = sealed_paths(directory)[2]
    path.rename(tmp_path / path.name)
    for _ in range(2):
        with StepStore(directory, "process", limits()) as store:
            assert store.missing_files == 1
            assert store.append(episode_of("a", "s", 2, 5)) == (0, 5)
            assert list(contents(store)) == [*range(10), *range(15, 40)]
    (tmp_path / path.name).rename(path)
    with StepStore(directory, "process", limits()) as store:
        assert (store.missing_files, len(contents(store)), len(store)) == (0, 40, 40)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flip in the first record": lambda data: data[:70] + bytes([data[70] ^ 1]) + data[71:],
    "flip in the header": lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:],
    "cut in the header": lambda data: data[:9],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_ledger_is_an_error_and_changes_nothing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    directory = tmp_path / "store"
    closed(filled(directory, keep_bytes=1))
    ledger = directory / "ledger"
    ledger.write_bytes(damage(ledger.read_bytes()))
    before = ledger.read_bytes()
    with pytest.raises(StorageError, match="ledger"):
        StepStore(directory, "process", limits()).open()
    assert ledger.read_bytes() == before


def test_a_torn_last_record_of_the_ledger_is_cut(tmp_path: Path) -> None:
    """It was not durable, so no file was deleted because of it."""
    directory = tmp_path / "store"
    store = filled(directory)
    size = (directory / "ledger").stat().st_size
    store._ledger.drop(store._catalog.files()[:2])
    store.close()
    whole = (directory / "ledger").read_bytes()
    for cut in range(size, len(whole), 7):
        (directory / "ledger").write_bytes(whole[:cut])
        with StepStore(directory, "process", limits()) as store:
            assert len(store.episodes()) == 8
            assert store.append(episode_of("a", "s", 0, 5)) == (0, 5)


def test_a_copy_of_a_sealed_file_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    closed(filled(directory, 2))
    path = sealed_paths(directory)[0]
    path.with_name(f"copy-{path.name}").write_bytes(path.read_bytes())
    with pytest.raises(CorruptDataError, match="one of them is a copy"):
        StepStore(directory, "process", limits()).open()
