"""The commands that look after a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from robot_stack.apps.data_commands import list_store, pin, rebuild_catalog, unpin, verify_store
from robot_stack.buffer.store import StepStore
from robot_stack.core.errors import CorruptDataError, StorageError
from tests.buffer_kit import MANUAL, contents, episode_of, sealed_paths


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with StepStore(tmp_path / "store", "process", MANUAL) as store:
        for episode in range(3):
            store.append(episode_of("arm_7", "session-x", episode, 5))
        store.append(episode_of("arm_7", "session-x", 3, 5)[:2])
        store.seal(3)
    return tmp_path / "store"


def test_the_list_names_every_sealed_episode_also_beside_a_running_store(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StepStore(directory, "process", MANUAL) as store:
        store.pin(5)
        assert list_store(directory) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        [str(5 * episode), "5", size, "yes", "yes" if episode == 1 else "no", str(episode), "arm_7", "session-x"]
        for episode, size in enumerate(line.split()[2] for line in lines[1:4])
    ]
    assert lines[4].startswith("3 sealed episodes, 15 steps") and lines[4].endswith("1 pinned")


def test_verify_reads_everything_and_its_exit_code_tells(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StepStore(directory, "process", MANUAL):
        assert verify_store(directory) == 0
    assert capsys.readouterr().out == "3 sealed episodes and 7 records of the log read, 0 damaged\n"
    path = sealed_paths(directory)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert verify_store(directory) == CorruptDataError.exit_code
    assert f"DAMAGED: {path}" in capsys.readouterr().out


def test_the_catalog_is_made_anew(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "catalog").write_bytes(b"rubbish")
    assert rebuild_catalog(directory) == 0
    assert "3 sealed episodes" in capsys.readouterr().out
    with StepStore(directory, "process", MANUAL) as store:
        assert len(contents(store)) == 17


def test_pins_are_set_and_taken_away(directory: Path) -> None:
    assert (pin(directory, 5), pin(directory, 10), unpin(directory, 5)) == (0, 0, 0)
    with StepStore(directory, "process", MANUAL) as store:
        assert store.pinned() == {10}
        with pytest.raises(StorageError, match="another process"):
            pin(directory, 0)


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    for command in (list_store, verify_store, rebuild_catalog):
        with pytest.raises(StorageError, match="holds no store"):
            command(tmp_path)
    with pytest.raises(StorageError, match="holds no store"):
        pin(tmp_path / "none", 0)
    assert list(tmp_path.iterdir()) == []
