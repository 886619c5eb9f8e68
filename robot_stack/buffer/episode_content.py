"""What an open episode file gives: images, steps, and whether it is whole. See `episode_file.py` for the format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from robot_stack.buffer.episode_layout import (
    ACTIONS,
    CODES,
    FORMAT_VERSION,
    OFFSETS,
    SCALARS,
    EpisodeAttributes,
    EpisodeVersions,
    array_name,
    is_encoded,
    layout_problem,
)
from robot_stack.buffer.images import decode_image, image_shape
from robot_stack.buffer.stored_zip import corrupt
from robot_stack.buffer.zarr_zip import ArrayLayout, ZarrArray, ZarrZipFile
from robot_stack.core.errors import MessageError, StorageError
from robot_stack.core.messages import STEP_SCHEMA_VERSION, Array, Step


class EpisodeInfo(Struct, frozen=True):
    """What a sealed file says about itself; known from opening it, without reading an array.

    `first_index`/`last_index`: log indices of its first and last step (the steps between need not be consecutive:
    column `log_index`). `ended`: its last step ended the episode. `features`: names of the observation features.
    `encodings`: "raw" or "jpeg" of each image feature. `final_features`: features of the final observation; None if
    the last step has none. `instruction`: of all its steps, in words.
    """

    schema_version: int
    run: str
    robot: str
    task: str
    session: str
    episode: int
    episode_seed: int
    first_index: int
    last_index: int
    steps: int
    ended: bool
    features: tuple[str, ...]
    encodings: dict[str, str]
    final_features: tuple[str, ...] | None
    instruction: str
    size_bytes: int


class EpisodeContent:
    """An open file whose arrays are those that its attributes call for; it lives as long as somebody reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container = container = ZarrZipFile(path)
        self._attributes = attributes = _read_attributes(path, container)
        self._offsets: dict[str, list[int]] = {}
        values = {name: getattr(attributes, name) for name in EpisodeInfo.__struct_fields__ if name != "size_bytes"}
        self.info = EpisodeInfo(**values, size_bytes=container.size_bytes)
        self._features = {name: self.array(array_name(name)) for name in attributes.features}

    def array(self, name: str) -> ZarrArray:
        array = self.container.arrays.get(name)
        if array is None:
            raise StorageError(f"{self.path} has no array '{name}'; it has {', '.join(self.container.arrays)}")
        return array

    # ---- images ---------------------------------------------------------------------------------------------

    def image_shape(self, feature: str) -> tuple[int, int, int]:
        array = self._feature(feature)
        try:
            if feature in self.info.encodings:
                return image_shape(self._stored(feature, array, 0))
        except MessageError as error:
            raise self._undecodable(feature, 0, error) from error
        raise StorageError(f"{self.path}: '{feature}' is no image; images are {', '.join(self.info.encodings)}")

    def read_images(self, feature: str, positions: list[int], out: NDArray[np.uint8]) -> None:
        array, steps = self._feature(feature), self.info.steps
        encoded = self.info.encodings.get(feature) == "jpeg"
        self._check_request(feature, array.layout, encoded, positions, out)
        if not encoded and steps not in positions:
            array.read_rows(positions, out)
            return
        for target, position in enumerate(positions):
            if encoded or position == steps:
                self._copy_image(feature, array, position, out[target])
            else:
                array.read_rows((position,), out[target : target + 1])

    def _copy_image(self, feature: str, array: ZarrArray, position: int, out: NDArray[np.uint8]) -> None:
        stored = self._stored(feature, array, position)
        if is_encoded(feature, stored):
            try:
                decode_image(stored, out=out)
            except MessageError as error:
                raise self._undecodable(feature, position, error) from error
        elif (stored.dtype, stored.shape) == (out.dtype, out.shape):
            out[...] = stored
        else:
            raise StorageError(
                f"{self.path}: the final '{feature}' is {stored.dtype}{list(stored.shape)}, asked for was "
                f"{out.dtype}{list(out.shape)}"
            )

    def _feature(self, feature: str) -> ZarrArray:
        array = self._features.get(feature)
        if array is None:
            raise StorageError(f"{self.path} has no feature '{feature}'; it has {', '.join(self._features)}")
        return array

    def _check_request(
        self, feature: str, layout: ArrayLayout, encoded: bool, positions: list[int], out: NDArray[np.uint8]
    ) -> None:
        last = self.info.steps if f"final/{array_name(feature)}" in self.container.arrays else self.info.steps - 1
        if positions and not (min(positions) >= 0 and max(positions) <= last):
            raise StorageError(
                f"{self.path} has images '{feature}' at positions 0 to {last}; asked for were {min(positions)} to "
                f"{max(positions)}"
            )
        shape = out.shape[1:] if encoded else layout.shape[1:]
        if out.dtype != layout.dtype or out.shape != (len(positions), *shape) or not out.flags.writeable:
            raise StorageError(
                f"{self.path}: {len(positions)} images '{feature}' of {layout.dtype}{list(shape)} do not fit into "
                f"{out.dtype}{list(out.shape)}, or it is read-only"
            )

    def _stored(self, feature: str, array: ZarrArray, position: int) -> Array:
        """An image as it was recorded: raw or a JPEG file."""
        if position == self.info.steps:
            return self.array(f"final/{array_name(feature)}").read()
        if self.info.encodings.get(feature) == "jpeg":
            offsets = self._offsets_of(array)
            return array.read_slice(offsets[position], offsets[position + 1])
        return array.read_slice(position, position + 1)[0, ...]

    def _offsets_of(self, array: ZarrArray) -> list[int]:
        offsets = self._offsets.get(array.name)
        if offsets is None:
            values = self.array(array.name + OFFSETS).read()
            if values[0] != 0 or values[-1] != array.layout.shape[0] or (values[1:] < values[:-1]).any():
                raise corrupt(self.path, f"'{array.name + OFFSETS}' does not divide '{array.name}' into files")
            offsets = self._offsets[array.name] = values.tolist()
        return offsets

    def _undecodable(self, feature: str, position: int, error: MessageError) -> StorageError:
        return StorageError(f"{self.path}: image '{feature}' of step {position} was recorded unusable: {error}")

    # ---- steps ----------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[int, Step]]:
        about, last = self._attributes, self.info.steps - 1
        scalars = {name: self.array(name).read().tolist() for name in SCALARS}
        coded = {name: self._values_of(name, scalars[name]) for name in CODES}
        actions = {name: self._rows(name, self.array(name)) for name in ACTIONS}
        features = {name: self._rows(name, array) for name, array in self._features.items()}
        for t, log_index in enumerate(scalars["log_index"]):
            yield (
                log_index,
                Step(
                    run=about.run,
                    robot=about.robot,
                    task=about.task,
                    session=about.session,
                    seq=scalars["seq"][t],
                    episode=about.episode,
                    episode_seed=about.episode_seed,
                    segment=scalars["segment"][t],
                    index=scalars["index"][t],
                    stamp_ns=scalars["stamp_ns"][t],
                    observation={name: row(t) for name, row in features.items()},
                    action_base=actions["action_base"](t),
                    action_asked=actions["action_asked"](t),
                    action_sent=actions["action_sent"](t),
                    verdict=coded["verdict"][t],
                    refusal=coded["refusal"][t],
                    source=coded["source"][t],
                    weights_version=scalars["weights_version"][t],
                    reward=scalars["reward"][t],
                    success=scalars["success"][t],
                    terminated=scalars["terminated"][t],
                    truncated=scalars["truncated"][t],
                    late=scalars["late"][t],
                    final_observation=self._final_observation() if t == last else None,
                    final_action_base=self._final_action() if t == last else None,
                    instruction=about.instruction,
                ),
            )

    def _rows(self, feature: str, array: ZarrArray) -> Callable[[int], Array]:
        """How to get the value of one step; what is small is read at once."""
        if self.info.encodings.get(feature) != "jpeg" and array.layout.chunks <= 1:
            whole = array.read()
            return lambda position: whole[position, ...]

        def read(position: int) -> Array:
            row = self._stored(feature, array, position)
            row.flags.writeable = False
            return row

        return read

    def _values_of(self, name: str, codes: list[int]) -> list[Any]:
        """The enum values behind a column of codes."""
        by_name = {"" if value is None else value.value: value for value in CODES[name]}
        values = [by_name[text] for text in self._attributes.codes[name]]
        if max(codes) >= len(values):
            raise corrupt(self.path, f"column '{name}' has the code {max(codes)}, allowed are 0 to {len(values) - 1}")
        return [values[code] for code in codes]

    def _final_observation(self) -> dict[str, Array] | None:
        names = self._attributes.final_features
        return None if names is None else {name: self.array(f"final/{array_name(name)}").read() for name in names}

    def _final_action(self) -> Array | None:
        return self.array("final/action_base").read() if self._attributes.final_action_base else None

    def verify(self) -> None:
        self.container.verify()
        indices = self.array("log_index").read()
        if (indices[0], indices[-1]) != (self.info.first_index, self.info.last_index) or (np.diff(indices) <= 0).any():
            raise corrupt(self.path, f"column 'log_index' does not rise from {self.info.first_index} to its last")
        for name in CODES:
            self._values_of(name, self.array(name).read().tolist())
        for feature, array in self._features.items():
            if self.info.encodings.get(feature) == "jpeg":
                self._offsets_of(array)


def _read_attributes(path: Path, container: ZarrZipFile) -> EpisodeAttributes:
    """The attributes of the root, once the arrays are those that they call for."""
    raw = container.groups.get("", msgspec.Raw(b"{}"))
    try:
        versions = msgspec.json.decode(raw, type=EpisodeVersions)
        if (versions.format_version, versions.schema_version) != (FORMAT_VERSION, STEP_SCHEMA_VERSION):
            raise StorageError(
                f"{path} has file format {versions.format_version} and step schema {versions.schema_version}; this "
                f"program reads {FORMAT_VERSION} and {STEP_SCHEMA_VERSION}. Use the release that wrote it."
            )
        attributes = msgspec.json.decode(raw, type=EpisodeAttributes)
    except msgspec.MsgspecError as error:
        raise corrupt(path, f"the attributes of its root cannot be understood ({error})") from error
    problem = layout_problem(attributes, {name: array.layout for name, array in container.arrays.items()})
    if problem:
        raise corrupt(path, problem)
    return attributes
