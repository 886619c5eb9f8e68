"""Frames come back pixel by pixel, from memory and from the log, and never take more memory than they may."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.frames import FrameStore, ImageBuffers
from robot_stack.buffer.images import ImageCodec, decode_image, encode_image
from robot_stack.buffer.replay import Replay, ReplayConfig, ReplayStep, Stratum
from robot_stack.buffer.sampling import Part, Sampler
from robot_stack.core.errors import ConfigError, MessageError, SpecMismatchError, StorageError
from tests.replay_kit import GAMMA, every_row, make_step, truncated, vec

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SHAPES = {FRONT: (16, 24, 3), WRIST: (8, 8, 3)}
FRAME_BYTES = 16 * 24 * 3 + 8 * 8 * 3


def picture(name: str, stream: int, index: int) -> np.ndarray:
    """Says which camera, stream and index it is from; smooth, so that JPEG keeps it distinguishable."""
    rng = np.random.default_rng([len(name), stream, index])
    height, width, _ = SHAPES[name]
    return np.kron(rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))


class Log:
    """Frames of (stream, index) by log index 1000 * stream + index; counts what is read."""

    def __init__(self) -> None:
        self.read = 0

    def read_images(self, feature: str, indices: np.ndarray, final: np.ndarray, out: np.ndarray) -> None:
        assert out.shape == (len(indices), *SHAPES[feature]) and out.flags.c_contiguous
        self.read += len(indices)
        for i, (index, is_final) in enumerate(zip(indices.tolist(), final.tolist(), strict=True)):
            out[i] = picture(feature, index // 1000, index % 1000 + is_final)


def stored(stream: int, index: int, codec: ImageCodec) -> dict[str, np.ndarray]:
    return {name: encode_image(picture(name, stream, index), codec) for name in SHAPES}


def add_episode(replay: Replay, stream: int, length: int, ending: str, codec: ImageCodec, brings: bool = True) -> None:
    for index in range(length):
        images: Mapping[str, np.ndarray] = stored(stream, index, codec) if brings else {}
        common = {"source_index": 1000 * stream + index, "images": images}
        if index < length - 1:
            replay.add(make_step(stream, index, **common))
        elif ending == "truncated":
            final = stored(stream, length, codec) if brings else {}
            replay.add(truncated(stream, index, final_images=final, **common))
        else:
            replay.add(make_step(stream, index, terminated=ending == "terminated", **common))
    replay.end(stream)


def make_replay(budget: int, source: Log | None, capacity: int = 200) -> Replay:
    return Replay(ReplayConfig(capacity, 2, 1, SHAPES, frame_budget_bytes=budget, lookahead=3), source)


def expected(name: str, states: np.ndarray, codec: ImageCodec) -> np.ndarray:
    """By observation (stream, index). A frame is decoded as it was stored: JPEG is exact in that sense too."""
    frames = [decode_image(encode_image(picture(name, int(s), int(i)), codec)) for s, i in states.reshape(-1, 2)]
    return np.array(frames).reshape(*states.shape[:-1], *SHAPES[name])


def check_everything(replay: Replay, codec: ImageCodec) -> None:
    sampler, draw = every_row(replay)
    for n_step in (1, 3):
        batch = sampler.transitions(draw, n_step, GAMMA, images=tuple(SHAPES))
        goes_on = batch.bootstrap > 0
        for name in SHAPES:
            assert np.array_equal(batch.images[name], expected(name, batch.observation, codec))
            following = expected(name, batch.next_observation[goes_on], codec)
            assert np.array_equal(batch.next_images[name][goes_on], following)
    chunks, sequences = sampler.chunks(draw, 4, images=[FRONT]), sampler.sequences(draw, 3, images=[WRIST])
    assert np.array_equal(chunks.images[FRONT], expected(FRONT, chunks.observation, codec))
    assert np.array_equal(sequences.images[WRIST], expected(WRIST, sequences.observation, codec))


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_frames_come_back_from_memory_also_those_of_final_observations(codec: ImageCodec) -> None:
    replay = make_replay(200 * FRAME_BYTES, None)
    for stream, (length, ending) in enumerate([(5, "truncated"), (4, "terminated"), (3, "cut"), (1, "truncated")], 1):
        add_episode(replay, stream, length, ending, codec)
    assert len(replay) == 5 + 4 + 2 + 1
    check_everything(replay, codec)


def test_next_images_after_a_termination_repeat_the_last_frame() -> None:
    replay = make_replay(200 * FRAME_BYTES, None)
    add_episode(replay, 1, 3, "terminated", ImageCodec.RAW)
    sampler, draw = every_row(replay)
    batch = sampler.transitions(draw, 3, GAMMA, images=[FRONT])
    assert (batch.next_images[FRONT] == picture(FRONT, 1, 2)).all()


@pytest.mark.parametrize("budget_frames", [0, 4, 30])
def test_frames_that_memory_has_no_room_for_come_from_the_log(budget_frames: int) -> None:
    log = Log()
    replay = make_replay(budget_frames * FRAME_BYTES, log)
    for stream in range(1, 8):
        add_episode(replay, stream, 10, ("truncated", "terminated", "cut")[stream % 3], ImageCodec.RAW)
    check_everything(replay, ImageCodec.RAW)
    held = replay.frames.in_memory(FRONT, np.arange(70))
    assert held.sum() <= budget_frames and log.read > 0
    assert replay.frames.in_memory(FRONT, np.array([69])).all() == (budget_frames > 1)  # the newest stay


def test_steps_may_leave_their_frames_to_the_log() -> None:
    replay = make_replay(1000 * FRAME_BYTES, Log())
    add_episode(replay, 1, 6, "truncated", ImageCodec.RAW, brings=False)
    add_episode(replay, 2, 6, "truncated", ImageCodec.RAW, brings=True)
    check_everything(replay, ImageCodec.RAW)


def test_a_row_that_is_used_again_does_not_keep_its_former_frame() -> None:
    replay = make_replay(1000 * FRAME_BYTES, Log(), capacity=6)
    add_episode(replay, 1, 6, "truncated", ImageCodec.RAW, brings=True)
    add_episode(replay, 2, 6, "truncated", ImageCodec.RAW, brings=False)
    assert len(replay) == 6
    check_everything(replay, ImageCodec.RAW)


def test_frames_in_memory_are_not_read_from_the_log() -> None:
    log = Log()
    replay = make_replay(200 * FRAME_BYTES, log)
    add_episode(replay, 1, 10, "truncated", ImageCodec.RAW)
    check_everything(replay, ImageCodec.RAW)
    assert log.read == 0


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_without_a_log_steps_whose_frames_fell_out_are_forgotten(codec: ImageCodec) -> None:
    replay = make_replay(12 * FRAME_BYTES, None)
    for stream in range(1, 30):
        add_episode(replay, stream, 7, ("truncated", "terminated", "cut")[stream % 3], codec)
        assert len(replay) > 0
        check_everything(replay, codec)
    assert replay.first_row > 0


def test_both_kinds_of_frames_in_one_replay() -> None:
    for first, second in itertools.permutations(ImageCodec):
        replay = make_replay(200 * FRAME_BYTES, None)
        add_episode(replay, 1, 5, "truncated", first)
        add_episode(replay, 2, 5, "truncated", second)
        sampler, draw = every_row(replay)
        batch = sampler.transitions(draw, 1, GAMMA, images=[FRONT])
        for stream, codec in ((1, first), (2, second)):
            of_stream = batch.observation[:, 0] == stream
            assert np.array_equal(batch.images[FRONT][of_stream], expected(FRONT, batch.observation[of_stream], codec))


def test_the_newest_frames_are_kept_up_to_the_budget() -> None:
    replay = make_replay(4 * FRAME_BYTES, Log())
    add_episode(replay, 1, 10, "cut", ImageCodec.RAW)
    for name in SHAPES:
        assert replay.frames.in_memory(name, np.arange(10)).tolist() == [False] * 6 + [True] * 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.booleans()), min_size=30, max_size=60),
    st.sampled_from([2, 5, 30]),
    st.integers(8_000, 15_000),
)
def test_files_of_all_sizes_come_back_for_as_long_as_they_are_held(
    pictures: list[tuple[bool, int, bool]], rows: int, budget: int
) -> None:
    """Noise makes JPEG files ten times as large as smooth pictures; rows are used again in turn."""
    shape = (32, 32, 3)
    store = FrameStore({FRONT: shape}, rows, budget, None)
    kept: dict[int, np.ndarray] = {}
    for count, (smooth, seed, raw) in enumerate([(True, 0, False), *pictures]):
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 255, shape, np.uint8)
        image = encode_image(np.full_like(noise, noise[0, 0]) if smooth else noise, ImageCodec.JPEG)
        kept[count % rows] = image = noise if raw else image
        store.put(count % rows, {FRONT: image}, -1, final=False)
        held = [row for row in kept if store.in_memory(FRONT, np.array([row]))[0]]
        assert count % rows in held and sum(kept[row].size for row in held) <= budget
        out = np.zeros((len(held), *shape), np.uint8)
        store.gather(FRONT, np.array(held), out, ImageBuffers())
        assert all(np.array_equal(got, decode_image(kept[row])) for got, row in zip(out, held, strict=True))


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_the_memory_for_frames_stays_below_the_budget(codec: ImageCodec) -> None:
    """Counted by the allocator, over ten times as many frames as there is room for."""
    shape, budget = (128, 128, 3), 4_000_000
    noise = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    image = encode_image(noise, codec)
    tracemalloc.start()
    try:
        replay = Replay(ReplayConfig(100_000, 1, 1, {"camera": shape}, frame_budget_bytes=budget), Log())
        before = tracemalloc.get_traced_memory()[0]
        for index in range(10 * budget // image.size):
            step = make_step(1, index, source_index=index, images={"camera": image}, observation=vec(0))
            replay.add(step)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert replay.frames.nbytes <= budget
    assert grown < 1.05 * budget + (5_500_000 if codec is ImageCodec.JPEG else 0)  # where 200,000 files may begin
    rows = np.arange(replay.next_row_number)
    held = int(replay.frames.in_memory("camera", rows).sum())
    assert 0.9 * budget < held * image.size <= budget


def test_states_alone_cost_no_frames() -> None:
    log = Log()
    replay = make_replay(0, log)
    add_episode(replay, 1, 10, "truncated", ImageCodec.RAW)
    sampler = Sampler([Part(replay)], seed=0)
    batch = sampler.transitions(sampler.draw(50), 3, GAMMA)
    assert batch.images == {} and batch.next_images == {} and log.read == 0 and replay.frames.nbytes == 0


def test_a_batch_stays_as_it_is_until_so_many_more_were_gathered() -> None:
    replay = make_replay(200 * FRAME_BYTES, None)
    add_episode(replay, 1, 30, "truncated", ImageCodec.RAW)
    sampler = Sampler([Part(replay)], seed=0, buffers=3)
    gathered, copies = [], []
    for _ in range(9):
        gathered.append(sampler.transitions(sampler.draw(16), 1, GAMMA, images=[FRONT]))
        copies.append(gathered[-1].images[FRONT].copy())
        for batch, copy in zip(gathered[-3:], copies[-3:], strict=True):
            assert np.array_equal(batch.images[FRONT], copy)
    assert gathered[0].images[FRONT] is gathered[3].images[FRONT]  # no new memory


def test_buffers_are_used_again_where_they_are_large_enough() -> None:
    buffers = ImageBuffers()
    first = buffers.array("a", (4, 2, 2, 3))
    assert np.shares_memory(first, buffers.array("a", (3, 2, 2, 3)))
    assert buffers.array("a", (4, 2, 2, 3)) is first
    assert not np.shares_memory(first, buffers.array("b", (4, 2, 2, 3)))
    assert [buffers.array("a", shape).shape for shape in ((5, 2, 2, 3), (2, 2, 2, 3), (2, 4, 2, 3))] == [
        (5, 2, 2, 3),
        (2, 2, 2, 3),
        (2, 4, 2, 3),
    ]


def step_with(images: Mapping[str, np.ndarray], **changes: object) -> ReplayStep:
    return ReplayStep(1, 0, Stratum.ONLINE, vec(1, 0), vec(0), vec(0), 0.0, False, False, images=images, **changes)


def test_frames_that_are_missing_or_wrong_are_refused_and_change_nothing() -> None:
    good = stored(1, 0, ImageCodec.RAW)
    replay = make_replay(200 * FRAME_BYTES, None)
    with pytest.raises(SpecMismatchError, match="no image"):
        replay.add(step_with({FRONT: good[FRONT]}))
    for wrong in (good[WRIST], encode_image(good[WRIST], ImageCodec.JPEG)):
        with pytest.raises(SpecMismatchError, match=r"shape \[8, 8, 3\]"):
            replay.add(step_with({**good, FRONT: wrong}))
    with pytest.raises(MessageError):
        replay.add(step_with({**good, FRONT: np.zeros(100, np.uint8)}))
    with pytest.raises(SpecMismatchError, match="source_index"):
        make_replay(0, Log()).add(step_with(good))
    assert replay.next_row_number == 0 and replay.generation == 0
    replay.add(step_with({**good, "observation.images.other": good[FRONT]}))
    with pytest.raises(SpecMismatchError, match="keeps no images"):
        replay.frames.shape("observation.images.other")


def test_a_truncated_step_without_final_frames_is_dropped_where_nothing_else_has_them() -> None:
    for source, dropped in ((None, 1), (Log(), 0)):
        replay = make_replay(200 * FRAME_BYTES, source)
        replay.add(truncated(1, 0, images=stored(1, 0, ImageCodec.RAW), source_index=1000))
        assert (replay.dropped, len(replay)) == (dropped, 1 - dropped)


def test_a_budget_below_one_frame_needs_a_log() -> None:
    with pytest.raises(ConfigError, match="frame_budget_bytes"):
        make_replay(FRAME_BYTES - 1, None)
    with pytest.raises(ConfigError, match="shape"):
        Replay(ReplayConfig(10, 2, 1, {FRONT: (8, 8, 1)}, frame_budget_bytes=10**6))


def test_an_error_of_the_log_reaches_the_caller() -> None:
    class Broken:
        def read_images(self, feature: str, indices: np.ndarray, final: np.ndarray, out: np.ndarray) -> None:
            raise StorageError("the disk is gone")

    replay = Replay(ReplayConfig(10, 2, 1, SHAPES), Broken())
    add_episode(replay, 1, 3, "terminated", ImageCodec.RAW)
    sampler, draw = every_row(replay)
    with pytest.raises(StorageError, match="disk"):
        sampler.transitions(draw, 1, GAMMA, images=[FRONT])
