"""Checkpoints: complete, checked, and never half-written.

Each is a folder `step-<number>` with the tensors (safetensors), the caller's own record (`meta`, opaque bytes) and a
manifest of hashes. It is written aside, flushed and renamed, so a crash leaves the older ones untouched.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from msgspec import Struct

from policies.common.durable import sweep_aside, write_directory
from robot_stack.core.errors import CorruptDataError, StorageError
from robot_stack.core.messages import Array

CHECKPOINT_SCHEMA_VERSION = 1
TENSORS = "tensors.safetensors"
META = "meta.bin"
MANIFEST = "manifest.json"

_NAME = re.compile(r"step-(\d{12})")
_LOG = logging.getLogger(__name__)


class CheckpointManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema_version: int
    step: int
    tensors_sha256: str
    meta_sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    tensors: dict[str, Array]
    meta: bytes


class CheckpointStore:
    """The last `keep` checkpoints of one training run. One process writes to a directory; `open` before use."""

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self._directory = directory
        self._keep = keep

    def open(self) -> None:
        """Create the directory, and remove what an interrupted save left there."""
        self._directory.mkdir(parents=True, exist_ok=True)
        swept = sweep_aside(self._directory)
        if swept:
            _LOG.warning("%s: removed %d checkpoint(s) whose writing was interrupted", self._directory, swept)

    def save(self, step: int, tensors: Mapping[str, Array], meta: bytes) -> None:
        """Durable when this returns; replaces a damaged checkpoint of the same step. StorageError if the disk fails."""
        content = safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in tensors.items()})
        manifest = CheckpointManifest(
            schema_version=CHECKPOINT_SCHEMA_VERSION,
            step=step,
            tensors_sha256=hashlib.sha256(content).hexdigest(),
            meta_sha256=hashlib.sha256(meta).hexdigest(),
        )
        folder = self._folder(step)
        try:
            if folder.exists():
                if self._is_valid(step):
                    raise StorageError(f"{folder} exists already; steps only go up within a run")
                shutil.rmtree(folder)
            write_directory(folder, {TENSORS: content, META: meta, MANIFEST: msgspec.json.encode(manifest)})
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

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, valid or not, in order."""
        if not self._directory.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(match.group(1)) for match in names if match)

    def load(self, step: int) -> Checkpoint:
        """That checkpoint; CorruptDataError if any byte of it is not as written."""
        folder = self._folder(step)
        try:
            raw = (folder / MANIFEST).read_bytes()
            content, meta = (folder / TENSORS).read_bytes(), (folder / META).read_bytes()
            manifest = msgspec.json.decode(raw, type=CheckpointManifest)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptDataError(f"checkpoint {folder} is damaged: {error}") from error
        expected = CheckpointManifest(
            schema_version=CHECKPOINT_SCHEMA_VERSION,
            step=step,
            tensors_sha256=hashlib.sha256(content).hexdigest(),
            meta_sha256=hashlib.sha256(meta).hexdigest(),
        )
        if manifest != expected:
            raise CorruptDataError(f"checkpoint {folder} is damaged: its files do not match its manifest")
        try:
            return Checkpoint(step, safetensors.numpy.load(content), meta)
        except safetensors.SafetensorError as error:
            raise CorruptDataError(f"checkpoint {folder} is damaged: {error}") from error

    def _prune(self) -> None:
        """Remove old checkpoints; only once enough newer ones are known to be whole."""
        valid = [step for step in reversed(self.steps()) if self._is_valid(step)]
        if len(valid) <= self._keep:
            return
        for step in self.steps():
            if step < valid[self._keep - 1]:
                shutil.rmtree(self._folder(step))

    def _is_valid(self, step: int) -> bool:
        try:
            self.load(step)
        except CorruptDataError:
            return False
        return True

    def _folder(self, step: int) -> Path:
        return self._directory / f"step-{step:012d}"
