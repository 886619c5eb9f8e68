"""The codec under mutation: any bytes give a message or a MessageError, and take no more memory than they are worth."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.core.codec import Buffer, decode, encode, pack, unpack
from robot_stack.core.errors import MessageError
from robot_stack.core.messages import (
    MAX_BATCH_RECORDS,
    SCHEMA_VERSION,
    AcquireLease,
    CameraFrame,
    Command,
    CommandResult,
    Failed,
    GetProgress,
    GetState,
    GetWeights,
    Hello,
    LearnerProgress,
    LearnerReply,
    LearnerRequest,
    Lifecycle,
    RobotReply,
    RobotRequest,
    RobotState,
    Source,
    Step,
    StepAck,
    StepBatch,
    StopRobot,
    TaskStatus,
    Transition,
    Verdict,
    WeightChunk,
    WeightEncoding,
    WeightSnapshot,
)
from robot_stack.core.scene_messages import GetScene, SceneReply, SceneRequest

ACTION = np.linspace(-1, 1, 7, dtype=np.float32)
STATE = RobotState(
    boot="b",
    seq=1,
    stamp_ns=2,
    lifecycle=Lifecycle.ACTIVE,
    features={"observation.state": ACTION, "image": np.zeros((4, 4, 3), np.uint8)},
    task=TaskStatus(reward=0.5, success=False, terminated=False),
    instruction="touch the red block",
)
STEP = Step(
    run="run",
    robot="robot_0",
    task="task",
    session="session",
    seq=0,
    episode=0,
    episode_seed=0,
    segment=0,
    index=0,
    stamp_ns=0,
    observation={"observation.state": ACTION},
    action_base=ACTION,
    action_asked=ACTION,
    action_sent=ACTION,
    verdict=Verdict.ACCEPTED,
    refusal=None,
    source=Source.POLICY,
    weights_version=1,
    reward=0.0,
    success=False,
    terminated=False,
    truncated=False,
    final_observation={"observation.state": ACTION},
)
SNAPSHOT = WeightSnapshot(version=1, kind="residual", sha256="0" * 64, size=3, trained_steps=1)
FRAME = CameraFrame(boot="b", camera="c", stamp_ns=1, device_time_ns=1, number=1, image=np.zeros((3, 4, 3), np.uint8))


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A valid message and the type that its receiver expects."""

    message: object
    expected: object


SAMPLES = [
    *(
        Sample(message, LearnerRequest)
        for message in (
            Hello(schema_version=SCHEMA_VERSION, peer="edge"),
            GetProgress(),
            GetWeights(version=3, offset=9, encoding=WeightEncoding.DELTA, base_sha256="1" * 64),
            StepBatch(records=[pack(STEP), b"x" * 30]),
        )
    ),
    *(
        Sample(message, LearnerReply)
        for message in (
            StepAck(records=1, duplicates=0),
            WeightChunk(snapshot=SNAPSHOT, offset=0, data=b"abc"),
            Failed(reason="r", message="m"),
            LearnerProgress(
                durable_steps=1,
                trained_steps=1,
                updates=1,
                weights_version=1,
                target_steps=1,
                finished=False,
                metrics={"loss": 0.5},
            ),
        )
    ),
    *(
        Sample(message, RobotRequest)
        for message in (
            Command(session="s", seq=1, deadline_ns=9, action=ACTION),
            AcquireLease(session="s"),
            Transition(session="s", target=Lifecycle.ACTIVE),
            StopRobot(reason="r"),
            GetState(cameras=("front", "wrist")),
        )
    ),
    Sample(STATE, RobotReply),
    Sample(
        CommandResult(seq=1, verdict=Verdict.CLIPPED, refusal=None, message="", sent=ACTION, state=STATE), RobotReply
    ),
    Sample(GetScene(cameras=("front",)), SceneRequest),
    Sample(Failed(reason="r", message="m"), SceneReply),
    Sample(STEP, Step),
    Sample(FRAME, CameraFrame),
]
EXPECTED = [LearnerRequest, LearnerReply, RobotRequest, RobotReply, SceneRequest, SceneReply, Step, CameraFrame]

# What turns msgpack into something else: types of every kind, with lengths that are never met.
HEADERS = st.one_of(
    st.sampled_from([b"\xc0", b"\xc3", b"\xff", b"\x80", b"\x90", b"\xa0", b"\xc1", b"\x9f", b"\x8f", b"\xbf"]),
    st.builds(
        lambda kind, length: kind + struct.pack(">I", length),
        st.sampled_from([b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"]),
        st.sampled_from([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]),
    ),
    st.builds(lambda number: b"\xcf" + struct.pack(">Q", number), st.integers(0, 2**64 - 1)),
    st.builds(lambda number: b"\xcb" + struct.pack(">d", number), st.floats()),
    st.integers(1, 3000).map(lambda depth: b"\x91" * depth),
)


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """Flips, cuts, insertions, repetitions and replacements, up to four of them."""
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 40)))
        middle = draw(
            st.one_of(
                st.just(b""),
                st.binary(max_size=12),
                HEADERS,
                st.just(data[begin:end] * 2),
                st.integers(0, 7).map(lambda bit, part=data[begin:end]: bytes(byte ^ 1 << bit for byte in part)),
            )
        )
        data = data[:begin] + middle + data[end:]
    return data


def check(read: Callable[[], object], size_bytes: int) -> None:
    """MessageError or a message that can be sent again; memory in proportion to what came in."""
    tracemalloc.start()
    try:
        message = read()
    except MessageError:
        message = None
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 2_000_000 + 100 * size_bytes
    if message is not None:
        again = decode(encode(message), type(message))
        assert encode(again)[0] == encode(message)[0]


def check_frames(frames: Sequence[Buffer], expected: object) -> None:
    check(lambda: decode(frames, expected), sum(map(len, frames)))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample.message).__name__)
def test_the_samples_are_valid(sample: Sample) -> None:
    check_frames(encode(sample.message), sample.expected)
    assert type(unpack(pack(sample.message), sample.expected)) is type(sample.message)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_a_mutated_header_gives_a_message_or_a_message_error(sample: Sample, data: st.DataObject) -> None:
    header, *arrays = [bytes(frame) for frame in encode(sample.message)]
    check_frames([data.draw(mutations(header)), *arrays], sample.expected)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_mutated_frames_and_their_number_give_a_message_or_a_message_error(sample: Sample, data: st.DataObject) -> None:
    frames = [bytes(frame) for frame in encode(sample.message)]
    order = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=6))
    changed = [data.draw(mutations(frames[i])) if data.draw(st.booleans()) else frames[i] for i in order]
    check_frames([frames[0], *changed], sample.expected)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_a_mutated_record_gives_a_message_or_a_message_error(sample: Sample, data: st.DataObject) -> None:
    blob = data.draw(mutations(pack(sample.message)))
    check(lambda: unpack(blob, sample.expected), len(blob))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from(EXPECTED))
def test_any_bytes_give_a_message_or_a_message_error(frames: list[bytes], expected: object) -> None:
    check_frames(frames, expected)
    blob = b"".join(frames)
    check(lambda: unpack(blob, expected), len(blob))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_fields_with_values_of_any_kind_give_a_message_or_a_message_error(sample: Sample, data: st.DataObject) -> None:
    header, *arrays = [bytes(frame) for frame in encode(sample.message)]
    fields = msgspec.msgpack.decode(header)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        fields[name] = data.draw(VALUES)
    check_frames([msgspec.msgpack.encode(fields), *arrays], sample.expected)


def test_a_batch_of_millions_of_empty_records_is_refused_before_it_is_built() -> None:
    count = 10 * MAX_BATCH_RECORDS
    header = b"\x82\xa4type\xa9StepBatch\xa7records\xdd" + struct.pack(">I", count) + b"\xc4\x00" * count
    tracemalloc.start()
    with pytest.raises(MessageError, match="length"):
        decode([header], LearnerRequest)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100_000
