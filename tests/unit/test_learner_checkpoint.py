"""Checkpoints survive interruption and damage."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from robot_stack.core.errors import StorageError
from robot_stack.core.messages import Array
from robot_stack.learner.checkpoint import CheckpointStore


def tensors(step: int) -> dict[str, Array]:
    return {
        "weight": np.full((3, 4), step, np.float32),
        "generator": np.arange(9, dtype=np.uint8),
        "count": np.array([step], np.int64),
    }


def open_store(directory: Path, keep: int = 3, keep_best: int = 1) -> CheckpointStore:
    store = CheckpointStore(directory, keep, keep_best)
    store.open()
    return store


def test_the_newest_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path / "checkpoints")
    assert store.latest() is None
    for step in (10, 9_999_999, 200):
        store.save(step, tensors(step), f"meta {step}".encode())
    newest = open_store(tmp_path / "checkpoints").latest()
    assert newest is not None and (newest.step, newest.meta) == (9_999_999, b"meta 9999999")
    for name, value in tensors(9_999_999).items():
        np.testing.assert_array_equal(newest.tensors[name], value)
        assert newest.tensors[name].dtype == value.dtype


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=2)
    for step in range(5):
        store.save(step, tensors(step), b"")
    assert store.steps() == [3, 4]


def test_the_best_are_kept_beside_the_last(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=2, keep_best=2)
    for step, score in enumerate((0.5, None, 0.9, 0.1, 0.7, float("nan"), float("inf"), 0.2)):
        store.save(step, tensors(step), b"", score)
    assert store.steps() == [2, 4, 6, 7]
    best = store.best()
    assert best is not None and (best.step, best.score) == (2, 0.9)
    newest = open_store(tmp_path).latest()
    assert newest is not None and (newest.step, newest.score) == (7, 0.2)
    assert [store.load(step).score for step in store.steps()] == [0.9, 0.7, None, 0.2]


def test_of_equal_scores_the_newer_is_the_better_and_without_scores_there_is_no_best(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=1, keep_best=1)
    store.save(1, tensors(1), b"")
    assert store.best() is None
    for step in (2, 3, 4):
        store.save(step, tensors(step), b"", 0.25)
    store.save(5, tensors(5), b"")
    assert store.steps() == [4, 5]


def test_a_damaged_best_gives_its_place_to_the_next(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=1, keep_best=2)
    for step, score in ((1, 0.9), (2, 0.8), (3, 0.1)):
        store.save(step, tensors(step), b"", score)
    path = tmp_path / "step-000000000001" / "meta.bin"
    path.write_bytes(b"x")
    best = store.best()
    assert best is not None and best.step == 2
    store.save(4, tensors(4), b"", 0.0)
    assert store.steps() == [2, 3, 4]


def test_checkpoints_of_another_schema_version_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    store.save(1, tensors(1), b"one")
    store.save(2, tensors(2), b"two")
    path = tmp_path / "step-000000000002" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema_version":2', b'"schema_version":7'))
    newest = store.latest()
    assert newest is not None and newest.step == 1
    assert "schema version 7" in caplog.text


def test_a_removal_that_was_interrupted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path, keep=1)
    store.save(1, tensors(1), b"one")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, tensors(2), b"two")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2
    assert open_store(tmp_path).steps() == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000002"]


def test_pruning_never_counts_a_damaged_checkpoint_as_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=2)
    for step in (1, 2):
        store.save(step, tensors(step), b"")
    (tmp_path / "step-000000000002" / "tensors.safetensors").write_bytes(b"")
    store.save(3, tensors(3), b"")
    assert 1 in store.steps()


def test_every_nth_flipped_bit_makes_it_fall_back_to_the_previous_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    store.save(1, tensors(1), b"one")
    store.save(2, tensors(2), b"two, a little longer")
    for path in sorted((tmp_path / "step-000000000002").iterdir()):
        whole = path.read_bytes()
        for bit in range(0, len(whole) * 8, 13):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            newest = store.latest()
            assert newest is not None and newest.step == 1, f"bit {bit} of {path.name} was not noticed"
        path.write_bytes(whole)
    assert "falling back" in caplog.text
    newest = store.latest()
    assert newest is not None and newest.step == 2


@pytest.mark.parametrize("name", ["tensors.safetensors", "meta.bin", "manifest.json"])
def test_a_torn_or_missing_file_makes_it_fall_back(tmp_path: Path, name: str) -> None:
    store = open_store(tmp_path)
    store.save(1, tensors(1), b"one")
    store.save(2, tensors(2), b"two")
    path = tmp_path / "step-000000000002" / name
    path.write_bytes(path.read_bytes()[:-1])
    newest = store.latest()
    assert newest is not None and newest.step == 1
    path.unlink()
    newest = store.latest()
    assert newest is not None and newest.step == 1
    store.save(2, tensors(2), b"again")  # the damaged one may be written anew
    newest = store.latest()
    assert newest is not None and newest.meta == b"again"


def test_a_valid_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(1, tensors(1), b"one")
    with pytest.raises(StorageError, match="exists already"):
        store.save(1, tensors(1), b"other")


def test_a_full_disk_keeps_the_older_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.save(1, tensors(1), b"one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        store.save(2, tensors(2), b"two")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001"]


def test_killed_at_any_instant_there_is_a_whole_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = textwrap.dedent(
        """
        import sys, numpy as np
        from pathlib import Path
        from robot_stack.learner.checkpoint import CheckpointStore
        store = CheckpointStore(Path(sys.argv[1])); store.open()
        step = max(store.steps(), default=0)
        while True:
            step += 1
            store.save(step, {"value": np.full(200_000, step, np.float32)}, str(step).encode())
            print(step, flush=True)
        """
    )
    reported = 0
    for delay_s in (0.0, 0.013, 0.031):
        command = [sys.executable, "-c", program, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            reported = int(process.stdout.readline())
            time.sleep(delay_s)
            process.kill()
            rest = [line for line in process.stdout.read().split("\n") if line.strip()]
        reported = max([reported, *(int(line) for line in rest)])
        with caplog.at_level(logging.WARNING):
            newest = open_store(tmp_path).latest()
        assert newest is not None and newest.step >= reported
        assert newest.meta == str(newest.step).encode()
        np.testing.assert_array_equal(newest.tensors["value"], np.float32(newest.step))
        assert not list(tmp_path.glob(".aside-*"))
