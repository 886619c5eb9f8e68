"""The codec under fuzzing: what goes in comes out, and nothing malformed raises anything but MessageError."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from robot_stack.core.codec import decode, encode, pack, unpack
from robot_stack.core.errors import MessageError
from robot_stack.core.messages import (
    Command,
    Features,
    LearnerRequest,
    Lifecycle,
    RobotReply,
    RobotRequest,
    RobotState,
    StepBatch,
    TaskStatus,
)

DTYPES = st.sampled_from(
    ["bool", *(f"{order}{kind}" for order in "<>" for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"))]
    + [f"{order}f{size}" for order in "<>" for size in (2, 4, 8)]
)
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


class Bag(msgspec.Struct, frozen=True, kw_only=True):
    arrays: Features
    one: NDArray[np.float32] | None = None
    note: str = ""


def assert_same(left: NDArray[np.generic], right: NDArray[np.generic]) -> None:
    assert left.shape == right.shape
    assert left.dtype == right.dtype.newbyteorder("=")
    np.testing.assert_array_equal(left, right)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4), st.text())
def test_arrays_of_every_kind_make_the_round_trip(arrays: Features, note: str) -> None:
    bag = Bag(arrays=arrays, note=note)
    for decoded in (decode(encode(bag), Bag), unpack(pack(bag), Bag)):
        assert decoded.note == note
        assert decoded.arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            assert_same(decoded.arrays[name], array)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (4, 6, 3)), st.integers(-3, 3).filter(bool), st.permutations((0, 1, 2)))
def test_views_with_any_strides_make_the_round_trip(array: NDArray[np.float32], step: int, axes: list[int]) -> None:
    view = array[::step, :, ::-1].transpose(axes)
    assert_same(unpack(pack(Bag(arrays={"v": view})), Bag).arrays["v"], view)


def test_decoded_arrays_cannot_be_written() -> None:
    decoded = unpack(pack(Bag(arrays={"a": np.zeros(3)})), Bag)
    with pytest.raises(ValueError, match="read-only"):
        decoded.arrays["a"][0] = 1.0


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, None], dtype=object),
        np.array(["a"]),
        np.array([b"a"]),
        np.zeros(2, dtype=np.complex64),
        np.zeros(2, dtype="datetime64[s]"),
        np.zeros(2, dtype=[("x", "f4")]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_dtypes_that_are_not_plain_numbers_are_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(MessageError, match="cannot be sent"):
        encode(Bag(arrays={"a": array}))


@pytest.mark.parametrize("dtype", ["object", "O", "S4", "complex64", "datetime64[s]", "float128", "f4,f4", ">f4"])
def test_dtypes_that_are_not_plain_numbers_are_refused_on_arrival(dtype: str) -> None:
    header = msgspec.msgpack.encode({"arrays": {"a": [1, dtype, [1]]}})
    with pytest.raises(MessageError, match="not allowed"):
        decode([header, bytes(16)], Bag)


@pytest.mark.parametrize(
    "reference",
    [
        [0, "uint8", [8]],
        [2, "uint8", [8]],
        [-1, "uint8", [8]],
        [1, "uint8", [-8]],
        [1, "uint8", [7]],
        [1, "float64", [8]],
        [1, "uint8", [2**40, 2**40]],
        [1, "uint8", [8] + [1] * 8],
        [1, "uint8", 8],
        [1, "uint8", [8.0]],
        [1, "uint8"],
        "uint8",
    ],
    ids=str,
)
def test_array_references_that_lie_are_refused(reference: object) -> None:
    header = msgspec.msgpack.encode({"arrays": {"a": reference}})
    with pytest.raises(MessageError):
        decode([header, bytes(8)], Bag)


def _state() -> RobotState:
    features = {"observation.state": np.arange(7, dtype=np.float32), "image": np.zeros((4, 4, 3), np.uint8)}
    task = TaskStatus(reward=0.5, success=False, terminated=False)
    return RobotState(boot="b", seq=1, stamp_ns=2, lifecycle=Lifecycle.ACTIVE, features=features, task=task)


SAMPLES = [
    (_state(), RobotReply),
    (Command(session="s", seq=1, deadline_ns=9, action=np.ones(7, np.float32)), RobotRequest),
    (StepBatch(records=[pack(_state()), b"x" * 30]), LearnerRequest),
]


@pytest.mark.parametrize(("message", "expected"), SAMPLES)
def test_every_truncation_of_a_record_is_refused(message: object, expected: object) -> None:
    blob = pack(message)
    for length in range(len(blob)):
        with pytest.raises(MessageError):
            unpack(blob[:length], expected)
    with pytest.raises(MessageError):
        unpack(blob + b"\0", expected)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_flipped_bits_give_a_message_or_a_message_error(sample: tuple[object, object], data: st.DataObject) -> None:
    blob = bytearray(pack(sample[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(MessageError):
        unpack(bytes(blob), sample[1])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=5), st.sampled_from([RobotRequest, RobotReply, LearnerRequest, Bag]))
def test_noise_gives_message_errors_only(frames: list[bytes], expected: object) -> None:
    with contextlib.suppress(MessageError):
        decode(frames, expected)
    with contextlib.suppress(MessageError):
        unpack(b"".join(frames), expected)


def test_deep_nesting_and_huge_announced_lengths_are_refused() -> None:
    for tail in (b"\x91" * 200_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        for head in (b"\x82\xa4type\xa7Command\xa6action", b"\x82\xa4type\xa8GetState\xa7cameras"):
            with pytest.raises(MessageError):
                decode([head + tail], RobotRequest)


def test_too_many_frames_are_refused() -> None:
    with pytest.raises(MessageError, match="frames"):
        decode([b"\x80"] * 1025, Bag)
    with pytest.raises(MessageError, match="frames"):
        decode([], Bag)
    with pytest.raises(MessageError):
        unpack(b"\xff\xff\xff\xff", Bag)
