"""What lies where in an episode file: its arrays, the attributes of its root, and which steps fit into one file."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from msgspec import Struct

from robot_stack.buffer.zarr_zip import DATA_TYPES, ArrayLayout
from robot_stack.core.errors import ConfigError
from robot_stack.core.messages import STEP_SCHEMA_VERSION, Array, Features, Refusal, Source, Step, Verdict

FORMAT_VERSION = 1
MAX_EPISODE_STEPS = 100_000
MAX_EPISODE_BYTES = 2**31  # of array data; the archive has room for a little less than 2**32
IMAGES = "observation.images."
OFFSETS = ".offsets"

ACTIONS = ("action_base", "action_asked", "action_sent")
CODES: dict[str, tuple[enum.Enum | None, ...]] = {
    "verdict": tuple(Verdict),
    "refusal": (None, *Refusal),
    "source": tuple(Source),
}

_UINT8 = np.dtype(np.uint8)
_IMAGE_ROWS = 16
_CHUNK_BYTES = 1024 * 1024
_CODE_OF = {name: {value: code for code, value in enumerate(values)} for name, values in CODES.items()}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A column with one number for each step."""

    dtype: str
    value: Callable[[int, Step], float]


SCALARS = {
    "log_index": Scalar("int64", lambda index, step: index),
    "seq": Scalar("int64", lambda index, step: step.seq),
    "segment": Scalar("int64", lambda index, step: step.segment),
    "index": Scalar("int64", lambda index, step: step.index),
    "stamp_ns": Scalar("int64", lambda index, step: step.stamp_ns),
    "weights_version": Scalar("int64", lambda index, step: step.weights_version),
    "reward": Scalar("float64", lambda index, step: step.reward),
    "success": Scalar("bool", lambda index, step: step.success),
    "terminated": Scalar("bool", lambda index, step: step.terminated),
    "truncated": Scalar("bool", lambda index, step: step.truncated),
    "late": Scalar("bool", lambda index, step: step.late),
    "verdict": Scalar("uint8", lambda index, step: _CODE_OF["verdict"][step.verdict]),
    "refusal": Scalar("uint8", lambda index, step: _CODE_OF["refusal"][step.refusal]),
    "source": Scalar("uint8", lambda index, step: _CODE_OF["source"][step.source]),
}
_RESERVED = frozenset((*SCALARS, *ACTIONS, "final", "zarr.json", "zarr.zip"))


class EpisodeVersions(Struct, frozen=True):
    """The part of the attributes that every version has."""

    format_version: int
    schema_version: int


class EpisodeAttributes(EpisodeVersions, frozen=True, forbid_unknown_fields=True):
    """Attributes of the root group. `codes`: names behind the codes of a column; "" is none."""

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
    final_action_base: bool
    instruction: str
    codes: dict[str, tuple[str, ...]]


def array_name(feature: str) -> str:
    """The name of a feature's array: its own, percent-encoded where a zarr node or another array would clash."""
    name = quote(feature, safe="")
    if name in _RESERVED or name.endswith(OFFSETS) or name.startswith("__") or not name.strip("."):
        return f"%{ord(name[0]):02X}{name[1:]}"
    return name


def is_encoded(feature: str, values: Array) -> bool:
    """Whether a feature's value is a JPEG file: any length, not decoded here."""
    return feature.startswith(IMAGES) and values.ndim == 1 and values.dtype == _UINT8


def _codec(feature: str, values: Array) -> str:
    """How an image is stored; "" if it is none."""
    raw = feature.startswith(IMAGES) and values.dtype == _UINT8 and values.ndim == 3 and values.shape[2] == 3
    return "jpeg" if is_encoded(feature, values) else "raw" if raw else ""


def row_layout(feature: str, dtype: str, shape: tuple[int, ...]) -> ArrayLayout:
    """Layout (T, ...) of a feature's array: images in chunks of 16, all else in chunks of about a megabyte."""
    row = ArrayLayout.of(dtype, shape[1:], 1)
    rows = _IMAGE_ROWS if feature.startswith(IMAGES) else _CHUNK_BYTES // max(1, row.size_bytes)
    return ArrayLayout.of(dtype, shape, rows)


def joined_layout(size_bytes: int) -> ArrayLayout:
    """Layout of JPEG files that are joined to one array of bytes."""
    return ArrayLayout.of("uint8", (size_bytes,), _CHUNK_BYTES // 4)


# ---- which steps fit together -----------------------------------------------------------------------------------


def same_layout(a: Step, b: Step) -> bool:
    """Whether both steps fit into one file: same run, robot, task, session, episode, episode seed, instruction, and the
    same features (names in the same order, dtypes, shapes; of JPEG images any length) and actions. Where it is False,
    or where `a` has a final observation or final base action, the caller begins another file with `b`."""
    return _identity(a) == _identity(b) and _shapes(a) == _shapes(b)


def step_bytes(step: Step) -> int:
    """Bytes of the step's arrays: what it adds to a file, give or take some rounding. For MAX_EPISODE_BYTES."""
    features = (*step.observation.values(), *(step.final_observation or {}).values())
    return 128 + sum(values.nbytes for values in (*features, step.action_base, step.action_asked, step.action_sent))


def check_stretch(steps: Sequence[tuple[int, Step]]) -> None:
    """ConfigError unless these steps make one file."""
    if not 0 < len(steps) <= MAX_EPISODE_STEPS:
        raise ConfigError(f"an episode file has 1 to {MAX_EPISODE_STEPS} steps, {len(steps)} were given")
    first_index, first = steps[0]
    _check_features(first_index, first.observation)
    _check_features(steps[-1][0], steps[-1][1].final_observation or {})
    identity, shapes, before, size_bytes = _identity(first), _shapes(first), -1, 0
    for position, (index, step) in enumerate(steps):
        size_bytes += step_bytes(step)
        if index <= before:
            raise ConfigError(f"log indices rise from step to step; {index} follows {before}")
        if _identity(step) != identity or _shapes(step) != shapes:
            raise ConfigError(
                f"step {index} does not fit into one file with step {first_index}: the first is {identity} with "
                f"{shapes}, this one {_identity(step)} with {_shapes(step)}. Split the stretch there (same_layout)."
            )
        has_final = step.final_observation is not None or step.final_action_base is not None
        if has_final and position < len(steps) - 1:
            raise ConfigError(f"step {index} has a final observation and is not the last. Split the stretch behind it.")
        before = index
    if size_bytes > MAX_EPISODE_BYTES:
        raise ConfigError(
            f"the steps {first_index} to {before} have {size_bytes} bytes, a file has at most {MAX_EPISODE_BYTES}. "
            "Split the stretch (step_bytes)."
        )


def describe(steps: Sequence[tuple[int, Step]], ended: bool) -> EpisodeAttributes:
    """The attributes of the file of these steps."""
    (first_index, first), (last_index, last) = steps[0], steps[-1]
    return EpisodeAttributes(
        format_version=FORMAT_VERSION,
        schema_version=STEP_SCHEMA_VERSION,
        run=first.run,
        robot=first.robot,
        task=first.task,
        session=first.session,
        episode=first.episode,
        episode_seed=first.episode_seed,
        first_index=first_index,
        last_index=last_index,
        steps=len(steps),
        ended=ended,
        features=tuple(first.observation),
        encodings={name: codec for name, values in first.observation.items() if (codec := _codec(name, values))},
        final_features=None if last.final_observation is None else tuple(last.final_observation),
        final_action_base=last.final_action_base is not None,
        instruction=first.instruction,
        codes={name: tuple("" if value is None else value.value for value in CODES[name]) for name in CODES},
    )


def _identity(step: Step) -> tuple[str, str, str, str, int, int, str]:
    return step.run, step.robot, step.task, step.session, step.episode, step.episode_seed, step.instruction


def _shapes(step: Step) -> list[tuple[str, np.dtype[Any], tuple[int, ...] | None]]:
    """Name, dtype and shape of all arrays that every step has; shape None for a JPEG file."""
    shapes = [
        (name, values.dtype, None if is_encoded(name, values) else values.shape)
        for name, values in step.observation.items()
    ]
    actions = zip(ACTIONS, (step.action_base, step.action_asked, step.action_sent), strict=True)
    return [*shapes, *((name, values.dtype, values.shape) for name, values in actions)]


def _check_features(index: int, features: Features) -> None:
    for name, values in features.items():
        if not name or len(array_name(name)) > 200 or values.dtype.name not in DATA_TYPES or values.ndim > 8:
            raise ConfigError(
                f"feature '{name}' of step {index} is {values.dtype}{list(values.shape)}; allowed are names of 1 to "
                f"200 characters, 0 to 8 dimensions, and the dtypes {', '.join(sorted(DATA_TYPES))}"
            )


# ---- what a file must hold --------------------------------------------------------------------------------------


def layout_problem(attributes: EpisodeAttributes, arrays: Mapping[str, ArrayLayout]) -> str:
    """Why these are not the arrays of a file with these attributes; "" if they are."""
    steps = attributes.steps
    rows = {array_name(name): name for name in attributes.features}
    joined = {array for array, name in rows.items() if attributes.encodings.get(name) == "jpeg"}
    final = {f"final/{array_name(name)}" for name in attributes.final_features or ()}
    final |= {"final/action_base"} if attributes.final_action_base else set()
    offsets = {name + OFFSETS for name in joined}
    wanted = {*SCALARS, *ACTIONS, *rows, *offsets, *final}
    if wanted != set(arrays):
        return f"its arrays and its attributes differ in {', '.join(sorted(wanted ^ set(arrays)))[:400]}"
    for name, layout in arrays.items():
        if name in SCALARS:
            fits = (layout.dtype, layout.shape) == (SCALARS[name].dtype, (steps,))
        elif name in joined:
            fits = layout.dtype == "uint8" and len(layout.shape) == 1
        elif name in offsets:
            fits = (layout.dtype, layout.shape) == ("int64", (steps + 1,))
        else:
            fits = name in final or layout.shape[:1] == (steps,)
        if not fits:
            return f"array '{name}' is {layout.dtype}{list(layout.shape)}, which does not fit {steps} steps"
    for name, values in CODES.items():
        names = attributes.codes.get(name, ())
        if not {"" if value is None else value.value for value in values} >= set(names) or not names:
            return f"its attributes name the codes of '{name}' as {names}"
    return "" if steps > 0 else "it has no steps"
