"""Episode files: what goes in comes out bit for bit, frames are read one by one, and zarr alone reads them too."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_stack.buffer import episode_layout
from robot_stack.buffer.episode_file import (
    EpisodeFile,
    episode_name,
    same_layout,
    step_bytes,
    sweep_aside,
    write_episode_file,
)
from robot_stack.buffer.images import ImageCodec, decode_image, encode_image
from robot_stack.buffer.zarr_zip import DATA_TYPES
from robot_stack.core.codec import pack, unpack
from robot_stack.core.errors import ConfigError, CorruptDataError, StorageError
from robot_stack.core.messages import Array, Refusal, Source, Step, Verdict

FRONT = "observation.images.front"
STATE = "observation.state"


def step(seq: int, **changes: object) -> Step:
    action = np.full(2, 0.01 * seq, np.float32)
    values = {
        "run": "r",
        "robot": "franka_0",
        "task": "reach",
        "session": "0123456789abcdef",
        "seq": seq,
        "episode": 4,
        "episode_seed": -1,
        "segment": seq // 3,
        "index": seq,
        "stamp_ns": 2**62 + seq,
        "observation": {STATE: np.arange(3, dtype=np.float32) + seq},
        "action_base": action,
        "action_asked": action + 1,
        "action_sent": action + 2,
        "verdict": Verdict.ACCEPTED,
        "refusal": None,
        "source": Source.POLICY,
        "weights_version": 1,
        "reward": 0.25 * seq,
        "success": False,
        "terminated": False,
        "truncated": False,
    }
    return Step(**{**values, **changes})  # type: ignore[arg-type]


def frame(seed: int, shape: tuple[int, int, int] = (12, 10, 3)) -> Array:
    """Smooth enough for JPEG to come near it."""
    height, width, _ = shape
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([10 * y + seed, 9 * x + 2 * seed, 5 * (x + y)], axis=-1).astype(np.uint8)


def stretch(count: int, codec: ImageCodec = ImageCodec.RAW, *, final: bool = True) -> list[tuple[int, Step]]:
    """Steps with a camera, at every third log index."""
    steps = []
    for seq in range(count):
        values = {STATE: np.full(3, seq, np.float32), FRONT: encode_image(frame(seq), codec)}
        steps.append((10 + 3 * seq, step(seq, observation=values)))
    if final:
        last = {STATE: np.full(3, -1, np.float32), FRONT: encode_image(frame(count), codec)}
        steps[-1] = (
            steps[-1][0],
            msgspec.structs.replace(
                steps[-1][1], final_observation=last, final_action_base=np.ones(2, np.float32), truncated=True
            ),
        )
    return steps


def write(directory: Path, steps: list[tuple[int, Step]], *, ended: bool = True) -> Path:
    return write_episode_file(directory, steps, ended=ended, durability="process")


def assert_same(path: Path, steps: list[tuple[int, Step]]) -> None:
    with EpisodeFile(path) as file:
        file.verify()
        read = list(file.steps())
    assert [index for index, _ in read] == [index for index, _ in steps]
    for (_, got), (_, expected) in zip(read, steps, strict=True):
        assert pack(got) == pack(expected)


# ---- round trip -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", list(ImageCodec))
@pytest.mark.parametrize("count", [1, 2, 16, 17, 40])
def test_steps_come_back_bit_for_bit(tmp_path: Path, codec: ImageCodec, count: int) -> None:
    for number, final in enumerate((True, False)):
        steps = stretch(count, codec, final=final)
        assert_same(write(tmp_path / str(number), steps), steps)


NAMES = st.one_of(
    st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable()),
    st.sampled_from(
        [
            *(
                "seq",
                "reward",
                "final",
                "action_base",
                "zarr.json",
                "..",
                ".",
                "__x",
                "a/b",
                "c/0",
                "../../x",
                "é",
                "%",
            ),
            *(FRONT, "observation.images.front.offsets", "x.offsets", "final/action_base", "%73eq", STATE),
        ]
    ),
)


@st.composite
def any_array(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    return draw(st.sampled_from(sorted(DATA_TYPES))), draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Any bits at all, so NaNs of every kind."""
    content = rng.integers(0, 256, int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
    return (content % 2 if dtype == "bool" else content).view(dtype).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_any_features_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = data.draw(st.dictionaries(NAMES, any_array(), min_size=1, max_size=4))
    final = data.draw(st.none() | st.dictionaries(NAMES, any_array(), max_size=3))
    size = data.draw(st.integers(0, 4))
    instruction = data.draw(st.text(st.characters(exclude_categories=("Cs",))))
    big = st.integers(-(2**63), 2**63 - 1)
    steps = []
    for position in range(count):
        changes: dict[str, object] = {
            "instruction": instruction,
            "observation": {name: random_array(rng, *kind) for name, kind in features.items()},
            "reward": struct.unpack("<d", rng.bytes(8))[0],
            "stamp_ns": data.draw(big) if position == 0 else position,
            "weights_version": data.draw(big) if position == 0 else -1,
            "verdict": rng.choice(list(Verdict)),
            "refusal": rng.choice([None, *Refusal]),
            "source": rng.choice(list(Source)),
            **{name: bool(rng.integers(2)) for name in ("success", "terminated", "truncated", "late")},
            **{name: random_array(rng, "float32", (size,)) for name in ("action_base", "action_asked", "action_sent")},
        }
        steps.append((7 * position, step(position, **changes)))
    ends = {} if final is None else {name: random_array(rng, *kind) for name, kind in final.items()}
    action = data.draw(st.none() | st.just(random_array(rng, "float32", (size,))))
    last = msgspec.structs.replace(
        steps[-1][1], final_observation=None if final is None else ends, final_action_base=action
    )
    steps[-1] = (steps[-1][0], last)
    assert_same(write(tmp_path_factory.mktemp("episodes"), steps), steps)


def test_features_named_like_arrays_of_the_file_clash_with_nothing(tmp_path: Path) -> None:
    names = (*episode_layout.SCALARS, *episode_layout.ACTIONS, f"{FRONT}.offsets", "final", "zarr.json", "final/x")
    values: dict[str, Array] = {name: np.array([number], np.int16) for number, name in enumerate(names)}
    values[FRONT] = encode_image(frame(0), ImageCodec.JPEG)
    steps = [(0, step(0, observation=values, final_observation=values))]
    assert_same(write(tmp_path, steps), steps)


def test_every_field_of_a_step_has_its_place() -> None:
    """A new field of Step must get one, or files would lose it without a word."""
    shared = {"run", "robot", "task", "session", "episode", "episode_seed", "instruction"}
    arrays = {"observation", "final_observation", "final_action_base", *episode_layout.ACTIONS}
    assert set(Step.__struct_fields__) == shared | arrays | (set(episode_layout.SCALARS) - {"log_index"})


def test_every_enum_value_and_every_refusal_survives(tmp_path: Path) -> None:
    steps = [
        (index, step(index, verdict=verdict, refusal=refusal, source=source))
        for index, (verdict, refusal, source) in enumerate(
            (verdict, refusal, source) for verdict in Verdict for refusal in (None, *Refusal) for source in Source
        )
    ]
    assert_same(write(tmp_path, steps), steps)


def test_steps_as_they_come_from_the_log_come_back_with_read_only_arrays(tmp_path: Path) -> None:
    steps = [(index, unpack(pack(item), Step)) for index, item in stretch(20)]
    with EpisodeFile(write(tmp_path, steps)) as file:
        for _, item in file.steps():
            arrays = (*item.observation.values(), item.action_base, *(item.final_observation or {}).values())
            assert not any(values.flags.writeable for values in arrays)


def test_jpeg_files_of_very_different_length_and_of_no_length_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = [0, 1, 300_000, 0, 7, 262_144, 262_143, 600_000, 0]
    files = [rng.integers(0, 256, length, np.uint8) for length in lengths]
    for number, chosen in enumerate((files, files[:1], files[2:3])):
        steps = [(index, step(index, observation={FRONT: values})) for index, values in enumerate(chosen)]
        assert_same(write(tmp_path / str(number), steps), steps)


# ---- what it says about itself ----------------------------------------------------------------------------------


def test_the_file_tells_what_it_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder", stretch(20, ImageCodec.JPEG))
    assert path.name == "000000000010-franka_0-01234567-000004.zarr.zip" == episode_name(10, "franka_0", "01234567x", 4)
    with EpisodeFile(path) as file:
        info = file.info
        assert (info.run, info.robot, info.task, info.session) == ("r", "franka_0", "reach", "0123456789abcdef")
        assert (info.episode, info.episode_seed, info.steps, info.ended) == (4, -1, 20, True)
        assert (info.first_index, info.last_index) == (10, 67)
        assert (info.features, info.encodings) == ((STATE, FRONT), {FRONT: "jpeg"})
        assert info.final_features == (STATE, FRONT)
        assert info.size_bytes == path.stat().st_size
        assert file.image_shape(FRONT) == (12, 10, 3)
        assert file.column("log_index").tolist() == list(range(10, 70, 3))
        assert file.column(f"final/{STATE}").tolist() == [-1, -1, -1]
        assert not file.column("seq").flags.writeable
        assert {"seq", STATE, FRONT, f"{FRONT}.offsets", "final/action_base"} <= set(file.columns())
        with pytest.raises(StorageError, match="nonsense"):
            file.column("nonsense")
        with pytest.raises(StorageError, match="no image"):
            file.image_shape(STATE)
    with pytest.raises(StorageError, match="not open"):
        file.column("seq")
    with EpisodeFile(write(tmp_path, stretch(2, final=False), ended=False)) as file:
        assert (file.info.ended, file.info.final_features, file.info.encodings) == (False, None, {FRONT: "raw"})


def test_names_of_robots_make_no_paths(tmp_path: Path) -> None:
    hostile = [(0, step(0, robot="../../etc/x" + "y" * 500, session="/..\0"))]
    path = write(tmp_path, hostile)
    assert path.parent == tmp_path
    assert path.is_file()
    assert_same(path, hostile)


# ---- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_frames_are_read_in_any_order_with_the_final_one(tmp_path: Path, codec: ImageCodec) -> None:
    steps = stretch(40, codec)
    with EpisodeFile(write(tmp_path, steps)) as file:
        expected = [decode_image(item.observation[FRONT]) for _, item in steps]
        expected.append(decode_image((steps[-1][1].final_observation or {})[FRONT]))
        rng = np.random.default_rng(1)
        for count in (0, 1, 100):
            positions = rng.integers(0, 41, count)
            out = np.zeros((count, 12, 10, 3), np.uint8)
            file.read_images(FRONT, positions, out)
            for position, got in zip(positions, out, strict=True):
                assert np.array_equal(got, expected[position])


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_requests_that_do_not_fit_are_refused(tmp_path: Path, codec: ImageCodec) -> None:
    with EpisodeFile(write(tmp_path, stretch(5, codec, final=False))) as file:
        good = np.zeros((1, 12, 10, 3), np.uint8)
        for position in (-1, 5, 6):
            with pytest.raises(StorageError, match="0 to 4"):
                file.read_images(FRONT, np.array([position]), good)
        for out in (good[:0], good[:, :11], good.astype(np.int8), good[0]):
            with pytest.raises(StorageError, match="front"):
                file.read_images(FRONT, np.array([0]), out)
        with pytest.raises(StorageError, match="side"):
            file.read_images("observation.images.side", np.array([0]), good)


def test_an_image_that_was_recorded_broken_is_kept_and_named(tmp_path: Path) -> None:
    images = [encode_image(frame(0), ImageCodec.JPEG), np.arange(9, dtype=np.uint8)]
    steps = [(index, step(index, observation={FRONT: values})) for index, values in enumerate(images)]
    path = write(tmp_path, steps)
    assert_same(path, steps)
    with EpisodeFile(path) as file:
        out = np.zeros((1, 12, 10, 3), np.uint8)
        file.read_images(FRONT, np.array([0]), out)
        with pytest.raises(StorageError, match=f"'{FRONT}' of step 1"):
            file.read_images(FRONT, np.array([1]), out)


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_threads_read_the_same_file_while_it_is_closed(tmp_path: Path, codec: ImageCodec) -> None:
    steps = stretch(64, codec)
    expected = np.stack([decode_image(item.observation[FRONT]) for _, item in steps])
    path, problems = write(tmp_path, steps), []

    def read(file: EpisodeFile, seed: int) -> None:
        rng = np.random.default_rng(seed)
        out = np.zeros((16, 12, 10, 3), np.uint8)
        try:
            for _ in range(50):
                positions = rng.integers(0, 64, 16)
                file.read_images(FRONT, positions, out)
                if not np.array_equal(out, expected[positions]):
                    problems.append("wrong frames")
        except StorageError as error:
            if "not open" not in str(error):
                problems.append(str(error))

    for round_number in range(5):
        with EpisodeFile(path) as file:
            threads = [threading.Thread(target=read, args=(file, seed)) for seed in range(4)]
            for thread in threads:
                thread.start()
            if round_number % 2:
                for thread in threads:
                    thread.join()
        for thread in threads:
            thread.join()
    assert problems == []


# ---- which steps fit together -----------------------------------------------------------------------------------

DIFFERENT = {
    "run": {"run": "r2"},
    "robot": {"robot": "franka_1"},
    "task": {"task": "push"},
    "session": {"session": "s"},
    "episode": {"episode": 5},
    "seed": {"episode_seed": 9},
    "shape": {"observation": {STATE: np.zeros(4, np.float32)}},
    "dtype": {"observation": {STATE: np.zeros(3, np.float64)}},
    "another feature": {"observation": {"observation.velocity": np.zeros(3, np.float32)}},
    "one more feature": {"observation": {STATE: np.zeros(3, np.float32), "x": np.zeros(1)}},
    "action": {"action_sent": np.zeros(3, np.float32)},
}


@pytest.mark.parametrize("changes", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_steps_that_differ_belong_into_two_files(tmp_path: Path, changes: dict[str, object]) -> None:
    a, b = step(0), step(1, **changes)
    assert same_layout(a, step(1, reward=3.0, segment=7))
    assert not same_layout(a, b)
    with pytest.raises(ConfigError, match="Split the stretch"):
        write(tmp_path, [(0, a), (1, b)])
    assert list(tmp_path.iterdir()) == []


def test_raw_and_encoded_images_belong_into_two_files() -> None:
    raw, jpeg = (step(0, observation={FRONT: encode_image(frame(0), codec)}) for codec in ImageCodec)
    longer = step(0, observation={FRONT: encode_image(frame(5, (50, 50, 3)), ImageCodec.JPEG)})
    assert not same_layout(raw, jpeg)
    assert same_layout(jpeg, longer)


def test_another_instruction_begins_another_file(tmp_path: Path) -> None:
    red, blue = (step(number, instruction=f"touch the {word} block") for number, word in enumerate(("red", "blue")))
    assert not same_layout(red, blue)
    with pytest.raises(ConfigError, match="same_layout"):
        write(tmp_path, [(0, red), (1, blue)])
    with EpisodeFile(write(tmp_path, [(0, red)], ended=False)) as file:
        assert file.info.instruction == "touch the red block"
        assert [one.instruction for _, one in file.steps()] == ["touch the red block"]


def test_stretches_that_make_no_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = step(0, final_observation={})
    for steps, match in (
        ([], "0 were given"),
        ([(3, step(0)), (3, step(1))], "3 follows 3"),
        ([(-1, step(0))], "rise"),
        ([(0, ended), (1, step(1))], "behind it"),
        ([(0, step(0, final_action_base=np.zeros(2, np.float32))), (1, step(1))], "behind it"),
        ([(0, step(2**63))], "int64"),
        ([(0, step(0, observation={"": np.zeros(1)}))], "names"),
        ([(0, step(0, observation={"x": np.zeros(1, np.complex64)}))], "complex64"),
        ([(0, step(0, observation={"x": np.array(["text"])}))], "dtypes"),
    ):
        with pytest.raises(ConfigError, match=match):
            write(tmp_path, steps)
    monkeypatch.setattr(episode_layout, "MAX_EPISODE_BYTES", 3 * step_bytes(step(0)))
    write(tmp_path / "fits", [(index, step(index)) for index in range(3)])
    with pytest.raises(ConfigError, match="step_bytes"):
        write(tmp_path, [(index, step(index)) for index in range(4)])
    monkeypatch.setattr(episode_layout, "MAX_EPISODE_STEPS", 2)
    with pytest.raises(ConfigError, match="1 to 2"):
        write(tmp_path, [(index, step(index)) for index in range(3)])
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


def test_a_sealed_file_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, stretch(3))
    before = path.read_bytes()
    with pytest.raises(StorageError, match="there already"):
        write(tmp_path, stretch(2))
    assert path.read_bytes() == before
    assert sweep_aside(tmp_path) == 0
    (tmp_path / ".aside-x").write_bytes(b"half")
    assert sweep_aside(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [path]


# ---- others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["STEP_SCHEMA_VERSION", "FORMAT_VERSION"])
def test_a_file_of_another_version_is_refused_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(episode_layout, version, 99)
        patched.setattr(f"robot_stack.buffer.episode_content.{version}", 99)
        path = write(tmp_path, stretch(2))
    with pytest.raises(StorageError, match="99") as caught:
        EpisodeFile(path).open()
    assert not isinstance(caught.value, CorruptDataError)


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_zarr_alone_reads_every_array(tmp_path: Path, codec: ImageCodec) -> None:
    odd = {"a/b é": np.array(3, np.int16), "empty": np.zeros((0, 2), np.float32), "reward": np.array([np.nan, -0.0])}
    steps = [
        (index, msgspec.structs.replace(item, observation={**item.observation, **odd}))
        for index, item in stretch(20, codec)
    ]
    path = write(tmp_path, steps)
    store = zarr.storage.ZipStore(path, mode="r")
    with store, EpisodeFile(path) as file:
        group = zarr.open_group(store, mode="r")
        assert {name for name, _ in group.members(max_depth=None)} == {*file.columns(), "final"}
        for name in file.columns():
            got = group[name][...]  # type: ignore[index]
            assert (got.dtype, got.shape) == (file.column(name).dtype, file.column(name).shape)
            assert np.asarray(got).tobytes() == file.column(name).tobytes()
        assert group.attrs["robot"] == "franka_0"
        assert group.attrs["steps"] == 20
        assert group["seq"][...].tolist() == [item.seq for _, item in steps]  # type: ignore[index,union-attr]
        if codec is ImageCodec.RAW:
            assert np.array_equal(group[FRONT][7], frame(7))  # type: ignore[index]
