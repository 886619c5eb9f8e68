"""kill -9 of ingest and edge at random instants: a short run of the benchmark, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.faults.content import EPISODE_STEPS, RECORDING, loop_step, problem_of
from robot_stack.buffer.steps import StepLog
from robot_stack.core.codec import pack
from robot_stack.core.errors import MessageError, StorageError
from robot_stack.core.messages import Failed, Step, StepAck, StepBatch
from robot_stack.edge.recorder import Recorder
from robot_stack.learner.ingest import Ingest

ROOT = Path(__file__).parents[2]
KILLS = 50


def faults(*arguments: str, timeout_s: float = 240.0) -> dict[str, float]:
    """The benchmark's last line."""
    command = [sys.executable, "-m", "benchmarks.faults", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def steps(count: int) -> list[Step]:
    taken: list[Step] = []
    recorder = Recorder(RECORDING, taken.append)
    for seq in range(count):
        recorder.on_step(loop_step(recorder.session, seq))
    return taken


@pytest.mark.slow
def test_fifty_kills_lose_nothing_acknowledged_and_nothing_that_the_spool_had_kept() -> None:
    row = faults("--kills", str(KILLS), "--seed", "3")
    assert row["kills"] == KILLS
    assert row["kills_of_ingest"] + row["kills_of_edge"] >= KILLS
    assert min(row["kills_of_ingest"], row["kills_of_edge"]) >= 10
    assert row["acked"] >= 20 * KILLS
    assert row["recorded"] >= 20 * KILLS
    assert row["sealed_files"] > 0
    assert {name: row[name] for name in ("lost", "recorded_lost", "duplicates", "corrupt")} == {
        "lost": 0,
        "recorded_lost": 0,
        "duplicates": 0,
        "corrupt": 0,
    }
    assert row["resent"] > 0  # kills did strike between storing and acknowledging, or the test tests little
    assert row["recover_n"] >= KILLS // 3
    assert row["recover_max_s"] < 30.0


def test_the_check_sees_any_change_of_a_step() -> None:
    """What judges the runs must not be blind."""
    step = steps(EPISODE_STEPS)[-1]
    assert problem_of(step) == ""
    state = np.array(step.observation["observation.state"])
    state[3] = np.nextafter(state[3], np.float32(2))
    changes = (
        {"seq": step.seq - 1},
        {"observation": {**step.observation, "observation.state": state}},
        {"observation": {}},
        {"action_sent": step.action_asked},
        {"terminated": not step.terminated},
        {"late": not step.late},
        {"final_observation": None},
        {"stamp_ns": step.stamp_ns + 1},
        {"reward": step.reward + 1e-12},
    )
    for change in changes:
        assert problem_of(msgspec.structs.replace(step, **change)), change


def test_ingest_acknowledges_only_what_the_store_has(tmp_path: Path) -> None:
    records = [pack(step) for step in steps(5)]
    with StepLog(tmp_path / "log") as log:
        ingest = Ingest(log)
        assert ingest.answer(StepBatch(records=records[:3])) == StepAck(records=3, duplicates=0)
        assert ingest.answer(StepBatch(records=records)) == StepAck(records=5, duplicates=3)
        assert (ingest.accepted, ingest.duplicates, ingest.problem) == (5, 3, "")
    with StepLog(tmp_path / "log") as log:
        assert len(log) == 5


def test_ingest_answers_a_malformed_record_with_the_reason_that_the_edge_looks_for(tmp_path: Path) -> None:
    records = [pack(step) for step in steps(2)]
    with StepLog(tmp_path / "log") as log:
        ingest = Ingest(log)
        answer = ingest.answer(StepBatch(records=[records[0], b"no step"]))
        assert isinstance(answer, Failed)
        assert answer.reason == MessageError.__name__
        assert (len(log), ingest.problem) == (0, "")  # the sender's fault: the store takes steps
        assert isinstance(ingest.answer(StepBatch(records=records)), StepAck)


def test_ingest_shows_a_disk_that_refuses_until_it_takes_steps_again(tmp_path: Path) -> None:
    log, records = StepLog(tmp_path / "log"), [pack(step) for step in steps(2)]
    ingest = Ingest(log)
    answer = ingest.answer(StepBatch(records=records))  # the log is not open
    assert isinstance(answer, Failed)
    assert answer.reason == StorageError.__name__
    assert ingest.problem == answer.message != ""
    with log:
        assert ingest.answer(StepBatch(records=records)) == StepAck(records=2, duplicates=0)
    assert ingest.problem == ""
