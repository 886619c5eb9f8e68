"""The step log: every step once, durable before it is answered for, nothing malformed inside."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.log import DurableLog
from robot_stack.buffer.steps import SequenceSet, SessionKey, StepLog
from robot_stack.core.codec import pack
from robot_stack.core.errors import MessageError, StorageError
from robot_stack.core.messages import Refusal, Source, Step, Verdict


def step(seq: int, session: str = "s0", **changes: object) -> Step:
    action = np.full(2, 0.01 * seq, np.float32)
    values = {
        "run": "r",
        "robot": "franka_0",
        "task": "reach",
        "session": session,
        "seq": seq,
        "episode": seq // 10,
        "episode_seed": 3,
        "segment": 0,
        "index": seq % 10,
        "stamp_ns": 1000 * seq,
        "observation": {"observation.state": np.arange(3, dtype=np.float32) + seq},
        "action_base": action,
        "action_asked": action,
        "action_sent": action,
        "verdict": Verdict.ACCEPTED,
        "refusal": None,
        "source": Source.POLICY,
        "weights_version": 1,
        "reward": 0.0,
        "success": False,
        "terminated": False,
        "truncated": False,
    }
    return Step(**{**values, **changes})  # type: ignore[arg-type]


def test_steps_come_back_equal_and_in_order(tmp_path: Path) -> None:
    last = {"final_observation": {"observation.state": np.ones(3, np.float32)}, "truncated": True}
    written = [step(0), step(1, source=Source.HUMAN_CORRECTION), step(2, **last)]
    with StepLog(tmp_path / "steps") as log:
        assert log.append([pack(item) for item in written]) == (3, 0)
        assert len(log) == log.next_index == 3
    with StepLog(tmp_path / "steps") as log:
        read = list(log.iterate(0))
        assert [index for index, _ in read] == [0, 1, 2]
        for (_, got), expected in zip(read, written, strict=True):
            assert pack(got) == pack(expected)
        assert [index for index, _ in log.iterate(2)] == [2]


def test_a_step_counts_once_in_a_batch_between_batches_and_after_reopening(tmp_path: Path) -> None:
    records = [pack(step(seq)) for seq in range(6)]
    with StepLog(tmp_path / "steps") as log:
        assert log.append(records[:4]) == (4, 0)
        assert log.append(records[2:]) == (2, 2)
        assert log.append([records[0]] * 3) == (0, 3)
        assert log.append([pack(step(7)), pack(step(7))]) == (1, 1)
        assert log.append([]) == (0, 0)
    with StepLog(tmp_path / "steps") as log:
        assert log.append(records) == (0, 6)
        other = [pack(step(0, session="s1")), pack(step(0, robot="franka_1")), pack(step(0, run="r2"))]
        assert log.append(other) == (3, 0)
        assert len(log) == 10
        assert log.sessions() == {
            SessionKey("r", "franka_0", "s0"): 7,
            SessionKey("r", "franka_0", "s1"): 1,
            SessionKey("r", "franka_1", "s0"): 1,
            SessionKey("r2", "franka_0", "s0"): 1,
        }


BAD = {
    "no step": b"rubbish",
    "empty": b"",
    "cut": pack(step(5))[:-1],
    "negative seq": pack(step(-1)),
    "no session": pack(step(5, session="")),
    "nan reward": pack(step(5, reward=float("nan"))),
    "no observation": pack(step(5, observation={})),
    "actions of two sizes": pack(step(5, action_sent=np.zeros(3, np.float32))),
    "float64 action": pack(step(5, action_asked=np.zeros(2, np.float64))),
    "action with two axes": pack(step(5, action_base=np.zeros((1, 2), np.float32))),
    "final action of another size": pack(step(5, final_action_base=np.zeros(3, np.float32))),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_batch_with_a_malformed_record_stores_nothing(tmp_path: Path, bad: bytes) -> None:
    with StepLog(tmp_path / "steps") as log:
        log.append([pack(step(0))])
        with pytest.raises(MessageError, match="record 2 of 4"):
            log.append([pack(step(1)), pack(step(2)), bad, pack(step(3))])
        assert len(log) == 1
        assert log.append([pack(step(1)), pack(step(2)), pack(step(3))]) == (3, 0)


def test_what_a_fault_produces_is_recorded_as_it_is(tmp_path: Path) -> None:
    nan = np.full(2, np.nan, np.float32)
    refused = step(0, action_base=nan, action_asked=nan, verdict=Verdict.REFUSED, refusal=Refusal.NOT_FINITE)
    with StepLog(tmp_path / "steps") as log:
        assert log.append([pack(refused)]) == (1, 0)
        assert np.isnan(next(log.iterate(0))[1].action_asked).all()


def test_a_batch_that_could_not_be_stored_is_not_taken_for_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_fsync(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with StepLog(tmp_path / "steps") as log:
        log.append([pack(step(0))])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing_fsync)
            with pytest.raises(StorageError):
                log.append([pack(step(1))])
    with StepLog(tmp_path / "steps") as log:
        assert log.append([pack(step(0)), pack(step(1))]) == (1, 1)


def test_steps_are_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, pwrite = os.fsync, os.pwrite
    with StepLog(tmp_path / "steps") as log:
        monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), events.append("fsync")))
        monkeypatch.setattr(os, "pwrite", lambda *arguments: (pwrite(*arguments), events.append("write"))[0])
        log.append([pack(step(seq)) for seq in range(50)])
        assert events == ["write", "fsync"]


def test_a_file_with_something_else_in_it_is_an_error(tmp_path: Path) -> None:
    with DurableLog(tmp_path / "steps") as log:
        log.append(msgspec.msgpack.encode({"not": "a step"}))
    with pytest.raises(MessageError):
        StepLog(tmp_path / "steps").open()
    DurableLog(tmp_path / "steps").open()  # the failed open let go of the directory


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=60))
def test_the_sequence_set_is_a_set(values: list[int]) -> None:
    compact, plain = SequenceSet(), set()
    for value in values:
        compact.add(value)
        plain.add(value)
        assert len(compact) == len(plain)
    assert [value in compact for value in range(-1, 42)] == [value in plain for value in range(-1, 42)]


def test_a_session_without_gaps_is_one_range_in_whatever_order_it_came() -> None:
    compact = SequenceSet()
    for value in random.Random(0).sample(range(1000), 1000):
        compact.add(value)
    assert (compact._starts, compact._stops) == ([0], [1000])
