"""Checkpoints: complete, checked, and never half-written.

Each is a folder `step-<number>` with the tensors (safetensors), the caller's own record (`meta`, opaque bytes) and a
manifest of hashes. It is written aside, flushed and renamed, so a crash leaves the older ones untouched. The last few
are kept, for resuming, and those with the best scores.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from msgspec import Struct

from policies.common.durable import remove_directory, sweep_aside, write_directory
from robot_stack.core.errors import CorruptDataError, StorageError
from robot_stack.core.messages import Array

CHECKPOINT_SCHEMA_VERSION = 2
TENSORS = "tensors.safetensors"
META = "meta.bin"
MANIFEST = "manifest.json"

_NAME = re.compile(r"step-(\d{12})")
_LOG = logging.getLogger(__name__)


class CheckpointManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in manifest.json, in compact JSON. `sha256` covers the other fields."""

    schema_version: int
    step: int
    score: float | None
    tensors_sha256: str
    meta_sha256: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`score`: what it was saved with; higher is better, None where it was not judged."""

    step: int
    tensors: dict[str, Array]
    meta: bytes
    score: float | None = None


class CheckpointStore:
    """The last `keep` checkpoints of one training run and the `keep_best` with the highest scores.

    One process writes to a directory; `open` before use. Others may read from it at any time.
    """

    def __init__(self, directory: Path, keep: int = 3, keep_best: int = 1) -> None:
        self._directory = directory
        self._keep = max(1, keep)
        self._keep_best = keep_best

    def open(self) -> None:
        """Create the directory, and remove what an interrupted save or removal left there."""
        self._directory.mkdir(parents=True, exist_ok=True)
        swept = sweep_aside(self._directory)
        if swept:
            _LOG.warning("%s: removed %d checkpoint(s) whose writing was interrupted", self._directory, swept)

    def save(self, step: int, tensors: Mapping[str, Array], meta: bytes, score: float | None = None) -> None:
        """Durable when this returns; replaces a damaged checkpoint of the same step. StorageError if the disk fails.

        A score that is not finite counts as none.
        """
        content = safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in tensors.items()})
        judged = score if score is not None and math.isfinite(score) else None
        manifest = msgspec.json.encode(_manifest(step, content, meta, judged))
        folder = self._folder(step)
        try:
            if folder.exists():
                if self._valid(step) is not None:
                    raise StorageError(f"{folder} exists already; steps only go up within a run")
                remove_directory(folder)
            write_directory(folder, {TENSORS: content, META: meta, MANIFEST: manifest})
            self._prune()
        except OSError as error:
            raise StorageError(f"checkpoint {folder} could not be written: {error}; the older ones are kept") from error

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that passes its checks, or None. Damaged ones are passed over with a warning."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except CorruptDataError as error:
                _LOG.warning("%s; falling back to the checkpoint before it", error)
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint with the highest score that passes its checks (of equal ones the newest); None if no one was
        given a score."""
        manifests = (self._valid(step) for step in self.steps())
        ranked = _ranked([manifest for manifest in manifests if manifest is not None])
        return self.load(ranked[0].step) if ranked else None

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, valid or not, in order."""
        if not self._directory.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(match.group(1)) for match in names if match)

    def load(self, step: int) -> Checkpoint:
        """That checkpoint; CorruptDataError if any byte of it is not as written."""
        manifest, content, meta = self._read(step)
        try:
            return Checkpoint(step, safetensors.numpy.load(content), meta, manifest.score)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise CorruptDataError(f"checkpoint {self._folder(step)} is damaged: {error}") from error

    def _read(self, step: int) -> tuple[CheckpointManifest, bytes, bytes]:
        """Manifest, tensors and meta of a checkpoint, all hashes checked."""
        folder = self._folder(step)
        try:
            raw = (folder / MANIFEST).read_bytes()
            content, meta = (folder / TENSORS).read_bytes(), (folder / META).read_bytes()
            manifest = msgspec.json.decode(raw, type=CheckpointManifest)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptDataError(f"checkpoint {folder} is damaged: {error}") from error
        if manifest.schema_version != CHECKPOINT_SCHEMA_VERSION:
            raise CorruptDataError(
                f"checkpoint {folder} has schema version {manifest.schema_version}, this program reads "
                f"{CHECKPOINT_SCHEMA_VERSION}"
            )
        # Byte for byte: a flipped bit may leave the meaning of JSON as it was, but then the disk has begun to fail.
        if raw != msgspec.json.encode(_manifest(step, content, meta, manifest.score)):
            raise CorruptDataError(f"checkpoint {folder} is damaged: its files do not match its manifest")
        return manifest, content, meta

    def _prune(self) -> None:
        """Remove what is neither among the last nor among the best; only whole checkpoints count as either."""
        valid = [manifest for step in self.steps() if (manifest := self._valid(step)) is not None]
        if len(valid) <= self._keep:
            return
        oldest = valid[-self._keep].step
        best = {manifest.step for manifest in _ranked(valid)[: self._keep_best]}
        for step in self.steps():
            if step < oldest and step not in best:
                remove_directory(self._folder(step))

    def _valid(self, step: int) -> CheckpointManifest | None:
        try:
            return self._read(step)[0]
        except CorruptDataError:
            return None

    def _folder(self, step: int) -> Path:
        return self._directory / f"step-{step:012d}"


def _manifest(step: int, content: bytes, meta: bytes, score: float | None) -> CheckpointManifest:
    manifest = CheckpointManifest(
        schema_version=CHECKPOINT_SCHEMA_VERSION,
        step=step,
        score=score,
        tensors_sha256=hashlib.sha256(content).hexdigest(),
        meta_sha256=hashlib.sha256(meta).hexdigest(),
    )
    return msgspec.structs.replace(manifest, sha256=hashlib.sha256(msgspec.json.encode(manifest)).hexdigest())


def _ranked(manifests: list[CheckpointManifest]) -> list[CheckpointManifest]:
    """Those with a score, best first, of equal ones the newest first."""
    scored = [(manifest.score, manifest.step, manifest) for manifest in manifests if manifest.score is not None]
    return [manifest for _, _, manifest in sorted(scored, key=lambda item: item[:2], reverse=True)]
