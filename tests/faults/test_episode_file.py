"""Episode files under damage of every byte, cut files, full and failing disks, and killed writers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robot_stack.buffer.episode_file import EpisodeFile, sweep_aside, write_episode_file
from robot_stack.buffer.stored_zip import read_members
from robot_stack.core.codec import pack
from robot_stack.core.errors import CorruptDataError, StorageError
from robot_stack.core.messages import Source, Step, Verdict

FRONT = "observation.images.front"
SIDE = "observation.images.side"


def step(index: int, *, final: bool = False) -> Step:
    """A small one: a raw camera, one that gives files, and a state."""
    action = np.full(1, index, np.float32)
    observation = {
        FRONT: np.full((2, 2, 3), 7 * index % 256, np.uint8),
        SIDE: np.full(3 + index, index, np.uint8),
        "observation.state": np.full(1, -index, np.float32),
    }
    return Step(
        run="r",
        robot="b",
        task="t",
        session="s",
        seq=index,
        episode=0,
        episode_seed=0,
        segment=0,
        index=index,
        stamp_ns=index,
        observation=observation,
        action_base=action,
        action_asked=action,
        action_sent=action,
        verdict=Verdict.ACCEPTED,
        refusal=None,
        source=Source.POLICY,
        weights_version=0,
        reward=0.0,
        success=False,
        terminated=final,
        truncated=False,
        final_observation={"observation.state": action} if final else None,
    )


def write(directory: Path, count: int = 2) -> Path:
    steps = [(index, step(index, final=index == count - 1)) for index in range(count)]
    return write_episode_file(directory, steps, ended=True, durability="power")


def check(path: Path) -> None:
    with EpisodeFile(path) as file:
        file.verify()


# ---- damage -----------------------------------------------------------------------------------------------------


def test_a_flip_of_any_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path)
    content, generator = path.read_bytes(), random.Random(0)
    missed = []
    with path.open("r+b", buffering=0) as file:
        for offset, value in enumerate(content):
            os.pwrite(file.fileno(), bytes([value ^ 1 << generator.randrange(8)]), offset)
            try:
                check(path)
                missed.append(offset)
            except CorruptDataError as error:
                if str(path) not in str(error):
                    missed.append(offset)
            os.pwrite(file.fileno(), bytes([value]), offset)
    assert missed == []
    check(path)


def test_a_file_cut_anywhere_or_grown_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    for size in (*range(0, len(content), 7), *range(len(content) - 200, len(content))):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptDataError, match=path.name):
            check(path)
    for changed in (content + b"\0", b"\0" + content, content + content):
        path.write_bytes(changed)
        with pytest.raises(CorruptDataError, match=path.name):
            check(path)
    path.write_bytes(content)
    check(path)


def test_lost_sectors_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, 40)
    content, sector = path.read_bytes(), 512
    for start in range(0, len(content), sector):
        path.write_bytes(content[:start] + bytes(len(content[start : start + sector])) + content[start + sector :])
        with pytest.raises(CorruptDataError):
            check(path)


def flip(path: Path, member: str) -> None:
    """Damage the first byte of a member's content."""
    content = bytearray(path.read_bytes())
    (found,) = (item for item in read_members(path, np.frombuffer(content, np.uint8)) if item.name == member)
    content[found.start] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [FRONT, SIDE, f"{SIDE}.offsets", "seq", "final/observation.state"])
def test_a_damaged_chunk_is_named_and_nothing_of_it_is_handed_out(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 40)
    chunk = {FRONT: 2, SIDE: 0}.get(name, 0)
    flip(path, f"{name}/c/{chunk}" + ("/0/0/0" if name == FRONT else ""))
    message = rf"{path.name}: chunk {chunk} of array '{name}' does not verify"
    with EpisodeFile(path) as file:  # opening reads no chunk
        with pytest.raises(CorruptDataError, match=message):
            file.verify()
        with pytest.raises(CorruptDataError, match=message):
            list(file.steps())
        with pytest.raises(CorruptDataError, match=message):
            file.column(name)
        out = np.zeros((1, 2, 2, 3), np.uint8)
        file.read_images(FRONT, np.array([3]), out)  # another chunk of the same array is still good
        assert (out == 21).all()
        if name == FRONT:
            for _ in range(2):
                with pytest.raises(CorruptDataError, match=message):
                    file.read_images(FRONT, np.array([39]), out)
            assert (out == 21).all()


def test_damage_after_the_first_use_is_found_by_verify(tmp_path: Path) -> None:
    path = write(tmp_path)
    with EpisodeFile(path) as file:
        file.verify()
        list(file.steps())
        content = bytearray(path.read_bytes())
        content[content.index(b"seq/c/0") + 7] ^= 1
        with path.open("r+b") as damaged:  # in place: the mapping sees it
            damaged.write(content)
        with pytest.raises(CorruptDataError, match="'seq'"):
            file.verify()


# ---- disks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 2])
def test_a_failed_sync_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The first fsync is that of the file, the second that of the folder, after the renaming."""
    calls, fsync = [], os.fsync

    def failing(fd: int) -> None:
        calls.append(fd)
        if len(calls) == call:
            raise OSError(5, "Input/output error")
        fsync(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(StorageError, match="steps stay in the log"):
            write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    check(write(tmp_path))


def test_durability_process_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    check(write_episode_file(tmp_path / "new", [(0, step(0))], ended=False, durability="process"))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from robot_stack.core.errors import StorageError
from tests.faults.test_episode_file import check, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
directory = Path(sys.argv[1])
whole = write(directory).stat().st_size
for path in directory.iterdir():
    path.unlink()
for limit in (0, 1, 100, 4096, whole // 2, whole - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(directory)
    except StorageError as error:
        print("refused", list(directory.iterdir()), "cannot be written" in str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (whole, resource.RLIM_INFINITY))
check(write(directory))
print("written")
"""


def test_a_disk_that_is_full_after_any_byte_refuses_and_keeps_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["refused [] True"] * 6 + ["written"], done.stderr


# ---- killed writers ---------------------------------------------------------------------------------------------

WRITER = """
import sys
from itertools import count
from pathlib import Path
from robot_stack.buffer.episode_file import write_episode_file
from tests.faults.test_episode_file import step
for number in count():
    steps = [(1000 * number + index, step(index, final=index == 99)) for index in range(100)]
    print(write_episode_file(Path(sys.argv[1]), steps, ended=True, durability="process").name, flush=True)
"""


def test_a_killed_writer_leaves_whole_files_and_something_to_sweep(tmp_path: Path) -> None:
    generator, swept = random.Random(0), 0
    for attempt in range(8):
        directory = tmp_path / str(attempt)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, directory], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        reported = [writer.stdout.readline().strip()]
        time.sleep(generator.uniform(0.0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        reported += writer.stdout.read().split()
        writer.wait()
        swept += sweep_aside(directory)
        files = sorted(directory.iterdir())
        assert set(reported) <= {path.name for path in files}  # what was reported is there
        for path in files:
            check(path)
            with EpisodeFile(path) as file:
                expected = [pack(step(index, final=index == 99)) for index in range(100)]
                assert [pack(item) for _, item in file.steps()] == expected
    assert swept > 0
