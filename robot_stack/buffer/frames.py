"""Camera frames of a replay: the newest in memory, each once, the others read from the log.

Frames stay as they come: raw pixels in a ring of equal places that is allocated once, JPEG files end to end in a ring
of bytes. They are never converted to floats, and decoded only into the batch that needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_stack.buffer.batches import Images, Mask, Rows
from robot_stack.buffer.images import decode_image, image_shape
from robot_stack.core.errors import ConfigError, SpecMismatchError, StorageError

ImageShape = tuple[int, int, int]


class ImageSource(Protocol):
    """Where frames lie that memory has no room for (`StepStore`)."""

    def read_images(self, feature: str, indices: Rows, final: Mask, out: Images) -> None:
        """Write the frames of the steps with these log indices (n,) into `out` (n, H, W, 3).

        Where `final` (n,) is True: of the step's final observation. May be called by several threads at a time.
        """


class ImageBuffers:
    """Output arrays that are used again: fresh ones of 25 MB each cost more in page faults than the copying itself."""

    def __init__(self) -> None:
        self._arrays: dict[str, Images] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> Images:
        """A uint8 array with left-over contents; in the memory of the last one of this name, where that is enough."""
        array = self._arrays.get(name)
        if array is None or array.shape[1:] != shape[1:] or len(array) < shape[0]:
            array = self._arrays[name] = np.empty(shape, np.uint8)
        return array if len(array) == shape[0] else array[: shape[0]]


class FrameStore:
    """Frames of the rows of a replay, by feature. The memory of all features together stays below `budget_bytes`.

    Each feature's part of the budget is in proportion to the size of its images. Whether it keeps raw pixels or JPEG
    files is decided by the first frame that arrives; a JPEG file that comes to a feature kept raw is decoded once, a
    raw image among JPEG files is kept as it is. What the budget does not count is 50 bytes for each row and feature.
    """

    def __init__(
        self, shapes: Mapping[str, ImageShape], rows: int, budget_bytes: int, source: ImageSource | None
    ) -> None:
        self._rows = rows
        self._source = source
        self._source_index: Rows = np.zeros(rows, np.int64)
        self._final: Mask = np.zeros(rows, np.bool_)
        frame_bytes = {name: shape[0] * shape[1] * shape[2] for name, shape in shapes.items()}
        together = sum(frame_bytes.values())
        for name, shape in shapes.items():
            if shape[2] != 3 or min(shape) < 1:
                raise ConfigError(f"{name} has the shape {list(shape)}; allowed is [height, width, 3], all above 0")
        if source is None and budget_bytes < together:
            raise ConfigError(
                f"frame_budget_bytes is {budget_bytes}, one frame of each camera takes {together}, and there is no log "
                "to read frames from; give more memory, or an image source"
            )
        self._features = {
            name: _Feature(shape, rows, budget_bytes * frame_bytes[name] // together) for name, shape in shapes.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are set aside for frames so far."""
        return sum(feature.nbytes for feature in self._features.values())

    def shape(self, name: str) -> ImageShape:
        return self._feature(name).shape

    def needs_images(self, source_index: int) -> bool:
        """Whether a step with this log index must bring its frames, because nothing else has them."""
        return bool(self._features) and (self._source is None or source_index < 0)

    def check(self, images: Mapping[str, NDArray[np.uint8]], source_index: int) -> None:
        """SpecMismatchError if frames are missing or of another size; MessageError for an image that is none."""
        for name, feature in self._features.items():
            image = images.get(name)
            if self._source is not None and source_index < 0:
                raise SpecMismatchError(
                    f"a step without source_index came to a replay that reads older frames of {name} from its log; "
                    "give the step its index in the log"
                )
            if image is None:
                if self._source is None:
                    raise SpecMismatchError(f"a step has no image {name}, it has {sorted(images)}, and there is no log")
            elif image_shape(image) != feature.shape:
                raise SpecMismatchError(
                    f"{name} has the shape {list(image_shape(image))}, this replay was made for {list(feature.shape)}"
                )

    def put(self, row: int, images: Mapping[str, NDArray[np.uint8]], source_index: int, *, final: bool) -> None:
        """Keep the frames of a row; its former ones are forgotten."""
        self._source_index[row] = source_index
        self._final[row] = final
        for name, feature in self._features.items():
            feature.put(row, images.get(name))

    def lost(self, row: int) -> bool:
        """Whether a frame of this row is neither in memory nor in a log."""
        return self._source is None and any(not feature.holds(row) for feature in self._features.values())

    def in_memory(self, name: str, rows: Rows) -> Mask:
        """Which of these rows have their frame of this feature in memory."""
        return self._feature(name).present(rows)

    def gather(self, name: str, rows: Rows, out: Images, buffers: ImageBuffers) -> None:
        """Write the frames of these rows (n,) into `out` (n, H, W, 3), which is contiguous."""
        feature = self._feature(name)
        here = feature.present(rows)
        if here.all():
            feature.read(rows, out)
            return
        if self._source is None:
            raise StorageError(f"{int((~here).sum())} frames of {name} are not in memory any more, and there is no log")
        away = np.flatnonzero(~here)
        everything = len(away) == len(rows)
        target = out if everything else buffers.array(f"{name} from the log", (len(rows), *feature.shape))[: len(away)]
        wanted = rows[away]
        self._source.read_images(name, self._source_index[wanted], self._final[wanted], target)
        if not everything:
            out[away] = target
            for position in np.flatnonzero(here).tolist():
                feature.read(rows[position : position + 1], out[position : position + 1])

    def _feature(self, name: str) -> _Feature:
        feature = self._features.get(name)
        if feature is None:
            raise SpecMismatchError(f"this replay keeps no images {name}; it keeps {sorted(self._features)}")
        return feature


class _Feature:
    """The frames of one camera: numbered in the order of arrival, `number[row]` is -1 for a row without one here."""

    def __init__(self, shape: ImageShape, rows: int, budget_bytes: int) -> None:
        self.shape = shape
        self._number: Rows = np.full(rows, -1, np.int64)
        self._budget = min(budget_bytes, rows * shape[0] * shape[1] * shape[2])
        self._ring: _RawRing | _JpegRing | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self._ring is None else self._ring.nbytes

    def put(self, row: int, image: NDArray[np.uint8] | None) -> None:
        self._number[row] = -1
        if image is None or not self._budget:
            return
        if self._ring is None:
            raw = image.ndim == 3
            self._ring = _RawRing(self.shape, self._budget) if raw else _JpegRing(len(self._number), self._budget)
        self._number[row] = self._ring.put(image)

    def holds(self, row: int) -> bool:
        return self._ring is not None and self._number[row] >= self._ring.oldest

    def present(self, rows: Rows) -> Mask:
        if self._ring is None:
            return np.zeros(len(rows), np.bool_)
        return self._number.take(rows) >= self._ring.oldest

    def read(self, rows: Rows, out: Images) -> None:
        if self._ring is not None:
            self._ring.read(self._number.take(rows), out)


class _RawRing:
    """Equal places for raw frames."""

    def __init__(self, shape: ImageShape, budget_bytes: int) -> None:
        self._places = budget_bytes // (shape[0] * shape[1] * shape[2])
        self._frames: Images = np.empty((self._places, *shape), np.uint8)
        self._next = 0

    @property
    def nbytes(self) -> int:
        return self._frames.nbytes

    @property
    def oldest(self) -> int:
        return max(0, self._next - self._places)

    def put(self, image: NDArray[np.uint8]) -> int:
        """Keep a frame and give its number; -1 if there is no room for even one."""
        if not self._places:
            return -1
        decode_image(image, self._frames[self._next % self._places])
        self._next += 1
        return self._next - 1

    def read(self, numbers: Rows, out: Images) -> None:
        # mode="clip" writes straight into `out`; the default would copy everything twice.
        np.take(self._frames, numbers % self._places, axis=0, out=out, mode="clip")


class _JpegRing:
    """Files of different sizes end to end; a file is never split, so the end of the ring may stay unused."""

    def __init__(self, files: int, budget_bytes: int) -> None:
        self._bytes: NDArray[np.uint8] = np.empty(budget_bytes, np.uint8)
        self._starts: Rows = np.zeros(files, np.int64)
        self._ends: Rows = np.zeros(files, np.int64)
        self._raw: Mask = np.zeros(files, np.bool_)
        self._files = files
        self._free = 0  # where the next file goes
        self._next = 0
        self.oldest = 0

    @property
    def nbytes(self) -> int:
        return self._bytes.nbytes

    def put(self, image: NDArray[np.uint8]) -> int:
        """Keep a frame and give its number; -1 if it is larger than the ring."""
        size = image.size
        if size > len(self._bytes):
            return -1
        if self._free + size > len(self._bytes):
            self._drop(self._free, len(self._bytes))
            self._free = 0
        end = self._free + size
        self._drop(self._free, end)
        self.oldest = max(self.oldest, self._next + 1 - self._files)
        self._bytes[self._free : end] = image.reshape(-1)
        place = self._next % self._files
        self._starts[place], self._ends[place], self._raw[place] = self._free, end, image.ndim == 3
        self._free = end
        self._next += 1
        return self._next - 1

    def read(self, numbers: Rows, out: Images) -> None:
        places = numbers % self._files
        spans = zip(self._starts[places].tolist(), self._ends[places].tolist(), self._raw[places].tolist(), strict=True)
        for image, (start, end, raw) in zip(out, spans, strict=True):
            stored = self._bytes[start:end]
            decode_image(stored.reshape(image.shape) if raw else stored, image)

    def _drop(self, start: int, end: int) -> None:
        """Forget the oldest files for as long as they begin in this stretch of bytes."""
        while self.oldest < self._next and start <= self._starts[self.oldest % self._files] < end:
            self.oldest += 1
