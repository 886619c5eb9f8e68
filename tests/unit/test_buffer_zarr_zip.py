"""The container of episode files: a ZIP archive that any ZIP program and zarr read, and in which nothing is trusted."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from msgspec import Struct

from robot_stack.buffer import stored_zip
from robot_stack.buffer.stored_zip import StoredZipWriter
from robot_stack.buffer.zarr_zip import DATA_TYPES, ArrayLayout, ZarrZipFile, ZarrZipWriter
from robot_stack.core.errors import ConfigError, CorruptDataError, StorageError

Array = np.ndarray[Any, Any]


class About(Struct):
    name: str
    number: int


def write(path: Path, arrays: dict[str, tuple[Array, int]]) -> Path:
    """A file of these arrays, each with the largest number of rows of a chunk."""
    with path.open("wb") as file:
        writer = ZarrZipWriter(file)
        writer.add_group("", About("of the test", 7))
        for name, (values, rows) in arrays.items():
            layout = ArrayLayout.of(values.dtype.name, values.shape, rows)
            writer.add_array(name, layout, list(values) if values.ndim > 1 else [values])
        writer.finish()
    return path


def write_members(path: Path, members: dict[str, bytes]) -> Path:
    """An archive that is a good ZIP file, whatever its members mean."""
    with path.open("wb") as file:
        writer = StoredZipWriter(file)
        for name, content in members.items():
            writer.add(name, np.frombuffer(content, np.uint8))
        writer.finish()
    return path


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 7))
def test_any_array_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rows: int
) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(sorted(DATA_TYPES))))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    size = int(np.prod(shape)) * dtype.itemsize
    content = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(0, 256, size, np.uint8)
    values = (content % 2 if dtype.kind == "b" else content).view(dtype).reshape(shape)
    path = write(tmp_path_factory.mktemp("zip") / "a", {"x": (values, rows)})
    file = ZarrZipFile(path)
    file.verify()
    array = file.arrays["x"]
    assert (array.read().dtype, array.read().shape) == (values.dtype, values.shape)
    assert array.read().tobytes() == values.tobytes()  # NaN payloads included
    if shape and size:
        wanted = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=12))
        out = np.empty((len(wanted), *shape[1:]), dtype)
        array.read_rows(wanted, out)
        assert out.tobytes() == values[wanted].tobytes()
        start, stop = sorted(data.draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))
        assert array.read_slice(start, stop).tobytes() == values[start:stop].tobytes()


def test_values_of_another_byte_order_and_of_strided_arrays_are_kept(tmp_path: Path) -> None:
    swapped = np.arange(6, dtype=">i4")
    strided = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    file = ZarrZipFile(write(tmp_path / "a", {"swapped": (swapped, 4), "strided": (strided, 3)}))
    assert np.array_equal(file.arrays["swapped"].read(), swapped)
    assert np.array_equal(file.arrays["strided"].read(), strided)


def test_the_last_chunk_has_little_filling() -> None:
    for rows in range(1, 200):
        layout = ArrayLayout.of("uint8", (rows, 2), 16)
        assert layout.chunk_rows <= 16
        assert layout.chunks == -(-rows // 16)
        assert 0 <= layout.chunks * layout.chunk_rows - rows < layout.chunks


def test_a_zip_program_reads_it(tmp_path: Path) -> None:
    values = np.arange(10, dtype=np.int64)
    path = write(tmp_path / "a", {"x": (values, 4)})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["zarr.json", "x/zarr.json", "x/c/0", "x/c/1", "x/c/2"]
        assert archive.read("x/c/0")[:-4] == values[:4].tobytes()
        assert archive.read("x/c/2")[:-4] == values[8:].tobytes() + bytes(16)  # filled up with zeros
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    arrays = {"x": (np.arange(10.0), 4), "y": (np.zeros((3, 2), np.uint8), 2)}
    assert write(tmp_path / "a", arrays).read_bytes() == write(tmp_path / "b", arrays).read_bytes()


def test_an_archive_made_by_another_program_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"x": (np.arange(10.0), 4)})
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        other = tmp_path / "other"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", compression) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
        with pytest.raises(CorruptDataError, match="other"):
            ZarrZipFile(other)


def document(shape: object, chunk: object, dtype: object = "uint8") -> bytes:
    """Metadata as the writer gives it, with values that it would never give."""
    text = ArrayLayout("uint8", (3, 5), 2).document().decode().replace('"uint8"', f'"{dtype}"')
    for good, bad in (("[3,5]", shape), ("[2,5]", chunk)):
        text = text.replace(good, str(bad).replace(" ", ""), 1)
    return text.encode()


@pytest.mark.parametrize(
    "hostile",
    [
        document([2**62, 5], [2**62, 5]),
        document([2**40, 2**40, 0], [1, 2**40, 1]),
        document([10**400, 5], [2, 5]),
        document([-3, 5], [2, 5]),
        document([3, 5], [0, 5]),
        document([3, 5], [-2, 5]),
        document([3, 5], [2, 4]),
        document([3, 5], [2]),
        document([3, 5], [3000, 5]),
        document([3] * 40, [3] * 40),
        document([3, 5], [2, 5], "object"),
        document([3, 5], [2, 5], "float64"),
        document('["3",5]', [2, 5]),
        document("1e400", [2, 5]),
        document([3, 5], [2, 5]).replace(b"crc32c", b"crc32d"),
        document([3, 5], [2, 5]) + b" ",
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
    ],
)
def test_metadata_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path, hostile: bytes) -> None:
    chunk = b"\0" * 14
    path = write_members(tmp_path / "a", {"x/zarr.json": hostile, "x/c/0/0": chunk, "x/c/1/0": chunk})
    with pytest.raises(CorruptDataError, match="x"):
        ZarrZipFile(path)


def test_an_array_without_values_has_no_absurd_shape(tmp_path: Path) -> None:
    sizes = [300] * 8
    path = write_members(tmp_path / "a", {"x/zarr.json": document([0, *sizes], [1, *sizes])})
    with pytest.raises(CorruptDataError, match="'x'"):
        ZarrZipFile(path)
    path = write_members(tmp_path / "a", {"x/zarr.json": document([0, 300], [1, 300])})
    assert ZarrZipFile(path).arrays["x"].read().shape == (0, 300)


def test_the_untouched_metadata_of_that_test_is_accepted(tmp_path: Path) -> None:
    chunk = bytes(10) + struct.pack("<I", 0xFFFFFFFF)
    good = {"x/zarr.json": document([3, 5], [2, 5]), "x/c/0/0": chunk, "x/c/1/0": chunk}
    file = ZarrZipFile(write_members(tmp_path / "a", good))
    assert file.arrays["x"].layout == ArrayLayout("uint8", (3, 5), 2)
    with pytest.raises(CorruptDataError, match="chunk 1 of array 'x'"):
        file.arrays["x"].read_rows([2], np.empty((1, 5), np.uint8))


@pytest.mark.parametrize("change", ["missing", "extra", "twice"])
def test_members_and_arrays_belong_together(tmp_path: Path, change: str) -> None:
    members = {"x/zarr.json": document([3, 5], [2, 5]), "x/c/0/0": bytes(14), "x/c/1/0": bytes(14)}
    if change == "missing":
        del members["x/c/1/0"]
    if change == "extra":
        members["x/c/2/0"] = bytes(14)
    if change == "twice":
        members["X/c/0/0"] = bytes(14)
    path = write_members(tmp_path / "a", members)
    path.write_bytes(path.read_bytes().replace(b"X/c/0/0", b"x/c/0/0"))
    with pytest.raises(CorruptDataError):
        ZarrZipFile(path)


def test_what_does_not_fit_into_an_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a").open("wb") as file:
        with pytest.raises(ConfigError, match="too long"):
            StoredZipWriter(file).add("n" * 2000, np.zeros(1, np.uint8))
        with pytest.raises(ConfigError, match="ASCII"):
            StoredZipWriter(file).add("é", np.zeros(1, np.uint8))
        monkeypatch.setattr(stored_zip, "MAX_MEMBERS", 2)
        writer = StoredZipWriter(file)
        for name in "ab":
            writer.add(name, np.zeros(1, np.uint8))
        with pytest.raises(ConfigError, match="Split"):
            writer.add("c", np.zeros(1, np.uint8))
        monkeypatch.setattr(stored_zip, "MAX_FILE_BYTES", 5000)
        with pytest.raises(ConfigError, match="Split"):
            StoredZipWriter(file).add("a", np.zeros(5000, np.uint8))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(StorageError, match="cannot be opened"):
        ZarrZipFile(path)
    for content in (b"", b"PK", bytes(22), b"PK\x05\x06" + bytes(18), bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match="a: "):
            ZarrZipFile(path)
