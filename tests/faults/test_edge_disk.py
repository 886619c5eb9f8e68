"""The edge on disks that are full, hang or die: the robot goes on, and what cannot be kept is counted and shown."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from robot_stack.apps.layout import RunLayout
from robot_stack.apps.reporting import check_integrity
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.buffer.images import ImageCodec
from robot_stack.buffer.store import StepStore
from robot_stack.core.codec import unpack
from robot_stack.core.messages import Step
from robot_stack.edge.alarms import AlarmBoard, AlarmKind
from robot_stack.edge.disk import Admission
from robot_stack.edge.outbox import Outbox
from robot_stack.edge.spool import Spool
from robot_stack.edge.watch import EdgeWatch, read_status
from tests.system.conftest import SmallRun
from tests.transport_kit import eventually
from tests.unit.test_edge_outbox import check_whole, make_step

MEMORY = 1 << 26
WITHIN_S = 60.0
STEPS = 40


@contextmanager
def mounted(disk: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size: a disk that is really full when it is full."""
    disk.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("not measured: a real full disk needs the program 'mount'")
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not measured: a real full disk needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # lazy: a failed test may hold files open


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "2m") as disk:
        yield disk


def kept_in(spool: Spool) -> list[Step]:
    return [unpack(record, Step) for record in spool.pending(1 << 20, 1 << 30)[1]]


def run_episode(outbox: Outbox, episode: int, at_step: Callable[[int], None] = lambda index: None) -> None:
    """What the control loop does, without the robot."""
    for index in range(STEPS):
        at_step(index)
        outbox.put(make_step(index, episode, side=24, ended=index == STEPS - 1))


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    return filler


@pytest.mark.parametrize("at", range(0, STEPS, 7))
def test_a_disk_that_fills_up_in_mid_episode_costs_the_rest_of_it_and_nothing_else(small_disk: Path, at: int) -> None:
    board = AlarmBoard()
    with ExitStack() as opened:
        spool = opened.enter_context(Spool(small_disk / "spool", 1 << 26))
        outbox = opened.enter_context(Outbox(spool, ImageCodec.RAW, MEMORY))
        opened.enter_context(EdgeWatch(small_disk / "status.json", spool, outbox, board, 0.1, lambda: -1))
        admission = Admission(spool, outbox, STEPS, 4096)
        run_episode(outbox, 0)
        assert outbox.flush(WITHIN_S)
        assert admission.refusal() == ""

        def fill_up(index: int) -> None:
            if index == at:
                assert outbox.flush(WITHIN_S)
                fill(small_disk)

        run_episode(outbox, 1, fill_up)
        assert outbox.flush(WITHIN_S)
        refused_ns = time.monotonic_ns()
        assert eventually(lambda: {AlarmKind.STEPS_DROPPED, AlarmKind.DISK_LOW} <= kinds(board), 10.0)
        dropped = next(alarm for alarm in board.active() if alarm.kind is AlarmKind.STEPS_DROPPED)
        assert (dropped.since_ns - refused_ns) / 1e9 < 5.0  # 0.25 s on a machine that is not busy
        assert "No space left" in dropped.message
        assert outbox.kept >= STEPS + at - 1 and outbox.dropped == 2 * STEPS - outbox.kept
        refusal = admission.refusal()
        assert "Free space" in refusal or "cannot be written" in refusal
        (small_disk / "filler").unlink()
        assert admission.refusal() == ""
        run_episode(outbox, 2)
        assert outbox.flush(WITHIN_S)
        assert eventually(lambda: kinds(board) == set(), 10.0)
        kept = outbox.kept
    with Spool(small_disk / "spool", 1 << 26) as spool:
        steps = kept_in(spool)
    assert len(steps) == kept
    check_whole(steps)
    assert sum(step.episode == 2 for step in steps) == STEPS


def kinds(board: AlarmBoard) -> set[AlarmKind]:
    return {alarm.kind for alarm in board.active()}


def test_a_full_spool_costs_the_rest_of_the_episode_and_drains(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", 1 << 19) as spool, Outbox(spool, ImageCodec.RAW, MEMORY) as outbox:
        for episode in range(20):  # nobody asks for admission here: the worst case
            run_episode(outbox, episode)
        assert outbox.flush(WITHIN_S)
        assert outbox.dropped > 0
        assert "Start the learner" in outbox.problem
        admission = Admission(spool, outbox, STEPS, 4096)
        assert "no room for an episode" in admission.refusal()
        steps = kept_in(spool)
        check_whole(steps)
        spool.acknowledge(len(steps) - 1)
        assert admission.refusal() == ""
        run_episode(outbox, 20)
        assert outbox.flush(WITHIN_S)
        assert [step.index for step in kept_in(spool)] == list(range(STEPS))


def test_the_loop_never_waits_for_a_disk_that_hangs(tmp_path: Path) -> None:
    hang = threading.Event()

    class Hanging(Spool):
        def put(self, record: bytes) -> int:
            if hang.is_set():
                time.sleep(3.0)
            return super().put(record)

    board = AlarmBoard()
    with Hanging(tmp_path / "spool", 1 << 26) as spool, Outbox(spool, ImageCodec.RAW, MEMORY) as outbox:
        with EdgeWatch(tmp_path / "status.json", spool, outbox, board, 0.0, lambda: -1):
            longest_s = 0.0
            for index in range(300):
                if index == 100:
                    hang.set()
                if index == 250:
                    hang.clear()
                begun_s = time.monotonic()
                outbox.put(make_step(index, side=64))
                longest_s = max(longest_s, time.monotonic() - begun_s)
                if index == 200:
                    assert eventually(lambda: AlarmKind.DISK_HANGS in kinds(board), 2.5)
                time.sleep(0.002)
            assert longest_s < 1.0  # one wait for the disk would be three seconds
            assert outbox.flush(WITHIN_S)
            assert eventually(lambda: kinds(board) == set(), 10.0)
        assert (outbox.kept, outbox.dropped) == (300, 0)
        check_whole(kept_in(spool))


def test_a_disk_that_dies_is_asked_again_before_every_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with Spool(tmp_path / "spool", 1 << 26) as spool, Outbox(spool, ImageCodec.RAW, MEMORY) as outbox:
        admission = Admission(spool, outbox, STEPS, 4096)
        run_episode(outbox, 0)
        assert outbox.flush(WITHIN_S)
        with monkeypatch.context() as patch:
            for name in ("pwrite", "ftruncate", "posix_fallocate"):
                patch.setattr(f"os.{name}", fail)
            run_episode(outbox, 1)
            assert outbox.flush(WITHIN_S)
            assert outbox.dropped == STEPS
            assert "Input/output error" in admission.refusal()
            assert "Input/output error" in admission.refusal()
        assert admission.refusal() == ""
        run_episode(outbox, 2)
        assert outbox.flush(WITHIN_S)
        steps = kept_in(spool)
        check_whole(steps)
        assert {step.episode for step in steps} == {0, 2}


def test_the_edge_outlives_its_full_disk_and_the_practice_ends_with_every_step_it_promised(
    tmp_path: Path, prepared_run: Path
) -> None:
    run = SmallRun(tmp_path, prepared_run)
    overrides = run.overrides("edge.max_lead_steps=-1", "learner.target_steps=900")
    edge = run.root / "edge"
    with mounted(edge, "2m"):
        with Supervisor(run.root / "logs", announce=print) as supervisor:

            def logged(kind: AlarmKind) -> bool:  # the status file may not fit onto a full disk
                return f"{kind.value}:" in (run.root / "logs" / "edge.log").read_text()

            supervisor.start("robot-server", robot_stack_command("robot-server", *overrides))
            supervisor.start("edge", robot_stack_command("edge", *overrides))
            assert eventually(lambda: kept(edge) > 50, WITHIN_S)
            filler = fill(edge)
            assert eventually(lambda: logged(AlarmKind.NO_NEW_EPISODES), WITHIN_S)
            assert eventually(lambda: logged(AlarmKind.DISK_LOW), WITHIN_S)
            filler.unlink()
            supervisor.start("learner", robot_stack_command("learner", *overrides))
            deadline_s = time.monotonic() + 150.0
            while not supervisor.finished("edge") and time.monotonic() < deadline_s:
                supervisor.watch()
                time.sleep(0.05)
            assert supervisor.finished("edge")
            assert supervisor.restarts() == {"robot-server": 0, "edge": 0, "learner": 0}
        status = read_status(edge / "status.json")
        assert status is not None
        with StepStore(run.root / "learner" / "steps") as store:
            steps = [step for _, step in store.iterate(0)]
        assert len(steps) == status.steps_kept >= 900
        check_whole(steps)
        integrity = check_integrity(RunLayout(run.root), steps, 0)
        assert (integrity.lost_steps, integrity.duplicate_steps) == (0, 0)


def kept(edge: Path) -> int:
    status = read_status(edge / "status.json")
    return status.steps_kept if status else 0
